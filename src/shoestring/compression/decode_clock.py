"""What a token of decoding takes, in seconds: each layer by its kernel, the rest of the step, a whole step.

A layer's product is timed by itself, on random weights of its shape, out of memory as in a model: copies that
together are as large as the model would be take turns. The rest (embedding, norms, attention at a context,
the choice of a token) is timed on the model with layers that do nothing. Sums of these predict; a model's own
steps are what counts in the end. Predictions are the least of several times, which other work on the machine
disturbs least; what a model is judged by is the median of its steps.
"""

import copy
import functools
import json
import statistics
import time
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from shoestring._version import __version__
from shoestring.compression.apply import Slot, slots
from shoestring.compression.kv_quantize import CacheRecipe
from shoestring.compression.recipe import ModuleRecipe
from shoestring.compression.weight_matrix import is_embedding, matrix_shape
from shoestring.errors import NoCompiler
from shoestring.generation.compiled_runner import CompiledRunner
from shoestring.generation.decoder_runner import DecoderRunner, decoder_cache
from shoestring.generation.runner import Runner, TransformersRunner, make_runner
from shoestring.kernels.grouped_linear import Activations
from shoestring.kernels.linear_kernel import LinearKernel, run_in_turn, zero_kernel
from shoestring.kernels.tuning import last_level_cache_bytes, measure_fastest, size_class, tuning_table
from shoestring.models.compiled_decoder import CannotCompile, usual_kernel
from shoestring.models.decoder import Decoder
from shoestring.numbers.token_cache_format import TokenCacheFormat

USUAL_CONTEXT = 128
STEPS, WARMUP_STEPS = 48, 4
"""Of decoding, timed and before that; where the context is short, fewer."""
MOST_ROWS = 4096
"""Of a matrix that is timed: a larger one takes as much longer as it has more rows."""
PASSES = 7
PROMPT_TOKENS = 512
"""Of a prompt that are fed at once."""
TABLE = "decode"


@runtime_checkable
class DecodeClock(Protocol):
    """Where seconds come from. cache: the recipe of the KV cache, None for one in full."""

    context: int
    """Tokens that attention sees when a step is timed."""

    def layer_seconds(self, slot: Slot, recipe: ModuleRecipe, cache: CacheRecipe | None) -> float:
        """Of a layer's product for one token, rewritten by this recipe."""
        ...

    def rest_seconds(self, cache: CacheRecipe | None) -> float:
        """Of all that a step does beside its rewritten layers."""
        ...

    def step_seconds(self, model: nn.Module) -> float:
        """Of a whole step of this model, with the cache that it has."""
        ...


