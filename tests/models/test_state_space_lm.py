"""The state space language model: pieces are the whole, nothing looks ahead, and it learns."""

import pytest
import torch
from torch.nn import functional as F

from shoestring.layers import S4, S4D
from shoestring.layers.state import state_bytes
from shoestring.models.state_space_lm import StateSpaceLM


def model(kind=S4, **options):
    torch.manual_seed(0)
    return StateSpaceLM(11, 8, 2, layer=lambda d: kind(d, 16, **options))


def ids(batch, seq):
    return torch.randint(11, (batch, seq), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", [S4, S4D])
def test_pieces_are_the_whole(kind):
    lm, tokens = model(kind).eval(), ids(2, 75)
    with torch.no_grad():
        expected = lm(tokens)
        lm.setup_step()
        first, state = lm.prefill(tokens[:, :66], lm.init_state(2))
        size, outputs = state_bytes(state), [first]
        for token in tokens[:, 66:].unbind(1):
            logits, state = lm.step(token, state)
            outputs.append(logits.unsqueeze(1))
    torch.testing.assert_close(torch.cat(outputs, dim=1), expected, rtol=1e-4, atol=1e-5)
    assert state_bytes(state) == size == 2 * 2 * 8 * 16 * 4


def test_a_later_token_changes_nothing_before_it():
    lm, tokens = model().eval(), ids(1, 20)
    other = tokens.clone()
    other[:, 12] = (other[:, 12] + 1) % 11
    with torch.no_grad():
        one, two = lm(tokens), lm(other)
    torch.testing.assert_close(one[:, :12], two[:, :12], rtol=0, atol=1e-5)
    assert (one[:, 12] - two[:, 12]).abs().max() > 1e-3


def test_it_learns_what_came_a_while_ago():
    lm = model()
    optimizer = torch.optim.AdamW(lm.parameters(), lr=1e-2)
    pattern = torch.randint(11, (1, 9), generator=torch.Generator().manual_seed(3)).repeat(1, 4)
    for _ in range(40):
        loss = F.cross_entropy(lm(pattern[:, :-1]).transpose(1, 2), pattern[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.5


def test_what_is_refused():
    with pytest.raises(ValueError, match="n_layers=0 must be at least 1"):
        StateSpaceLM(11, 8, 0)
    with pytest.raises(ValueError, match="a bidirectional layer sees the token it should predict"):
        model(bidirectional=True)
    with pytest.raises(ValueError, match=r"ids reach from 3 to 11; the vocabulary has 0 \.\. 10"):
        model()(torch.tensor([[3, 11]]))
