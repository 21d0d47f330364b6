"""Decoding a `Decoder` with row-sparse layers: shared lists, and the compiled step."""

import pytest
import torch
from tests.models.families import ids_of, make
from tests.models.test_compiled_decoder import room_of

from shoestring.compression import apply, block_linears, capture_scores, r_sparse_recipes
from shoestring.generation.compiled_runner import CompiledRunner
from shoestring.generation.decoder_runner import DecoderRunner, decoder_cache
from shoestring.generation.dense_cache import DenseCache
from shoestring.generation.runner import make_runner
from shoestring.generation.shared_rows import SharedRows, layer_name
from shoestring.kernels.costs import listen
from shoestring.layers import sparse_tail
from shoestring.layers.row_sparse_linear import (
    reset_counters,
    row_sparse_kernel,
    row_sparse_layers,
    rows_read,
)
from shoestring.models.compiled_decoder import CompiledDecoder
from shoestring.models.decoder import Decoder


@pytest.fixture
def sparse():
    """Columns alone in most layers, low rank beside them in some."""
    decoder = Decoder.from_transformers(make("llama, biases"))
    scores = capture_scores(decoder, [ids_of(4, 80)], block_linears(decoder))
    names = block_linears(decoder)
    alphas = [0.5 if i % 5 == 1 else 1.0 for i in range(len(names))]
    return apply(decoder, r_sparse_recipes(decoder, 0.5, alphas), calibration=scores)


@torch.inference_mode()
def decode(model, ids, prompt, **options):
    runner = DecoderRunner(model, **options)
    runner.feed(ids[:, :prompt])
    return torch.cat([runner.feed(ids[:, i : i + 1]) for i in range(prompt, ids.shape[1])])


def test_shared_lists_give_the_same_bits(sparse):
    ids = ids_of(1, 30)
    reset_counters(sparse)
    alone = decode(sparse, ids, 20)
    read = rows_read(sparse)
    assert min(read.values()) > 0
    reset_counters(sparse)
    calls = []
    with listen(lambda name, cost: calls.append(name)):
        together = decode(sparse, ids, 20, hooks=[SharedRows(sparse)])
    assert torch.equal(together, alone)
    assert rows_read(sparse) == read
    layers = sparse.cfg.num_hidden_layers
    assert calls.count("row_gather") == 10 * layers * 4  # (q, k, v), o, (gate, up), down


def test_layers_split_anew_are_followed(sparse):
    ids, hook = ids_of(1, 24), SharedRows(sparse)
    before = decode(sparse, ids, 20, hooks=[hook])
    sparse.model.layers[1].mlp.up_proj.split(0.9)
    after = decode(sparse, ids, 20, hooks=[hook])
    assert torch.equal(after, decode(sparse, ids, 20))
    assert not torch.equal(after, before)


def test_a_prompt_is_left_to_the_layers(sparse):
    ids = ids_of(2, 12)
    with torch.inference_mode():
        assert torch.equal(sparse(ids, hooks=[SharedRows(sparse)]).logits, sparse(ids).logits)


def test_layers_that_are_not_all_row_sparse_are_left_alone():
    dense = Decoder.from_transformers(make("llama"))
    ids = ids_of(1, 6)
    expected = decode(dense, ids, 5)
    assert torch.equal(decode(dense, ids, 5, hooks=[SharedRows(dense)]), expected)


def test_it_goes_with_any_cache(sparse):
    ids = ids_of(1, 24)
    with torch.inference_mode():
        cache = decoder_cache(sparse, capacity=24)
        assert isinstance(cache, DenseCache)
        expected = decode(sparse, ids, 16, cache=cache)
        again = decode(sparse, ids, 16)
    assert torch.equal(again, expected)


def test_the_compiled_step_decodes_the_same(sparse):
    ids = ids_of(1, 30)
    expected = decode(sparse, ids, 1)
    compiled = CompiledDecoder(sparse, kernel_of=row_sparse_kernel)
    reset_counters(sparse)
    compiled.use(room_of(sparse, 30))
    with torch.inference_mode():
        # The prompt of one token as well: a kernel treats every token as one of decoding.
        found = torch.cat([compiled(ids[0, i : i + 1], i).clone() for i in range(30)])
    # `decode` runs its first token sparsely too: it is a call with one token.
    torch.testing.assert_close(found[1:], expected, rtol=1e-3, atol=1e-3)
    assert {m.counts[1].item() for m in row_sparse_layers(sparse).values()} == {30}
    assert min(rows_read(sparse).values()) > 0


def test_generation_takes_the_compiled_step_and_leaves_the_prompt_dense(sparse):
    ids = ids_of(1, 20)
    runner = make_runner(sparse)
    assert isinstance(runner, CompiledRunner)
    with torch.inference_mode():
        prompt = runner.feed(ids[:, :6])
        torch.testing.assert_close(prompt, sparse(ids[:, :6]).logits[:, -1], rtol=1e-4, atol=1e-4)
        reset_counters(sparse)
        found = torch.cat([runner.feed(ids[:, i : i + 1]) for i in range(6, 20)])
    assert {layer.counts[1].item() for layer in row_sparse_layers(sparse).values()} == {14}
    torch.testing.assert_close(found, decode(sparse, ids, 6), rtol=1e-3, atol=1e-3)


def test_inside_a_sparse_tail_and_in_training_there_is_no_compiled_step(sparse):
    with sparse_tail(sparse, 0.5):
        assert type(make_runner(sparse)) is DecoderRunner
    with pytest.raises(RuntimeError, match="inference only"):
        make_runner(sparse.train())


def test_names():
    assert layer_name(3, "o_proj") == "model.layers.3.self_attn.o_proj"
    assert layer_name(0, "down_proj") == "model.layers.0.mlp.down_proj"
