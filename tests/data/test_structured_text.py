"""Seeded records and classes, and examples made of them."""

import ast
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.data.mixed_examples import PROSE_PROMPT, PROSE_RESPONSE, MixedExamples
from shoestring.data.structured_text import JsonRecords, PythonClasses, read_fields
from shoestring.data.tokens import Bytes


@given(seed=st.integers(0, 50), number=st.integers(0, 10_000))
def test_a_record_says_in_json_what_its_prompt_says(seed, number):
    example, fields = JsonRecords(seed).draw(number)
    assert json.loads(example.response) == fields == read_fields(example.response)
    assert example == JsonRecords(seed)(number)
    kind, said = example.prompt.rstrip("\n").split(": ", 1)
    assert kind == fields["type"]
    words = {True: "yes", False: "no"}
    for name, value in list(fields.items())[1:]:
        shown = words[value] if isinstance(value, bool) else str(value)
        assert f"{name} {shown}" in said.split(", ")


@given(seed=st.integers(0, 50), number=st.integers(0, 10_000))
def test_a_class_is_python_with_the_fields_of_its_prompt(seed, number):
    example = PythonClasses(seed)(number)
    (node,) = ast.parse(example.response).body
    assert isinstance(node, ast.ClassDef)
    name, fields = example.prompt.rstrip("\n").split(" ", 2)[2].split(": ")
    assert node.name == name
    assert all(field in example.response for field in fields.split(", "))


def test_the_seed_and_the_number_decide():
    for made in (JsonRecords, PythonClasses):
        texts = {made(seed)(number).response for seed in range(3) for number in range(10)}
        assert len(texts) > 20


def test_what_is_no_object_has_no_fields():
    assert read_fields("{") == read_fields("[1]") == {}


def mixed(**options):
    prose = torch.arange(300) % 200
    return MixedExamples(Bytes(), prose, 255, **{"of_each": 3, **options})


def test_kinds_alternate_and_prose_goes_on_in_the_text():
    examples = mixed()(2)
    assert len(examples) == 9
    record, python, piece = examples[:3]
    made = JsonRecords(0)(6)
    assert bytes(record.ids[:-1].tolist()).decode() == made.prompt + made.response
    assert record.ids[-1] == python.ids[-1] == 255
    assert (piece.prompt_length, piece.response_length) == (PROSE_PROMPT, PROSE_RESPONSE)
    assert len(piece) == PROSE_PROMPT + PROSE_RESPONSE
    assert piece.ids.diff().remainder(200).eq(1).all()


def test_steps_are_repeatable_and_differ():
    one, same, other = mixed()(1), mixed()(1), mixed()(2)
    assert all(torch.equal(a.ids, b.ids) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one[0].ids, other[0].ids)


def test_bad_input_is_refused():
    for made in (JsonRecords, PythonClasses):
        with pytest.raises(ValueError, match="seed=-1"):
            made(-1)
    with pytest.raises(ValueError, match="of_each=0"):
        mixed(of_each=0)
    with pytest.raises(ValueError, match="prose has 5 tokens"):
        MixedExamples(Bytes(), torch.arange(5), 255)
