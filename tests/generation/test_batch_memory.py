"""What a batch takes, beside the tensors themselves."""

import copy

import pytest
import torch

from shoestring.compression import MagnitudePrune, apply, stored_bytes
from shoestring.generation import BatchMemory, DenseCache, batch_memory
from shoestring.layers.rotary import Rope
from shoestring.models.decoder import Decoder
from shoestring.models.decoder_config import DecoderConfig


def tiny() -> Decoder:
    torch.manual_seed(0)
    cfg = DecoderConfig(
        vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, windows=(None, None), ropes=(Rope(), Rope()),
    )  # fmt: skip
    return Decoder(cfg).requires_grad_(False).eval()


def test_weights_are_those_that_are_stored():
    model: Decoder = tiny().to(torch.bfloat16)
    assert batch_memory(model.cfg, 32).weights == stored_bytes(model)
    for sparsity in (0.5, 0.8):
        pruned = apply(copy.deepcopy(model), {"model.layers.*": MagnitudePrune(sparsity)})
        assert batch_memory(model.cfg, 32, sparsity=sparsity).weights == stored_bytes(pruned)


def test_the_cache_of_each_sequence_is_that_of_a_dense_cache():
    model = tiny()
    one = batch_memory(model.cfg, 64, cache_dtype=torch.float32)
    cache = DenseCache(2, 1, 2, 8, capacity=64)
    model(torch.ones(1, 64, dtype=torch.long), cache=cache)
    assert one.cache_of_each == cache.nbytes()


def test_the_largest_batch_fits_and_one_more_does_not():
    memory = BatchMemory(weights=1000, cache_of_each=70, buffers_of_each=30)
    assert memory.max_batch(1000) == 0
    assert memory.max_batch(999) == 0
    assert memory.max_batch(10) == 0
    for budget in (1100, 1199, 5555):
        most = memory.max_batch(budget)
        assert memory.total(most) <= budget < memory.total(most + 1)


def test_pruning_leaves_room_for_more():
    cfg = tiny().cfg
    dense, pruned = batch_memory(cfg, 16), batch_memory(cfg, 16, sparsity=0.9)
    assert pruned.weights < dense.weights
    assert pruned.cache_of_each == dense.cache_of_each
    with pytest.raises(ValueError, match="sparsity=2 must lie between 0 and 1"):
        batch_memory(cfg, 16, sparsity=2)
