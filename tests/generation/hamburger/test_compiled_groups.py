"""A group in one compiled call against the modules, over odd shapes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models.tiny_hamburger import VOCAB, random_ids, tiny_hamburger

from shoestring.generation.hamburger import CompiledGroupRunner, GroupRunner, GroupSteps
from shoestring.generation.sampling import Sampling
from shoestring.kernels.decode_group import DecodeGroup
from shoestring.layers.rotary import Rope
from shoestring.models.decoder import Decoder
from shoestring.models.decoder_config import DecoderConfig
from shoestring.models.hamburger import Hamburger
from shoestring.models.hamburger_options import HamburgerOptions
from shoestring.yardstick.flops import CostCounter

PROMPT = random_ids(7)
NEAR = 2e-3
"""Float32 sums in another order may choose another of two tokens as close as this."""


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def odd_hamburger(seed, merge_heads, half_size, vocab, layers, max_steps, tied):
    hidden = merge_heads * 2 * half_size
    cfg = DecoderConfig(
        vocab_size=vocab, hidden_size=hidden, intermediate_size=37, num_hidden_layers=layers,
        num_attention_heads=3, num_key_value_heads=1, head_dim=6, windows=(None,) * layers,
        ropes=(Rope(10_000.0),) * layers, max_position_embeddings=256, tie_word_embeddings=tied,
        eos_token_id=0,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    base = Decoder(cfg)
    for parameter in base.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=2 * parameter.shape[1] ** -0.5, generator=generator)
    options = HamburgerOptions(
        tuple(range(layers)), max_steps=max_steps, micro_layers=1 + seed % 2, merge_head_size=2 * half_size,
        output_norm=bool(seed % 3),
    )  # fmt: skip
    model = Hamburger(base, options, 0.5).draw_weights(generator)
    # Random biases, so that leaving one out is seen.
    for module in (model.embedder, model.stop):
        for name, parameter in module.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.5, generator=generator)
    return model.requires_grad_(False).eval()


def replay(runner, fed, group, most, ends):
    """That the modules would choose this group too, but for what is nearly equal."""
    logits = runner.feed_group(fed)
    confidence = runner.hamburger.confidence
    for place, token in enumerate(group):
        assert float(logits.max() - logits[0, token]) < NEAR
        if place == most - 1 or token in ends:
            assert place == len(group) - 1
            return
        trust = float(torch.sigmoid(torch.tensor(-runner.stop_logit)))
        if place == len(group) - 1:
            assert trust < (0.5 if confidence is None else confidence) + NEAR
        else:
            assert trust > (0.5 if confidence is None else confidence) - NEAR
            logits = runner.micro(token)


@settings(max_examples=12)
@given(
    seed=st.integers(0, 99),
    merge_heads=st.sampled_from([1, 2, 3, 5]),
    half_size=st.sampled_from([1, 3, 4, 8]),
    vocab=st.sampled_from([2, 5, 16, 31, 67]),
    layers=st.integers(1, 3),
    max_steps=st.integers(1, 6),
    confidence=st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.01, None]),
    tied=st.booleans(),
)
def test_a_group_is_the_one_that_the_modules_give(
    seed, merge_heads, half_size, vocab, layers, max_steps, confidence, tied
):
    model = odd_hamburger(seed, merge_heads, half_size, vocab, layers, max_steps, tied)
    model.confidence = confidence
    compiled, modules = CompiledGroupRunner(model), GroupRunner(model)
    generator = torch.Generator().manual_seed(seed)
    prompt = torch.randint(vocab, (1, 5), generator=generator)
    for runner in (compiled, modules):
        runner.feed(prompt)
    for _ in range(3):
        size = int(torch.randint(1, max_steps + 1, (), generator=generator))
        fed = torch.randint(vocab, (size,), generator=generator).tolist()
        most = int(torch.randint(1, max_steps + 1, (), generator=generator))
        ends = [int(torch.randint(vocab, (), generator=generator))]
        group = compiled.greedy_group(fed, most, ends)
        assert 1 <= len(group) <= most
        replay(modules, fed, group, most, ends)
        assert compiled.stop_logit == pytest.approx(modules.stop_logit, rel=1e-3, abs=NEAR)
        if len(group) < max_steps:
            # Both can go on from where the group ended.
            torch.testing.assert_close(
                compiled.micro(group[-1]), modules.micro(group[-1]), rtol=1e-3, atol=NEAR
            )
    assert compiled.cache.next_pos == modules.cache.next_pos
    assert torch.equal(compiled.cache.view(0).pos, modules.cache.view(0).pos)
    torch.testing.assert_close(compiled.cache.view(0).k, modules.cache.view(0).k, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_number_of_threads_changes_no_number(dtype, threads):
    model = tiny_hamburger(confidence=0.3, dtype=dtype)
    found = []
    for count in (1, 2, 3):
        threads(count)
        runner = CompiledGroupRunner(model)
        runner.feed(torch.tensor([PROMPT]))
        fed, groups, stops = [3, 4], [], []
        for _ in range(6):
            fed = runner.greedy_group(fed, 4, ())
            groups.append(fed)
            stops.append(runner.stop_logit)
        found.append((groups, stops, runner.cache.view(2).k.clone()))
    for groups, stops, keys in found[1:]:
        assert (groups, stops) == found[0][:2]
        assert torch.equal(keys, found[0][2])


def test_a_runner_may_change_between_calls_of_groups_and_of_single_steps(threads):
    model = tiny_hamburger(confidence=0.0)
    runner, other = CompiledGroupRunner(model), GroupRunner(model)
    for one in (runner, other):
        one.feed(torch.tensor([PROMPT]))
    for count in (1, 2, 1):
        threads(count)
        assert runner.greedy_group([5, 6], 4, ()) == other.greedy_group([5, 6], 4, ())
        for one in (runner, other):
            one.feed_group([9])
            one.micro(2)
        assert runner.stop_logit == pytest.approx(other.stop_logit, abs=NEAR)


def test_a_penalty_keeps_the_way_by_single_steps():
    model, sampling = tiny_hamburger(confidence=0.0), Sampling(repetition_penalty=1.3)
    texts = []
    for kind in (GroupRunner, CompiledGroupRunner):
        steps = GroupSteps(kind(model), PROMPT, sampling, torch.Generator(), 20, 512)
        steps.prefill()
        texts.append([token for _ in range(5) for token in steps.step(())])
    assert texts[0] == texts[1]
    assert texts[0] != PROMPT


def test_what_is_not_a_number_is_refused():
    for place, message in (("stop", "stop head gives NaN"), ("embed", "hold NaN")):
        model = tiny_hamburger(confidence=0.5)
        runner = CompiledGroupRunner(model)
        runner.feed(torch.tensor([PROMPT]))
        if place == "stop":
            model.stop[2].weight[0, 0] = torch.nan
        else:
            model.base.model.embed_tokens.weight[3] = torch.nan
        with pytest.raises(ValueError, match=message):
            runner.greedy_group([3], 4, ())


def test_groups_that_cannot_be_are_refused():
    runner = CompiledGroupRunner(tiny_hamburger())
    runner.feed(torch.tensor([PROMPT]))
    with pytest.raises(ValueError, match="a group of 5 tokens"):
        runner.greedy_group([1] * 5, 4, ())
    group = runner._group
    for fed, most, message in (
        ([], 2, "a group of 0 tokens fed"), ([1], 0, "0 wanted"), ([1], 5, "5 wanted"),
        ([VOCAB], 1, "vocabulary"), ([-1], 1, "vocabulary"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            group(fed, 8, 0, most)
    with pytest.raises(ValueError, match="no room for slot 4000"):
        group([1], 4000, 0, 1)


def test_parts_that_do_not_fit_are_refused():
    runner = CompiledGroupRunner(tiny_hamburger())
    base, micro = runner._base.step, runner._micro.step
    from shoestring.generation.hamburger.compiled_group_runner import _merge_weights, _stop_weights

    merge, stop = _merge_weights(runner.hamburger), _stop_weights(runner.hamburger)
    embedding = runner.model.model.embed_tokens.weight
    with pytest.raises(TypeError, match="float64"):
        DecodeGroup(base, micro, 2, embedding.double(), merge, stop)
    with pytest.raises(ValueError, match="a vocabulary of 52"):
        DecodeGroup(base, micro, 2, embedding[:-1], merge, stop)
    with pytest.raises(ValueError, match="2 taps for 3 features"):
        DecodeGroup(base, micro, 3, embedding, merge, stop)


def test_the_cost_of_a_group_is_that_of_its_steps():
    runner = CompiledGroupRunner(tiny_hamburger(confidence=0.0))
    runner.feed(torch.tensor([PROMPT]))
    flops = []
    for most in (1, 2, 3):
        with CostCounter() as counter:
            runner.greedy_group([3, 4], most, ())
        flops.append(counter.stated_flops)
    base = runner._base.step.cost(len(PROMPT) + 1)[0]
    assert flops[0] > base
    assert flops[1] - flops[0] > 3 * runner._micro.step.cost(3)[0]
    assert flops[2] - flops[1] < flops[1] - flops[0]
