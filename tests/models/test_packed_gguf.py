"""Tensors of GGUF files that stay packed mean exactly what they decode to."""

import gguf
import pytest
import torch

from shoestring.layers.packed_linear import PackedEmbedding, PackedLinear
from shoestring.models.built_in import built_in_file
from shoestring.models.gguf_file import GGUFFile
from shoestring.models.load import load_decoder
from shoestring.models.packed_gguf import can_stay_packed, packed_weight

from .gguf_bytes import every_kind

Kind = gguf.GGMLQuantizationType
LEGACY = [Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0]
KINDS = [*LEGACY, Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K]


def test_every_kind_keeps_its_weights_bit_for_bit(tmp_path):
    path = tmp_path / "kinds.gguf"
    path.write_bytes(every_kind([*KINDS, Kind.TQ1_0, Kind.F16]).write().data)
    file = GGUFFile(path)
    kept = [name for name in file if can_stay_packed(file, name)]
    assert {file.tensors[name].kind for name in kept} == set(KINDS)
    for name in kept:
        exact = file.read(name, torch.float32)
        # The bytes are random: some scales are infinite or no number, and stay so.
        torch.testing.assert_close(
            packed_weight(file, name).dequantise(), exact, rtol=0, atol=0, equal_nan=True
        )
        order = torch.arange(len(exact)).flip(0)
        turned = packed_weight(file, name, order).dequantise()
        torch.testing.assert_close(turned, exact.flip(0), rtol=0, atol=0, equal_nan=True)
    other = next(name for name in file if name not in kept)
    with pytest.raises(ValueError, match="no matrix of one of the kinds Q4_0"):
        packed_weight(file, other)


def test_a_packed_decoder_holds_the_weights_of_a_plain_one():
    path = built_in_file("smollm2-135m")
    plain, packed = load_decoder(path), load_decoder(path, packed=True)
    assert isinstance(packed.model.embed_tokens, PackedEmbedding)
    assert packed.lm_head.packed is packed.model.embed_tokens.packed
    linear = [name for name, module in packed.named_modules() if isinstance(module, PackedLinear)]
    assert len(linear) == 30 * 7 + 1
    for name in (linear[0], linear[1], linear[6], linear[100], "lm_head", "model.embed_tokens"):
        assert torch.equal(packed.get_submodule(name).weight, plain.get_submodule(name).weight), name
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        torch.testing.assert_close(packed(ids).logits, plain(ids).logits, rtol=0, atol=5e-4)
    stored = sum(buffer.nbytes for buffer in packed.buffers()) + sum(p.nbytes for p in packed.parameters())
    assert stored < 1.01 * path.stat().st_size
