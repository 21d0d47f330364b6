"""Drafting with a layer over the target's last keys: lossless whatever its weights, in constant memory."""

import functools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.models.families import VOCAB, make

from shoestring.generation.decode import generate
from shoestring.generation.decoder_runner import DecoderRunner, decoder_cache
from shoestring.generation.speculation.draft_length import FixedLength
from shoestring.generation.speculation.glide import Glide, GlideRun, likeliest, naive_likeliest
from shoestring.generation.speculation.target import Target
from shoestring.layers.attention import attend
from shoestring.layers.attention_masks import Causal
from shoestring.models.decoder import Decoder
from shoestring.models.glide_draft import GlideDraft, GlideOptions
from shoestring.numbers.cache_format import CacheFormat

PROMPT = torch.randint(VOCAB, (30,), generator=torch.Generator().manual_seed(1)).tolist()
SETTINGS = {"max_new_tokens": 40, "stop_tokens": ()}


@functools.cache
def target():
    return Decoder.from_transformers(make(scale=12.0)).double().requires_grad_(False)


@functools.cache
def draft(window=12):
    module = GlideDraft(target().cfg, GlideOptions(window)).double()
    return module.draw_weights(torch.Generator().manual_seed(2), 0.3).requires_grad_(False)


@functools.cache
def plain():
    return generate(target(), PROMPT, **SETTINGS).tokens


@pytest.mark.parametrize("shape", [None, (2, 3, 2)], ids=["chain", "tree"])
@pytest.mark.parametrize("length", [None, FixedLength()], ids=["measured", "fixed"])
def test_random_weights_cost_nothing_but_time(shape, length):
    assert (
        generate(target(), PROMPT, speculation=Glide(draft(), 3, shape, length), **SETTINGS).tokens == plain()
    )


@pytest.mark.parametrize("shape", [None, (2, 3, 2)], ids=["chain", "tree"])
def test_few_words_are_drafted_and_the_text_is_the_same(shape):
    module = GlideDraft(target().cfg, GlideOptions(12, words=9)).double()
    module.draw_weights(torch.Generator().manual_seed(2), 0.3).requires_grad_(False)
    module.choose_words((torch.arange(VOCAB) % 7 == 3).long())
    drafted = set()

    class Watched(GlideRun):
        def propose(self, root, most):
            tree = super().propose(root, most)
            drafted.update(tree.tokens[1:])
            return tree

    options = Glide(module, 3, shape, FixedLength())
    object.__setattr__(options, "draft", lambda *_: Watched(options))
    assert generate(target(), PROMPT, speculation=options, **SETTINGS).tokens == plain()
    assert drafted <= set(module.words.tolist())
    assert len(drafted) > 1


def reference(text, window):
    """Logits of the draft after all of `text`, at once; the target has read all but its last token."""
    module, ids = draft(window), torch.tensor([text])
    cache = decoder_cache(target())
    seen = target()(ids[:, :-1], cache=cache).logits is not None and cache.view(3)
    pos = torch.arange(len(text))[None]
    x = target().model.embed_tokens(ids)
    q, k, v = module.project(x, pos)
    scores = q @ k.repeat_interleave(2, 1).transpose(-1, -2) * 16**-0.5
    behind = pos[0, :, None] - pos[0]
    scores = scores.masked_fill((behind < 0) | (behind > window), -torch.inf)
    x = module.add_self(x, scores.softmax(-1) @ v.repeat_interleave(2, 1))
    causal = Causal(pos - 1, seen.pos)
    x = module.finish(x, attend(module.cross_queries(x, pos), seen, causal, 16**-0.5).out)
    return module.to_logits(target(), x)[0, -1]


@pytest.mark.parametrize("window", [5, 12, 100])
@torch.inference_mode()
def test_a_draft_is_what_the_layer_says_of_the_whole_text(window):
    """After many settled steps: one counter of positions, a ring, double inputs."""
    runner = DecoderRunner(target())
    chosen = Target(runner)
    runner.feed(torch.tensor([PROMPT]))
    run, text = GlideRun(Glide(draft(window), 3)), [*PROMPT, 7]
    run.begin(chosen, text)
    for accepted in (0, 3, 2, 3, 3, 1, 0, 3):
        tree = run.propose(text[-1], 3)
        assert tree.tokens[1] == int(reference(text, window).argmax())
        chosen.verify(tree)
        path = list(range(accepted + 1))
        chosen.keep(path)
        tokens = [*tree.tokens[1 : accepted + 1], (tree.tokens[-1] + 5) % VOCAB]
        run.settle(tree, path, tokens)
        text += tokens
        assert runner.cache.next_pos.tolist() == [len(text) - 1]


@torch.inference_mode()
def test_its_bytes_do_not_depend_on_the_context():
    sizes = []
    for context in (180, 250):
        runner = DecoderRunner(target())
        runner.feed(torch.tensor([[3] * context]))
        run = GlideRun(Glide(draft(5), 3, slack=8))
        run.begin(Target(runner), [3] * (context + 1))
        sizes.append(run.ring.nbytes())
    assert sizes[0] == sizes[1]


@given(nodes=st.integers(1, 5), vocab=st.integers(2, 23), width=st.integers(1, 9), seed=st.integers(0, 10**6))
def test_the_likeliest_continuations(nodes, vocab, width, seed):
    generator = torch.Generator().manual_seed(seed)
    logits, scores = torch.randn(nodes, vocab, generator=generator), torch.randn(nodes, generator=generator)
    found, expected = likeliest(logits, scores, width), naive_likeliest(logits, scores, width)
    assert found[:2] == expected[:2]
    torch.testing.assert_close(found[2], expected[2], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shape": ()}, "give nodes for each depth"),
        ({"shape": (2, 0)}, "give nodes for each depth"),
        ({"shape": (40, 40)}, "at most 71, which is what slack=72 leaves"),
        ({"tokens": 0}, "tokens=0 must be 1 to 71"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Glide(draft(), **settings)


def test_a_target_that_does_not_fit_is_refused():
    other = Decoder.from_transformers(make("qwen 3")).double()
    other.cfg = other.cfg.__class__(**{**vars(other.cfg), "vocab_size": 98})
    with pytest.raises(ValueError, match="vocab_size 98 instead of 97"):
        draft().check_fits(other)
    with pytest.raises(ValueError, match="one token; a draft needs two"):
        generate(target(), [3], speculation=Glide(draft()), **SETTINGS)


def test_a_lossy_last_layer_is_only_read_when_allowed():
    def cache():
        return decoder_cache(target(), CacheFormat(4, 8, tail_tokens=80))

    with pytest.raises(ValueError, match="the exact keys and values of the last layer"):
        generate(target(), PROMPT, speculation=Glide(draft()), cache=cache(), **SETTINGS)
    allowed = Glide(draft(), allow_lossy_draft=True)
    assert generate(target(), PROMPT, speculation=allowed, cache=cache(), **SETTINGS).tokens == plain()
