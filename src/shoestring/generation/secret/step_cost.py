"""Bytes and rounds of a decoded token's attention, in closed form, as `decode_step` sends them."""

from dataclasses import dataclass

from shoestring.generation.clusters import ClusterPlan
from shoestring.generation.secret.cost import Cost, CostModel


@dataclass(frozen=True)
class StepShape:
    """heads: KV heads; group: query heads of each; dim: of a head."""

    heads: int
    group: int
    dim: int


def append_cost(model: CostModel, shape: StepShape) -> Cost:
    """Preparing one token's keys and values."""
    one = model.fix(shape.heads * shape.dim)
    return one + one


def bounds_cost(model: CostModel, shape: StepShape, fine: int = 16) -> Cost:
    """Bounds of one fine cluster that is full, and of half a coarse one: once every `fine` tokens."""
    width = 2 * shape.heads * shape.dim
    tree = model.maximum(width, fine) + model.truncate(width // 2) + model.fix(width // 2)
    pair = model.maximum(width, 2) + model.truncate(width // 2) + model.fix(width // 2)
    return tree + Cost(pair.rounds // 2, pair.nbytes // 2)


def attend_all_cost(model: CostModel, shape: StepShape, tokens: int) -> Cost:
    """`attend_all`."""
    rows = shape.heads * shape.group
    scores = model.matmul(shape.heads, shape.group, shape.dim, tokens, fixed=True)
    return scores + model.truncate(rows * tokens) + _softmax_and_values(model, shape, tokens, tokens)


def choose_cost(model: CostModel, shape: StepShape, plan: ClusterPlan, *, one_hot: bool = False) -> Cost:
    """`choose_in_secret`. one_hot: by `ranked_rows` instead of `shuffled_rows`."""
    top = model.ranked_rows if one_hot else model.shuffled_rows
    inner, heads = plan.fine - 2, shape.heads
    total = model.matmul(heads, 1, shape.dim, inner, fixed=True)
    if not plan.all_coarse:
        n = plan.coarse - 2
        total = total + model.matmul(heads, 1, shape.dim, n, fixed=True)
        total = total + top(heads, n, n + plan.children, plan.keep_coarse)
    if plan.keep_fine < plan.candidates:
        total = total + top(heads, plan.candidates, inner, plan.keep_fine)
    return total


def attend_scores_cost(model: CostModel, shape: StepShape, plan: ClusterPlan) -> Cost:
    """`attend_scores`."""
    heads, group, inner = shape.heads, shape.group, plan.fine - 2
    total = model.matmul(heads, group, shape.dim, plan.tokens, fixed=True)
    total = total + model.fix(heads * plan.keep_fine * inner)
    total = total + model.matmul(heads, group * plan.fine_size, inner, plan.keep_fine, fixed=True)
    total = total + model.truncate(heads * group * plan.attended)
    back = model.matmul(heads, group * plan.fine_size, plan.keep_fine, inner, fixed=True)
    return total + _softmax_and_values(model, shape, plan.attended, plan.tokens) + back


def attend_cache_cost(model: CostModel, shape: StepShape, plan: ClusterPlan) -> Cost:
    """`attend_cache`, the paper's way."""
    heads, group, dim, size = shape.heads, shape.group, shape.dim, plan.fine_size
    inner, kept = plan.fine - 2, plan.keep_fine * size
    gathered = model.matmul(heads, plan.keep_fine, inner, size * dim, fixed=True)
    total = gathered + gathered
    for tokens, fixed in ((size, True), (plan.tail, True), (kept, False)):
        total = total + model.matmul(heads, group, dim, tokens, fixed=fixed)
        total = total + model.matmul(heads, group, tokens, dim, fixed=fixed)
    rows = heads * group
    total = total + model.truncate(rows * plan.attended) + model.softmax_parts(rows, plan.attended)
    return total + _normalise(model, rows * dim)


def _softmax_and_values(model: CostModel, shape: StepShape, items: int, tokens: int) -> Cost:
    rows = shape.heads * shape.group
    values = model.matmul(shape.heads, shape.group, tokens, shape.dim, fixed=True)
    return model.softmax_parts(rows, items) + values + _normalise(model, rows * shape.dim)


def _normalise(model: CostModel, n: int) -> Cost:
    return model.truncate(n) + model.multiply(n) + model.truncate(n)
