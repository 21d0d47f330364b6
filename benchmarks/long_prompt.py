"""Memory of a long prompt on SmolLM2-135M's architecture: lean caches beside dense ones.

python benchmarks/long_prompt.py [--tokens 32768] [--chunk 512] [--arms NAME…] [--last-chunks N] [--again]

Every arm reads the same prompt in chunks, in a process of its own, and then decodes a few tokens. The figure
is the peak of live tensor bytes, weights included, as `LiveMemory` follows them storage by storage; the
high-water mark of the process stands beside it. Positions go on beyond the 8192 that the model was trained
for: what it says there is of no interest here, and none of it is judged. Peak bytes do not depend on what
tokens say.

Attention over everything takes time that grows with the square of the prompt. With --last-chunks N, arms that
keep all tokens get random keys and values for all but the last N chunks, which are read as ever: the peak is
at the end of a prompt, where the cache is longest. Arms that drop tokens always read all of it.

What a plain softmax over n x n scores takes is measured on one layer at sizes that fit, and calculated for
the whole prompt. Arms that are in benchmarks/results/long_prompt.json are not run again, unless --again.
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from shoestring.data.text import default_halves
from shoestring.files import write_text
from shoestring.generation.combination import combined_cache
from shoestring.generation.runner import make_runner
from shoestring.generation.saving_menu import Sizes, named_cache, named_selection
from shoestring.layers.attention import naive_attend
from shoestring.layers.attention_masks import Causal, KVView
from shoestring.models.built_in import built_in_file
from shoestring.models.decoder import Decoder
from shoestring.models.load import load_decoder, load_tokenizer
from shoestring.yardstick.environment import Environment
from shoestring.yardstick.memory import LiveMemory, tensor_bytes
from shoestring.yardstick.process_memory_child import high_water_bytes

RESULT = Path(__file__).with_name("results") / "long_prompt.json"
NEW_TOKENS = 4
LIMIT = 1 << 30


@dataclass(frozen=True)
class Arm:
    """Weights as they are held, and savings by their names on the menu."""

    weights: str
    cache: str | None = None
    bits: tuple[int, int] | None = None
    select: str | None = None
    keep: float | None = None

    @property
    def keeps_all(self) -> bool:
        return self.select is None


ARMS = {
    "dense, float32": Arm("float32"),
    "dense, bfloat16": Arm("bfloat16"),
    "every token in 8 and 4 bits": Arm("bfloat16", "tokens", (8, 4)),
    "every token in 8 and 4 bits, weights in 4": Arm("packed", "tokens", (8, 4)),
    "old tokens in 2 bits": Arm("bfloat16", "groups", (2, 2)),
    "window of 1024": Arm("bfloat16", None, None, "window", 1024),
    "1024 heavy hitters": Arm("bfloat16", None, None, "h2o", 1024),
    "1024 heavy hitters in 8 and 4 bits, weights in 4": Arm("packed", "tokens", (8, 4), "h2o", 1024),
}


def model_of(weights: str, tokens: int) -> Decoder:
    """The model with its weights held so, made for as many positions as are asked for."""
    file = built_in_file("smollm2-135m")
    if weights == "packed":
        model = load_decoder(file, packed=True)
    else:
        model = load_decoder(file, getattr(torch, weights))
    model.cfg = replace(model.cfg, max_position_embeddings=tokens + NEW_TOKENS)
    return model


def prompt_of(tokens: int) -> torch.Tensor:
    """The default text, from its start again where it is too short."""
    halves = default_halves()
    ids = load_tokenizer(built_in_file("smollm2-135m")).encode(halves.calibration + halves.held_out)
    return torch.tensor([(ids * (tokens // len(ids) + 1))[:tokens]])


@torch.inference_mode()
def measure(arm: Arm, tokens: int, chunk: int, last_chunks: int | None) -> dict[str, Any]:
    """Peak bytes and seconds of one arm."""
    model, ids = model_of(arm.weights, tokens), prompt_of(tokens)
    sizes = Sizes(model.cfg.num_hidden_layers, tokens, tokens + NEW_TOKENS)
    selection = named_selection(arm.select, arm.keep, sizes)
    start = time.perf_counter()
    with LiveMemory(model) as memory:
        room = tokens + NEW_TOKENS
        cache = combined_cache(model, named_cache(arm.cache or "dense", arm.bits), selection, capacity=room)
        runner = make_runner(model, cache, room, selection=selection)
        first = 0
        if last_chunks is not None and arm.keeps_all:
            first = max(0, tokens - last_chunks * chunk)
            fill(cache, first, chunk)
        for part in ids[:, first:].split(chunk, 1):
            logits = runner.feed(part)
        runner.prompt_is_read()
        for _ in range(NEW_TOKENS - 1):
            logits = runner.feed(logits.argmax(-1, keepdim=True))
    return {
        "peak_bytes": memory.peak_bytes,
        "weight_bytes": tensor_bytes(model),
        "cache_bytes": cache.nbytes(),
        "peak_process_bytes": high_water_bytes(),
        "peak_operation": memory.peak_operation,
        "tokens_read": tokens - first,
        "seconds": time.perf_counter() - start,
    }


def fill(cache: Any, tokens: int, chunk: int) -> None:
    """Random keys and values for the first `tokens` positions of every layer."""
    generator = torch.Generator().manual_seed(0)
    for at in range(0, tokens, chunk):
        pos = torch.arange(at, min(at + chunk, tokens))[None]
        shape = 1, cache.n_kv_heads, pos.shape[1], cache.head_dim
        k, v = (torch.randn(shape, generator=generator) for _ in range(2))
        for layer in range(cache.n_layers):
            cache.append(layer, k, v, pos)


@torch.inference_mode()
def all_scores(tokens: int) -> int:
    """Peak bytes of one layer's attention with every score at once, float32, beside its inputs."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, tokens, 64, generator=generator) for heads in (9, 3, 3))
    pos = torch.arange(tokens)[None]
    with LiveMemory(q, k, v) as memory:
        naive_attend(q, KVView(k, v, pos[:, None]), Causal(pos, pos[:, None]), 0.125, need=())
    return memory.peak_dynamic_bytes


