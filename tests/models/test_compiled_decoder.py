"""The compiled decode step against `Decoder` itself."""

import pytest
import torch

from shoestring.kernels.decode_step import LayerCache
from shoestring.kernels.dense_linear import dense_linear
from shoestring.kernels.grouped_linear import Activations
from shoestring.layers.dual_binary_linear import DualBinaryLinear
from shoestring.layers.packed_linear import PackedLinear, PackedWeight
from shoestring.layers.rotary import Rope
from shoestring.models.compiled_decoder import CannotCompile, CompiledDecoder
from shoestring.models.decoder import Decoder
from shoestring.models.decoder_config import DecoderConfig
from shoestring.models.decoder_step import Want
from shoestring.numbers import GroupedAffine, ZeroPoint, fit_min_max
from shoestring.numbers.dual_binary import DualBinary
from shoestring.yardstick.flops import CostCounter

from .families import MAKERS, ids_of, make


def room_of(decoder, slots, dtype=torch.float32):
    cfg = decoder.cfg
    shape = cfg.num_key_value_heads, slots, cfg.head_dim
    return [
        LayerCache(
            torch.full(shape, torch.nan, dtype=dtype),
            torch.full(shape, torch.nan, dtype=dtype),
            torch.zeros(slots, dtype=torch.int32),
        )
        for _ in range(cfg.num_hidden_layers)
    ]


def run(compiled, ids, spans, slots=None, dtype=torch.float32):
    """Logits of all tokens, fed span by span."""
    compiled.use(room_of(compiled.decoder, slots or ids.shape[-1], dtype))
    with torch.no_grad():
        return torch.cat([compiled(ids[a:b], a, logit_rows=b - a).clone() for a, b in spans])


def one_by_one(n):
    return [(i, i + 1) for i in range(n)]


@pytest.mark.parametrize("family", MAKERS)
def test_logits_equal_the_decoder(family):
    decoder, ids = Decoder.from_transformers(make(family)), ids_of(1, 40)
    with torch.no_grad():
        expected = decoder(ids).logits[0]
    compiled = CompiledDecoder(decoder)
    for spans in (
        one_by_one(40),
        [(0, 8), (8, 9), (9, 16), (16, 18), (18, 26), (26, 34), (34, 37), (37, 40)],
    ):
        torch.testing.assert_close(run(compiled, ids[0], spans), expected, rtol=0, atol=1e-4)


def ragged(head_dim=10, heads=6, kv_heads=2, window=None, hidden=37, dtype=torch.float32):
    torch.manual_seed(3)
    cfg = DecoderConfig(
        vocab_size=53, hidden_size=hidden, intermediate_size=45, num_hidden_layers=2,
        num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=head_dim,
        windows=(window, None), ropes=(Rope(), Rope(500.0)),
    )  # fmt: skip
    decoder = Decoder(cfg).requires_grad_(False).eval()
    for parameter in decoder.parameters():
        if parameter.dim() > 1:
            parameter.data *= 3
    return decoder.to(dtype)


