"""The decoder against the transformers library's models, whole sequences and through a cache."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from shoestring.compression.load_model import load_model
from shoestring.errors import BadModelFile
from shoestring.generation.dense_cache import DenseCache
from shoestring.layers import ScaledEmbedding
from shoestring.models.built_in import built_in_file
from shoestring.models.decoder import Decoder
from shoestring.models.decoder_config import DecoderConfig
from shoestring.models.decoder_step import Want
from shoestring.yardstick.language_quality import perplexity

from .families import LAYERS, MAKERS, SIZES, VOCAB, ids_of, make


@pytest.fixture(scope="module")
def llama():
    return make("llama")


def cache_of(decoder, batch=1, **options):
    cfg = decoder.cfg
    return DenseCache(cfg.num_hidden_layers, batch, cfg.num_key_value_heads, cfg.head_dim, **options)


@pytest.mark.parametrize("family", MAKERS)
def test_logits_equal_transformers_whole_and_through_a_cache(family):
    theirs = make(family)
    ours, ids = Decoder.from_transformers(theirs), ids_of(2, 40)
    with torch.no_grad():
        expected = theirs(ids).logits
        assert expected.std() > 0.3
        torch.testing.assert_close(ours(ids).logits, expected, rtol=0, atol=1e-4)
        cache = cache_of(ours, batch=2)
        spans = [(0, 13), (13, 14), (14, 30), *((i, i + 1) for i in range(30, 40))]
        parts = [ours(ids[:, start:stop], cache=cache).logits for start, stop in spans]
        torch.testing.assert_close(torch.cat(parts, 1), expected, rtol=0, atol=1e-4)
        states = theirs(ids, output_hidden_states=True).hidden_states
        found = ours(ids, want=Want(logits=None, hidden=(0, 2, "norm")))
    assert found.logits is None
    for key, index in ((0, 1), (2, 3), ("norm", -1)):
        torch.testing.assert_close(found.hidden[key], states[index], rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", MAKERS)
def test_parameters_have_the_names_and_the_storage_of_transformers(family):
    theirs = make(family)
    ours = Decoder.from_transformers(theirs)
    expected = theirs.state_dict()
    assert ours.state_dict().keys() == expected.keys()
    for name, tensor in ours.state_dict().items():
        assert tensor.data_ptr() == expected[name].data_ptr(), name
    again = Decoder.from_weights(ours.cfg, expected, config=theirs.config)
    assert again.transformers_class == type(theirs).__name__
    assert torch.equal(again(ids_of(1, 20)).logits, ours(ids_of(1, 20)).logits)
    if ours.cfg.tie_word_embeddings:
        assert again.lm_head.weight is again.model.embed_tokens.weight
        untied = {name: tensor for name, tensor in expected.items() if name != "lm_head.weight"}
        assert torch.equal(Decoder.from_weights(ours.cfg, untied).lm_head.weight, ours.lm_head.weight)


def test_a_new_decoder_ties_scales_and_trains():
    cfg = DecoderConfig.from_dict(make("gemma 3").config.to_dict())
    torch.manual_seed(0)
    decoder = Decoder(cfg)
    assert decoder.config is cfg
    assert isinstance(decoder.model.embed_tokens, ScaledEmbedding)
    assert decoder.lm_head.weight is decoder.model.embed_tokens.weight
    optimizer = torch.optim.Adam(decoder.parameters(), lr=3e-3)
    ids = ids_of(4, 16)
    losses = []
    for _ in range(12):
        logits = decoder(ids).logits[:, :-1]
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]
    assert all(p.grad is not None for p in decoder.parameters())


def test_what_is_wanted_is_given_and_no_more(llama):
    decoder, ids = Decoder.from_transformers(llama), ids_of(2, 9)
    with torch.no_grad():
        whole = decoder(ids)
        assert torch.equal(whole.pos, torch.arange(9).expand(2, -1))
        assert whole.hidden == {} == whole.kv
        last = decoder(ids, want=Want(logits="last")).logits
        torch.testing.assert_close(last, whole.logits[:, -1:])
        rows = torch.tensor([[0, 5], [2, 8]])
        picked = decoder(ids, want=Want(logits=rows)).logits
        torch.testing.assert_close(picked, whole.logits[torch.arange(2)[:, None], rows])
        cache = cache_of(decoder, batch=2)
        kept = decoder(ids, cache=cache, want=Want(kv=(1, 3))).kv
    assert kept.keys() == {1, 3}
    assert torch.equal(kept[3].k, cache.view(3).k)
    with pytest.raises(ValueError, match="keys and values of layer 1 are wanted, but there is no cache"):
        decoder(ids, want=Want(kv=(1,)))


def test_embeddings_go_in_as_ids_do(llama):
    decoder, ids = Decoder.from_transformers(llama), ids_of(1, 9)
    assert torch.equal(decoder(decoder.model.embed_tokens(ids)).logits, decoder(ids).logits)


def test_padded_rows_are_as_if_they_were_alone(llama):
    decoder, lengths = Decoder.from_transformers(llama), (9, 4, 1)
    ids = ids_of(3, 9)
    pos = torch.stack([torch.arange(9).masked_fill(torch.arange(9) >= n, -1) for n in lengths])
    out = decoder(ids, pos)
    last = decoder(ids, pos, want=Want(logits="last")).logits
    for row, n in enumerate(lengths):
        alone = decoder(ids[row : row + 1, :n]).logits[0]
        torch.testing.assert_close(out.logits[row, :n], alone, rtol=0, atol=1e-5)
        torch.testing.assert_close(last[row, 0], alone[-1], rtol=0, atol=1e-5)


def test_positions_may_have_gaps_and_only_distances_count(llama):
    decoder, ids = Decoder.from_transformers(llama), ids_of(1, 6)
    plain = decoder(ids).logits
    shifted = decoder(ids, torch.arange(6)[None] + 50).logits
    torch.testing.assert_close(shifted, plain, rtol=0, atol=1e-4)
    gap = decoder(ids, torch.tensor([[0, 1, 2, 9, 10, 11]])).logits
    torch.testing.assert_close(gap[:, :3], plain[:, :3], rtol=0, atol=1e-5)
    assert (gap[:, 3:] - plain[:, 3:]).abs().max() > 1e-2


def test_bfloat16_and_autocast_stay_close(llama):
    decoder, ids = Decoder.from_transformers(llama), ids_of(1, 20)
    exact = decoder(ids).logits
    cache = cache_of(decoder)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        auto = decoder(ids[:, :12], cache=cache).logits, decoder(ids[:, 12:], cache=cache).logits
    half = Decoder.from_transformers(make("llama", torch.bfloat16))(ids).logits
    for logits in (torch.cat(auto, 1), half):
        assert logits.dtype == torch.bfloat16
        assert (logits - exact).abs().mean() < 0.05 * exact.std()


def test_the_yardstick_takes_it_as_it_takes_a_transformers_model(llama):
    windows = ids_of(4, 16)
    ours, theirs = (perplexity(m, windows) for m in (Decoder.from_transformers(llama), llama))
    assert ours.ppl == pytest.approx(theirs.ppl, rel=1e-5)


def test_what_is_no_decoder_is_refused(llama):
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=8, n_embd=8, n_layer=1, n_head=1))
    with pytest.raises(BadModelFile, match="model_type 'gpt2' is not one .*it runs llama, mistral, qwen2"):
        Decoder.from_transformers(gpt2)
    with pytest.raises(TypeError, match="Linear is no model of transformers: it has no config"):
        Decoder.from_transformers(nn.Linear(2, 2))
    headless = nn.Module()
    headless.config, headless.model = llama.config, llama.model
    with pytest.raises(TypeError, match="Module has no module 'lm_head'"):
        Decoder.from_transformers(headless)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("model.norm.weight"), r"lack 'model.norm.weight' \(1 tensors are missing\)"),
        (lambda w: w.update(extra=torch.ones(1)), "hold 'extra', which a llama model has not"),
        (
            lambda w: w.update({"lm_head.weight": torch.ones(VOCAB, 3)}),
            rf"'lm_head.weight' is \({VOCAB}, 3\) instead of \({VOCAB}, 48\)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(llama, change, message):
    weights = dict(llama.state_dict())
    change(weights)
    with pytest.raises(BadModelFile, match=message):
        Decoder.from_weights(Decoder.from_transformers(llama).cfg, weights)


@pytest.mark.parametrize(
    ("ids", "pos", "message"),
    [
        (torch.zeros(1, 0, dtype=torch.long), None, r"x is \(1, 0\): there must be at least one"),
        (ids_of(1, 3), torch.arange(4)[None], r"pos is \(1, 4\) for \(1, 3\) tokens"),
    ],
)
def test_bad_input_is_refused(llama, ids, pos, message):
    with pytest.raises(ValueError, match=message):
        Decoder.from_transformers(llama)(ids, pos)


def test_sizes_are_those_of_the_family():
    assert Decoder.from_transformers(make("gemma 3")).cfg.windows == (8, None, 8, None)
    assert len(MAKERS) == 9
    assert SIZES["num_hidden_layers"] == LAYERS


@pytest.mark.slow
def test_smollm2_equals_transformers_in_prefill_and_decode():
    path = built_in_file("smollm2-135m")
    theirs = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name).eval()
    ours, tokenizer = load_model("smollm2-135m")
    ids = torch.tensor([tokenizer.encode("The three laws of thermodynamics say that energy")])
    cache = cache_of(ours)
    with torch.inference_mode():
        expected = theirs(ids).logits
        torch.testing.assert_close(ours(ids).logits, expected, rtol=0, atol=1e-4)
        parts = [ours(ids[:, :5], cache=cache).logits]
        parts += [ours(ids[:, i : i + 1], cache=cache).logits for i in range(5, ids.shape[1])]
    torch.testing.assert_close(torch.cat(parts, 1), expected, rtol=0, atol=5e-4)
