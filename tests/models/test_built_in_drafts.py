"""Drafts that come with the package."""

import json
from dataclasses import replace

import pytest
import torch

from shoestring.errors import MissingData
from shoestring.models import built_in_drafts
from shoestring.models.built_in_drafts import FOLDER, built_in_draft, fitting_draft
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


def test_the_draft_that_fits_is_found_by_shape(tmp_path, monkeypatch):
    target = Decoder.from_transformers(make()).requires_grad_(False)
    other = replace(target.cfg, intermediate_size=24)
    monkeypatch.setattr(built_in_drafts, "FOLDER", tmp_path)
    save_glide(GlideDraft(other), tmp_path / "a")
    with pytest.raises(MissingData, match=r"no draft .* \(a\) fits a model of"):
        fitting_draft(target)
    save_glide(GlideDraft(target.cfg).copy_last_layer(target), tmp_path / "b")
    assert fitting_draft(target).cfg == target.cfg


def test_every_draft_in_the_package_is_whole_and_small():
    for file in FOLDER.glob("*/draft.json"):
        size = sum(part.stat().st_size for part in file.parent.iterdir())
        assert size < 5e6
        options = json.loads(file.read_text())
        assert options["words"] is None or options["words"] > 1000
    assert (FOLDER / "smollm2-135m" / "draft.json").is_file()
