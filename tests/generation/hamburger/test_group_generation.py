"""Generation by groups, module by module and compiled."""

import itertools

import pytest
import torch
from tests.models.tiny_hamburger import random_ids, tiny_base, tiny_hamburger

from shoestring.data.mixed_examples import TokenExample
from shoestring.generation.decode import Finish, generate, stream
from shoestring.generation.decoder_runner import DecoderRunner, decoder_cache
from shoestring.generation.dense_cache import DenseCache
from shoestring.generation.hamburger import (
    CompiledGroupRunner,
    GroupDraft,
    GroupRunner,
    GroupSteps,
    group_runner,
    score_response,
)
from shoestring.generation.sampling import Sampling
from shoestring.generation.spatten import StartRecentImportant
from shoestring.generation.speculation import Target
from shoestring.models.decoder_step import Want
from shoestring.models.protocols import CacheCannot
from shoestring.notices import record_fallbacks
from shoestring.training.hamburger_training import naive_teacher_forced

PROMPT = random_ids(7)
RUNNERS = [GroupRunner, CompiledGroupRunner]


def steps_of(model, limit=24, runner=GroupRunner, sampling=None):
    generator = torch.Generator().manual_seed(0)
    steps = GroupSteps(runner(model), PROMPT, sampling or Sampling(), generator, limit, 512)
    steps.prefill()
    return steps


def write(steps, ends=()):
    tokens = []
    while len(tokens) < steps.limit and not (tokens and tokens[-1] in ends):
        tokens += steps.step(ends)
    return tokens