class StopWatch:
    """The clock of this machine for one model.

    context: by default 128 tokens; never more than the model sees, nor fewer than a prompt and a step.
    """

    def __init__(self, original: nn.Module, context: int | None = None) -> None:
        limit = getattr(original.config, "max_position_embeddings", None) or USUAL_CONTEXT
        self.original, self.context = original, min(max(context or USUAL_CONTEXT, 2), limit)
        self._slots = slots(original)
        self._weights = sum(rows * cols for rows, cols in (matrix_shape(slot.module) for slot in self._slots))
        self._rest: dict[CacheRecipe | None, float] = {}

    def layer_seconds(self, slot: Slot, recipe: ModuleRecipe, cache: CacheRecipe | None) -> float:
        """Measured once for each shape and form, and kept in the table of this processor."""
        if is_embedding(slot.module):
            return 0.0  # one row is looked up, whatever its form
        rows, cols = matrix_shape(slot.module)
        compiled, timed = self._compiles(cache), min(rows, MOST_ROWS)
        twin = recipe.timing_twin()
        key = ", ".join(
            (
                json.dumps(twin.to_json(), sort_keys=True),
                f"{timed} x {cols} of {size_class(self._weights)} weights",
                "kernel" if compiled else "module",
                f"{torch.get_num_threads()} threads, version {__version__}",
            )
        )
        known = tuning_table(TABLE).get(key)
        if known is None:
            seconds = self._measure(twin, timed, cols, compiled)
            known = {"picoseconds": round(seconds * 1e12)}
            tuning_table(TABLE).put(key, known)
        return known["picoseconds"] * 1e-12 * rows / timed

    def rest_seconds(self, cache: CacheRecipe | None) -> float:
        """Measured once for each cache."""
        if cache not in self._rest:
            self._rest[cache] = min(timed_steps(self._empty_runner(cache), self.context))
        return self._rest[cache]

    def step_seconds(self, model: nn.Module) -> float:
        """The median of the steps that lead up to the context."""
        return statistics.median(timed_steps(make_runner(model, capacity=self.context), self.context))

    def _compiles(self, cache: CacheRecipe | None) -> bool:
        """Whether a decoder runs as one compiled step, of which layers are kernels."""
        compiles = cache is None or isinstance(cache.form, TokenCacheFormat)
        return compiles and self._has_compiled_step

    @functools.cached_property
    def _has_compiled_step(self) -> bool:
        if not isinstance(self.original, Decoder):
            return False
        try:
            CompiledRunner(self.original)
        except (CannotCompile, NoCompiler):
            return False
        return True

    def _measure(self, recipe: ModuleRecipe, rows: int, cols: int, compiled: bool) -> float:
        made = nn.Linear(cols, rows, bias=False)
        with torch.no_grad():
            made.weight.normal_(generator=torch.Generator().manual_seed(0)).mul_(cols**-0.5)
        module = recipe.rewrite("timed", made, None).eval()
        kernel = usual_kernel(module, Activations.FLOAT32) if compiled else None
        if kernel is None:
            return _module_seconds(module, cols)
        whole = self._weights * kernel.nbytes / (rows * cols)
        return _kernel_seconds(kernel, min(whole, 2 * last_level_cache_bytes()))

    def _empty_runner(self, cache: CacheRecipe | None) -> Runner:
        """Of the model with layers that do nothing; its tensors are the original's."""
        shared = {id(t): t for t in (*self.original.parameters(), *self.original.buffers())}
        empty = copy.deepcopy(self.original, shared)
        linears = [n for slot in self._slots if not is_embedding(slot.module) for n in slot.names]
        for name in linears:
            path, _, leaf = name.rpartition(".")
            module = empty.get_submodule(name)
            if not is_embedding(module):
                setattr(empty.get_submodule(path), leaf, _Nothing(*reversed(matrix_shape(module))))
        if not isinstance(empty, Decoder):
            if cache is not None:
                cache.rewrite_model(empty)
            return TransformersRunner(empty, capacity=self.context)
        own = decoder_cache(empty, None if cache is None else cache.form, capacity=self.context)
        if self._compiles(cache):
            return CompiledRunner(empty, own, self.context, kernel_of=_nothing_kernel)
        return DecoderRunner(empty, own)


def timed_steps(runner: Runner, context: int) -> list[float]:
    """Seconds of the decoding steps that lead up to `context`, each with the choice of a token."""
    steps = max(1, min(STEPS, context // 2 - 1))
    warm = min(WARMUP_STEPS, max(0, context - steps - 1))
    prompt = torch.randint(
        0, runner.vocab_size, (1, context - steps - warm), generator=torch.Generator().manual_seed(0)
    ).to(runner.device)
    seconds = []
    with torch.inference_mode():
        for start in range(0, prompt.shape[1], PROMPT_TOKENS):
            logits = runner.feed(prompt[:, start : start + PROMPT_TOKENS])
        for _ in range(warm + steps):
            start_time = time.perf_counter()
            token = logits.argmax(-1, keepdim=True)
            logits = runner.feed(token)
            int(token)
            seconds.append(time.perf_counter() - start_time)
    return seconds[warm:]


class _Nothing(nn.Module):
    """A linear layer that gives zeros and reads nothing."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(*x.shape[:-1], self.out_features)


def _nothing_kernel(module: nn.Module) -> LinearKernel | None:
    return zero_kernel(module.in_features, module.out_features) if isinstance(module, _Nothing) else None


def _kernel_seconds(kernel: LinearKernel, working_bytes: float) -> float:
    copies = [kernel]
    while sum(own.nbytes for own in copies) < working_bytes:
        copies.append(kernel.copy())
    call = run_in_turn(copies, torch.randn(1, kernel.inputs, generator=torch.Generator().manual_seed(0)))
    return _least_seconds(call) / len(copies)


def _module_seconds(module: nn.Module, cols: int) -> float:
    x: Any = torch.randn(1, 1, cols, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return _least_seconds(lambda: module(x))


def _least_seconds(work: Callable[[], object]) -> float:
    return measure_fastest({"": work}, PASSES)[""]
