"""Many sequences in one compiled call: the logits of each alone, over blocks in any order and any form."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.generation.block_storage import BlockStorage
from shoestring.generation.dense_cache import DenseCache
from shoestring.kernels.decode_batch import BatchSequence, DecodeBatch
from shoestring.models.compiled_batch import CompiledBatch
from shoestring.models.decoder import Decoder
from shoestring.models.decoder_config import DecoderConfig
from shoestring.numbers.block_format import BlockFormat
from shoestring.numbers.token_cache_format import TokenCacheFormat, decode_rows, encode_rows
from shoestring.yardstick.flops import CostCounter

from .families import MAKERS, VOCAB, make

N_BLOCKS = 40
WIDTHS = (16, 8, 4, 2)
FORMS = [BlockFormat(16, TokenCacheFormat(*bits)) for bits in itertools.product(WIDTHS, repeat=2)]


def config(**changes):
    sizes = {
        "model_type": "llama", "vocab_size": VOCAB, "hidden_size": 48, "intermediate_size": 64,
        "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 64,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    }  # fmt: skip
    return DecoderConfig.from_dict(sizes | changes)


def decoder_of(**changes):
    torch.manual_seed(0)
    decoder = Decoder(config(**changes)).requires_grad_(False).eval()
    for parameter in decoder.parameters():
        if parameter.dim() > 1:
            parameter.data *= 3
    return decoder


def storages(decoder, form, dtype=torch.float32, n_blocks=N_BLOCKS):
    cfg = decoder.cfg
    return [
        BlockStorage(form, n_blocks, cfg.num_key_value_heads, cfg.head_dim, dtype=dtype)
        for _ in range(cfg.num_hidden_layers)
    ]


def batch_of(decoder, form, dtype=torch.float32, n_blocks=N_BLOCKS):
    compiled = CompiledBatch(decoder)
    compiled.use_blocks([storage.rows() for storage in storages(decoder, form, dtype, n_blocks)])
    return compiled


def tables(lengths, slots, seed=0):
    """Blocks for every sequence, dealt out in a random order."""
    order = iter(torch.randperm(N_BLOCKS, generator=torch.Generator().manual_seed(seed)).tolist())
    return [list(itertools.islice(order, -(-length // slots))) for length in lengths]


def run_in_chunks(compiled, ids, blocks, chunks):
    """Feed every sequence in pieces of its chunk, all together; the logits of each one's last token."""
    done, last = [0] * len(ids), [None] * len(ids)
    while any(at < len(row) for at, row in zip(done, ids, strict=True)):
        active = [i for i, row in enumerate(ids) if done[i] < len(row)]
        tokens = [min(chunks[i], len(ids[i]) - done[i]) for i in active]
        sequences = [BatchSequence(done[i], n, blocks[i]) for i, n in zip(active, tokens, strict=True)]
        rows = torch.cat([ids[i][done[i] : done[i] + n] for i, n in zip(active, tokens, strict=True)])
        for i, n, logits in zip(active, tokens, compiled.run(rows, sequences), strict=True):
            last[i] = logits.clone()
            done[i] += n
    return torch.stack(last)


def random_ids(lengths, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(VOCAB, (n,), generator=generator) for n in lengths]


DECODER = decoder_of()


@given(
    lengths=st.lists(st.integers(1, 45), min_size=1, max_size=3),
    slots=st.sampled_from([5, 16, 64]),
    seed=st.integers(0, 100),
    data=st.data(),
)
def test_a_ragged_batch_is_every_sequence_alone(lengths, slots, seed, data):
    chunks = [data.draw(st.integers(3, 20)) for _ in lengths]
    compiled, ids = batch_of(DECODER, BlockFormat(slots)), random_ids(lengths, seed)
    found = run_in_chunks(compiled, ids, tables(lengths, slots, seed), chunks)
    expected = torch.cat([DECODER(row[None]).logits[0, -1:] for row in ids])
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("family", MAKERS)
def test_every_family(family):
    decoder = Decoder.from_transformers(make(family)).requires_grad_(False)
    lengths = [23, 1, 37]
    ids = random_ids(lengths)
    found = run_in_chunks(batch_of(decoder, BlockFormat(16)), ids, tables(lengths, 16), [1, 1, 19])
    expected = torch.cat([decoder(row[None]).logits[0, -1:] for row in ids])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()) + 1e-4)


