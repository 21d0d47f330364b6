"""Quality at equal bytes: `fit` beside uniform HQQ, uniform GPTQ and llama.cpp's own quantisation.

    python benchmarks/fit_quality.py --eval-text wikitext2-valid.txt --calibration rest --memory 64 48

Perplexity on the first 64 Ki tokens of the evaluation text, windows of 1024 tokens. Everything stored counts:
codes, scales, zero points, embeddings, norms (not the tokenizer, which all share). Calibration is the rest of
the same file (`rest`, disjoint from what is evaluated) or the embedded default text (`default`); GPTQ gets
the same as `fit`. Uniform methods may take any of the widths and group sizes below for the blocks and another
for the embedding: the best on the first 16 Ki tokens within the budget is the one that counts. Needs the
`peers` extra. The table is written to benchmarks/results/.
"""

import argparse
import copy
import ctypes
import json
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import torch
from torch import nn

from shoestring.compression import GPTQ, apply, slots
from shoestring.compression.apply import stored_bytes
from shoestring.compression.fit import FitSettings, fit
from shoestring.compression.load_model import load_model, load_transformers_model
from shoestring.compression.proven_fit import native_bfloat16
from shoestring.compression.weight_matrix import weight_matrix
from shoestring.data.text import default_halves, read_text, token_windows
from shoestring.models.built_in import built_in_file
from shoestring.numbers.grouped_affine import ZeroPoint
from shoestring.yardstick.environment import Environment
from shoestring.yardstick.language_quality import perplexity

WINDOW = 1024
EVALUATED_WINDOWS, CHOOSING_WINDOWS, CALIBRATION_WINDOWS = 64, 16, 48
TRIED = 4
"""Candidates of a uniform method that are measured: the largest within the budget, of every width."""

GPTQ_FORMS = [(bits, group) for bits in (2, 3, 4) for group in (16, 32, 64, 96, 192)]
HQQ_FORMS = [(bits, group) for bits in (2, 3, 4) for group in (16, 32, 64, 96, 192)]
HEAD_FORMS = [(3, 32), (4, 64), (8, 64)]


@dataclass(frozen=True)
class Result:
    method: str
    settings: str
    nbytes: int
    ppl: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--eval-text", required=True)
    parser.add_argument("--calibration", choices=("rest", "default"), default="rest")
    parser.add_argument("--memory", type=int, nargs="+", default=[64, 48], help="budgets in MiB")
    arguments = parser.parse_args()
    model, tokenizer = load_transformers_model("smollm2-135m")
    windows = token_windows(read_text(arguments.eval_text), tokenizer, WINDOW)
    if arguments.calibration == "rest":
        calibration = windows[EVALUATED_WINDOWS:][:CALIBRATION_WINDOWS]
    else:
        calibration = token_windows(
            default_halves().calibration, tokenizer, WINDOW, limit=CALIBRATION_WINDOWS
        )
    judge = Judge(windows)
    shipped = judge.ppl(model, EVALUATED_WINDOWS)
    print(f"as shipped: {shipped:.3f}", flush=True)
    rows = []
    for mebibytes in arguments.memory:
        rows.append(compare(model, calibration, judge, mebibytes << 20))
        for result in rows[-1]["results"]:
            print(result, flush=True)
        print(f"{mebibytes} MiB: ours / best peer = {rows[-1]['ratio']:.4f}", flush=True)
    save(rows, shipped, arguments.calibration)


class Judge:
    """Perplexity on the evaluated windows."""

    def __init__(self, windows: torch.Tensor) -> None:
        self.windows = windows

    def ppl(self, model: nn.Module, count: int) -> float:
        return perplexity(model, self.windows[:count], autocast=native_bfloat16()).ppl


def compare(model: nn.Module, calibration: torch.Tensor, judge: Judge, budget: int) -> dict[str, Any]:
    """All methods within one budget."""
    settings = FitSettings(autocast=native_bfloat16())
    fitted = fit(model, calibration, budget, settings=settings)
    ours = Result("shoestring fit", "", fitted.file_bytes, judge.ppl(fitted.model, EVALUATED_WINDOWS))
    untuned = fit(
        model, calibration, budget, settings=FitSettings(tuning=no_tuning(), autocast=native_bfloat16())
    )
    without = Result("fit, no tuning", "", untuned.file_bytes, judge.ppl(untuned.model, EVALUATED_WINDOWS))
    known = fitted.profile
    peers = [
        *best_uniform("GPTQ", uniform_gptq(model, known.calibration), model, judge, budget),
        *best_uniform("HQQ", uniform_hqq(model), model, judge, budget),
        *llama_cpp(model, judge, budget),
    ]
    best = min(peer.ppl for peer in peers if peer.nbytes <= budget * 1.1)
    results = [vars(r) for r in (ours, without, *peers)]
    return {"budget": budget, "results": results, "ratio": ours.ppl / best}


