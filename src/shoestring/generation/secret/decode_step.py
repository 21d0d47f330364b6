"""Attention of one decoded token over a secret cache: everything, or the clusters that it chooses in secret.

Clusters are chosen by one-hot rows M. The paper multiplies M with the cache and attends to the result. Here
the
scores of all tokens, which cost nothing once the cache is prepared, are multiplied with M instead, and the
probabilities are put back with Mᵀ: two small products in place of one over keys and values. Softmax, the dear
part, is over the chosen tokens either way.

Source: Zeng et al. 2025, "MPCache", section 4; the multiplication of scores in place of the cache is ours.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from shoestring.generation.clusters import ClusterPlan
from shoestring.generation.secret.engine import Engine
from shoestring.generation.secret.functions import normalised, softmax_parts
from shoestring.generation.secret.ranking import TopRows, shuffled_rows
from shoestring.generation.secret.secret_cache import SecretCache
from shoestring.generation.secret.shares import Secret, concatenate

Attend = Callable[[Engine, SecretCache, int, Secret, Secret, ClusterPlan], Secret]


@dataclass(frozen=True)
class Attended:
    """out (kv_heads, group, dim); chosen: one-hot rows over the inner clusters, None where all were read."""

    out: Secret
    chosen: Secret | None


def attend_all(engine: Engine, cache: SecretCache, layer: int, q: Secret) -> Secret:
    """softmax(q Kᵀ) V over all tokens; q (kv_heads, group, dim) is scaled by 1/√d already."""
    held = cache.layer(layer)
    scores = engine.truncate(engine.matmul(q, held.keys.T), engine.form.frac_bits)
    weights, inverse, bits = softmax_parts(engine, scores)
    return normalised(engine, engine.matmul(weights, held.values), inverse, bits)


def decode_attention(
    engine: Engine,
    cache: SecretCache,
    layer: int,
    q: Secret,
    *,
    chosen: Secret | None = None,
    top_rows: TopRows = shuffled_rows,
    attend: "Attend | None" = None,
) -> Attended:
    """Attention over chosen clusters. chosen: what another layer chose, to be used again. q: as above.

    With too few tokens to choose from, or shares that choose everything, all are read.
    """
    assert cache.clusters is not None
    plan = cache.clusters.plan(cache.length(layer))
    if plan is None or plan.keep_fine == plan.fine - 2:
        return Attended(attend_all(engine, cache, layer, q), None)
    if chosen is None:
        summed = q.sum(-2).reshape(q.shape[0], 1, q.shape[-1])
        chosen = choose_in_secret(engine, cache, layer, summed, plan, top_rows)
    return Attended((attend or attend_scores)(engine, cache, layer, q, chosen, plan), chosen)


def choose_in_secret(
    engine: Engine, cache: SecretCache, layer: int, q: Secret, plan: ClusterPlan, top_rows: TopRows
) -> Secret:
    """One-hot rows (kv_heads, keep_fine, fine − 2) of the chosen inner clusters, for q (kv_heads, 1, dim)."""
    held = cache.layer(layer)
    assert held.fine is not None
    assert held.coarse is not None
    heads, inner = q.shape[0], plan.fine - 2
    # Products need no truncation where they are only compared.
    fine = engine.matmul(q, held.fine.rows(1, plan.fine - 1).T).reshape(heads, inner)
    always = [c - 1 for c in plan.always]
    scores = [fine[:, always]]
    rows = [
        engine.constant(np.broadcast_to(np.eye(inner, dtype=np.uint64)[always], (heads, len(always), inner)))
    ]
    if not plan.all_coarse:
        found, owners = _children(engine, cache, layer, q, plan, fine, top_rows)
        scores.insert(0, found)
        rows.insert(0, owners)
    candidates, marks = concatenate(scores, -1), concatenate(rows, -2)
    if plan.keep_fine == plan.candidates:
        return marks
    return top_rows(engine, candidates, marks, plan.keep_fine)


def attend_scores(
    engine: Engine, cache: SecretCache, layer: int, q: Secret, chosen: Secret, plan: ClusterPlan
) -> Secret:
    """Scores of all tokens, the chosen of which go through softmax; probabilities go back to their places."""
    held = cache.layer(layer)
    heads, group, _ = q.shape
    size, inner, kept = plan.fine_size, plan.fine - 2, plan.keep_fine
    scores = engine.matmul(q, held.keys.T)
    first, last = scores[..., :size], scores[..., size * (inner + 1) :]
    middle = scores[..., size : size * (inner + 1)].reshape(heads, group, inner, size).swap(-1, -2)
    marks = engine.fix(chosen)
    picked = engine.matmul(middle.reshape(heads, group * size, inner), marks.T)
    read = concatenate([first, picked.reshape(heads, group, size * kept), last], -1)
    weights, inverse, bits = softmax_parts(engine, engine.truncate(read, engine.form.frac_bits))
    back = engine.matmul(weights[..., size : size * (kept + 1)].reshape(heads, group * size, kept), marks)
    spread = back.reshape(heads, group, size, inner).swap(-1, -2).reshape(heads, group, size * inner)
    everywhere = concatenate([weights[..., :size], spread, weights[..., size * (kept + 1) :]], -1)
    return normalised(engine, engine.matmul(everywhere, held.values), inverse, bits)


def attend_cache(
    engine: Engine, cache: SecretCache, layer: int, q: Secret, chosen: Secret, plan: ClusterPlan
) -> Secret:
    """Keys and values of the chosen clusters are gathered, then attended to: the paper's way."""
    held = cache.layer(layer)
    size = plan.fine_size
    keys, values = cache.view(layer, chosen)
    ends = [(0, size), (size * (plan.fine - 1), plan.tokens)]
    scores = [engine.matmul(q, held.keys.rows(*end).T) for end in ends]
    scores.insert(1, engine.matmul(q, keys.swap(-1, -2)))
    read = engine.truncate(concatenate(scores, -1), engine.form.frac_bits)
    weights, inverse, bits = softmax_parts(engine, read)
    middle = size * (plan.keep_fine + 1)
    sums = engine.matmul(weights[..., :size], held.values.rows(*ends[0]))
    sums = sums + engine.matmul(weights[..., size:middle], values)
    sums = sums + engine.matmul(weights[..., middle:], held.values.rows(*ends[1]))
    return normalised(engine, sums, inverse, bits)


