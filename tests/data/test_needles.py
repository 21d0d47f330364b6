"""Prompts with facts hidden in them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoestring.data.needles import NAMES, key_value_prompts, needle_prompts
from shoestring.data.tokens import Bytes

TEXT = "".join(f"Line {i} of a long text without any city in it. " for i in range(400))


def text_of(ids):
    return Bytes().decode(list(ids))


@given(
    length=st.integers(500, 2000), count=st.integers(1, 7), needles=st.integers(1, 5), seed=st.integers(0, 99)
)
def test_needles_are_in_prompts_of_exact_length(length, count, needles, seed):
    prompts = needle_prompts(TEXT, Bytes(), length, count, needles=needles, seed=seed)
    assert prompts == needle_prompts(TEXT, Bytes(), length, count, needles=needles, seed=seed)
    assert [p.depth for p in prompts] == [(i + 0.5) / count for i in range(count)]
    for prompt in prompts:
        text, answer = text_of(prompt.prompt), text_of(prompt.answer)
        assert len(prompt.prompt) == length
        question = text[text.rindex(" The secret code of ") :]
        assert text.count(question) == 2
        assert text.count(" The secret code of ") == needles + 1
        # the answer stands behind the first place of the question only
        first = text.index(question + answer + ".")
        assert first < text.rindex(question)
        assert abs(first / length - prompt.depth) < 40 * (needles + 1) / length


def test_prompts_of_one_call_differ_and_seeds_matter():
    prompts = needle_prompts(TEXT, Bytes(), 600, 4)
    assert len({p.prompt[:50] for p in prompts}) == 4
    assert prompts != needle_prompts(TEXT, Bytes(), 600, 4, seed=1)


@given(length=st.integers(120, 2500), seed=st.integers(0, 99))
def test_keys_and_values_fill_the_prompt(length, seed):
    (prompt,) = key_value_prompts(Bytes(), length, 1, text=TEXT, seed=seed)
    text, answer = text_of(prompt.prompt), text_of(prompt.answer)
    assert len(prompt.prompt) == length
    facts = text.count(" The secret code of ") - 1
    assert facts == len(NAMES) or facts >= (length - 40) // 36 - 2
    question = text[text.rindex(" The secret code of ") :]
    assert text.index(question + answer + ".") == round(prompt.depth * length)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"length": 0}, "length=0"),
        ({"count": 0}, "count=0"),
        ({"needles": 33}, "needles=33 need as many names, of which there are 32"),
        ({"seed": -1}, "seed=-1"),
        ({"length": 40}, "length=40 tokens do not hold 1 facts"),
        ({"length": 10**6}, "too few for a prompt of 1000000"),
    ],
)
def test_prompts_that_cannot_be_made_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        needle_prompts(TEXT, Bytes(), **{"length": 500, "count": 2, **settings})


def test_key_value_prompts_that_cannot_be_made_are_refused():
    with pytest.raises(ValueError, match="length=30"):
        key_value_prompts(Bytes(), 30, 1, text=TEXT)
    with pytest.raises(ValueError, match="are to be filled"):
        key_value_prompts(Bytes(), 9000, 1, text="short")
