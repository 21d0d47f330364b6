import pytest
import torch

from shoestring.layers.kmeans import update_after_step
from shoestring.layers.routing.routing_attention import HeadSplit
from shoestring.layers.routing.routing_options import RoutingOptions
from shoestring.models.routing_transformer import RoutingTransformer, RoutingTransformerConfig, language_loss


def _config(mode="strict", **fields):
    heads = HeadSplit(2, 1, 1, block=4, routing=RoutingOptions(3, 4, mode=mode))
    return RoutingTransformerConfig(
        **{"vocab_size": 17, "dim": 8, "n_layers": 3, "heads": heads, "hidden": 12, "skip_first": 1} | fields
    )


def _tokens(n=14, seed=0):
    return torch.randint(17, (2, n), generator=torch.Generator().manual_seed(seed))


def test_decoding_equals_the_whole():
    torch.manual_seed(0)
    model, tokens = RoutingTransformer(_config()).eval(), _tokens()
    model.init_centroids(tokens)
    expected = model(tokens).logits
    logits, state = model.prefill(tokens[:, :9], model.init_state(2))
    found = [logits]
    for token in tokens[:, 9:].unbind(1):
        logits, state = model.step(token, state)
        found.append(logits[:, None])
    torch.testing.assert_close(torch.cat(found, 1), expected, rtol=1e-4, atol=1e-5)


def test_a_later_token_changes_nothing_before_it():
    model, tokens = RoutingTransformer(_config()).eval(), _tokens()
    model.init_centroids(tokens)
    other = torch.cat([tokens[:, :8], _tokens(seed=1)[:, 8:]], 1)
    assert torch.equal(model(tokens).logits[:, :8], model(other).logits[:, :8])
    assert not model.leaks_future
    assert RoutingTransformer(_config("top-w")).leaks_future


def test_the_first_layers_are_local_only():
    model = RoutingTransformer(_config())
    assert [block.attention.routing is None for block in model.stack.blocks] == [True, False, False]
    assert model.stack.blocks[0].attention.local.n_heads == 2


@pytest.mark.parametrize("mode", ["strict", "top-w"])
def test_it_learns_and_saves_its_centroids(mode):
    torch.manual_seed(0)
    model, tokens = RoutingTransformer(_config(mode)), _tokens()
    optimizer = torch.optim.Adafactor(model.parameters(), lr=0.03)
    update_after_step(optimizer, model)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = language_loss(model, tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    copy = RoutingTransformer(_config(mode)).eval()
    copy.load_state_dict(model.state_dict())
    assert torch.equal(copy(tokens).logits, model.eval()(tokens).logits)


def test_commitment_counts_beta_times():
    torch.manual_seed(0)
    tokens = _tokens()
    losses = []
    for beta in (0.0, 1.0):
        torch.manual_seed(0)
        model = RoutingTransformer(_config(commitment=beta))
        losses.append(language_loss(model, tokens[:, :-1], tokens[:, 1:]))
    torch.testing.assert_close(losses[1] - losses[0], model(tokens[:, :-1]).commitment)


def test_whole_tokens_are_dropped():
    torch.manual_seed(0)
    model = RoutingTransformer(_config(input_dropout=0.5)).train()
    x = model._embedded(_tokens(200))
    missing = ~x.any(-1)
    assert 0.4 < missing.float().mean() < 0.6
    assert x[~missing].ne(0).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dim": 0}, "dim=0"),
        ({"skip_first": 4}, "skip_first=4 must lie within 0 .. n_layers=3"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"commitment": -1.0}, "commitment=-1.0"),
    ],
)
def test_configs_that_cannot_be(fields, message):
    with pytest.raises(ValueError, match=message):
        _config(**fields)


def test_generation_before_any_training_is_refused():
    model = RoutingTransformer(_config()).eval()
    with pytest.raises(RuntimeError, match="init_centroids"):
        model.step(torch.tensor([1, 2]), model.init_state(2))
