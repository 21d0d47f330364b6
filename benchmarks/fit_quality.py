"""Quality at equal bytes: `fit` beside uniform HQQ, uniform GPTQ and llama.cpp's own quantisation.

    python benchmarks/fit_quality.py --eval-text wikitext2-valid.txt --calibration rest --memory 64 48

Perplexity on the first 64 Ki tokens of the evaluation text, windows of 1024 tokens. Everything stored counts:
codes, scales, zero points, embeddings, norms (not the tokenizer, which all share). Calibration is the rest of
the same file (`rest`, disjoint from what is evaluated) or the embedded default text (`default`); GPTQ gets
the same as `fit`. Uniform methods may take any of the widths and group sizes below for the blocks and another
for the embedding: the best on the first 16 Ki tokens within the budget is the one that counts. Needs the
`peers` extra. The table is written to benchmarks/results/; a stopped run goes on where it was (build/).
"""

import argparse
import copy
import ctypes
import json
import math
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gguf
import torch
from torch import nn

from shoestring.compression import GPTQ, apply, slots
from shoestring.compression.apply import stored_bytes
from shoestring.compression.calibration import capture
from shoestring.compression.fit import fit, split_windows
from shoestring.compression.fitted import FitSettings
from shoestring.compression.load_model import load_model
from shoestring.compression.proven_fit import native_bfloat16
from shoestring.compression.weight_matrix import weight_matrix
from shoestring.data.text import default_halves, read_text, token_windows
from shoestring.models.built_in import built_in_file
from shoestring.numbers.grouped_affine import ZeroPoint
from shoestring.yardstick.environment import Environment
from shoestring.yardstick.language_quality import perplexity

WINDOW = 1024
EVALUATED_WINDOWS, CHOOSING_WINDOWS, CALIBRATION_TOKENS = 64, 16, 48 * 1024
TRIED = 4
"""Candidates of a uniform method that are measured: the largest within the budget, of every width."""

HOPELESS = 1.3
"""A width whose largest candidate is worse than the best so far by this factor is not tried further."""

FORMS = [(bits, group) for bits in (4, 3, 2) for group in (16, 32, 64, 96, 192)]
HEAD_FORMS = [(3, 32), (4, 64), (8, 64)]


@dataclass(frozen=True)
class Result:
    """One way to meet a budget. nbytes: everything stored; ppl: on all evaluated windows."""

    method: str
    settings: str
    nbytes: int
    ppl: float


