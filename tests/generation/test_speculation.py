"""Generation with drafts gives the text of generation without, whatever the drafts are worth."""

import functools

import pytest
import torch
from tests.models.families import VOCAB, make

from shoestring.generation.compiled_runner import CompiledRunner
from shoestring.generation.decode import Finish, generate, stream
from shoestring.generation.decoder_runner import DecoderRunner, decoder_cache
from shoestring.generation.sampling import Sampling
from shoestring.generation.speculation.draft_length import FixedLength
from shoestring.generation.speculation.draft_tree import DraftTree
from shoestring.generation.speculation.prompt_lookup import PromptLookup
from shoestring.generation.speculation.target import Target
from shoestring.models.decoder import Decoder
from shoestring.numbers.cache_format import CacheFormat

from .speculation_inputs import Oracle, random_tree

FAMILIES = ["llama", "mistral, window of 7", "gemma 3"]


@functools.cache
def decoder_of(family="llama", dtype=torch.float64):
    decoder = Decoder.from_transformers(make(family, scale=12.0 if family == "llama" else 3.0))
    if family == "gemma 3":
        decoder.model.embed_tokens.weight.data *= 0.1
        decoder.model.norm.weight.data += 20
    return decoder.to(dtype).requires_grad_(False)


def prompt_of(seed, length=9):
    return torch.randint(VOCAB, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@functools.cache
def plain(family, dtype, seed, tokens=64):
    settings = {"max_new_tokens": tokens, "stop_tokens": ()}
    return generate(decoder_of(family, dtype), prompt_of(seed), **settings).tokens


def with_draft(draft, family="llama", dtype=torch.float64, seed=0, tokens=64, **settings):
    settings = {"max_new_tokens": tokens, "stop_tokens": (), "speculation": draft, **settings}
    return generate(decoder_of(family, dtype), prompt_of(seed), **settings)


@pytest.mark.parametrize("branches", [1, 3], ids=["chain", "tree"])
@pytest.mark.parametrize("wrong", [0, 3, 10])
@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(i, marks=pytest.mark.slow) for i in range(2, 20))])
def test_greedy_text_is_that_of_plain_decoding(seed, wrong, branches):
    expected = plain("llama", torch.float64, seed)
    # A draft that costs nothing is cut to what is worth verifying, node by node: a tree would lose its depth.
    oracle = Oracle(expected, VOCAB, wrong, branches, free=branches == 1)
    result = with_draft(oracle, seed=seed)
    assert result.tokens == expected
    assert sum(oracle.passes) + 1 <= 64
    if wrong == 0:
        assert result.passes == 11, "63 tokens by six at a time"
    if wrong == 10 and branches == 1:
        assert result.passes == 63


def test_the_texts_are_worth_comparing():
    assert all(len(set(plain("llama", torch.float64, seed))) > 10 for seed in (0, 1))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("branches", [1, 2])
def test_windows_hold_in_a_tree_too(family, branches):
    expected = plain(family, torch.float64, 3, 40)
    assert with_draft(Oracle(expected, VOCAB, 3, branches), family, seed=3, tokens=40).tokens == expected


@pytest.mark.parametrize("branches", [1, 2], ids=["compiled chain", "tree"])
@pytest.mark.parametrize("wrong", [0, 4])
def test_the_compiled_step_verifies(wrong, branches):
    expected = plain("llama", torch.float32, 1)
    result = with_draft(Oracle(expected, VOCAB, wrong, branches, tokens=7), dtype=torch.float32, seed=1)
    assert result.tokens == expected
    assert result.passes < 50


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lookup_in_the_prompt(dtype):
    prompt = prompt_of(5, 12) * 3
    settings = {"max_new_tokens": 60, "stop_tokens": ()}
    expected = generate(decoder_of(dtype=dtype), prompt, **settings).tokens
    for length in (FixedLength(), None):
        found = generate(decoder_of(dtype=dtype), prompt, speculation=PromptLookup(length=length), **settings)
        assert found.tokens == expected


@pytest.mark.parametrize("branches", [1, 3])
def test_a_seed_draws_the_text_that_it_draws_without_a_draft(branches):
    hot = Sampling(temperature=0.8, top_p=0.95, repetition_penalty=1.3)
    settings = {"sampling": hot, "seed": 11}
    expected = with_draft(None, **settings).tokens
    for wrong in (0, 5):
        assert with_draft(Oracle(expected, VOCAB, wrong, branches), **settings).tokens == expected
    assert expected != with_draft(None, **settings | {"seed": 12}).tokens


@pytest.mark.parametrize("index", [3, 6, 7, 8])
def test_an_end_token_inside_an_accepted_path_ends_the_output(index):
    expected = plain("llama", torch.float64, 2)
    end = expected[index]
    cache = decoder_cache(decoder_of())
    result = with_draft(Oracle(expected, VOCAB), seed=2, stop_tokens=[end], cache=cache)
    cut = expected.index(end) + 1
    assert (result.tokens, result.finish) == (expected[:cut], Finish.END_TOKEN)
    assert cache.next_pos.tolist() == [9 + cut - 1] == cache.length(0).tolist()


