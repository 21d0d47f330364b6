"""What a draft drafts with: nearly the layers that were trained, of half the bytes, made once."""

import pytest
import torch
from torch import nn

from shoestring.layers.packed_linear import PackedLinear, PackedWeight
from shoestring.models.decoder import Decoder
from shoestring.models.drafting_form import DraftingLinear, drafting_form, drafting_head
from shoestring.models.glide_draft import GlideDraft, GlideOptions
from shoestring.numbers import GroupedAffine, ZeroPoint, fit_min_max

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
    draft = GlideDraft(target.cfg)
    first = drafting_head(target, draft)
    assert drafting_head(target, draft) is first
    target.lm_head = nn.Linear(target.cfg.hidden_size, VOCAB, bias=False)
    assert drafting_head(target, draft).linear is target.lm_head


class OtherHead(nn.Module):
    def __init__(self, linear):
        super().__init__()
        self.linear = linear

    def forward(self, x):
        return self.linear(x)


@pytest.mark.parametrize("kind", ["plain", "biased", "packed", "other"])
def test_a_draft_of_few_words_has_their_rows_of_the_head(kind):
    target = Decoder.from_transformers(make()).requires_grad_(False)
    hidden = target.cfg.hidden_size
    head = nn.Linear(hidden, VOCAB, bias=kind == "biased").requires_grad_(False)
    if kind == "packed":
        form = GroupedAffine(bits=8, group_size=hidden, zero_point=ZeroPoint.INTEGER)
        grid = fit_min_max(form, head.weight)
        head = PackedLinear(PackedWeight.of(form, form.encode(head.weight, grid), grid))
    target.lm_head = OtherHead(head) if kind == "other" else head
    counts = torch.randint(9, (VOCAB,), generator=torch.Generator().manual_seed(0))
    draft = GlideDraft(target.cfg, GlideOptions(words=20)).choose_words(counts)
    assert counts[draft.words].min() >= counts.sort(descending=True).values[20]
    x = torch.randn(1, 2, hidden, generator=torch.Generator().manual_seed(1))
    found = drafting_head(target, draft)
    torch.testing.assert_close(found(x), head(x)[..., draft.words], rtol=0.02, atol=0.02)
    assert drafting_head(target, draft) is found
    assert draft.tokens(torch.tensor([0, 19])).tolist() == [int(draft.words[0]), int(draft.words[19])]


def test_words_are_refused_where_they_do_not_fit():
    cfg = Decoder.from_transformers(make()).cfg
    with pytest.raises(ValueError, match="words=0 must be 1 or more"):
        GlideOptions(words=0)
    for draft, counts in ((GlideDraft(cfg), VOCAB), (GlideDraft(cfg, GlideOptions(words=5)), VOCAB - 1)):
        with pytest.raises(ValueError, match="give one for each of"):
            draft.choose_words(torch.zeros(counts, dtype=torch.long))


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
