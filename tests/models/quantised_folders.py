"""Folders as AWQ and GPTQ tools write them, and what their words mean, weight by weight."""

import json

import torch
from safetensors.torch import save_file

NIBBLES = (0, 2, 4, 6, 1, 3, 5, 7)


def signed(word):
    return word - (1 << 32) if word >> 31 else word


def awq_words(codes):
    """(rows, columns) of codes -> (rows, columns / 8) int32: nibble i of a word holds column NIBBLES[i]."""
    rows, columns = codes.shape
    words = torch.zeros(rows, columns // 8, dtype=torch.int32)
    for r in range(rows):
        for w in range(columns // 8):
            value = sum(int(codes[r, 8 * w + NIBBLES[i]]) << 4 * i for i in range(8))
            words[r, w] = signed(value)
    return words


def stream_words(codes, bits):
    """(rows, columns) of codes -> (rows, columns · bits / 32) int32, one code after the other."""
    words = torch.zeros(codes.shape[0], codes.shape[1] * bits // 32, dtype=torch.int32)
    for r, row in enumerate(codes.tolist()):
        stream = sum(code << bits * i for i, code in enumerate(row))
        for w in range(words.shape[1]):
            words[r, w] = signed(stream >> 32 * w & 0xFFFFFFFF)
    return words


def layer(inputs, outputs, group_size, bits, generator):
    """Random codes (inputs, outputs), zeros and scales (groups, outputs)."""
    groups = inputs // group_size
    codes = torch.randint(0, 1 << bits, (inputs, outputs), generator=generator)
    zeros = torch.randint(0, 1 << bits, (groups, outputs), generator=generator)
    scales = (torch.rand(groups, outputs, generator=generator) * 0.02 + 1e-3).half()
    return codes, zeros, scales


def meaning(codes, zeros, scales, g_idx):
    """s·(q − z) of every weight, (outputs, inputs) float32."""
    weight = torch.empty(codes.shape[1], codes.shape[0])
    for i in range(codes.shape[0]):
        group = int(g_idx[i])
        weight[:, i] = scales[group].float() * (codes[i] - zeros[group]).float()
    return weight


def parts(method, codes, zeros, scales, bits, g_idx=None):
    """The tensors of one layer. method: "awq", "gptq" or "gptq_v2"."""
    if method == "awq":
        return {"qweight": awq_words(codes), "qzeros": awq_words(zeros), "scales": scales}
    stored = (zeros - 1) % (1 << bits) if method == "gptq" else zeros
    found = {
        "qweight": stream_words(codes.T, bits).T.contiguous(),
        "qzeros": stream_words(stored, bits),
        "scales": scales,
    }
    return found if g_idx is None else found | {"g_idx": g_idx.to(torch.int32)}


def config_of(method, bits, group_size):
    if method == "awq":
        return {
            "quant_method": "awq",
            "bits": bits,
            "group_size": group_size,
            "zero_point": True,
            "version": "gemm",
        }
    return {"quant_method": "gptq", "bits": bits, "group_size": group_size, "checkpoint_format": method}


def write(model, folder, method, bits=4, group_size=16, shuffled=False, seed=0):
    """A folder like that of `model` with random quantised projections; gives their meaning by name."""
    generator = torch.Generator().manual_seed(seed)
    tensors, meant = {}, {}
    for name, tensor in model.state_dict().items():
        if not name.endswith("_proj.weight"):
            tensors[name] = tensor.half().clone()
            continue
        outputs, inputs = tensor.shape
        codes, zeros, scales = layer(inputs, outputs, group_size, bits, generator)
        g_idx = torch.arange(inputs) // group_size
        if shuffled:
            g_idx = g_idx[torch.randperm(inputs, generator=generator)]
        path = name.removesuffix(".weight")
        given = g_idx if method != "awq" else None
        for part, value in parts(method, codes, zeros, scales, bits, given).items():
            tensors[f"{path}.{part}"] = value.contiguous()
        meant[name] = meaning(codes, zeros, scales, g_idx)
    save_file(tensors, folder / "model.safetensors")
    config = model.config.to_dict() | {"quantization_config": config_of(method, bits, group_size)}
    config["dtype"] = "float16"
    (folder / "config.json").write_text(json.dumps(config))
    return meant
