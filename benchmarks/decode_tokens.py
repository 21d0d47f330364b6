"""Speed of one sequence, decoded at a context of 512 tokens or read as a prompt of 512: our compiled step,
llama.cpp and torch, in turns.

    python benchmarks/decode_tokens.py [--prompt] [--quick] [--context 512] [--tokens 16] [--rounds 11]
        [--model smollm2-135m]

All run one model on the same threads. llama.cpp and "the file" read the same file. That of SmolLM2-135M has
matrices in Q4_1, embedding and head in Q8_0; that of gemma3-270m has Q5_0, Q8_0, Q4_K and Q6_K. The last two
have scales in two levels: ours holds their products as float32, 6 and 8 bits a weight instead of 4.5 and 6.6,
and its bytes say so. The others of ours are rounded from its weights: the matrices to so many bits with a
scale and an offset per 32, embedding and head to 8. A sample feeds `tokens` tokens behind the same 512, then
takes them back; with --prompt it feeds 512 at once to an empty cache. "Reading" adds up the bytes of the
file: no decoder that reads all of them can be faster. Spinning threads lose far more than others where a
processor is shared: run it on a quiet machine. The table goes to benchmarks/results/decode_tokens.json, or
prompt_tokens.json, for another model with its name. Needs the `peers` extra for llama.cpp.
"""

import argparse
import ctypes
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from llama_engine import llama_engine
from shoestring.compression.apply import apply
from shoestring.compression.group_quantize import RoundToNearest
from shoestring.generation.compiled_runner import CompiledRunner
from shoestring.generation.decoder_runner import DecoderRunner
from shoestring.kernels.grouped_linear import Activations
from shoestring.kernels.native import load_library
from shoestring.models.built_in import BUILT_IN, built_in_file
from shoestring.models.decoder import Decoder
from shoestring.models.load import load_decoder
from shoestring.numbers.grouped_affine import ZeroPoint
from shoestring.yardstick.environment import Environment
from shoestring.yardstick.timing import InterleavedTimes, time_interleaved

