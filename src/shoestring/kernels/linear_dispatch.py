"""Which way to multiply by a packed matrix: feasible ones by their cost, or as it was measured once here.

Measurements stand by type and shape in the table of this processor; a number of rows that was not measured
takes what the next larger one that was measured found.
"""

import functools
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from shoestring.kernels.grouped_linear import Activations
from shoestring.kernels.linear_options import OPTIONS, LinearOption, LinearProblem, Product
from shoestring.kernels.tuning import measure_fastest, tuning_table
from shoestring.numbers.grouped_affine import GroupedAffine

_ROW_LIMIT = 1 << 30


def feasible(problem: LinearProblem, options: Sequence[LinearOption] = OPTIONS) -> list[LinearOption]:
    """The options that can solve a problem. Raises: ValueError with all reasons where none can."""
    reasons = {option.name: option.why_not(problem) for option in options}
    able = [option for option in options if reasons[option.name] is None]
    if not able:
        listed = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise ValueError(f"no kernel for {problem}: {listed}")
    return able


def ranked(problem: LinearProblem, options: Sequence[LinearOption] = OPTIONS) -> list[LinearOption]:
    """The feasible options, cheapest first: by the mean of bytes and operations, each over the least of all.

    Raises: ValueError as `feasible` does.
    """
    able = feasible(problem, options)
    costs = {option.name: option.cost(problem) for option in able}
    least_bytes = max(min(cost.bytes for cost in costs.values()), 1)
    least_flops = max(min(cost.flops for cost in costs.values()), 1)

    def mean(option: LinearOption) -> float:
        cost = costs[option.name]
        return (cost.bytes / least_bytes + cost.flops / least_flops) / 2

    return sorted(able, key=mean)


def choose(problem: LinearProblem, options: Sequence[LinearOption] = OPTIONS) -> LinearOption:
    """What was measured for these rows or the next more, where it is feasible; else the cheapest by cost."""
    able = ranked(problem, options)
    known = {int(rows): number for rows, number in (tuning_table().get(_key(problem)) or {}).items()}
    larger = min((rows for rows in known if rows >= problem.tokens), default=_ROW_LIMIT)
    measured = [option for option in able if option.number == known.get(larger)]
    return (measured or able)[0]


class DispatchedLinear:
    """The product with a stored matrix, each number of rows by the option that is chosen for it.

    form, stored, cols: as in `dequantise_rows`. Every option that is used packs the matrix once for itself.
    activations: INT8 allows rounding of the inputs. x is float32 on the CPU. What was chosen for a number of
    rows stays until `tune` is called here.
    """

    def __init__(
        self,
        form: GroupedAffine,
        stored: Mapping[str, Tensor],
        cols: int,
        activations: Activations = Activations.FLOAT32,
        options: Sequence[LinearOption] = OPTIONS,
    ) -> None:
        self.form, self.stored, self.cols, self.activations = form, dict(stored), cols, activations
        self.options = tuple(options)
        self._prepared: dict[int, Product] = {}
        self._chosen: dict[tuple[int, int], Product] = {}

    def problem(self, tokens: int) -> LinearProblem:
        """The product with so many rows."""
        return LinearProblem(self.form, len(self.stored["codes"]), self.cols, tokens, self.activations)

    def __call__(self, x: Float[Tensor, "tokens inputs"]) -> Float[Tensor, "tokens outputs"]:
        # Looked up once: finding a kernel takes longer than a small product.
        key = x.shape[0], torch.get_num_threads()
        product = self._chosen.get(key)
        if product is None:
            product = self._chosen[key] = self.product(self.chosen(key[0]))
        return product(x)

    def chosen(self, tokens: int) -> LinearOption:
        """The option for so many rows."""
        return choose(self.problem(tokens), self.options)

    def product(self, option: LinearOption) -> Product:
        """The product by one option, packed for it at the first call."""
        if option.number not in self._prepared:
            self._prepared[option.number] = option.prepare(self.form, self.stored, self.cols)
        return self._prepared[option.number]

    def tune(self, tokens: int, *, candidates: int = 3, repeats: int = 5) -> dict[str, float]:
        """Measure the options that cost least and remember the fastest; seconds by name.

        Raises: ValueError for no candidates or repeats.
        """
        if candidates < 1:
            raise ValueError(f"candidates={candidates}: nothing would be measured; use at least 1")
        problem = self.problem(tokens)
        best = ranked(problem, self.options)[:candidates]
        x = torch.randn(tokens, self.cols, generator=torch.Generator().manual_seed(0))
        works = {option.name: functools.partial(self.product(option), x) for option in best}
        seconds = measure_fastest(works, repeats)
        fastest = min(best, key=lambda option: seconds[option.name])
        table = tuning_table()
        known = table.get(_key(problem)) or {}
        table.put(_key(problem), known | {str(tokens): fastest.number})
        self._chosen.clear()
        return seconds


def _key(problem: LinearProblem) -> str:
    """What shares measurements: type, shape, what may be rounded, threads."""
    form = problem.form
    kind = f"{form.bits} bits by {form.group_size}, {form.zero_point.value}, scales of {form.scale_bits}"
    inputs = f"{problem.activations.name.lower()} inputs"
    shape = f"{problem.outputs} x {problem.inputs}"
    return f"linear, {kind}, {inputs}, {shape}, {torch.get_num_threads()} threads"
