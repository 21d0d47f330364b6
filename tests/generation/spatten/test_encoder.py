"""Token pruning of a small random encoder."""

import pytest
import torch
from tests.compression.models import bert

from shoestring.generation.spatten import CascadeEncoder, count_schedule
from shoestring.generation.spatten.policy import InvertedRank, RandomRank

IDS = torch.randint(5, 60, (2, 17), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model():
    return bert().eval().double().requires_grad_(False)


def layers(model):
    return len(model.encoder.layer)


def test_without_pruning_it_is_the_model(model):
    mask = torch.ones_like(IDS, dtype=torch.bool)
    mask[1, 12:] = False
    expected = model(IDS, attention_mask=mask.long())[0]
    for tokens in (None, count_schedule([17] * layers(model))):
        found = CascadeEncoder(model, tokens)(IDS, mask)
        torch.testing.assert_close(found.hidden[0], expected[0], rtol=0, atol=1e-9)
        torch.testing.assert_close(found.hidden[1, :12], expected[1, :12], rtol=0, atol=1e-9)
        torch.testing.assert_close(found.mean()[1], expected[1, :12].mean(0), rtol=0, atol=1e-9)


@pytest.mark.parametrize("rank", [None, InvertedRank(), RandomRank(1)])
def test_survivors_are_as_many_as_planned_and_in_order(model, rank):
    counts = [17, *range(11, 11 - layers(model) + 1, -1)]
    found = CascadeEncoder(model, count_schedule(counts), rank=rank)(IDS)
    assert found.hidden.shape[:2] == (2, counts[-1])
    for row in found.index.tolist():
        assert row == sorted(set(row))
        assert row[0] == 0


def test_a_batch_with_padding_is_single_runs(model):
    counts = [17, *range(11, 11 - layers(model) + 1, -1)]
    encoder = CascadeEncoder(model, count_schedule(counts))
    mask = torch.ones_like(IDS, dtype=torch.bool)
    mask[1, 7:] = False
    both = encoder(IDS, mask)
    alone = encoder(IDS[1:, :7], mask[1:, :7]) if counts[0] >= 7 else None
    present = both.index[1] >= 0
    assert torch.equal(both.index[1][present], alone.index[0])
    torch.testing.assert_close(both.hidden[1][present], alone.hidden[0], rtol=0, atol=1e-9)


def test_what_does_not_fit_is_refused(model):
    with pytest.raises(TypeError, match="Linear is no BertModel"):
        CascadeEncoder(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="of 1 layers"):
        CascadeEncoder(model, count_schedule([3]))
    with pytest.raises(ValueError, match="protect_first=-1"):
        CascadeEncoder(model, protect_first=-1)
    with pytest.raises(ValueError, match="layer 0 is to get 3 tokens of 17"):
        CascadeEncoder(model, count_schedule([3] * layers(model)))(IDS)
    with pytest.raises(ValueError, match="no token at all"):
        CascadeEncoder(model)(IDS, torch.zeros_like(IDS, dtype=torch.bool))
