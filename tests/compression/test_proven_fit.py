"""What a proven fit takes of a text."""

import torch

from shoestring.compression.fitted import FitSettings
from shoestring.compression.proven_fit import calibration_windows
from shoestring.data.text import TextHalves


class Letters:
    """One token a letter."""

    def encode(self, text):
        return [ord(letter) for letter in text]

    def decode(self, ids, **options):
        return "".join(map(chr, ids))


def windows_of(length, **settings):
    letters = "".join(chr(33 + i // 8 % 90) for i in range(length))
    return calibration_windows(TextHalves(letters, "", "letters"), Letters(), FitSettings(**settings))


def test_a_long_text_is_calibrated_on_all_over():
    windows = windows_of(800, window=8, calibration_windows=5)
    assert windows[:, 0].tolist() == [33, 33 + 25, 33 + 50, 33 + 74, 33 + 99 % 90]
    assert torch.equal(windows, windows[:, :1].expand(5, 8)), "windows are those of the text"


def test_a_short_text_is_used_whole():
    assert windows_of(31, window=8, calibration_windows=5)[:, 0].tolist() == [33, 34, 35]