@pytest.mark.parametrize("length", [1, 2, 7, 8])
def test_the_output_is_never_longer_than_asked(length):
    expected = plain("llama", torch.float64, 2)
    result = with_draft(Oracle(expected, VOCAB), seed=2, tokens=length)
    assert (result.tokens, result.finish) == (expected[:length], Finish.LENGTH)


def test_the_context_is_a_limit_too():
    prompt = prompt_of(1, 250)
    settings = {"max_new_tokens": 64, "stop_tokens": ()}
    expected = generate(decoder_of(), prompt, **settings)
    result = generate(decoder_of(), prompt, speculation=Oracle(expected.tokens, VOCAB), **settings)
    assert (result.tokens, result.finish) == (expected.tokens, Finish.CONTEXT)


class Letters:
    """A letter for each token."""

    def encode(self, text):
        return [ord(c) - 60 for c in text]

    def decode(self, token_ids, skip_special_tokens=True):
        return "".join(chr(60 + i) for i in token_ids)


@pytest.mark.parametrize("branches", [1, 2])
@pytest.mark.parametrize("at", [4, 6])
def test_a_stop_string_inside_a_path_takes_back_what_follows(at, branches):
    expected = plain("llama", torch.float64, 4)
    text = Letters().decode(expected)
    stop, cache = text[at : at + 2], decoder_cache(decoder_of())
    seen = []
    result = generate(
        decoder_of(), prompt_of(4), Letters(), max_new_tokens=64, stop=[stop], stop_tokens=(), cache=cache,
        speculation=Oracle(expected, VOCAB, branches=branches), on_token=seen.append,
    )  # fmt: skip
    cut = text.index(stop)
    assert (result.text, result.finish) == (text[:cut], Finish.STOP_STRING)
    assert result.tokens == expected[: cut + 2] == [piece.token for piece in seen]
    assert cache.next_pos.tolist() == [9 + cut + 1]


def test_several_tokens_of_a_step_are_streamed_one_by_one():
    expected = plain("llama", torch.float64, 4)
    output = stream(
        decoder_of(), prompt_of(4), max_new_tokens=64, stop_tokens=(), speculation=Oracle(expected, VOCAB)
    )
    assert [piece.token for _, piece in zip(range(9), output, strict=False)] == expected[:9]
    assert output.result.tokens == expected[:9]


def runner_of(kind, **options):
    if kind == "compiled":
        return CompiledRunner(decoder_of(dtype=torch.float32), **options)
    return DecoderRunner(decoder_of(dtype=torch.float32 if kind == "float32" else torch.float64), **options)


@pytest.mark.parametrize(("kind", "tolerance"), [("float32", 5e-4), ("float64", 1e-9), ("compiled", 5e-4)])
@pytest.mark.parametrize("seed", range(2))
@torch.inference_mode()
def test_after_a_verified_step_the_cache_is_that_of_the_text(kind, tolerance, seed):
    generator = torch.Generator().manual_seed(seed)
    runner, prompt = runner_of(kind), prompt_of(seed)
    target = Target(runner)
    runner.feed(torch.tensor([prompt]))
    for nodes in (1, 5, 8, 3):
        tree = random_tree(nodes, VOCAB, generator)
        if kind == "compiled" and nodes != 5:
            tree = DraftTree.chain(tree.tokens[0], tree.tokens[1:])
        logits = target.verify(tree)
        path = [len(tree) - 1]
        while path[0]:
            path.insert(0, tree.parents[path[0]])
        target.keep(path[: max(1, len(path) - seed % 2)])
        prompt = prompt + [tree.tokens[node] for node in path[: max(1, len(path) - seed % 2)]]
        fresh = runner_of(kind)
        expected = fresh.model(torch.tensor([prompt]), cache=fresh.cache).logits[0, -1]
        kept = path[max(1, len(path) - seed % 2) - 1]
        torch.testing.assert_close(logits[kept], expected, rtol=0, atol=5 * tolerance)
        assert runner.cache.next_pos.tolist() == [len(prompt)]
        for layer in range(4):
            one, other = runner.cache.view(layer), fresh.cache.view(layer)
            assert torch.equal(one.pos, other.pos)
            torch.testing.assert_close(one.k, other.k, rtol=0, atol=tolerance)
            torch.testing.assert_close(one.v, other.v, rtol=0, atol=tolerance)
    if kind == "compiled":
        assert runner.cache.plain_slots() == len(prompt), "the next step is compiled again"


def test_a_tail_in_full_precision_takes_a_draft_back():
    cache = decoder_cache(decoder_of(), CacheFormat(4, 8, tail_tokens=32))
    expected = plain("llama", torch.float64, 6, 20)
    found = with_draft(Oracle(expected, VOCAB, 3), seed=6, tokens=20, cache=cache).tokens
    assert found == expected


def test_what_cannot_verify_is_refused():
    with pytest.raises(TypeError, match="load the model as one"):
        generate(make(), [1, 2], speculation=PromptLookup())
    with pytest.raises(ValueError, match="call verify first"):
        Target(DecoderRunner(decoder_of())).keep([0])
