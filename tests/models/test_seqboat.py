"""Networks of SeqBoat layers."""

from functools import partial

import pytest
import torch

from shoestring.layers.seqboat.attention_reach import Everywhere, Window
from shoestring.layers.seqboat.seqboat import SeqBoat
from shoestring.layers.state import Recurrent, state_bytes
from shoestring.models.seqboat import SeqBoatClassifier, SeqBoatLM, SeqBoatStack

layer = partial(SeqBoat, d_qk=4, n_states=2, reach=Window(3))


def made(factory=layer, **options):
    torch.manual_seed(0)
    model = SeqBoatLM(factory, vocab_size=11, d_model=8, n_layers=2, **options).double().eval()
    for block in model.stack.layers:
        torch.nn.init.normal_(block.gate.weight, std=1.0)
        torch.nn.init.normal_(block.choose.weight, std=1.0)
    return model


@pytest.mark.parametrize("n_outputs", [None, 3])
def test_generation_equals_the_batch(n_outputs):
    model = made(n_outputs=n_outputs)
    ids = torch.randint(11, (2, 17))
    whole = model(ids)
    assert whole.shape == (2, 17, n_outputs or 11)
    assert isinstance(model.stack, Recurrent)
    state = model.init_state(2)
    size = state_bytes(state)
    first, state = model.prefill(ids[:, :9], state)
    outs = [first]
    for t in range(9, 17):
        out, state = model.step(ids[:, t], state)
        outs.append(out[:, None])
    torch.testing.assert_close(torch.cat(outs, 1), whole)
    assert state_bytes(state) == size


def test_the_output_matrix_is_the_embedding():
    model = made()
    assert model.head.weight is model.embedding.weight
    assert sum(1 for name, _ in model.named_parameters() if "head" in name) == 0


def test_the_last_norm_is_there_where_layers_normalise_first():
    assert isinstance(made().stack.norm, torch.nn.LayerNorm)
    assert isinstance(SeqBoatStack(partial(layer, prenorm=False), 8, 1).norm, torch.nn.Identity)


@pytest.mark.parametrize("embedding", [True, False])
def test_a_classifier_does_not_see_pads(embedding):
    torch.manual_seed(0)
    model = SeqBoatClassifier(
        partial(layer, causal=False), d_input=5, d_model=8, n_layers=2, n_classes=4, embedding=embedding
    ).eval()
    x = torch.randint(5, (3, 12)) if embedding else torch.randn(3, 12, 5)
    mask = torch.ones(3, 12, dtype=torch.bool)
    mask[1, 7:] = False
    logits = model(x, mask)
    torch.testing.assert_close(logits[1], model(x[1:2, :7])[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits[[0, 2]], model(x)[[0, 2]], rtol=1e-4, atol=1e-5)


def test_bad_input():
    for arguments in ({"vocab_size": 0}, {"d_model": 0}, {"n_layers": 0}, {"n_outputs": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(arguments))}=0 must be at least 1"):
            SeqBoatLM(layer, **({"vocab_size": 3, "d_model": 8, "n_layers": 1} | arguments))
    with pytest.raises(ValueError, match="n_classes=0"):
        SeqBoatClassifier(layer, d_input=2, d_model=8, n_layers=1, n_classes=0)
    with pytest.raises(ValueError, match="has no memory of fixed size"):
        made(partial(layer, reach=Everywhere())).init_state(1)
