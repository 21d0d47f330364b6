"""Decoders in which Mamba mixers, or nothing, stand in the place of attention."""

import json

import pytest
import torch

from shoestring.compression.load_model import load_model
from shoestring.compression.saved_folder import save
from shoestring.errors import BadModelFile
from shoestring.generation import generate
from shoestring.generation.dense_cache import DenseCache
from shoestring.generation.runner import make_runner
from shoestring.layers.mamba.grouped_mamba import ScanKind
from shoestring.models.compiled_decoder import CannotCompile, CompiledDecoder
from shoestring.models.decoder import Decoder
from shoestring.models.decoder_config import DecoderConfig
from shoestring.models.decoder_step import Step
from shoestring.models.hooks import Context
from shoestring.models.layer_layout import LayerKind
from shoestring.models.load import load_decoder
from shoestring.models.save_decoder import config_document, save_decoder
from shoestring.notices import record_fallbacks
from shoestring.serving.engine import Engine

from .families import make
from .hybrids import FIELDS, ids_of, tiny


def test_all_attention_is_the_teacher_bit_for_bit():
    theirs = make("llama")
    plain = Decoder.from_transformers(theirs)
    named = DecoderConfig.from_dict({**theirs.config.to_dict(), "layout": "tttt"})
    assert named == plain.cfg
    again = Decoder.from_weights(named, plain.state_dict())
    ids = ids_of(2, 20)
    assert torch.equal(again(ids).logits, plain(ids).logits)


def test_kinds_of_layers():
    decoder = tiny("tmis")
    names = {n.split(".", 3)[2] + "." + n.split(".")[3] for n in decoder.state_dict() if "layers" in n}
    assert {"0.self_attn", "1.mixer", "0.input_layernorm", "1.input_layernorm", "2.mlp"} <= names
    assert not {"1.self_attn", "2.input_layernorm", "2.self_attn"} & names
    assert not any(name.startswith("3.") for name in names)
    assert decoder.cfg.layers_of(LayerKind.MAMBA) == (1,)
    x = torch.randn(1, 3, 24)
    step = Step.start(torch.arange(3)[None], True, frozenset(), 16, x.dtype, None, None, Context())
    assert decoder.model.layers[3](x, step) is x
    layer = decoder.model.layers[2]
    assert torch.equal(layer(x, step), x + layer.mlp(layer.post_attention_layernorm(x), step))


@pytest.mark.parametrize("letter", ["t", "m", "i"])
def test_a_hybrid_of_gemma_normalises_what_a_mixer_adds(letter):
    theirs = make("gemma 3")
    cfg = DecoderConfig.from_dict(
        {**theirs.config.to_dict(), "layout": f"t{letter}tt", "mamba": {"d_state": 8}}
    )
    decoder = Decoder(cfg).eval()
    ids = ids_of(2, 9)
    before = decoder(ids).logits
    with torch.no_grad():
        decoder.model.layers[1].post_attention_layernorm.weight.fill_(-1.0)  # gains are 1 + weight
    changed = not torch.equal(decoder(ids).logits, before)
    assert changed == (letter != "i")


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("scan", list(ScanKind))
def test_a_saved_hybrid_comes_back_bit_for_bit(tmp_path, scan, tie):
    decoder = tiny("tmis", scan=scan, tie_word_embeddings=tie)
    save_decoder(decoder, tmp_path / "model")
    again = load_decoder(tmp_path / "model")
    assert again.cfg == decoder.cfg
    ids = ids_of(2, 20)
    assert torch.equal(again(ids).logits, decoder(ids).logits)
    assert json.loads((tmp_path / "model" / "config.json").read_text())["layout"] == "tmis"
    # What was loaded carries a configuration of transformers, and can be saved again.
    assert type(again.config).__name__ == "LlamaConfig"
    save_decoder(again, tmp_path / "again")
    assert torch.equal(load_decoder(tmp_path / "again")(ids).logits, decoder(ids).logits)


def test_decays_stay_in_float32(tmp_path):
    decoder = tiny("tm")
    save_decoder(decoder, tmp_path / "model")
    narrow = load_decoder(tmp_path / "model", torch.bfloat16)
    mixer = narrow.model.layers[1].mixer
    assert (mixer.A_log.dtype, mixer.D.dtype, mixer.in_proj.weight.dtype) == (
        torch.float32,
        torch.float32,
        torch.bfloat16,
    )
    torch.testing.assert_close(
        narrow(ids_of(1, 12)).logits.float(), decoder(ids_of(1, 12)).logits, rtol=0.2, atol=0.5
    )