@pytest.mark.parametrize("runner_class", RUNNERS)
@pytest.mark.parametrize("options", [{}, {"output_norm": True}, {"max_steps": 3, "features": (1, 2)}])
def test_step_by_step_logits_are_those_of_teacher_forcing(runner_class, options):
    model = tiny_hamburger(**options)
    sizes = [3, 1, 2, 3, 1, 1, 2]
    example = TokenExample(torch.tensor(PROMPT + random_ids(sum(sizes), 1)), len(PROMPT))
    expected = naive_teacher_forced(model, example, sizes)
    runner, response = runner_class(model), example.ids[len(PROMPT) :].tolist()
    found, stops, at = [runner.feed(example.ids[None, : len(PROMPT)]).clone()], [runner.stop_logit], 0
    for number, size in enumerate(sizes):
        group = response[at : at + size]
        for token in group[:-1]:
            found.append(runner.micro(token).clone())
            stops.append(runner.stop_logit)
        at += size
        if number < len(sizes) - 1:
            found.append(runner.feed_group(group).clone())
            stops.append(runner.stop_logit)
    torch.testing.assert_close(torch.cat(found), expected.logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(torch.tensor(stops), expected.stop, rtol=0, atol=1e-4)


@pytest.mark.parametrize("runner_class", RUNNERS)
def test_groups_of_one_write_the_base_s_text(runner_class):
    model = tiny_hamburger(confidence=1.01)
    steps = steps_of(model, runner=runner_class)
    expected = generate(model.base, PROMPT, max_new_tokens=24, stop_tokens=[]).tokens
    assert write(steps) == expected
    assert steps.groups == [1] * 24


def test_the_first_token_of_a_group_has_the_base_s_logits():
    model, runner = tiny_hamburger(), GroupRunner(tiny_hamburger())
    logits = runner.feed(torch.tensor([PROMPT]))
    expected = model.base(torch.tensor([PROMPT]), want=Want(logits="last")).logits[:, -1]
    assert torch.equal(logits, expected)


@pytest.mark.parametrize("runner_class", RUNNERS)
@pytest.mark.parametrize("confidence", [0.0, 0.3, 0.5, 0.8, None])
def test_slots_count_groups_and_positions_tokens(runner_class, confidence):
    model = tiny_hamburger(confidence=confidence)
    steps = steps_of(model, runner=runner_class)
    tokens = write(steps)
    cache, groups = steps.runner.cache, steps.groups
    assert sum(groups) == len(tokens) == 24
    fed = len(tokens) - groups[-1]
    assert cache.length(0).tolist() == [len(PROMPT) + len(groups) - 1]
    assert cache.next_pos.tolist() == [len(PROMPT) + fed]
    ends = [len(PROMPT) - 1 + total for total in itertools.accumulate(groups[:-1])]
    assert cache.view(2).pos[0, 0].tolist() == [*range(len(PROMPT)), *ends]
    if fed:
        assert cache.slot_tokens(1)[0, 0].tolist() == [1] * len(PROMPT) + groups[:-1]


def test_cache_bytes_grow_with_groups_not_with_tokens():
    sizes = {}
    for confidence in (1.01, 0.0):
        model = tiny_hamburger(confidence=confidence)
        cache = decoder_cache(model.base)
        steps = GroupSteps(GroupRunner(model, cache), PROMPT, Sampling(), torch.Generator(), 200, 512)
        steps.prefill()
        write(steps)
        sizes[confidence] = sum(int(cache.length(layer)) for layer in range(3))
    assert sizes[1.01] == 3 * (len(PROMPT) + 199)
    assert sizes[0.0] == 3 * (len(PROMPT) + 49)


def test_without_confidence_every_group_is_full():
    steps = steps_of(tiny_hamburger(confidence=0.0), limit=23)
    write(steps)
    assert steps.groups == [4] * 5 + [3]


@pytest.mark.parametrize("runner_class", RUNNERS)
def test_a_group_ends_with_the_end_token(runner_class):
    model = tiny_hamburger(confidence=0.0)
    tokens = write(steps_of(model, runner=runner_class))
    end = tokens[5]
    first = tokens.index(end)
    steps = steps_of(model, runner=runner_class)
    assert write(steps, {end}) == tokens[: first + 1]
    assert generate(model, PROMPT, max_new_tokens=24, stop_tokens=[end]).finish is Finish.END_TOKEN


def test_both_engines_write_the_same_text_and_generate_takes_the_compiled_one():
    for confidence in (0.0, 0.5, 0.9):
        model = tiny_hamburger(confidence=confidence)
        texts = [write(steps_of(model, runner=kind)) for kind in RUNNERS]
        result = generate(model, PROMPT, max_new_tokens=24, stop_tokens=[])
        assert texts[0] == texts[1] == result.tokens
        assert len(result.tokens) == 24
    assert isinstance(group_runner(model), CompiledGroupRunner)
    assert type(group_runner(tiny_hamburger(dtype=torch.float64))) is GroupRunner


def test_what_the_prompt_s_pass_gives_is_no_decoding():
    groups = generate(tiny_hamburger(confidence=0.0), PROMPT, max_new_tokens=24, stop_tokens=[])
    assert (groups.first_tokens, groups.passes, groups.tokens_per_pass) == (4, 5, 4.0)
    assert groups.tokens_per_second == 20 / groups.decode_seconds
    singles = generate(tiny_hamburger(confidence=1.01), PROMPT, max_new_tokens=24, stop_tokens=[])
    assert (singles.first_tokens, singles.tokens_per_pass) == (1, 1.0)
    only = generate(tiny_hamburger(confidence=0.0), PROMPT, max_new_tokens=3, stop_tokens=[])
    assert (only.first_tokens, only.tokens_per_second, only.tokens_per_pass) == (3, None, None)


def test_more_confidence_means_more_passes():
    counts = []
    for confidence in (0.0, 0.4, 0.6, 1.01):
        model = tiny_hamburger(confidence=confidence)
        counts.append(generate(model, PROMPT, max_new_tokens=40, stop_tokens=[]).passes)
    assert counts[0] == 9
    assert counts[-1] == 39
    assert all(9 <= count <= 39 for count in counts)


def test_sampling_draws_every_token_and_the_seed_decides():
    model, sampling = tiny_hamburger(confidence=0.0), Sampling(temperature=1.5)
    one, same, other = (
        generate(model, PROMPT, max_new_tokens=24, sampling=sampling, seed=seed, stop_tokens=[]).tokens
        for seed in (3, 3, 4)
    )
    assert one == same
    assert one != other


def test_a_stream_that_is_left_early_has_the_tokens_so_far():
    output = stream(tiny_hamburger(confidence=0.0), PROMPT, max_new_tokens=24, stop_tokens=[])
    pieces = list(itertools.islice(output, 6))
    assert [piece.token for piece in pieces] == output.result.tokens[:6]


def test_keeping_part_of_a_group_goes_on_from_there():
    model = tiny_hamburger(confidence=0.0)
    for runner_class in RUNNERS:
        steps = steps_of(model, runner=runner_class)
        group = steps.step(())
        steps.keep(2)
        assert steps.groups == [2]
        after = steps.step(())
        runner = runner_class(model)
        runner.feed(torch.tensor([PROMPT]))
        assert int(runner.feed_group(group[:2]).argmax()) == after[0]


@pytest.mark.parametrize("separate", [True, False])
@pytest.mark.parametrize("confidence", [0.0, 0.5])
def test_verified_groups_write_the_base_s_text(separate, confidence):
    draft = tiny_hamburger(1, confidence=confidence)
    for target in (draft.base, tiny_base(9)):
        expected = generate(target, PROMPT, max_new_tokens=40, stop_tokens=[])
        found = generate(
            target, PROMPT, max_new_tokens=40, stop_tokens=[],
            speculation=GroupDraft(draft, separate_last=separate),
        )  # fmt: skip
        assert found.tokens == expected.tokens
    # Its own first tokens are always right.
    own = generate(
        draft.base, PROMPT, max_new_tokens=40, stop_tokens=[], speculation=GroupDraft(draft, tokens=1)
    )
    assert own.passes < 39


def test_a_draft_keeps_fewer_slots_than_tokens():
    draft = tiny_hamburger(1, confidence=0.0)
    run = GroupDraft(draft).draft(torch.Generator(), 0.0)
    run.runner = GroupRunner(draft)
    run.begin(Target(DecoderRunner(draft.base)), [*PROMPT, 5])
    tree = run.propose(5, 4)
    run.settle(tree, [0, 1, 2, 3], [*tree.tokens[1:4], 9])
    run.propose(9, 4)
    assert run.runner.cache.slot_tokens(0)[0, 0].tolist() == [1] * len(PROMPT) + [1, 3, 1]


def test_scores_need_a_segmentation():
    model, response = tiny_hamburger(), random_ids(9, 4)
    for bad in (None, "words"):
        with pytest.raises(ValueError, match="segment="):
            score_response(model, PROMPT, response, bad)
    with pytest.raises(ValueError, match="sum to 8"):
        score_response(model, PROMPT, response, [4, 4])
    with pytest.raises(ValueError, match="0 tokens of prompt"):
        score_response(model, [], response, "singles")


def test_scores_of_singles_are_the_base_s_and_those_of_sizes_teacher_forced():
    model, response, sizes = tiny_hamburger(), random_ids(9, 4), [4, 1, 3, 1]
    ids = torch.tensor(PROMPT + response)
    logits = model.base(ids[None]).logits[0, len(PROMPT) - 1 : -1]
    plain = logits.log_softmax(-1).gather(1, ids[len(PROMPT) :, None])[:, 0]
    torch.testing.assert_close(score_response(model, PROMPT, response, "singles").log_p, plain)
    forced = naive_teacher_forced(model, TokenExample(ids, len(PROMPT)), sizes).logits
    grouped = forced.log_softmax(-1).gather(1, ids[len(PROMPT) :, None])[:, 0]
    found = score_response(model, PROMPT, response, sizes)
    torch.testing.assert_close(found.log_p, grouped)
    assert found.groups == tuple(sizes)
    model.confidence = 0.0
    assert score_response(model, PROMPT, response, "model").groups == (4, 4, 1)
    assert found.perplexity == pytest.approx(float((-grouped.mean()).exp()), rel=1e-4)


def test_bad_input_is_refused():
    model = tiny_hamburger()
    with pytest.raises(ValueError, match="prompt is empty"):
        generate(model, [], max_new_tokens=4)
    with pytest.raises(ValueError, match="speculation=GroupDraft"):
        generate(model, PROMPT, speculation=GroupDraft(model))
    with pytest.raises(ValueError, match="tokens=0"):
        GroupDraft(model, tokens=0)
    with pytest.raises(NotImplementedError, match="2 sequences"):
        GroupRunner(model, DenseCache(3, 2, 2, 8))
    runner = GroupRunner(model)
    with pytest.raises(ValueError, match="nothing was fed"):
        runner.micro(3)
    with pytest.raises(ValueError, match="nothing was fed"):
        _ = runner.stop_logit
    runner.feed(torch.tensor([PROMPT]))
    with pytest.raises(ValueError, match="a group of 5 tokens"):
        runner.feed_group([1] * 5)


def test_slots_are_evicted_whole_and_keep_their_counts():
    model = tiny_hamburger(confidence=0.0)
    plain = generate(model, PROMPT, max_new_tokens=24, stop_tokens=[]).tokens
    kept = generate(model, PROMPT, max_new_tokens=24, stop_tokens=[], selection=StartRecentImportant())
    assert kept.tokens == plain
    runner = GroupRunner(model, selection=StartRecentImportant(2, 3, 2))
    steps = GroupSteps(runner, PROMPT, Sampling(), torch.Generator(), 24, 512)
    steps.prefill()
    write(steps)
    cache = runner.cache
    assert cache.length(1).tolist() == [7]
    assert cache.next_pos.tolist() == [len(PROMPT) + 20]
    # Every kept slot still stands for what was put into it: prompt tokens for one, groups for four.
    pos, tokens = cache.view(1).pos[0], cache.slot_tokens(1)[0]
    assert torch.equal(tokens, torch.where(pos < len(PROMPT), 1, 4).to(tokens.dtype))
    assert (pos >= len(PROMPT)).any()


def test_a_cache_that_was_evicted_from_is_no_cache_for_the_compiled_step():
    runner = CompiledGroupRunner(tiny_hamburger())
    runner.feed(torch.tensor([PROMPT]))
    runner.cache.evict(1, torch.tensor([[0, 2]]))
    with pytest.raises(CacheCannot, match="use a GroupRunner"):
        runner.feed_group([3])


def test_claimed_slots_stand_for_one_token_until_it_is_noted():
    cache = DenseCache(2, 1, 2, 4, capacity=8)
    cache.claim(3)
    cache.note_tokens(4)
    cache.give_back(1)
    cache.claim(1, skipped=2)
    assert cache.slot_tokens(0)[0, 0].tolist() == [1, 1, 1]
    assert cache.alike_slots() == 3
    assert cache.next_pos.tolist() == [5]
    cache.note_tokens(3)
    assert cache.slot_tokens(1)[0, 0].tolist() == [1, 1, 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_long_prompt_and_half_precision_go_through_both_engines(dtype):
    model = tiny_hamburger(dtype=dtype)
    prompt = torch.tensor([random_ids(30, 5)])
    runners = [kind(model) for kind in RUNNERS]
    atol = 1e-4 if dtype == torch.float32 else 0.3
    for step in (
        lambda r: r.feed(prompt), lambda r: r.micro(4), lambda r: r.feed_group([3, 4]), lambda r: r.micro(5),
    ):  # fmt: skip
        one, other = (step(runner).float() for runner in runners)
        torch.testing.assert_close(one, other, rtol=0, atol=atol)
        assert abs(runners[0].stop_logit - runners[1].stop_logit) < atol


def test_windows_and_rewritten_heads_are_left_to_the_modules():
    windowed, rewritten = tiny_hamburger(), tiny_hamburger()
    fields = {name: getattr(windowed.base.cfg, name) for name in windowed.base.cfg.__dataclass_fields__}
    windowed.base.cfg = type(windowed.base.cfg)(**{**fields, "windows": (4, None, None)})
    rewritten.base.lm_head = torch.nn.Sequential(rewritten.base.lm_head)
    for model, reason in ((windowed, "windows"), (rewritten, "Sequential")):
        with record_fallbacks() as said:
            assert type(group_runner(model)) is GroupRunner
        assert reason in said[0]
