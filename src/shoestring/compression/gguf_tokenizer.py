"""The tokenizer part of a GGUF file: copied from another one, or built from a byte-level BPE tokenizer."""

import json
import os
from typing import Any

import gguf

PRE_TOKENIZERS = {
    "smollm": ["Digits", "ByteLevel"],
    "gpt-2": ["ByteLevel"],
}
"""llama.cpp's names of the ways to cut text before BPE, by the steps of a `tokenizers` pre-tokenizer."""


def copy_tokenizer(writer: gguf.GGUFWriter, source: str | os.PathLike[str]) -> None:
    """Copy every `tokenizer.*` field of a GGUF file. Raises: ValueError if it has none."""
    fields = {k: f for k, f in gguf.GGUFReader(source).fields.items() if k.startswith("tokenizer.")}
    if "tokenizer.ggml.tokens" not in fields:
        raise ValueError(f"{source} holds no tokenizer to copy.")
    for key, field in fields.items():
        value = field.contents()
        if field.types[0] is gguf.GGUFValueType.ARRAY:
            writer.add_array(key, value)
        else:
            writer.add_key_value(key, value, field.types[0])


def build_tokenizer(writer: gguf.GGUFWriter, tokenizer: Any, vocab_size: int) -> None:
    """Write a fast byte-level BPE tokenizer of transformers, filled up to `vocab_size` with unused tokens.

    Raises: ValueError if it is of another kind, has no merges or too many tokens, or cuts text in a way that
    llama.cpp is not known to have.
    """
    document = json.loads(tokenizer.backend_tokenizer.to_str())
    model = document["model"]
    if model["type"] != "BPE" or model.get("byte_fallback"):
        raise ValueError(
            f"a {model['type']} tokenizer cannot be written to GGUF (only byte-level BPE); "
            "give the path of a GGUF file of the same model to copy its tokenizer."
        )
    if not model["merges"]:
        raise ValueError("the tokenizer has no merges, without which llama.cpp reads no BPE.")
    if (most := max(tokenizer.get_vocab().values()) + 1) > vocab_size:
        raise ValueError(f"the tokenizer has {most} tokens, the model's table only {vocab_size}.")
    tokens = [f"[PAD{i}]" for i in range(vocab_size)]
    types = [int(gguf.TokenType.UNUSED)] * vocab_size
    for token, index in tokenizer.get_vocab().items():
        tokens[index], types[index] = token, int(gguf.TokenType.NORMAL)
    for added in document["added_tokens"]:
        kind = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
        types[added["id"]] = int(kind)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_pre_tokenizer(document))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    writer.add_token_merges(merges)
    writer.add_add_bos_token(False)
    for name in ("bos", "eos", "unk", "pad"):
        if (index := getattr(tokenizer, f"{name}_token_id")) is not None:
            getattr(writer, f"add_{name}_token_id")(index)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _pre_tokenizer(document: dict[str, Any]) -> str:
    step = document["pre_tokenizer"] or {"type": "none"}
    steps = [part["type"] for part in step.get("pretokenizers", [step])]
    for name, known in PRE_TOKENIZERS.items():
        if steps == known:
            return name
    raise ValueError(
        f"the tokenizer cuts text by {' then '.join(steps)}, for which no name of llama.cpp is known; "
        "give the path of a GGUF file of the same model to copy its tokenizer."
    )
