"""What a draft drafts with: nearly the layers that were trained, of half the bytes, made once."""

import torch
from torch import nn

from shoestring.models.decoder import Decoder
from shoestring.models.drafting_form import DraftingLinear, drafting_form, drafting_head
from shoestring.models.glide_draft import GlideDraft

from .families import VOCAB, make


def test_a_float32_head_is_nearly_itself_in_half_the_bytes():
    head = nn.Linear(64, VOCAB, bias=False).requires_grad_(False)
    x = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(0))
    found = DraftingLinear(head)
    assert found.nbytes == head.weight.nbytes / 2
    torch.testing.assert_close(found(x), head(x), rtol=0.02, atol=0.02)
    assert not torch.equal(found(x), head(x))
    rounded = nn.functional.linear(x, head.weight.bfloat16().float())
    torch.testing.assert_close(found(x), rounded, rtol=1e-5, atol=1e-5)


def test_other_heads_are_asked_as_they_are():
    for head in (nn.Linear(8, 5).double(), nn.Linear(8, 5).bfloat16(), nn.Sequential(nn.Linear(8, 5))):
        x = torch.randn(1, 2, 8, dtype=next(head.parameters()).dtype)
        found = DraftingLinear(head)
        assert found.nbytes is None
        assert torch.equal(found(x), head(x))


def test_it_is_made_once_and_follows_the_target():
    target = Decoder.from_transformers(make()).requires_grad_(False)
    first = drafting_head(target)
    assert drafting_head(target) is first
    target.lm_head = nn.Linear(target.cfg.hidden_size, VOCAB, bias=False)
    assert drafting_head(target).linear is target.lm_head


def test_a_draft_by_kernels_is_nearly_itself_and_follows_its_weights():
    target = Decoder.from_transformers(make()).requires_grad_(False)
    draft = GlideDraft(target.cfg).copy_last_layer(target).requires_grad_(False)
    form = drafting_form(draft)
    assert drafting_form(draft) is form
    assert isinstance(draft.q_proj, nn.Linear)
    x = torch.randn(1, 3, target.cfg.hidden_size, generator=torch.Generator().manual_seed(0))
    pos = torch.arange(3)[None]
    for found, expected in zip(form.project(x, pos), draft.project(x, pos), strict=True):
        torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)
        assert not torch.equal(found, expected)
    draft.k_proj.weight.zero_()
    assert drafting_form(draft) is not form
    assert not drafting_form(draft).project(x, pos)[1].any()
