"""The experiment behind the card of HAMburger."""

import json

import pytest
import torch

from shoestring.generation.decode import Generation
from shoestring.systems import hamburger
from shoestring.systems.hamburger import speed as hamburger_speed
from shoestring.systems.hamburger.claims import CONFIDENCE, FIELDS, SPEED
from shoestring.systems.hamburger.quality import (
    Prompts,
    Written,
    least_growth,
    prose_nats,
    right_shares,
    write_records,
)
from shoestring.systems.hamburger.speed import decoding_speed, speed_row


@pytest.fixture(scope="module")
def work():
    return hamburger._tiny(0)


def outputs(*texts):
    return Written(tuple(Generation(prompt_tokens=3, text=text) for text in texts))


def test_fields_are_right_where_type_and_value_are():
    fields = {"name": "Ada", "age": 7, "active": True}
    prompts = Prompts((("p", fields),) * 4, ())
    texts = [json.dumps(fields), json.dumps({**fields, "active": 1}), '{"name": "Ada"', '{"age": 7}']
    assert right_shares(outputs(*texts), prompts) == pytest.approx([100, 200 / 3, 0, 100 / 3])


def test_compression_counts_the_prompt_s_pass_as_one():
    one = Generation(prompt_tokens=3, tokens=[1] * 9, passes=2)
    two = Generation(prompt_tokens=3, tokens=[1] * 4, passes=3)
    assert Written((one, two)).compression == 13 / 7


def test_plain_decoding_has_a_compression_of_one(work):
    assert write_records(work.baseline, work.prompts, work.tokenizer).compression == 1.0


def test_growth_is_of_the_least_step():
    assert least_growth([1.0, 1.2, 1.2, 1.5]) == 1.0
    assert least_growth([1.0, 1.2, 1.1]) < 1


def test_nats_of_singles_are_the_base_s(work):
    work.model.confidence = 1.01
    assert prose_nats(work.model, work.prompts) == pytest.approx(
        prose_nats(work.baseline, work.prompts), 1e-4
    )
    work.model.confidence = CONFIDENCE


def test_speed_is_tokens_over_seconds_in_turns(work):
    before = torch.get_num_threads()
    row, note = speed_row(work.model, work.baseline, work.prompts, work.tokenizer, 3)
    assert torch.get_num_threads() == before
    assert "the fastest number of threads for each" in note
    assert row.metric == SPEED.metric
    assert row.spread[0] <= row.ratio <= row.spread[1]
    assert min(row.baseline, row.method) > 1


def test_speed_leaves_out_what_the_prompt_s_pass_gives(work, monkeypatch):
    written = [
        Generation(prompt_tokens=3, tokens=[1] * 9, first_tokens=4, decode_seconds=2.0),
        Generation(prompt_tokens=3, tokens=[1] * 6, first_tokens=1, decode_seconds=3.0),
    ]
    monkeypatch.setattr(hamburger_speed, "generate", lambda *_, **__: written.pop(0))
    assert decoding_speed(work.model, Prompts((("a", {}), ("b", {})), ()), None) == (5 + 5) / (2.0 + 3.0)


def test_records_are_those_of_no_training():
    (prompt, fields), *_ = hamburger._records(0, 1)
    assert fields["type"] in prompt
    assert hamburger._records(1, 1)[0][0] != prompt


def test_pieces_lie_at_even_distances():
    pieces = hamburger._pieces(list(range(1000)), 3)
    assert [int(piece.ids[0]) for piece in pieces] == [0, 436, 872]
    assert all(torch.equal(piece.ids.diff(), torch.ones(127, dtype=torch.long)) for piece in pieces)


def test_the_bar_on_fields_is_a_loss_of_two_points():
    shares = torch.tensor([100.0, 100.0])
    assert FIELDS.row(baseline=float(shares.mean()), method=98.0).holds
    assert not FIELDS.row(baseline=float(shares.mean()), method=97.9).holds