class RoundedCache(DenseCache):
    """What a cache in codes means: every key and value rounded, its own token's too, before it is seen."""

    form: BlockFormat

    def append(self, layer, k, v, pos, store=None):
        return super().append(
            layer, self.round(k, self.form.tokens.key_bits), self.round(v, self.form.tokens.value_bits), pos
        )

    def round(self, x, bits):
        return x if bits == 16 else decode_rows(*encode_rows(x, bits, "x"), bits, x.shape[-1])


@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_attention_is_over_what_the_codes_mean_however_tokens_come(form, window):
    decoder = decoder_of(**({} if window is None else {"model_type": "mistral", "sliding_window": window}))
    compiled, ids, layers = CompiledBatch(decoder), random_ids([33, 70]), storages(decoder, form)
    compiled.use_blocks([storage.rows() for storage in layers])
    blocks = tables([33, 70], 16)
    found = run_in_chunks(compiled, ids, blocks, [1, 40])
    for logits, row, table in zip(found, ids, blocks, strict=True):
        cfg = decoder.cfg
        cache = RoundedCache(cfg.num_hidden_layers, 1, cfg.num_key_value_heads, cfg.head_dim)
        cache.form = form
        expected = decoder(row[None], cache=cache).logits[0, -1]
        # A number in the middle between two codes may fall to either side; nothing else may differ.
        assert (logits - expected).abs().max() < (5e-5 if form.exact else 0.03) * expected.std()
        # What the first layer stores depends on nothing that was rounded.
        stored, view = layers[0].decode(layers[0].read_blocks(torch.tensor([table]))), cache.view(0)
        for held, meant in zip(stored, (view.k, view.v), strict=True):
            same = torch.isclose(held[:, :, : len(row)], meant, rtol=1e-3, atol=1e-4)
            assert same.float().mean() > 0.998


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_plain_blocks_in_sixteen_bits(dtype):
    lengths = [20, 70]
    ids = random_ids(lengths)
    found = run_in_chunks(batch_of(DECODER, BlockFormat(16), dtype), ids, tables(lengths, 16), [1, 30])
    expected = torch.cat([DECODER(row[None]).logits[0, -1:] for row in ids])
    error = (found - expected).abs().max() / expected.std()
    assert 0 < error < {torch.float16: 0.01, torch.bfloat16: 0.1}[dtype]


@pytest.mark.parametrize("bits", [16, 8, 4, 2])
def test_results_do_not_depend_on_the_number_of_threads(bits):
    lengths, threads, outputs = [40, 3, 55], torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            compiled = batch_of(DECODER, BlockFormat(16, TokenCacheFormat(bits, bits)))
            outputs.append(run_in_chunks(compiled, random_ids(lengths), tables(lengths, 16), [1, 3, 20]))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize("bits", [16, 8, 4, 2])
def test_one_row_is_the_same_bit_for_bit_in_any_company(bits):
    ids, form = random_ids([30, 30, 30]), BlockFormat(16, TokenCacheFormat(bits, bits))
    together = run_in_chunks(batch_of(DECODER, form), ids, tables([30] * 3, 16), [1, 1, 1])
    alone = [run_in_chunks(batch_of(DECODER, form), [row], tables([30], 16, 7), [1]) for row in ids]
    assert torch.equal(together, torch.cat(alone))


def test_only_wanted_logits_come():
    compiled = batch_of(DECODER, BlockFormat(16))
    ids, (first, second) = random_ids([5, 5]), tables([5, 5], 16)
    one = compiled.run(ids[1], [BatchSequence(0, 5, second)]).clone()
    both = compiled.run(
        torch.cat(ids), [BatchSequence(0, 5, first, wants_logits=False), BatchSequence(0, 5, second)]
    )
    assert torch.equal(one, both)