class Bench:
    """The model, what it is calibrated and judged on, and what has been measured already."""

    def __init__(self, text: str, calibration: str) -> None:
        self.model, tokenizer = load_model("smollm2-135m")
        self.windows = token_windows(read_text(text), tokenizer, WINDOW)
        tokens = FitSettings().window
        if calibration == "rest":
            rest = self.windows[EVALUATED_WINDOWS:].flatten()[:CALIBRATION_TOKENS]
            self.calibration = rest[: len(rest) // tokens * tokens].view(-1, tokens)
        else:
            self.calibration = token_windows(
                default_halves().calibration, tokenizer, tokens, limit=CALIBRATION_TOKENS // tokens
            )
        self.store = Path("build", f"fit_quality_{calibration}.json")
        self.known: dict[str, Any] = json.loads(self.store.read_text()) if self.store.exists() else {}

    def ppl(self, model: nn.Module, count: int) -> float:
        """Perplexity on the first `count` evaluated windows."""
        return perplexity(model, self.windows[:count], autocast=native_bfloat16()).ppl

    def once(self, key: str, measure: Callable[[], Any]) -> Any:
        """What `measure` gives, now or in an earlier run."""
        if key not in self.known:
            self.known[key] = measure()
            self.store.parent.mkdir(exist_ok=True)
            self.store.write_text(json.dumps(self.known, indent=1))
        print(f"{key}: {self.known[key]}", flush=True)
        return self.known[key]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--eval-text", required=True)
    parser.add_argument("--calibration", choices=("rest", "default"), default="rest")
    parser.add_argument("--memory", type=int, nargs="+", default=[64, 48], help="budgets in MiB")
    arguments = parser.parse_args()
    bench = Bench(arguments.eval_text, arguments.calibration)
    shipped = bench.once("as shipped", lambda: bench.ppl(bench.model, EVALUATED_WINDOWS))
    rows = []
    for mebibytes in arguments.memory:
        rows.append(compare(bench, mebibytes))
        print(f"{mebibytes} MiB: ours / best peer = {rows[-1]['ratio']:.4f}", flush=True)
    save(rows, shipped, arguments.calibration)


def compare(bench: Bench, mebibytes: int) -> dict[str, Any]:
    """All methods within one budget."""
    budget = mebibytes << 20

    def result(name: str, measure: Callable[[], Any]) -> Any:
        return bench.once(f"{mebibytes} {name}", measure)

    ours = Result(**result("fit", lambda: fitted(bench, budget)))
    peers = []
    for name in ("GPTQ", "HQQ"):
        if found := result(name, lambda name=name: best_uniform(bench, name, mebibytes)):
            peers.append(Result(**found))
    peers += [Result(**found) for found in result("llama.cpp", lambda: llama_cpp(bench, budget))]
    best = min(peer.ppl for peer in peers if peer.nbytes <= budget * 1.1)
    return {
        "budget": budget,
        "results": [asdict(r) for r in (ours, *peers)],
        "ratio": ours.ppl / best,
    }


def fitted(bench: Bench, budget: int) -> dict[str, Any]:
    """What `shoestring fit` makes of the model."""
    settings = FitSettings(autocast=native_bfloat16())
    result = fit(bench.model, bench.calibration, budget, settings=settings)
    assert result.met
    return asdict(Result("shoestring fit", "", result.file_bytes, bench.ppl(result.model, EVALUATED_WINDOWS)))


def best_uniform(bench: Bench, name: str, mebibytes: int) -> dict[str, Any] | None:
    """The uniform setting within the budget that does best on the first windows, measured on all."""
    make = {"GPTQ": uniform_gptq, "HQQ": uniform_hqq}[name]
    best: tuple[float, Candidate] | None = None
    for bits in (4, 3, 2):
        own = sorted((c for c in candidates(bench, name) if c.block[0] == bits), key=lambda c: -c.nbytes)
        for candidate in [c for c in own if c.nbytes <= mebibytes << 20][:TRIED]:
            key = f"{mebibytes} {name} {candidate.settings}, first windows"
            ppl = bench.once(key, lambda c=candidate: bench.ppl(make(bench, c), CHOOSING_WINDOWS))
            if best is not None and ppl > HOPELESS * best[0]:
                break
            if best is None or ppl < best[0]:
                best = ppl, candidate
    if best is None:
        return None
    _, candidate = best
    ppl = bench.ppl(make(bench, candidate), EVALUATED_WINDOWS)
    return asdict(Result(name, candidate.settings, candidate.nbytes, ppl))


@dataclass(frozen=True)
class Candidate:
    """One format for all blocks and one for the embedding: bits, group size; bits of the scales."""

    block: tuple[int, int]
    head: tuple[int, int]
    scale_bits: int
    nbytes: int

    @property
    def settings(self) -> str:
        (bits, group), (head_bits, head_group) = self.block, self.head
        head = f"embedding {head_bits} bits/{head_group}"
        return f"blocks {bits} bits/{group}, {head}, scales {self.scale_bits} bits"


def candidates(bench: Bench, name: str) -> list[Candidate]:
    """All settings, each with the bytes of everything that it stores."""
    sizes = {slot.name: weight_matrix(slot.module) for slot in slots(bench.model)}
    head = next(slot.name for slot in slots(bench.model) if "lm_head" in slot.names)
    rest = stored_bytes(bench.model) - sum(weight.nbytes for weight in sizes.values())

    def stored(weight: torch.Tensor, form: tuple[int, int], scale_bits: int) -> int:
        bits, group = form
        if name == "HQQ":  # float16 scale and zero per group
            return math.ceil(weight.numel() * (bits + 32 / group) / 8)
        return GPTQ(bits, group, ZeroPoint.INTEGER, scale_bits).matrix_bytes(*weight.shape, 4)

    found = []
    for block in FORMS:
        for other in sorted({block, *HEAD_FORMS}):
            for scale_bits in (16,) if name == "HQQ" else (16, 8):
                total = sum(
                    stored(weight, other if slot == head else block, scale_bits)
                    for slot, weight in sizes.items()
                )
                found.append(Candidate(block, other, scale_bits, rest + total))
    return found


def uniform_gptq(bench: Bench, candidate: Candidate) -> nn.Module:
    """Our own GPTQ, on the calibration that `fit` has."""
    learning, _ = split_windows(bench.calibration, FitSettings())
    calibration = _calibration(bench.model, learning)
    recipes = {
        slot.name: GPTQ(
            *(candidate.head if "lm_head" in slot.names else candidate.block),
            ZeroPoint.INTEGER,
            candidate.scale_bits,
        )
        for slot in slots(bench.model)
    }
    model = apply(copy.deepcopy(bench.model), recipes, calibration=calibration, ignore=())
    assert stored_bytes(model) == candidate.nbytes
    return model


_captured: list[Any] = []


def _calibration(model: nn.Module, windows: torch.Tensor) -> Any:
    if not _captured:
        with torch.autocast("cpu", native_bfloat16(), enabled=native_bfloat16() is not None):
            _captured.append(capture(model, [window[None] for window in windows]))
    return _captured[0]


def uniform_hqq(bench: Bench, candidate: Candidate) -> nn.Module:
    """HQQ as its authors' package does it."""
    from hqq.core.quantize import Quantizer

    model = copy.deepcopy(bench.model)
    for slot in slots(model):
        bits, group = candidate.head if "lm_head" in slot.names else candidate.block
        weight = weight_matrix(slot.module)
        codes, meta = Quantizer.quantize(
            weight.clone(), nbits=bits, group_size=group, axis=1, device="cpu", bitpack=False,
            compute_dtype=torch.float32,
        )  # fmt: skip
        weight.copy_(Quantizer.dequantize(codes, meta).reshape(weight.shape))
    return model


def llama_cpp(bench: Bench, budget: int) -> list[dict[str, Any]]:
    """llama.cpp's types that come within 10 % of the budget, requantised from the file as shipped."""
    import llama_cpp

    results = []
    source = built_in_file("smollm2-135m")
    names = ("Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "IQ4_XS", "IQ4_NL", "Q4_0", "Q4_K_S")
    for name in names:
        parameters = llama_cpp.llama_model_quantize_default_params()
        parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}")
        parameters.allow_requantize = True
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder, "out.gguf")
            failed = llama_cpp.llama_model_quantize(
                str(source).encode(), str(target).encode(), ctypes.byref(parameters)
            )
            if failed:
                continue
            tensors = gguf.GGUFReader(target).tensors
            nbytes = sum(int(t.n_bytes) for t in tensors)
            print(f"  llama.cpp {name}: {nbytes / 2**20:.2f} MiB", flush=True)
            if abs(nbytes - budget) > 0.1 * budget:
                continue
            restored, _ = load_model(str(target))
            results.append(asdict(Result("llama.cpp", name, nbytes, bench.ppl(restored, EVALUATED_WINDOWS))))
    return results


def save(rows: list[dict[str, Any]], shipped: float, calibration: str) -> None:
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    document = {
        "model": built_in_file("smollm2-135m").name,
        "shipped_ppl": shipped,
        "calibration": calibration,
        "rows": rows,
        "environment": vars(Environment.here(["hqq", "llama_cpp_python", "transformers"])),
    }
    (folder / f"fit_quality_{calibration}.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
