import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoestring.generation.text_stream import TextStream

TEXTS = st.one_of(st.text(max_size=40), st.text(alphabet="ab€🦊é\ufffd", max_size=30))


def stream(tokenizer, ids, stop=()):
    out = TextStream(tokenizer, stop)
    pieces = []
    for token in ids:
        pieces.append(out.push(token))
        if out.stopped is not None:
            return pieces, out
    return [*pieces, out.finish()], out


@given(text=TEXTS)
def test_pieces_join_to_the_text(byte_tokenizer, text):
    pieces, _ = stream(byte_tokenizer, byte_tokenizer.encode(text))
    assert "".join(pieces) == text


@given(ids=st.lists(st.integers(0, 256), max_size=40))
def test_pieces_join_to_the_decoded_tokens_even_where_bytes_are_no_characters(byte_tokenizer, ids):
    pieces, _ = stream(byte_tokenizer, ids)
    assert "".join(pieces) == byte_tokenizer.decode(ids, skip_special_tokens=True)


def test_a_character_comes_whole_and_at_once(byte_tokenizer):
    pieces, _ = stream(byte_tokenizer, byte_tokenizer.encode("a🦊b"))
    assert pieces == ["a", "", "", "", "🦊", "b", ""]


@given(
    text=st.text(alphabet="ab€", max_size=30),
    stop=st.lists(st.text(alphabet="ab€", min_size=1, max_size=4), max_size=3),
)
def test_text_ends_before_the_first_stop_string(byte_tokenizer, text, stop):
    pieces, out = stream(byte_tokenizer, byte_tokenizer.encode(text), stop)
    # The first to be complete stops; of those complete at once, the one that began first.
    ends = sorted((text.find(s) + len(s), text.find(s), s) for s in stop if s in text)
    assert "".join(pieces) == (text[: ends[0][1]] if ends else text)
    assert (out.stopped is not None) == bool(ends)


def test_only_what_may_begin_a_stop_string_is_held_back(byte_tokenizer):
    pieces, _ = stream(byte_tokenizer, byte_tokenizer.encode("xabxab"), ["abc"])
    assert pieces == ["x", "", "", "abx", "", "", "ab"]


def test_an_empty_stop_string_is_refused(byte_tokenizer):
    with pytest.raises(ValueError, match="empty stop string"):
        TextStream(byte_tokenizer, [""])
