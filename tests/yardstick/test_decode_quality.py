"""Quality while decoding, on a model that can be counted by hand."""

import math
from dataclasses import dataclass

import pytest
import torch

from shoestring.yardstick.decode_quality import decode_quality, decoded_scores, recall_quality


class Successor:
    """Gives the successor of the last token a probability of 1/2, the other seven the rest."""

    def __init__(self, log=None):
        self.log = [] if log is None else log

    def feed(self, ids):
        self.log.append(ids.shape[1])
        logits = torch.full((1, 8), math.log(1 / 14))
        logits[0, (int(ids[0, -1]) + 1) % 8] = math.log(1 / 2)
        return logits

    def prompt_is_read(self):
        self.log.append("read")


@dataclass
class Asked:
    prompt: tuple
    answer: tuple


def test_prompt_at_once_then_token_by_token():
    log = []
    scores = decoded_scores(Successor(log), [1, 2, 3], [4, 5, 6])
    assert log == [3, "read", 1, 1]
    assert scores.argmax(1).tolist() == [4, 5, 6]


def test_perplexity_is_pooled_and_by_position():
    windows = torch.tensor([[0, 1, 2, 3, 4], [0, 1, 2, 4, 5]])
    found = decode_quality(Successor, windows, 2)
    assert found.nll.shape == (2, 3)
    log_2, log_14 = math.log(2), math.log(14)
    assert found.perplexity == pytest.approx(math.exp((5 * log_2 + log_14) / 6))
    assert found.by_window == pytest.approx([2.0, math.exp((2 * log_2 + log_14) / 3)])
    assert found.by_position(3) == pytest.approx([2.0, math.exp((log_2 + log_14) / 2), 2.0])


def test_answers_are_right_where_every_token_is_the_likeliest():
    found = recall_quality(Successor, [Asked((0, 1), (2, 3)), Asked((0, 1), (2, 4))])
    assert found.hit == (True, False)
    assert found.hit_rate == 0.5
    expected = [-math.log(2), -(math.log(2) + math.log(14)) / 2]
    assert found.log_probability.tolist() == pytest.approx(expected)
    assert found.mean_log_probability == pytest.approx(sum(expected) / 2)


class Broken(Successor):
    def feed(self, ids):
        return super().feed(ids) * torch.nan


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: decode_quality(Successor, torch.zeros(2, 4, dtype=torch.long), 4), "prompt_tokens=4"),
        (lambda: decode_quality(Successor, torch.zeros(0, 4, dtype=torch.long), 2), "prompt_tokens=2"),
        (lambda: recall_quality(Successor, []), "there are no prompts"),
        (lambda: recall_quality(Successor, [Asked((), (1,))]), "0 tokens of prompt"),
        (lambda: decoded_scores(Broken(), [1], [2]), "not finite"),
        (lambda: decode_quality(Successor, torch.zeros(2, 4, dtype=torch.long), 2).by_position(3), "parts=3"),
    ],
)
def test_bad_input_is_refused(run, message):
    with pytest.raises(ValueError, match=message):
        run()
