"""GGUF files made byte by byte, with a note of where each number of theirs stands, so that tests can lie."""

import struct
from dataclasses import dataclass, field, replace
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
U32, I32, F32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9


@dataclass(frozen=True)
class Stored:
    """A tensor: dims in the order of the file (columns first). offset: None for the next free place."""

    name: str
    dims: tuple[int, ...]
    kind: int
    data: bytes
    offset: int | None = None


@dataclass
class Written:
    """The bytes, and (offset, size) of each length, count, type, dimension and offset among them."""

    data: bytearray = field(default_factory=bytearray)
    numbers: list[tuple[int, int]] = field(default_factory=list)

    def number(self, value: int, size: int) -> None:
        self.numbers.append((len(self.data), size))
        self.data += (value % (1 << 8 * size)).to_bytes(size, "little")

    def text(self, value: str | bytes) -> None:
        value = value.encode() if isinstance(value, str) else value
        self.number(len(value), 8)
        self.data += value

    def value(self, kind: int, value: Any) -> None:
        if kind == STRING:
            self.text(value)
        elif kind == ARRAY:
            inner, values = value
            self.number(inner, 4)
            self.number(len(values), 8)
            for item in values:
                self.value(inner, item)
        else:
            self.data += struct.pack("<" + SCALARS[kind], value)


@dataclass(frozen=True)
class Gguf:
    """What a file says. pairs: (key, type, value); an array's value is (type of elements, elements)."""

    pairs: tuple[tuple[str, int, Any], ...] = ()
    tensors: tuple[Stored, ...] = ()
    version: int = 3
    alignment: int = 32

    def write(self) -> Written:
        out = Written()
        out.data += b"GGUF"
        out.number(self.version, 4)
        out.number(len(self.tensors), 8)
        out.number(len(self.pairs), 8)
        for key, kind, value in self.pairs:
            out.text(key)
            out.number(kind, 4)
            out.value(kind, value)
        body = bytearray()
        for tensor in self.tensors:
            offset = len(body) if tensor.offset is None else tensor.offset
            out.text(tensor.name)
            out.number(len(tensor.dims), 4)
            for size in tensor.dims:
                out.number(size, 8)
            out.number(tensor.kind, 4)
            out.number(offset, 8)
            body += tensor.data + bytes(-len(tensor.data) % self.alignment)
        out.data += bytes(-len(out.data) % self.alignment)
        out.data += body
        return out

    def but(self, **changes: Any) -> "Gguf":
        return replace(self, **changes)

    def with_pair(self, key: str, kind: int, value: Any) -> "Gguf":
        return self.but(pairs=(*(p for p in self.pairs if p[0] != key), (key, kind, value)))

    def without(self, name: str) -> "Gguf":
        return self.but(
            pairs=tuple(p for p in self.pairs if p[0] != name),
            tensors=tuple(t for t in self.tensors if t.name != name),
        )


def tensor(name: str, rows: np.ndarray) -> Stored:
    return Stored(name, tuple(reversed(rows.shape)), int(Kind.F32), rows.astype("<f4").tobytes())