def no_tuning() -> Any:
    from shoestring.compression.scale_tuning import ScaleTuning

    return ScaleTuning(0)


def uniform_gptq(model: nn.Module, calibration: Any) -> Any:
    """Our own GPTQ in one format for all blocks: 16-bit and 8-bit scales, integer zeros."""

    def make(block: tuple[int, int], head: tuple[int, int], scale_bits: int) -> tuple[nn.Module, int]:
        copied = copy.deepcopy(model)
        recipes = {
            slot.name: GPTQ(*(head if "lm_head" in slot.names else block), ZeroPoint.INTEGER, scale_bits)
            for slot in slots(model)
        }
        apply(copied, recipes, calibration=calibration, ignore=())
        return copied, stored_bytes(copied)

    return GPTQ_FORMS, (16, 8), make, lambda b, g, s: b + (b + s) / g


def uniform_hqq(model: nn.Module) -> Any:
    """HQQ as its authors' package does it: float16 scale and zero per group."""
    from hqq.core.quantize import Quantizer

    def make(block: tuple[int, int], head: tuple[int, int], scale_bits: int) -> tuple[nn.Module, int]:
        copied, nbytes = copy.deepcopy(model), stored_bytes(model)
        for slot in slots(copied):
            bits, group = head if "lm_head" in slot.names else block
            weight = weight_matrix(slot.module)
            codes, meta = Quantizer.quantize(
                weight.clone(), nbits=bits, group_size=group, axis=1, device="cpu", bitpack=False,
                compute_dtype=torch.float32,
            )  # fmt: skip
            restored = Quantizer.dequantize(codes, meta).reshape(weight.shape)
            nbytes -= weight.nbytes
            nbytes += math.ceil(weight.numel() * (bits + 32 / group) / 8)
            weight.copy_(restored)
        return copied, nbytes

    return HQQ_FORMS, (16,), make, lambda b, g, s: b + 32 / g


def best_uniform(name: str, method: Any, model: nn.Module, judge: Judge, budget: int) -> list[Result]:
    """The uniform setting within the budget that does best on the first windows, then on all."""
    forms, scales, make, width = method
    head_weights = model.get_input_embeddings().weight.numel()
    block_weights = sum(weight_matrix(s.module).numel() for s in slots(model)) - head_weights
    fixed = stored_bytes(model) - 4 * (block_weights + head_weights)
    sized = []
    for block in forms:
        for head in {block, *HEAD_FORMS}:
            for scale in scales:
                size = (block_weights * width(*block, scale) + head_weights * width(*head, scale)) / 8 + fixed
                if size <= budget:
                    sized.append((size, block, head, scale))
    chosen = []
    for bits in (2, 3, 4):
        own = sorted((s for s in sized if s[1][0] == bits), key=lambda s: -s[0])
        chosen += own[:TRIED]
    measured = []
    for _, block, head, scale in chosen:
        quantised, nbytes = make(block, head, scale)
        if nbytes > budget:
            continue
        settings = (
            f"blocks {block[0]} bits/{block[1]}, embedding {head[0]} bits/{head[1]}, scales {scale} bits"
        )
        ppl = judge.ppl(quantised, CHOOSING_WINDOWS)
        print(f"  {name} {settings}: {nbytes / 2**20:.2f} MiB, first windows {ppl:.3f}", flush=True)
        measured.append((ppl, settings, nbytes, quantised))
        measured = sorted(measured, key=lambda m: m[0])[:1]
    return [Result(name, s, n, judge.ppl(q, EVALUATED_WINDOWS)) for _, s, n, q in measured]


def llama_cpp(model: nn.Module, judge: Judge, budget: int) -> list[Result]:
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
            results.append(Result("llama.cpp", name, nbytes, judge.ppl(restored, EVALUATED_WINDOWS)))
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
