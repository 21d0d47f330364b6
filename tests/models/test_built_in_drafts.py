"""Drafts that come with the package."""

import pytest
import torch

from shoestring.errors import MissingData
from shoestring.models import built_in_drafts
from shoestring.models.built_in_drafts import built_in_draft
from shoestring.models.decoder import Decoder
from shoestring.models.glide_checkpoint import save_glide
from shoestring.models.glide_draft import GlideDraft

from .families import make


def test_a_draft_that_is_not_there_says_how_to_get_it(tmp_path, monkeypatch):
    target = Decoder.from_transformers(make()).requires_grad_(False)
    monkeypatch.setattr(built_in_drafts, "FOLDER", tmp_path)
    with pytest.raises(MissingData, match=r"no draft for 'small' .* \(none\); `shoestring train"):
        built_in_draft("small", target)
    draft = GlideDraft(target.cfg).copy_last_layer(target)
    save_glide(draft, tmp_path / "small")
    found = built_in_draft("small", target)
    torch.testing.assert_close(found.q_proj.weight, draft.q_proj.weight, rtol=0.01, atol=0.01)
    with pytest.raises(MissingData, match=r"\(small\)"):
        built_in_draft("other", target)
