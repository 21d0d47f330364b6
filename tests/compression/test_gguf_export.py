"""Exported files hold the same weights bit for bit, and llama.cpp computes with them what we do."""

import gguf
import numpy as np
import pytest
import torch
from tests.compression.llama_cpp_process import ask_llama_cpp
from tests.compression.models import byte_tokenizer, gpt2
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from shoestring.compression import LowRank, RoundToNearest, apply, stored_bytes
from shoestring.compression.gguf_export import (
    check_exportable,
    export_gguf,
    export_gguf_q8,
    gguf_extra_bytes,
    gguf_tensor_bytes,
)
from shoestring.compression.menu import gguf_menu
from shoestring.numbers import ZeroPoint

FORMATS = {
    "Q4_0": RoundToNearest(4, 32),
    "Q5_0": RoundToNearest(5, 32),
    "Q8_0": RoundToNearest(8, 32),
    "Q4_1": RoundToNearest(4, 32, ZeroPoint.REAL),
    "Q5_1": RoundToNearest(5, 32, ZeroPoint.REAL),
}


def llama(tied: bool, std: float = 0.02) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=260, hidden_size=128, intermediate_size=192, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=tied, initializer_range=std,
            max_position_embeddings=64, bos_token_id=0, eos_token_id=0,
        )
    ).eval()  # fmt: skip