@pytest.mark.parametrize(
    ("head_dim", "heads", "kv_heads"), [(8, 3, 3), (10, 6, 2), (16, 8, 1), (48, 2, 1), (128, 3, 1)]
)
@pytest.mark.parametrize("window", [None, 1, 5, 150])
def test_sizes_that_fill_no_vector_and_sequences_of_several_pieces(head_dim, heads, kv_heads, window):
    decoder = ragged(head_dim, heads, kv_heads, window)
    ids = torch.randint(53, (1, 300), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = decoder(ids).logits[0, -9:]
    compiled = CompiledDecoder(decoder)
    compiled.use(room_of(decoder, 303))
    with torch.no_grad():
        compiled(ids[0, :291], 0, logit_rows=0)
        found = [compiled(ids[0, i : i + 1], i).clone() for i in range(291, 300)]
    torch.testing.assert_close(torch.cat(found), expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_weights_and_caches(dtype):
    narrow, ids = ragged(dtype=dtype), ids_of(1, 30) % 53
    wide = ragged(dtype=dtype).float()
    with torch.no_grad():
        expected = wide(ids).logits[0]
    exact = run(CompiledDecoder(narrow), ids[0], one_by_one(30))
    torch.testing.assert_close(exact, expected, rtol=0, atol=1e-4)
    rounded = run(CompiledDecoder(narrow), ids[0], one_by_one(30), dtype=dtype)
    # Keys and values are rounded to 8 or 11 bits: near, but not the same.
    error = (rounded - expected).abs().max() / expected.std()
    assert 0 < error < (0.1 if dtype == torch.bfloat16 else 0.01)


@pytest.mark.parametrize("family", ["llama, biases", "gemma 3"])
def test_threads_change_no_bit(family):
    decoder, ids = Decoder.from_transformers(make(family)), ids_of(1, 200)
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            compiled = CompiledDecoder(decoder)
            spans = [(0, 5), *((i, i + 5) for i in range(5, 200, 5))]
            found.append(run(compiled, ids[0], spans))
        finally:
            torch.set_num_threads(1)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("activations", Activations)
def test_threads_change_no_bit_of_a_long_prompt(activations):
    decoder = ragged(head_dim=16, heads=6, hidden=64)
    for layer in decoder.model.layers:
        for name in ("q_proj", "k_proj", "v_proj"):  # prepared once for all three
            weight, form = getattr(layer.self_attn, name).weight, GroupedAffine(4, 32, ZeroPoint.REAL)
            grid = fit_min_max(form, weight)
            packed = PackedWeight.of(form, form.encode(weight, grid), grid)
            setattr(layer.self_attn, name, PackedLinear(packed))
    ids = torch.randint(53, (45,), generator=torch.Generator().manual_seed(0))
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            compiled = CompiledDecoder(decoder, activations=activations)
            compiled.use(room_of(decoder, 45))
            found.append(compiled(ids, 0, logit_rows=8).clone())
        finally:
            torch.set_num_threads(1)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    with torch.no_grad():
        expected = decoder(ids[None]).logits[0, -8:]
    atol = 1e-4 if activations is Activations.FLOAT32 else 0.1 * float(expected.std())
    torch.testing.assert_close(found[0], expected, rtol=0, atol=atol)


def test_nothing_is_written_beside_the_new_slots():
    decoder, ids = ragged(), ids_of(1, 4)[0] % 53
    compiled, room = CompiledDecoder(decoder), room_of(ragged(), 9)
    compiled.use(room)
    with torch.no_grad():
        compiled(ids, 0)
    for layer in room:
        assert not layer.keys[:, :4].isnan().any()
        assert not layer.values[:, :4].isnan().any()
        assert layer.keys[:, 4:].isnan().all()
        assert layer.values[:, 4:].isnan().all()
        assert layer.positions.tolist() == [0, 1, 2, 3, 0, 0, 0, 0, 0]


def test_a_kernel_of_ones_own_takes_part():
    decoder, ids = ragged(), ids_of(1, 6) % 53

    def twice(module):
        return dense_linear(2 * module.weight) if module is decoder.lm_head else None

    plain = run(CompiledDecoder(decoder), ids[0], one_by_one(6))
    assert torch.equal(run(CompiledDecoder(decoder, twice), ids[0], one_by_one(6)), 2 * plain)


def test_what_cannot_run_is_named():
    decoder = ragged(dtype=torch.float64)
    with pytest.raises(CannotCompile, match=r"lm_head, a Linear of torch\.float64"):
        CompiledDecoder(decoder)
    decoder = ragged()
    decoder.model.layers[1].mlp.up_proj.double()
    with pytest.raises(CannotCompile, match=r"model\.layers\.1\.mlp\.up_proj, a Linear of torch\.float64"):
        CompiledDecoder(decoder)
    compiled = CompiledDecoder(ragged())
    with pytest.raises(ValueError, match="no room for slots 0 to 0"):
        compiled(torch.tensor([1]), 0)


def test_prompts_longer_than_a_block():
    decoder, ids = ragged(), torch.randint(53, (1, 450), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = decoder(ids).logits[0, -3:]
    compiled = CompiledDecoder(decoder)
    compiled.use(room_of(decoder, 450))
    for first in (0, 192, 447, 449):  # as one call, or the last blocks by themselves
        compiled(ids[0, :first], 0, logit_rows=0) if first else None
        logits = compiled(ids[0, first:], first, logit_rows=min(3, 450 - first))
        torch.testing.assert_close(logits, expected[-len(logits) :], rtol=0, atol=1e-4)


def test_binary_planes_take_part():
    decoder, ids = ragged(head_dim=16, heads=8, hidden=64), ids_of(1, 6) % 53
    for layer in decoder.model.layers:
        attention = layer.self_attn
        for name in ("q_proj", "k_proj", "v_proj"):  # of 64 inputs, as the kernel needs
            weight = getattr(attention, name).weight
            form = DualBinary(64)
            levels = form.fit(weight)
            setattr(attention, name, DualBinaryLinear.of(form, form.assign(weight, levels), levels))
    with torch.no_grad():
        expected = decoder(ids).logits[0]
    torch.testing.assert_close(run(CompiledDecoder(decoder), ids[0], [(0, 6)]), expected, rtol=0, atol=1e-4)


def test_the_cost_of_a_step_is_every_weight_and_every_key_and_value_once():
    decoder = ragged(head_dim=10, heads=6, kv_heads=2, hidden=37)
    compiled = CompiledDecoder(decoder)
    compiled.use(room_of(decoder, 9))
    compiled(torch.arange(8), 0)
    with CostCounter() as cost:
        compiled(torch.tensor([8]), 8)
    layer = 37 * (60 + 20 + 20) + 60 * 37 + 3 * 37 * 45
    weights = 2 * layer + 37 * 53
    assert cost.flops_by_operation["decode_step"] == 2 * weights + 2 * (4 * 60 * 9)
    embedding = 8 + 2 * 4 * 37  # its id and row are read, the row is written
    assert cost.bytes == 4 * weights + 2 * (2 * 20 * 9 * 4) + embedding


def test_states_are_tapped_and_positions_shifted():
    decoder, ids = Decoder.from_transformers(make("llama")), ids_of(1, 20)
    layers = decoder.cfg.num_hidden_layers
    pos = torch.tensor([[*range(9), *range(12, 23)]])
    with torch.no_grad():
        out = decoder(ids, pos, want=Want("all", hidden=(0, "norm")))
    compiled = CompiledDecoder(decoder)
    taps = compiled.step.set_taps((0, layers))
    rooms = room_of(decoder, 20)
    compiled.use(rooms)
    with torch.no_grad():
        for start, stop, shift in ((0, 9, 0), (9, 10, 3), (10, 20, 3)):
            logits = compiled(ids[0, start:stop], start, 1, shift)
            torch.testing.assert_close(logits[0], out.logits[0, stop - 1], rtol=0, atol=1e-4)
            for tapped, name in zip(taps, (0, "norm"), strict=True):
                torch.testing.assert_close(tapped, out.hidden[name][0, stop - 1], rtol=0, atol=1e-4)
    assert rooms[0].positions.tolist() == pos[0].tolist()


@pytest.mark.parametrize("threads", [1, 2])
def test_a_long_prompt_taps_its_last_token(threads):
    decoder, ids = Decoder.from_transformers(make("llama")), ids_of(1, 70)
    with torch.no_grad():
        expected = decoder(ids, want=Want(None, hidden=(0, "norm"))).hidden
    compiled, before = CompiledDecoder(decoder), torch.get_num_threads()
    taps = compiled.step.set_taps((0, decoder.cfg.num_hidden_layers))
    compiled.use(room_of(decoder, 70))
    torch.set_num_threads(threads)
    try:
        compiled(ids[0], 0)
    finally:
        torch.set_num_threads(before)
    for tapped, name in zip(taps, (0, "norm"), strict=True):
        torch.testing.assert_close(tapped, expected[name][0, -1], rtol=0, atol=1e-4)


def test_without_a_final_norm_the_head_takes_the_last_layer():
    decoder, ids = Decoder.from_transformers(make("llama")), ids_of(1, 5)
    decoder.model.norm = torch.nn.Identity()
    with torch.no_grad():
        expected = decoder(ids).logits[0]
    torch.testing.assert_close(
        run(CompiledDecoder(decoder), ids[0], [(0, 5)]), expected, rtol=1e-4, atol=1e-3
    )


def test_taps_that_there_are_not_are_refused():
    compiled = CompiledDecoder(Decoder.from_transformers(make("llama")))
    for bad in ((1, 0), (0, 0), (99,), (-1,)):
        with pytest.raises(ValueError, match="must ascend from 0"):
            compiled.step.set_taps(bad)
