"""Captured statistics are those of the inputs that the layers really saw."""

import copy

import pytest
import torch
from tests.compression.models import batches, bert, gpt2, llama
from torch import nn

from shoestring.compression import RoundToNearest, apply
from shoestring.compression.calibration import capture, capture_groups, moment_bytes
from shoestring.compression.group_quantize import GPTQ
from shoestring.compression.sequential import apply_in_sequence


def inputs_of(model: nn.Module, name: str, ids: list[torch.Tensor]) -> torch.Tensor:
    seen = []
    handle = model.get_submodule(name).register_forward_hook(
        lambda m, args, out: seen.append(args[0].reshape(-1, args[0].shape[-1]).double())
    )
    with torch.no_grad():
        for batch in ids:
            model(batch)
    handle.remove()
    return torch.cat(seen)


@pytest.mark.parametrize("make", [llama, gpt2, bert])
def test_moments_are_those_of_the_inputs(make):
    model, ids = make(), batches()
    calibration = capture(model, ids)
    for name, module in model.named_modules():
        if type(module).__name__ in ("Linear", "Conv1D") and "pooler" not in name:
            x = inputs_of(model, name, ids)
            torch.testing.assert_close(
                calibration.second_moment(name), (x.T @ x / len(x)).float(), rtol=1e-4, atol=1e-5
            )
            torch.testing.assert_close(calibration.mean_magnitude(name), x.abs().mean(0).float())
            assert calibration.of(name).count == len(x)


def test_layers_with_one_input_share_its_moment():
    calibration = capture(llama(), batches())
    of = calibration.of
    block = "model.layers.1"
    assert of(f"{block}.self_attn.q_proj") is of(f"{block}.self_attn.k_proj")
    assert of(f"{block}.self_attn.q_proj") is of(f"{block}.self_attn.v_proj")
    assert of(f"{block}.mlp.gate_proj") is of(f"{block}.mlp.up_proj")
    assert of(f"{block}.mlp.gate_proj") is not of(f"{block}.self_attn.q_proj")
    # Two blocks of three moments of 32 inputs and one of 64, the head's, and the counts of the tokens.
    assert calibration.nbytes == 2 * (3 * moment_bytes(32) + moment_bytes(64)) + moment_bytes(32) + 96 * 8


def test_token_counts_of_the_embedding():
    ids = batches()
    calibration = capture(llama(), ids, names=["model.embed_tokens"])
    counted = torch.bincount(torch.cat(ids).reshape(-1), minlength=96)
    assert torch.equal(calibration.token_counts["model.embed_tokens"], counted)
    assert "model.layers.0.mlp.up_proj" not in calibration


def test_no_hook_stays_behind():
    model = llama()
    with pytest.raises((RuntimeError, TypeError, ValueError)):
        capture(model, [torch.zeros(1, 4)])  # not ids
    capture(model, batches())
    assert all(not m._forward_pre_hooks and not m._forward_hooks for m in model.modules())
    assert not model.training


def test_memory_is_bounded_before_anything_runs():
    names = [f"model.layers.{i}.mlp.{p}_proj" for i in (0, 1) for p in ("gate", "up", "down")]
    limit = moment_bytes(64) + moment_bytes(32)
    with pytest.raises(ValueError, match=f"may take .* bytes, over max_bytes={limit}"):
        capture(llama(), batches(), names=names, max_bytes=limit)
    parts = capture_groups(llama(), names, limit)
    assert [n for part in parts for n in part] == names
    assert [len(part) for part in parts] == [2, 2, 2]
    for part in parts:
        capture(llama(), batches(), names=part, max_bytes=limit)
    with pytest.raises(ValueError, match="'model.layers.0.mlp.down_proj' alone take"):
        capture_groups(llama(), names, moment_bytes(32))


def test_bad_requests_are_named():
    with pytest.raises(ValueError, match="no batches were given"):
        capture(llama(), [])
    with pytest.raises(ValueError, match="'nope' is no linear layer or embedding"):
        capture(llama(), batches(), names=["nope"])
    calibration = capture(llama(), batches(), names=["lm_head"])
    with pytest.raises(ValueError, match="no inputs of 'other' were captured"):
        calibration.second_moment("other")
    with pytest.raises(ValueError, match=r"no calibration inputs reached 'model.layers.0.self_attn.q_proj'"):
        apply(llama(), GPTQ(4, 16), calibration=calibration)
    with pytest.raises(ValueError, match="'model.embed_tokens' is an embedding: its rows have no inputs"):
        apply(llama(tied=False), GPTQ(4, 16))


def test_a_layer_that_no_token_reached_says_so():
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.idle(x[:0])
            return self.used(x)

    model = Branch()
    calibration = capture(model, [torch.randn(3, 4)])
    with pytest.raises(ValueError, match="no token reached 'idle'"):
        calibration.second_moment("idle")
    with pytest.raises(ValueError, match="no calibration inputs reached 'idle'"):
        apply(model, GPTQ(4, 4), calibration=calibration)


@pytest.mark.parametrize("make", [llama, gpt2, bert])
def test_gptq_changes_the_outputs_less_than_rounding_does(make):
    ids = batches(count=4)
    original = make()
    embeddings = {n: RoundToNearest(8, 16) for n, m in original.named_modules() if type(m) is nn.Embedding}
    calibration = capture(original, ids)
    changes = {}
    with torch.no_grad():
        for label, change in {
            "rounded": lambda m: apply(m, {**embeddings, "*": RoundToNearest(3, 16)}),
            "gptq": lambda m: apply(m, {**embeddings, "*": GPTQ(3, 16)}, calibration=calibration),
            "sequence": lambda m: apply_in_sequence(m, {**embeddings, "*": GPTQ(3, 16)}, ids),
        }.items():
            if make is bert and label != "rounded":
                embeddings["pooler.dense"] = RoundToNearest(3, 16)
            model = change(copy.deepcopy(original))
            changes[label] = sum((model(b)[0] - original(b)[0]).square().sum().item() for b in ids)
    assert changes["gptq"] < changes["rounded"]
    assert changes["sequence"] < changes["rounded"]


def test_sequence_calibrates_on_rewritten_predecessors():
    """Oracle: the second block is given moments of a model whose first block is already rewritten."""
    ids = batches()
    recipe = {"model.layers.0.*": RoundToNearest(2, 16), "model.layers.1.*": GPTQ(3, 16)}
    byhand = apply(llama(), {"model.layers.0.*": RoundToNearest(2, 16)})
    apply(byhand, {"model.layers.1.*": GPTQ(3, 16)}, calibration=capture(byhand, ids))
    calls = []
    fast = apply_in_sequence(llama(), recipe, ids, progress=lambda *call: calls.append(call))
    for (key, a), b in zip(byhand.state_dict().items(), fast.state_dict().values(), strict=True):
        assert torch.equal(a, b), key
    assert calls[-1][1:] == (14, 14)


def test_a_model_that_is_no_chain_of_blocks_is_refused_untouched():
    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return sum(layer(x) for layer in self.layers)

    model = Skips()
    with pytest.raises(ValueError, match="block 1 is not fed by what block 0 puts out"):
        apply_in_sequence(model, GPTQ(4, 4), [torch.randn(2, 4)])
    assert all(type(layer) is nn.Linear for layer in model.layers)
    with pytest.raises(ValueError, match="no list of blocks"):
        apply_in_sequence(nn.Sequential(nn.Linear(4, 4)), GPTQ(4, 4), [torch.randn(2, 4)])
