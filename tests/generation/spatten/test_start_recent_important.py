"""The selection of the public language-model code."""

import pytest
import torch
from tests.models.families import VOCAB, make

from shoestring.generation.decode import generate
from shoestring.generation.decoder_runner import DecoderRunner, decoder_cache
from shoestring.generation.evicting_cache import CachePolicy
from shoestring.generation.spatten import StartRecentImportant
from shoestring.models.decoder import Decoder
from shoestring.models.hooks import AttnPlan

PROMPT = torch.randint(VOCAB, (1, 23), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def decoder():
    return Decoder.from_transformers(make("llama", scale=12.0)).double().requires_grad_(False)


class Scores:
    """Scores before the softmax of one layer, summed over the queries of a pass, by KV head."""

    def attn_plan(self, layer, q, pos, ctx):
        def note(call):
            view, mask = call.read()
            k = view.k.repeat_interleave(2, 1)
            seen = mask.seen(slice(0, q.shape[2]), slice(0, k.shape[2]))
            scores = (q @ k.mT * call.scale).masked_fill(~seen, 0)
            if call.layer == 1:
                self.found = scores.sum(2).unflatten(1, (-1, 2)).sum(2)
            return call.default()

        return AttnPlan(attend=note)


def test_each_head_keeps_the_largest_scores_of_the_step(decoder):
    policy = StartRecentImportant(2, 3, 4)
    assert isinstance(policy, CachePolicy)
    scores = Scores()
    decoder(PROMPT, cache=decoder_cache(decoder), hooks=[scores])
    runner = DecoderRunner(decoder, selection=policy)
    runner.feed(PROMPT)
    runner.prompt_is_read()
    for head, row in enumerate(runner.cache.view(1).pos[0].tolist()):
        important = scores.found[0, head, 2:20].topk(4).indices + 2
        assert row == [0, 1, *sorted(important.tolist()), 20, 21, 22]
    runner.feed(PROMPT[:, :1])
    assert runner.cache.length(3).tolist() == [9]


def test_a_large_one_changes_nothing(decoder):
    expected = generate(decoder, PROMPT[0].tolist(), max_new_tokens=9, stop_tokens=())
    found = generate(
        decoder, PROMPT[0].tolist(), max_new_tokens=9, stop_tokens=(), selection=StartRecentImportant()
    )
    assert found.tokens == expected.tokens


def test_numbers_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="recent=-1"):
        StartRecentImportant(1, -1, 1)
    with pytest.raises(ValueError, match="one must be 1 or more"):
        StartRecentImportant(0, 0, 0)
