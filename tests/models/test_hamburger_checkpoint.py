"""A HAMburger in a folder."""

import json

import pytest
import torch

from shoestring.errors import BadModelFile
from shoestring.models.hamburger_checkpoint import load_hamburger, load_small_decoder, save_small
from shoestring.models.int8_rows import rows_to_int8

from .tiny_hamburger import tiny_base, tiny_hamburger


@pytest.mark.parametrize("options", [{}, {"output_norm": True, "max_steps": 3}])
def test_what_is_loaded_is_what_was_saved_but_for_rounding(tmp_path, options):
    model = tiny_hamburger(confidence=0.7, **options)
    save_small(model, tmp_path / "one")
    loaded = load_hamburger(tmp_path / "one")
    assert (loaded.options, loaded.confidence, loaded.cfg) == (model.options, 0.7, model.cfg)
    theirs = loaded.state_dict()
    for name, value in model.state_dict().items():
        step = rows_to_int8(value)[1][:, None] if value.dim() == 2 else torch.zeros(1)
        assert bool(((theirs[name] - value).abs() <= step / 2 + 1e-7).all()), name
    save_small(loaded, tmp_path / "two")
    again = load_hamburger(tmp_path / "two")
    ids = torch.tensor([[1, 2, 3]])
    torch.testing.assert_close(again.read(ids, None, None), loaded.read(ids, None, None))
    assert loaded.base.lm_head.weight is loaded.base.model.embed_tokens.weight


def test_a_plain_decoder_is_kept_too_and_the_two_are_not_confused(tmp_path):
    save_small(tiny_base(), tmp_path / "plain")
    save_small(tiny_hamburger(), tmp_path / "grouped")
    ids = torch.tensor([[1, 2, 3]])
    loaded = load_small_decoder(tmp_path / "plain")
    expected = tiny_base()(ids).logits
    assert (loaded(ids).logits - expected).abs().max() < 0.1 * expected.abs().max()
    with pytest.raises(BadModelFile, match="missing micro decoder: train first"):
        load_hamburger(tmp_path / "plain")
    with pytest.raises(BadModelFile, match="load_hamburger"):
        load_small_decoder(tmp_path / "grouped")


def test_tensors_that_do_not_fit_are_refused(tmp_path):
    save_small(tiny_hamburger(), tmp_path / "one")
    file = tmp_path / "one" / "config.json"
    document = json.loads(file.read_text())
    document["hamburger"]["micro_layers"] = 3
    file.write_text(json.dumps(document))
    with pytest.raises(BadModelFile, match="does not hold what its config.json says"):
        load_hamburger(tmp_path / "one")