def _children(
    engine: Engine,
    cache: SecretCache,
    layer: int,
    q: Secret,
    plan: ClusterPlan,
    fine: Secret,
    top_rows: TopRows,
) -> tuple[Secret, Secret]:
    """Scores (heads, children · keep_coarse) and one-hot rows of the children of chosen coarse clusters."""
    held = cache.layer(layer)
    assert held.coarse is not None
    heads, n, children = q.shape[0], plan.coarse - 2, plan.children
    coarse = engine.matmul(q, held.coarse.rows(1, plan.coarse - 1).T).reshape(heads, n)
    # Inner fine clusters count from 1, the first child of inner coarse cluster 1 is cluster `children`.
    own = fine[:, children - 1 : children - 1 + n * children].reshape(heads, n, children)
    marks = engine.constant(np.broadcast_to(np.eye(n, dtype=np.uint64), (heads, n, n)))
    rows = top_rows(engine, coarse, concatenate([own, marks], -1), plan.keep_coarse)
    scores, marks = rows[..., :children], rows[..., children:]
    owners = np.zeros((engine.components, heads, plan.keep_coarse, children, plan.fine - 2), dtype=np.uint64)
    for child in range(children):
        places = children - 1 + child + children * np.arange(n)
        owners[:, :, :, child, places] = marks.parts
    return (
        scores.reshape(heads, children * plan.keep_coarse),
        Secret(owners).reshape(heads, children * plan.keep_coarse, plan.fine - 2),
    )