def test_the_cost_is_every_row_and_weights_once():
    compiled = batch_of(DECODER, BlockFormat(16, TokenCacheFormat(8, 8)))
    ids, (first, second) = random_ids([5, 1]), tables([5, 1], 16)
    compiled.run(ids[1], [BatchSequence(0, 1, second)])  # tables of angles are made once
    with CostCounter() as counter:
        compiled.run(torch.cat(ids), [BatchSequence(0, 5, first), BatchSequence(0, 1, second)])
    cfg = DECODER.cfg
    inner, shared = (n * cfg.head_dim for n in (cfg.num_attention_heads, cfg.num_key_value_heads))
    per_layer = cfg.hidden_size * (2 * inner + 2 * shared) + 3 * cfg.hidden_size * cfg.intermediate_size
    seen = 1 + 2 + 3 + 4 + 5 + 1
    expected = 3 * (2 * 6 * per_layer + 4 * inner * seen) + 2 * 2 * cfg.hidden_size * VOCAB
    assert counter.flops == expected


@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        ([BatchSequence(0, 4, [0])], "5 rows for sequences of \\[4\\]"),
        ([BatchSequence(0, 5, [])], "0 blocks of 4 tokens for 5"),
        ([BatchSequence(4, 5, [0, 1])], "2 blocks of 4 tokens for 9"),
        ([BatchSequence(0, 5, [0, N_BLOCKS])], f"outside the {N_BLOCKS}"),
        ([BatchSequence(0, 5, [-1, 0])], "outside"),
        ([BatchSequence(-1, 5, [0, 1])], "5 tokens from -1"),
        ([BatchSequence(0, 5, [0, 1]), BatchSequence(0, 0, [2])], "0 tokens from 0"),
    ],
)
def test_sequences_that_do_not_fit_are_refused(sequences, message):
    with pytest.raises(ValueError, match=message):
        batch_of(DECODER, BlockFormat(4)).run(torch.zeros(5, dtype=torch.long), sequences)


def test_channels_that_do_not_fill_a_vector_of_codes_are_refused():
    decoder = decoder_of(head_dim=16)
    with pytest.raises(
        ValueError,
        match="heads have 16 channels, but codes of value_bits=4 .* runs of 32; use value_bits=16 or 8",
    ):
        batch_of(decoder, BlockFormat(16, TokenCacheFormat(8, 4)))


def test_blocks_that_do_not_fit_the_decoder_are_refused():
    decoder = decoder_of()
    wrong = storages(decoder_of(head_dim=32), BlockFormat(16))
    with pytest.raises(ValueError, match="rows of 32 channels.* do not fit \\(blocks · 2, 16, 64\\)"):
        DecodeBatch(CompiledBatch(decoder).step, [storage.rows() for storage in wrong])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_numbers_without_codes_are_refused(value):
    decoder = decoder_of()
    decoder.model.layers[0].self_attn.v_proj.weight.data[3] = value
    with pytest.raises(ValueError, match="no codes for them"):
        batch_of(decoder, BlockFormat(16, TokenCacheFormat(8, 8))).run(
            torch.tensor([5]), [BatchSequence(0, 1, [0])]
        )


def one_by_one_after(compiled, ids, blocks, prompt):
    """Logits of the last token, after a prompt in two calls and the rest token by token."""
    cuts = [0, prompt // 2, *range(prompt, len(ids) + 1)]
    for start, end in itertools.pairwise(cuts):
        last = compiled.run(ids[start:end], [BatchSequence(start, end - start, blocks)])[0].clone()
    return last


@given(
    form=st.sampled_from(FORMS),
    slots=st.sampled_from([1, 3, 7, 16, 17, 64, 130]),
    prompt=st.integers(2, 370),
    more=st.integers(1, 12),
    window=st.sampled_from([None, 9, 150]),
    seed=st.integers(0, 99),
)
def test_blocks_of_any_size_are_one_cache(form, slots, prompt, more, window, seed):
    decoder = decoder_of(
        num_hidden_layers=1,
        **({} if window is None else {"model_type": "mistral", "sliding_window": window}),
    )
    ids, found = random_ids([prompt + more], seed)[0], {}
    for size in (slots, 512):
        split = BlockFormat(size, form.tokens)
        n_blocks = split.blocks_for(len(ids)) + 3
        order = torch.randperm(n_blocks, generator=torch.Generator().manual_seed(seed)).tolist()
        compiled = batch_of(decoder, split, n_blocks=n_blocks)
        found[size] = one_by_one_after(compiled, ids, order[: split.blocks_for(len(ids))], prompt)
    torch.testing.assert_close(found[slots], found[512], rtol=0, atol=2e-4 * float(found[512].std()))