def unrotate(rows: np.ndarray, heads: int) -> np.ndarray:
    """The layout of llama.cpp back to that of transformers, written out row by row."""
    dim = rows.shape[0] // heads
    back = np.empty_like(rows)
    for head in range(heads):
        for i in range(dim // 2):
            back[head * dim + i] = rows[head * dim + 2 * i]
            back[head * dim + dim // 2 + i] = rows[head * dim + 2 * i + 1]
    return back


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("tied", [True, False])
def test_the_gguf_package_decodes_the_same_weights(kind, tied, tmp_path):
    model = apply(llama(tied), FORMATS[kind], ignore=())
    export_gguf(model, byte_tokenizer(), tmp_path / "m.gguf")
    tensors = {t.name: t for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert ("output.weight" in tensors) == (not tied)
    for ours, theirs, heads in [
        ("model.embed_tokens", "token_embd", 0),
        ("model.layers.1.self_attn.q_proj", "blk.1.attn_q", 4),
        ("model.layers.1.self_attn.k_proj", "blk.1.attn_k", 2),
        ("model.layers.0.mlp.down_proj", "blk.0.ffn_down", 0),
    ]:
        tensor = tensors[f"{theirs}.weight"]
        assert tensor.tensor_type.name == kind
        decoded = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        decoded = unrotate(decoded, heads) if heads else decoded
        assert np.array_equal(decoded, model.get_submodule(ours).weight.numpy())
    assert np.array_equal(tensors["output_norm.weight"].data, model.model.norm.weight.detach().numpy())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_plain_weights_keep_their_type(dtype, tmp_path):
    model = llama(True).to(dtype)
    export_gguf(model, byte_tokenizer(), tmp_path / "m.gguf")
    tensor = next(t for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors if t.name == "blk.0.attn_v.weight")
    assert tensor.tensor_type.name == {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[str(dtype)[6:]]
    decoded = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    assert np.array_equal(decoded, model.model.layers[0].self_attn.v_proj.weight.detach().float().numpy())


@pytest.mark.parametrize("kind", ["plain", *FORMATS])
def test_llama_cpp_computes_the_same_logits_and_greedy_text(kind, tmp_path):
    # Larger initial weights, so that attention and positions matter and the logits are far apart.
    model = llama(True, std=0.2)
    if kind != "plain":
        apply(model, FORMATS[kind], ignore=())
    export_gguf(model, byte_tokenizer(), tmp_path / "m.gguf")
    ids = torch.randint(1, 260, (40,), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        ours = model(ids[None])[0][0]
    theirs = torch.tensor(ask_llama_cpp(tmp_path / "m.gguf", {"ids": ids.tolist()}))
    # llama.cpp rounds activations to 8 bits before a product with packed weights, and its cache to float16.
    error = (ours - theirs).norm() / ours.norm()
    assert error < (0.005 if kind == "plain" else 0.05)
    assert (ours.argmax(-1) == theirs.argmax(-1)).float().mean() >= (1.0 if kind == "plain" else 0.9)


def test_llama_cpp_cuts_text_as_our_tokenizer_does(tmp_path):
    texts = ["the cat's 3 hats", "äöü → 漢字", "  the\n\n"]
    export_gguf(llama(True), byte_tokenizer(), tmp_path / "a.gguf")
    export_gguf(llama(True), tmp_path / "a.gguf", tmp_path / "b.gguf")  # copied from the first
    for name in ("a.gguf", "b.gguf"):
        theirs = ask_llama_cpp(tmp_path / name, {"texts": texts})
        assert theirs == [byte_tokenizer()(text)["input_ids"] for text in texts]


def test_formats_that_gguf_has_not_are_listed_or_rounded_on_request(tmp_path):
    model = apply(
        llama(True),
        {"*q_proj": RoundToNearest(3, 32), "*up_proj": LowRank(8), "*down_proj": RoundToNearest(4, 32)},
    )
    with pytest.raises(ValueError, match="cannot hold the formats of 4 layers") as caught:
        export_gguf(model, byte_tokenizer(), tmp_path / "m.gguf")
    assert "'model.layers.1.self_attn.q_proj' (3 bits, groups of 32, symmetric, 16-bit scales)" in str(
        caught.value
    )
    assert "'model.layers.0.mlp.up_proj' (low rank)" in str(caught.value)
    assert not list(tmp_path.iterdir())
    export_gguf_q8(model, byte_tokenizer(), tmp_path / "m.gguf")
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert kinds["blk.0.attn_q.weight"] == kinds["blk.1.ffn_up.weight"] == "Q8_0"
    assert kinds["blk.0.ffn_down.weight"] == "Q4_0"


def test_models_and_tokenizers_that_cannot_be_exported(tmp_path):
    with pytest.raises(ValueError, match="knows models of type 'llama', not 'gpt2'"):
        export_gguf(gpt2(), byte_tokenizer(), tmp_path / "m.gguf")
    words = Tokenizer(models.WordLevel({"a": 0}, "a"))
    with pytest.raises(ValueError, match="a WordLevel tokenizer cannot be written to GGUF"):
        export_gguf(llama(True), PreTrainedTokenizerFast(tokenizer_object=words), tmp_path / "m.gguf")
    without = byte_tokenizer()
    without.backend_tokenizer.model = models.BPE(byte_tokenizer().get_vocab(), [])
    with pytest.raises(ValueError, match="the tokenizer has no merges, without which llama.cpp reads no BPE"):
        export_gguf(llama(True), without, tmp_path / "m.gguf")
    small = llama(True)
    small.config.vocab_size = 200
    with pytest.raises(ValueError, match="the tokenizer has 259 tokens, the model's table only 200"):
        export_gguf(small, byte_tokenizer(), tmp_path / "m.gguf")
    odd = byte_tokenizer()
    odd.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(ValueError, match="cuts text by Whitespace, for which no name of llama.cpp is known"):
        export_gguf(llama(True), odd, tmp_path / "m.gguf")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["plain", "Q4_0", "Q5_1"])
def test_the_bytes_of_the_tensor_data_are_known_before(kind, dtype, tmp_path):
    plain = llama(True).to(dtype)
    extra = gguf_extra_bytes(plain)
    model = plain if kind == "plain" else apply(plain, FORMATS[kind], ignore=())
    check_exportable(model, byte_tokenizer())
    export_gguf(model, byte_tokenizer(), tmp_path / "m.gguf")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    written = (tmp_path / "m.gguf").stat().st_size - reader.data_offset
    assert written == gguf_tensor_bytes(model) <= stored_bytes(model) + extra


def test_the_menu_for_llama_cpp_has_every_kind_and_nothing_else():
    assert {recipe.form for recipe in gguf_menu()} == {recipe.form for recipe in FORMATS.values()}
