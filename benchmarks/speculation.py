"""Decode speed with drafts against plain decoding, on copying and on free text, beside llama.cpp's.

python benchmarks/speculation.py [--tokens 96] [--rounds 3] [--activation-bits 8] [--out FILE]

Works: `copy` asks SmolLM2-135M to repeat a passage, where looking up must win; `free` goes on with a passage
of text, where it must not lose. Drafts are looked up in the text, or come from the layer that is trained for
this target. All arms read the same prompt, which is not timed, and decode greedily; they
take turns. llama.cpp takes part where llama_cpp is installed, with and without its prompt lookup;
transformers' prompt lookup with --transformers, which loads the weights once more, in float32.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llama_engine import llama_engine
from shoestring.data.text import default_halves
from shoestring.generation.decode import generate
from shoestring.generation.speculation.draft_length import FixedLength
from shoestring.generation.speculation.glide import Glide
from shoestring.generation.speculation.prompt_lookup import PromptLookup
from shoestring.models.built_in import built_in_file
from shoestring.models.glide_checkpoint import load_glide
from shoestring.models.load import load_decoder, load_tokenizer

ARMS = {
    "plain": None,
    "lookup, measured lengths": PromptLookup(),
    "lookup, always 3": PromptLookup(tokens=3, length=FixedLength()),
    "lookup, always 7": PromptLookup(length=FixedLength()),
}
Decode = Callable[[list[int]], tuple[list[int], float]]
"""Prompt -> (new tokens, their seconds without the prompt's)."""


def ours(model: Any, speculation: Any, tokens: int, bits: int) -> Decode:
    def decode(prompt: list[int]) -> tuple[list[int], float]:
        result = generate(
            model, prompt, max_new_tokens=tokens, stop_tokens=(), speculation=speculation,
            activation_bits=bits,
        )  # fmt: skip
        return result.tokens, result.decode_seconds

    return decode


def llama_cpp(file: Path, tokens: int, context: int, lookup: bool) -> Decode | None:
    try:
        from llama_cpp.llama_speculative import LlamaPromptLookupDecoding
    except ImportError:
        return None
    draft = LlamaPromptLookupDecoding(num_pred_tokens=7) if lookup else None
    engine = llama_engine(file, context, draft_model=draft, logits_all=lookup)

    def decode(prompt: list[int]) -> tuple[list[int], float]:
        engine.reset()
        found, start = [], 0.0
        for token in engine.generate(prompt, temp=0.0):
            # The first token is the prompt's work.
            start = start or time.perf_counter()
            found.append(token)
            if len(found) == tokens:
                break
        return found, time.perf_counter() - start

    return decode


def transformers_lookup(file: Path, tokens: int, lookup: bool) -> Decode:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    options = {"prompt_lookup_num_tokens": 7} if lookup else {}

    def run(prompt: list[int], new: int) -> tuple[list[int], float]:
        ids, start = torch.tensor([prompt]), time.perf_counter()
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), min_new_tokens=new, max_new_tokens=new,
            do_sample=False, pad_token_id=0, **options,
        )  # fmt: skip
        return out[0, len(prompt) :].tolist(), time.perf_counter() - start

    def decode(prompt: list[int]) -> tuple[list[int], float]:
        _, first = run(prompt, 1)
        found, seconds = run(prompt, tokens)
        return found, seconds - first

    return decode


def prompts(tokenizer: Any, context: int) -> dict[str, list[list[int]]]:
    """Two of each work, of about `context` tokens."""
    ids = tokenizer.encode(default_halves().held_out)
    passages = [ids[start : start + context // 2] for start in (2000, 9000)]
    free = [ids[start : start + context] for start in (5000, 12000)]
    head, again = tokenizer.encode("Text:\n"), tokenizer.encode("\nThe same text once more:\n")
    return {"copy": [head + p + again + head + p[: context // 8] for p in passages], "free": free}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--activation-bits", type=int, default=8, choices=(8, 32))
    parser.add_argument("--float32", action="store_true", help="weights in float32, not as the file has them")
    parser.add_argument(
        "--draft", type=Path, help="a trained draft layer (`shoestring train longspec-draft`)"
    )
    parser.add_argument("--work", choices=("copy", "free"), help="one of the two only")
    parser.add_argument("--transformers", action="store_true")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    file = built_in_file("smollm2-135m")
    model, tokenizer = load_decoder(file, packed=not given.float32), load_tokenizer(file)
    ways = dict(ARMS)
    if given.draft:
        draft = load_glide(given.draft, model)
        ways["draft layer, measured lengths"] = Glide(draft)
        ways["draft layer, always 3"] = Glide(draft, length=FixedLength())
    arms = {name: ours(model, s, given.tokens, given.activation_bits) for name, s in ways.items()}
    room = 2 * given.context + given.tokens
    for name, lookup in (("llama.cpp", False), ("llama.cpp, prompt lookup", True)):
        if (arm := llama_cpp(file, given.tokens, room, lookup)) is not None:
            arms[name] = arm
    if given.transformers:
        for name, lookup in (("transformers", False), ("transformers, prompt lookup", True)):
            arms[name] = transformers_lookup(file, given.tokens, lookup)
    table = []
    works = prompts(tokenizer, given.context)
    for work, texts in works.items() if given.work is None else [(given.work, works[given.work])]:
        seconds: dict[str, list[float]] = {name: [] for name in arms}
        agree = dict.fromkeys(arms, True)
        for turn in range(given.rounds + 1):
            for prompt in texts:
                plain, _ = arms["plain"](prompt) if turn == 0 else ([], 0.0)
                for name in sorted(arms, reverse=bool(turn % 2)):
                    found, took = arms[name](prompt)
                    if turn:  # the first round warms up
                        seconds[name].append(took)
                    else:
                        agree[name] &= found == plain
        for name, took in seconds.items():
            ratios = [a / b for a, b in zip(seconds["plain"], took, strict=True)]
            row = {
                "work": work, "arm": name, "tokens_per_second": (given.tokens - 1) / statistics.median(took),
                "speed_over_plain": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios),
                "same_text_as_plain": agree[name],
            }  # fmt: skip
            table.append(row)
            print(
                f"{work:5} {name:28} {row['tokens_per_second']:7.1f} tokens/s  "
                f"{row['speed_over_plain']:.2f}x ({row['lowest']:.2f} to {row['highest']:.2f})  "
                f"{'same text' if agree[name] else 'another text'}",
                flush=True,
            )
    if given.out:
        given.out.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
