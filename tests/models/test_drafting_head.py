"""The head of a draft: nearly the target's, of half the bytes, made once for each head."""

import torch
from torch import nn

from shoestring.models.decoder import Decoder
from shoestring.models.drafting_head import DraftingHead, drafting_head

from .families import VOCAB, make


def test_a_float32_head_is_nearly_itself_in_half_the_bytes():
    head = nn.Linear(64, VOCAB, bias=False).requires_grad_(False)
    x = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(0))
    found = DraftingHead(head)
    assert found.nbytes == head.weight.nbytes / 2
    torch.testing.assert_close(found(x), head(x), rtol=0.02, atol=0.02)
    assert not torch.equal(found(x), head(x))
    rounded = nn.functional.linear(x, head.weight.bfloat16().float())
    torch.testing.assert_close(found(x), rounded, rtol=1e-5, atol=1e-5)


def test_other_heads_are_asked_as_they_are():
    for head in (nn.Linear(8, 5).double(), nn.Linear(8, 5).bfloat16(), nn.Sequential(nn.Linear(8, 5))):
        x = torch.randn(1, 2, 8, dtype=next(head.parameters()).dtype)
        found = DraftingHead(head)
        assert found.nbytes is None
        assert torch.equal(found(x), head(x))


def test_it_is_made_once_and_follows_the_target():
    target = Decoder.from_transformers(make()).requires_grad_(False)
    first = drafting_head(target)
    assert drafting_head(target) is first
    target.lm_head = nn.Linear(target.cfg.hidden_size, VOCAB, bias=False)
    assert drafting_head(target).head is target.lm_head