OURS, THEIRS, LIMIT = (
    "ours, the file, inputs in int8",
    "llama.cpp, the file",
    "reading the weights of the file",
)
READ_SUM = """
#include <stdint.h>
uint64_t read_sum(const uint64_t *from, int64_t words, int threads) {
    uint64_t sum = 0;
#pragma omp parallel for simd reduction(+ : sum) num_threads(threads)
    for (int64_t i = 0; i < words; i++) sum += from[i];
    return sum;
}
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer contestants and rounds; writes nothing")
    parser.add_argument("--prompt", action="store_true", help="a prompt of --context tokens, read at once")
    parser.add_argument("--model", choices=sorted(BUILT_IN), default="smollm2-135m")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=11)
    options = parser.parse_args()
    rounds = 5 if options.quick else options.rounds
    if options.prompt:
        options.context, options.tokens = 0, options.context
    contest = Contest(options.model, options.context, options.tokens, at_once=options.prompt)
    contest.enter(options.quick)
    with torch.inference_mode():
        times = time_interleaved(contest.works, rounds=rounds, warmup=1)
    rows = contest.table(times)
    print(f"{torch.get_num_threads()} threads, context {options.context}, {options.tokens} tokens a sample")
    for row in rows:
        interval = "[{:.2f}, {:.2f}]".format(*row["speed_ratio_interval"])
        print(
            f"{row['name']:34} {row['tokens_per_second']:7.1f} tokens/s  "
            f"{row['weight_bytes'] / 1e6:6.1f} MB  {row['speed_ratio']:5.2f} x llama.cpp {interval}"
        )
    if not options.quick:
        document = {
            "environment": asdict(Environment.here(["torch", "llama-cpp-python"])),
            "model": options.model,
            "context": options.context,
            "tokens_per_sample": options.tokens,
            "rounds": rounds,
            "rows": rows,
        }
        kind = "prompt" if options.prompt else "decode"
        suffix = "" if options.model == "smollm2-135m" else f"_{options.model}"
        name = f"{kind}_tokens{suffix}.json"
        saved = Path(__file__).with_name("results") / name
        saved.write_text(json.dumps(document, indent=1) + "\n")
        saved.with_suffix(".md").write_text(markdown(document))


def markdown(document: dict[str, Any]) -> str:
    """The table for people, with where it was measured."""
    lines = ["| | tokens/s | MB of weights | times llama.cpp (95 %) |", "|---|---|---|---|"]
    for row in document["rows"]:
        low, high = row["speed_ratio_interval"]
        lines.append(
            f"| {row['name']} | {row['tokens_per_second']:.0f} | {row['weight_bytes'] / 1e6:.0f} | "
            f"{row['speed_ratio']:.2f} ({low:.2f} to {high:.2f}) |"
        )
    where = document["environment"]
    lines += ["", f"{document['model']}, {where['processor']}, {where['threads']} threads.", ""]
    return "\n".join(lines)


class Contest:
    """What takes turns: by name, a function that feeds `tokens` tokens, and the bytes of its weights."""

    def __init__(self, model: str, context: int, tokens: int, at_once: bool) -> None:
        self.context, self.tokens, self.at_once = context, tokens, at_once
        self.file = built_in_file(model)
        self.ids = torch.randint(
            100, 40_000, (1, context + tokens), generator=torch.Generator().manual_seed(0)
        )
        self.works: dict[str, Callable[[], object]] = {}
        self.weight_bytes: dict[str, int] = {}

    def enter(self, quick: bool) -> None:
        """Prepare everyone: weights loaded, the context read."""
        packed = load_decoder(self.file, packed=True)
        self._compiled(OURS, packed)
        self._llama_cpp()
        self._compiled("ours, the file, inputs in float32", packed, Activations.FLOAT32)
        if not self.at_once:
            self._reading(self.file.stat().st_size)
        plain = load_decoder(self.file)
        for bits in (3, 2):
            self._compiled(f"ours, {bits} bits", _rounded(self.file, bits))
        self._compiled("ours, bfloat16", load_decoder(self.file, torch.bfloat16))
        if not quick:
            self._compiled("ours, float16", load_decoder(self.file, torch.float16))
            self._compiled("ours, float32", plain)
            self._by_modules("module by module, float16", load_decoder(self.file, torch.float16))
        if self.at_once:
            self._by_modules("module by module, bfloat16", load_decoder(self.file, torch.bfloat16))
        self._by_modules("module by module, float32", plain)

    def table(self, times: InterleavedTimes) -> list[dict[str, Any]]:
        """A row for each, fastest first."""
        rows = []
        for name in self.works:
            low, high = times.interval(THEIRS, name)
            rows.append(
                {
                    "name": name,
                    "tokens_per_second": self.tokens / times.median(name),
                    "weight_bytes": self.weight_bytes[name],
                    "speed_ratio": times.ratio(THEIRS, name),
                    "speed_ratio_interval": (low, high),
                }
            )
        return sorted(rows, key=lambda row: -row["tokens_per_second"])

    def _compiled(self, name: str, model: Decoder, activations: Activations = Activations.INT8) -> None:
        runner = CompiledRunner(model, capacity=self.context + self.tokens, activations=activations)
        self.weight_bytes[name] = runner.compiled.weight_bytes
        self._enter_runner(name, runner)

    def _by_modules(self, name: str, model: Decoder) -> None:
        self.weight_bytes[name] = sum(p.nbytes for p in model.parameters() if p.dim() > 1)
        self._enter_runner(name, DecoderRunner(model, capacity=self.context + self.tokens))

    def _enter_runner(self, name: str, runner: DecoderRunner) -> None:
        if self.context:
            with torch.inference_mode():
                runner.feed(self.ids[:, : self.context])
        mark = runner.cache.mark()

        def work() -> None:
            for token in self.ids[:, self.context :].split(self.tokens if self.at_once else 1, 1):
                # As a greedy decode does: the next token is looked for in the logits.
                runner.feed(token).argmax()
            runner.cache.rollback(mark)

        self.works[name] = work

    def _llama_cpp(self) -> None:
        engine = llama_engine(self.file, self.context + self.tokens, logits_all=False)
        ids = self.ids[0].tolist()
        if self.context:
            engine.eval(ids[: self.context])
        new = ids[self.context :]
        pieces = [new] if self.at_once else [[token] for token in new]

        def work() -> None:
            for piece in pieces:
                engine.eval(piece)
            # The next evaluation takes back what lies behind this.
            engine.n_tokens = self.context

        self.works[THEIRS] = work
        self.weight_bytes[THEIRS] = self.file.stat().st_size

    def _reading(self, n_bytes: int) -> None:
        library = load_library(READ_SUM)
        library.read_sum.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int]
        library.read_sum.restype = ctypes.c_uint64
        numbers = torch.ones(n_bytes // 8, dtype=torch.int64)

        def work() -> None:
            for _ in range(self.tokens):
                library.read_sum(numbers.data_ptr(), len(numbers), torch.get_num_threads())

        self.works[LIMIT] = work
        self.weight_bytes[LIMIT] = n_bytes


def _rounded(file: Path, bits: int) -> Decoder:
    ends = RoundToNearest(8, 32)
    recipe = {"model.embed_tokens": ends, "*": RoundToNearest(bits, 32, ZeroPoint.REAL)}
    return apply(load_decoder(file), recipe, ignore=())


if __name__ == "__main__":
    main()