def test_an_all_attention_folder_is_plain(tmp_path):
    decoder = tiny("tt")
    save_decoder(decoder, tmp_path / "model")
    document = json.loads((tmp_path / "model" / "config.json").read_text())
    assert document["model_type"] == "llama"
    assert "layout" not in document
    theirs = pytest.importorskip("transformers").AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    ids = ids_of(2, 20)
    torch.testing.assert_close(theirs(ids).logits, decoder(ids).logits, rtol=1e-4, atol=1e-4)


def test_other_ways_to_save_and_load(tmp_path, byte_tokenizer):
    decoder = tiny("tm", vocab_size=260)
    save_decoder(decoder, tmp_path / "model", byte_tokenizer)
    model, tokenizer = load_model(str(tmp_path / "model"))
    assert model.cfg.layout == decoder.cfg.layout
    assert generate(model, "abc", tokenizer, max_new_tokens=3).tokens
    with pytest.raises(TypeError, match=r"use models\.save_decoder"):
        save(model, None, tmp_path / "fitted")
    with pytest.raises(ValueError, match="hybrid_llama"):
        pytest.importorskip("transformers").AutoModelForCausalLM.from_pretrained(tmp_path / "model")


def test_what_a_folder_cannot_say(tmp_path):
    decoder = tiny("tm")
    decoder.model.layers[0].mlp.down_proj = torch.nn.Linear(40, 24)
    with pytest.raises(TypeError, match=r"model\.layers\.0\.mlp\.down_proj\.bias"):
        save_decoder(decoder, tmp_path / "model")
    from dataclasses import replace

    decoder = tiny("tm")
    decoder.cfg = replace(decoder.cfg, query_scale=0.5)
    with pytest.raises(ValueError, match=r"query_scale=0\.5 cannot be said"):
        config_document(decoder)


def test_bad_layouts():
    with pytest.raises(BadModelFile, match=r"layout is 'tm'; it must name 3 layers"):
        DecoderConfig.from_dict({**FIELDS, "num_hidden_layers": 3, "layout": "tm"})
    with pytest.raises(BadModelFile, match=r"layout is 'tx'; its letters are t \(attention\)"):
        DecoderConfig.from_dict({**FIELDS, "num_hidden_layers": 2, "layout": "tx"})
    with pytest.raises(BadModelFile, match="mamba is 16; it must be a table"):
        DecoderConfig.from_dict({**FIELDS, "num_hidden_layers": 2, "layout": "tm", "mamba": 16})
    with pytest.raises(BadModelFile, match="d_state=5 does not divide"):
        DecoderConfig.from_dict({**FIELDS, "num_hidden_layers": 2, "layout": "tm", "mamba": {"d_state": 5}})
    with pytest.raises(BadModelFile, match="d_inner=65 must be heads"):
        DecoderConfig.from_dict(
            {**FIELDS, "num_hidden_layers": 2, "layout": "tm", "mamba": {"d_state": 4, "d_inner": 65}}
        )
    with pytest.raises(BadModelFile, match="mamba: .*'width'"):
        DecoderConfig.from_dict({**FIELDS, "num_hidden_layers": 2, "layout": "tm", "mamba": {"width": 5}})


def test_what_cannot_run_a_hybrid_says_so():
    decoder = tiny("tm", scan=ScanKind.SSD)
    with pytest.raises(CannotCompile, match="the mixers have the ssd scan"):
        CompiledDecoder(decoder)
    with record_fallbacks() as said:
        make_runner(decoder)
    assert any("decode step: module by module" in line and "ssd" in line for line in said)
    with pytest.raises(ValueError, match="a hybrid cannot be served"):
        Engine(decoder, n_blocks=4)
    with pytest.raises(TypeError, match="a DenseCache keeps no states"):
        decoder(ids_of(1, 3), cache=DenseCache(2, 1, 2, 8))
    with pytest.raises(ValueError, match="must ascend and follow the cache"):
        decoder(ids_of(1, 3), torch.tensor([[0, 2, 1]]))