def every_kind(kinds: list[Kind], seed: int = 0) -> Gguf:
    """Two rows of each type, random bytes, beside metadata of every type."""
    random = np.random.default_rng(seed)
    tensors = []
    for kind in kinds:
        block, size = gguf.GGML_QUANT_SIZES[kind]
        columns = block * (1 if block > 1 else 8)
        data = random.integers(0, 256, 2 * columns // block * size, dtype=np.uint8).tobytes()
        tensors.append(Stored(f"t.{kind.name}", (columns, 2), int(kind), data))
    scalars = [(f"a.{kind}", kind, 1) for kind in SCALARS]
    arrays = [(f"b.{kind}", ARRAY, (kind, [0, 1, 1])) for kind in SCALARS]
    nested = ("c", ARRAY, (ARRAY, [(STRING, ["x", "yé"]), (U32, [7]), (ARRAY, [(F32, [])])]))
    pairs = (*scalars, *arrays, nested, ("d", STRING, "ü" * 9), ("general.alignment", U32, 32))
    return Gguf(pairs, tuple(tensors))


def tiny_decoder(architecture: str, seed: int = 0, tied: bool = True) -> Gguf:
    """Two layers, 16 wide, 4 heads of 8 (2 for keys), 24 inside, and a tokenizer."""
    random = np.random.default_rng(seed)
    tokens, scores, types, merges = _tokens(architecture)
    vocabulary, hidden, heads, shared, size, inside = len(tokens), 16, 4, 2, 8, 24

    def weight(*shape: int) -> np.ndarray:
        return random.standard_normal(shape) * 0.2

    tensors = [
        tensor("token_embd.weight", weight(vocabulary, hidden)),
        tensor("output_norm.weight", weight(hidden)),
    ]
    if not tied:
        tensors.append(tensor("output.weight", weight(vocabulary, hidden)))
    for layer in range(2):
        shapes: dict[str, tuple[int, ...]] = {
            "attn_q.weight": (heads * size, hidden),
            "attn_k.weight": (shared * size, hidden),
            "attn_v.weight": (shared * size, hidden),
            "attn_output.weight": (hidden, heads * size),
            "ffn_gate.weight": (inside, hidden),
            "ffn_up.weight": (inside, hidden),
            "ffn_down.weight": (hidden, inside),
            "attn_norm.weight": (hidden,),
            "ffn_norm.weight": (hidden,),
        }
        if architecture == "qwen2":
            shapes |= {
                "attn_q.bias": (heads * size,),
                "attn_k.bias": (shared * size,),
                "attn_v.bias": (shared * size,),
            }
        if architecture in ("qwen3", "gemma3"):
            shapes |= {"attn_q_norm.weight": (size,), "attn_k_norm.weight": (size,)}
        if architecture == "gemma3":
            shapes |= {"post_attention_norm.weight": (hidden,), "post_ffw_norm.weight": (hidden,)}
        tensors += [tensor(f"blk.{layer}.{name}", weight(*shape)) for name, shape in shapes.items()]
    a = architecture
    pairs = [
        ("general.architecture", STRING, a),
        (f"{a}.block_count", U32, 2),
        (f"{a}.context_length", U32, 64),
        (f"{a}.embedding_length", U32, hidden),
        (f"{a}.feed_forward_length", U32, inside),
        (f"{a}.attention.head_count", U32, heads),
        (f"{a}.attention.head_count_kv", U32, shared),
        (f"{a}.attention.key_length", U32, size),
        (f"{a}.attention.value_length", U32, size),
        (f"{a}.attention.layer_norm_rms_epsilon", F32, 1e-5),
        (f"{a}.rope.freq_base", F32, 10000.0),
        ("tokenizer.ggml.model", STRING, "llama" if a == "gemma3" else "gpt2"),
        ("tokenizer.ggml.tokens", ARRAY, (STRING, tokens)),
        ("tokenizer.ggml.token_type", ARRAY, (I32, types)),
        ("tokenizer.ggml.bos_token_id", U32, 0),
        ("tokenizer.ggml.eos_token_id", U32, 1),
        ("tokenizer.ggml.add_bos_token", BOOL, a == "gemma3"),
    ]
    if a == "gemma3":
        pairs += [
            ("tokenizer.ggml.scores", ARRAY, (F32, scores)),
            ("tokenizer.ggml.unknown_token_id", U32, 2),
            ("tokenizer.ggml.add_space_prefix", BOOL, False),
            ("gemma3.attention.sliding_window", U32, 5),
            ("gemma3.attention.sliding_window_pattern", U32, 2),
        ]
    else:
        pairs += [
            ("tokenizer.ggml.pre", STRING, "smollm" if a == "llama" else "qwen2"),
            ("tokenizer.ggml.merges", ARRAY, (STRING, merges)),
        ]
    return Gguf(tuple(pairs), tuple(tensors))


def _tokens(architecture: str) -> tuple[list[str], list[float], list[int], list[str]]:
    special = ["<s>", "</s>", "<unk>", "<|user|>", "<think>"]
    types = [3, 3, 3, 3, 4]
    if architecture == "gemma3":
        pieces = ["he", "ll", "hell", "hello", "  ", "\u2581h", *(chr(c) for c in range(97, 123)), "\u2581"]
        pieces += [f"<0x{byte:02X}>" for byte in range(256)]
        merges: list[str] = []
    else:
        from transformers.convert_slow_tokenizer import bytes_to_unicode

        merges = ["h e", "l l", "he ll", "hell o", "Ġ hell", "Ġ Ġ", "1 2"]
        pieces = [*bytes_to_unicode().values(), *(m.replace(" ", "") for m in merges)]
    tokens = special + pieces
    return tokens, [-float(i) for i in range(len(tokens))], types + [1] * len(pieces), merges


LEAVES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
GEMMA_LEAVES = LEAVES | {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def from_transformers(model: Any, architecture: str) -> Gguf:
    """As llama.cpp's converter writes a model: rows of q and k in pairs, norms of Gemma plus 1."""
    config, tensors = model.config, []
    leaves = GEMMA_LEAVES if architecture == "gemma3" else LEAVES
    fixed = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        module, _, kind = name.rpartition(".")
        values = weight.numpy()
        if architecture == "gemma3" and module.endswith("norm"):
            values = values + 1
        if module in fixed:
            stored = fixed[module]
        else:
            _, _, layer, leaf = module.split(".", 3)
            stored = f"blk.{layer}.{leaves[leaf]}"
            if architecture == "llama" and leaf.endswith(("q_proj", "k_proj")):
                heads = config.num_attention_heads if "q_proj" in leaf else config.num_key_value_heads
                halves = values.reshape(heads, 2, -1, *values.shape[1:])
                values = halves.swapaxes(1, 2).reshape(values.shape)
        tensors.append(tensor(f"{stored}.{kind}", values))
    a, rope = architecture, config.rope_parameters
    base = (rope["full_attention"] if a == "gemma3" else rope)["rope_theta"]
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    pairs = [
        ("general.architecture", STRING, a),
        (f"{a}.block_count", U32, config.num_hidden_layers),
        (f"{a}.context_length", U32, config.max_position_embeddings),
        (f"{a}.embedding_length", U32, config.hidden_size),
        (f"{a}.feed_forward_length", U32, config.intermediate_size),
        (f"{a}.attention.head_count", U32, config.num_attention_heads),
        (f"{a}.attention.head_count_kv", U32, config.num_key_value_heads),
        (f"{a}.attention.key_length", U32, head_dim),
        (f"{a}.attention.value_length", U32, head_dim),
        (f"{a}.attention.layer_norm_rms_epsilon", F32, config.rms_norm_eps),
        (f"{a}.rope.freq_base", F32, base),
        (f"{a}.vocab_size", U32, config.vocab_size),
    ]
    if a == "gemma3":
        pairs.append(("gemma3.attention.sliding_window", U32, config.sliding_window))
    return Gguf(tuple(pairs), tuple(tensors))
