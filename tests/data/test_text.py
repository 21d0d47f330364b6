import pytest

from shoestring.data.text import default_halves, file_halves, read_text, token_windows


class Words:
    """One id a word."""

    def encode(self, text):
        return [len(word) for word in text.split()]


def test_default_halves_are_disjoint_and_large():
    halves = default_halves()
    assert min(len(halves.calibration), len(halves.held_out)) > 100_000
    ours, theirs = (
        {" ".join(p.split()) for p in half.split("\n\n")} for half in (halves.calibration, halves.held_out)
    )
    assert not ours & theirs


def test_default_halves_never_change():
    assert default_halves() == default_halves()


def test_a_file_is_cut_between_paragraphs(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("one two\n\nthree four\n\nfive six\n\nseven")
    halves = file_halves(path)
    assert halves.calibration + halves.held_out == path.read_text()
    assert halves.calibration.endswith("\n\n")
    assert halves.name == "book.txt"


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b"  \n", "is empty"), (b"\xff\xfe\x00", "not UTF-8"), (b"a\0b", "NUL")],
)
def test_what_is_no_text_is_refused(tmp_path, content, message):
    path = tmp_path / "text"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_text(path)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no text file"):
        read_text(tmp_path / "none")
    with pytest.raises(ValueError, match="cannot be read"):
        read_text(tmp_path)


def test_a_text_of_one_word_has_no_halves(tmp_path):
    path = tmp_path / "word"
    path.write_text("word")
    with pytest.raises(ValueError, match="two parts"):
        file_halves(path)


def test_windows_cover_the_text_in_order():
    text = "a bb ccc dddd eeeee ffffff ggggggg"
    assert token_windows(text, Words(), 3).tolist() == [[1, 2, 3], [4, 5, 6]]
    assert token_windows(text, Words(), 3, limit=1).tolist() == [[1, 2, 3]]
    overlapping = token_windows(text, Words(), 3, stride=2)
    assert overlapping.tolist() == [[1, 2, 3], [3, 4, 5], [5, 6, 7]]
    assert token_windows(text, Words(), 3, stride=2, limit=2).tolist() == [[1, 2, 3], [3, 4, 5]]


def test_too_short_a_text_says_how_short():
    with pytest.raises(ValueError, match="has 2 tokens, too few for one window of 5"):
        token_windows("a b", Words(), 5)
    with pytest.raises(ValueError, match="stride=0"):
        token_windows("a b", Words(), 2, stride=0)
    with pytest.raises(ValueError, match="window=1"):
        token_windows("a b", Words(), 1)
