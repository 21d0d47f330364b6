"""The compiled step of decoders with Mamba mixers against `Decoder` itself."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoestring.compression.apply import apply
from shoestring.compression.group_quantize import RoundToNearest
from shoestring.generation.block_storage import BlockStorage
from shoestring.kernels.decode_batch import BatchSequence
from shoestring.kernels.decode_mamba import LayerState, StepMixer
from shoestring.kernels.decode_step import LayerCache
from shoestring.layers.mamba.grouped_mamba import MambaShape, ScanKind
from shoestring.layers.packed_linear import PackedLinear
from shoestring.layers.rotary import Rope
from shoestring.models.compiled_batch import CompiledBatch
from shoestring.models.compiled_decoder import CannotCompile, CompiledDecoder
from shoestring.models.decoder import Decoder
from shoestring.models.decoder_config import DecoderConfig
from shoestring.models.layer_layout import read_layout
from shoestring.numbers.block_format import BlockFormat
from shoestring.yardstick.flops import CostCounter

from .families import make
from .hybrids import VOCAB, ids_of, tiny

MIXERS = ("in_proj", "dt_in_proj", "out_proj")


def states_of(decoder, samples=1):
    made = {
        index: layer.mixer.init_state(samples)
        for index, layer in enumerate(decoder.model.layers)
        if hasattr(layer, "mixer")
    }
    return {index: LayerState(state["conv"], state["ssm"]) for index, state in made.items()}


def room_of(decoder, slots):
    """Keys and values that nobody has written, and first states."""
    cfg, states = decoder.cfg, states_of(decoder)
    shape = cfg.num_key_value_heads, slots, cfg.head_dim

    def keys():
        return LayerCache(
            torch.full(shape, torch.nan), torch.full(shape, torch.nan), torch.zeros(slots, dtype=torch.int32)
        )

    return [states[index] if index in states else keys() for index in range(len(cfg.layout))]


def run(compiled, ids, pieces):
    """Logits of the last tokens (at most eight) of every piece."""
    compiled.use(room_of(compiled.decoder, len(ids)))
    found, start = [], 0
    for piece in ids.split(pieces):
        found.append(compiled(piece, start, logit_rows=min(8, len(piece))).clone())
        start += len(piece)
    return torch.cat(found)


def wanted(logits, pieces):
    return torch.cat([piece[-8:] for piece in logits.split(pieces)])


def run_batch(decoder, rows, chunks, slots=16):
    """Every sequence in pieces of its chunk, all together, each with blocks and a sample of its own; the
    logits of its last token."""
    cfg, compiled, n = decoder.cfg, CompiledBatch(decoder), len(rows)
    per = -(-max(map(len, rows)) // slots)
    states = states_of(decoder, n + 1)

    def keys():
        storage = BlockStorage(
            BlockFormat(slots), n * per, cfg.num_key_value_heads, cfg.head_dim, dtype=torch.float32
        )
        return storage.rows()

    compiled.use_blocks([states[i] if i in states else keys() for i in range(len(cfg.layout))])
    done, last = [0] * n, [None] * n
    while any(at < len(row) for at, row in zip(done, rows, strict=True)):
        active = [i for i in range(n) if done[i] < len(rows[i])]
        counts = {i: min(chunks[i], len(rows[i]) - done[i]) for i in active}
        sequences = [
            BatchSequence(done[i], counts[i], range((n - 1 - i) * per, (n - i) * per), sample=n - i)
            for i in active
        ]
        ids = torch.cat([rows[i][done[i] : done[i] + counts[i]] for i in active])
        for i, logits in zip(active, compiled.run(ids, sequences), strict=True):
            last[i] = logits.clone()
            done[i] += counts[i]
    return torch.stack(last)


@st.composite
def decoders(draw):
    """Sizes that fill no vector, mixers of any state, rank and width."""
    head_dim, kv_heads = draw(st.sampled_from([2, 6, 10, 16, 18])), draw(st.integers(1, 3))
    shared = head_dim * kv_heads
    shape = MambaShape(
        d_state=draw(st.sampled_from([n for n in range(1, shared + 1) if shared % n == 0])),
        d_conv=draw(st.integers(1, 5)),
        dt_rank=draw(st.sampled_from([1, 3, 16, 17])),
    )
    letters = draw(st.sampled_from(["m", "mt", "tmm"]))
    cfg = DecoderConfig(
        vocab_size=23, hidden_size=draw(st.sampled_from([1, 13, 32])), intermediate_size=19,
        num_hidden_layers=len(letters), num_attention_heads=kv_heads * draw(st.integers(1, 3)),
        num_key_value_heads=kv_heads, head_dim=head_dim, windows=(None,) * len(letters),
        ropes=(Rope(),) * len(letters), layout=read_layout(letters, len(letters)), mamba=shape,
    )  # fmt: skip
    torch.manual_seed(draw(st.integers(0, 99)))
    return Decoder(cfg).requires_grad_(False).eval()


@settings(max_examples=12, deadline=None)
@given(decoder=decoders(), pieces=st.lists(st.integers(1, 40), min_size=1, max_size=4))
def test_any_sizes_in_any_pieces(decoder, pieces):
    ids = torch.randint(23, (sum(pieces),), generator=torch.Generator().manual_seed(len(pieces)))
    expected = wanted(decoder(ids[None]).logits[0], pieces)
    found = run(CompiledDecoder(decoder), ids, pieces)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@settings(max_examples=8, deadline=None)
@given(
    decoder=decoders(), lengths=st.lists(st.integers(1, 30), min_size=1, max_size=3), chunk=st.integers(1, 20)
)
def test_a_ragged_batch_is_every_sequence_alone(decoder, lengths, chunk):
    rows = [torch.randint(23, (n,), generator=torch.Generator().manual_seed(n)) for n in lengths]
    found = run_batch(decoder, rows, [chunk + i for i in range(len(rows))])
    expected = torch.cat([decoder(row[None]).logits[:, -1] for row in rows])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_published_state_and_rank():
    """For which the kernel has a loop of its own."""
    decoder = tiny("tmm", d_state=16, mamba={"d_state": 16, "dt_rank": 16})
    ids = ids_of(1, 50)[0]
    for pieces in ([1] * 50, [9, 1, 40]):
        found = run(CompiledDecoder(decoder), ids, pieces)
        torch.testing.assert_close(found, wanted(decoder(ids[None]).logits[0], pieces), rtol=1e-4, atol=1e-3)


def test_outputs_that_are_normalised():
    theirs = make("gemma 3")
    cfg = DecoderConfig.from_dict({**theirs.config.to_dict(), "layout": "tmtm", "mamba": {"d_state": 8}})
    torch.manual_seed(0)
    decoder = Decoder(cfg).requires_grad_(False).eval()
    ids = ids_of(1, 20)[0]
    found = run(CompiledDecoder(decoder), ids, [1] * 20)
    torch.testing.assert_close(found, decoder(ids[None]).logits[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_weights(dtype):
    narrow = tiny("tmm").to(dtype)
    ids, wide = ids_of(1, 30)[0], tiny("tmm").to(dtype).float()
    expected = wide(ids[None]).logits[0]
    found = run(CompiledDecoder(narrow), ids, [1] * 30)
    # Inputs of the convolution are kept in the narrow type: near, but not the same.
    error = (found - expected).abs().max() / expected.std()
    assert 0 < error < (0.1 if dtype == torch.bfloat16 else 0.01)


def test_packed_projections():
    decoder = apply(tiny("tmm", d_state=4), RoundToNearest(4, 8), ignore=("*dt_proj", "*dt_in_proj"))
    assert isinstance(decoder.model.layers[1].mixer.in_proj, PackedLinear)
    ids = ids_of(1, 50)[0]
    expected = decoder(ids[None]).logits[0]
    for pieces in ([1] * 50, [9, 41]):
        found = run(CompiledDecoder(decoder), ids, pieces)
        torch.testing.assert_close(found, wanted(expected, pieces), rtol=1e-3, atol=1e-3)


def test_threads_change_no_bit():
    decoder, ids, found = tiny("tmm"), ids_of(3, 90), []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            alone = run(CompiledDecoder(decoder), ids[0], [1, 3, 50, 36])
            found.append(torch.cat([alone, run_batch(decoder, list(ids), [1, 7, 40])]))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_one_row_is_the_same_bit_for_bit_in_any_company():
    decoder, ids = tiny("tmm"), ids_of(3, 20)
    together = run_batch(decoder, list(ids), [1, 1, 1])
    assert torch.equal(together, torch.cat([run_batch(decoder, [row], [1]) for row in ids]))


def test_the_cost_is_every_weight_and_the_scan():
    decoder = tiny("tm")
    compiled, ids, mixer = CompiledDecoder(decoder), ids_of(1, 4)[0], decoder.model.layers[1].mixer
    run(compiled, ids, [4])  # tables of angles are made once
    compiled.use(room_of(decoder, 4))
    with CostCounter() as counter:
        compiled(ids[:1], 0)
    cfg, inner = decoder.cfg, mixer.d_inner
    matrices = [getattr(mixer, name).weight for name in (*MIXERS, "dt_proj")] + [mixer.conv_weight]
    matrices += [
        *(p for p in decoder.model.layers[0].parameters() if p.ndim == 2),
        *decoder.model.layers[1].mlp.parameters(),
        decoder.lm_head.weight,
    ]
    scan = inner * (6 * mixer.shape.d_state + 4)
    assert counter.flops == 2 * sum(map(torch.numel, matrices)) + scan + 4 * inner
    assert compiled.weight_bytes > sum(t.nbytes for t in compiled.step.tensors)
    assert cfg.num_attention_heads * cfg.head_dim == inner


def test_what_the_step_does_not_know():
    with pytest.raises(CannotCompile, match=r"layer 1 is identity; the compiled step knows only layers with"):
        CompiledDecoder(tiny("ti"))
    with pytest.raises(CannotCompile, match="the mixers have the ssd scan"):
        CompiledDecoder(tiny("tm", scan=ScanKind.SSD))
    decoder = tiny("tm")
    decoder.model.layers[1].mixer.dt_proj = torch.nn.Sequential()
    with pytest.raises(CannotCompile, match=r"model\.layers\.1\.mixer\.dt_proj is a Sequential"):
        CompiledDecoder(decoder)


def test_states_that_do_not_fit_are_refused():
    decoder = tiny("tm")
    keys, state = room_of(decoder, 8)
    compiled = CompiledDecoder(decoder)
    with pytest.raises(TypeError, match="layer 0 keeps keys and values, and is given a state"):
        compiled.use([state, state])
    with pytest.raises(TypeError, match="layer 1 keeps a state, and is given keys and values"):
        compiled.use([keys, keys])
    with pytest.raises(ValueError, match=r"do not fit a mixer whose are \(1, 3, 64\) and \(1, 64, 4\)"):
        compiled.use([keys, dataclasses.replace(state, ssm=torch.zeros(1, 64, 5))])
    with pytest.raises(TypeError, match=r"states of torch\.float64"):
        LayerState(state.conv.double(), state.ssm)
    with pytest.raises(ValueError, match="states must be contiguous"):
        LayerState(state.conv, torch.zeros(1, 4, 64).transpose(1, 2))
    with pytest.raises(ValueError, match="a mixer of 64 channels from 32, with 5 states"):
        mixer = decoder.model.layers[1].mixer
        StepMixer(
            32, mixer.dt_proj.weight, mixer.dt_proj.bias, mixer.conv_weight, mixer.conv_bias,
            torch.zeros(64, 5), mixer.D,
        )  # fmt: skip


def test_samples_that_do_not_fit_are_refused():
    decoder = tiny("m")
    compiled = CompiledBatch(decoder)
    compiled.use_blocks([states_of(decoder, 2)[0]])
    ids = torch.tensor([5, 7])
    for samples in ([0, 0], [0, 2], [-1, 0]):
        sequences = [BatchSequence(0, 1, (), sample=sample) for sample in samples]
        with pytest.raises(ValueError, match="must be different ones, each one of the 2 with states"):
            compiled.run(ids, sequences)
    assert compiled.run(ids, [BatchSequence(0, 1, (), sample=s) for s in (1, 0)]).shape == (2, VOCAB)