def markdown(document: dict[str, Any]) -> str:
    """The table for people, with where it was measured."""
    mib = 2**20
    lines = [
        "| | peak of live tensors, MiB | weights | cache at the end | process peak | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in document["rows"].items():
        part = "" if row["tokens_read"] == document["tokens"] else "*"
        over = "" if row["peak_bytes"] <= LIMIT else " (over 1 GiB)"
        lines.append(
            f"| {name} | {row['peak_bytes'] / mib:.0f}{over} | {row['weight_bytes'] / mib:.0f} | "
            f"{row['cache_bytes'] / mib:.0f} | {row['peak_process_bytes'] / mib:.0f} | "
            f"{row['seconds']:.0f}{part} |"
        )
    naive = document["all_scores"]
    where = document["environment"]
    lines += [
        "",
        f"{document['tokens']} tokens in chunks of {document['chunk']}; {where['processor']}, "
        f"{where['threads']} threads. Every score at once, in one layer: "
        + ", ".join(f"{size / mib:.0f} MiB at {n} tokens" for n, size in naive["measured"].items())
        + f"; calculated for {document['tokens']}: {naive['calculated'] / 2**30:.0f} GiB.",
    ]
    if any(row["tokens_read"] != document["tokens"] for row in document["rows"].values()):
        lines.append("\\* Only the last chunks were read; the cache was filled with random keys and values.")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=32_768)
    parser.add_argument("--chunk", type=int, default=512)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="NAME")
    parser.add_argument("--last-chunks", type=int)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--one", choices=ARMS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(ARMS[given.one], given.tokens, given.chunk, given.last_chunks)))
        return
    known = json.loads(given.out.read_text(encoding="utf-8")) if given.out.is_file() else {}
    same = known.get("tokens") == given.tokens and known.get("chunk") == given.chunk
    rows: dict[str, Any] = known["rows"] if same and not given.again else {}
    with Progress() as progress:
        task = progress.add_task("long prompt", total=len(given.arms))
        for name in given.arms:
            progress.update(task, description=name)
            if name not in rows:
                rows[name] = in_a_process(name, given)
                save(given, {arm: rows[arm] for arm in ARMS if arm in rows})
            progress.advance(task)


def in_a_process(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """Measure an arm alone: the high-water mark of a process never falls."""
    command = [
        sys.executable,
        __file__,
        "--one",
        name,
        "--tokens",
        str(given.tokens),
        "--chunk",
        str(given.chunk),
    ]
    if given.last_chunks is not None:
        command += ["--last-chunks", str(given.last_chunks)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return {**asdict(ARMS[name]), **json.loads(done.stdout)}


def save(given: argparse.Namespace, rows: dict[str, Any]) -> None:
    measured = {n: all_scores(n) for n in (1024, 2048)}
    document = {
        "environment": asdict(Environment.here()),
        "model": "smollm2-135m",
        "tokens": given.tokens,
        "chunk": given.chunk,
        "rows": rows,
        "all_scores": {"measured": measured, "calculated": measured[2048] * (given.tokens / 2048) ** 2},
    }
    write_text(given.out, json.dumps(document, indent=1) + "\n")
    write_text(given.out.with_suffix(".md"), markdown(document))


if __name__ == "__main__":
    main()
