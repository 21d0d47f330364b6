"""Which drafted tokens stand: rules under which the text is distributed as if there were no draft.

A draft that chooses its tokens is a proposal of sets: the target's own next token y ~ p is drawn as ever, and
where a child of the node is y, that child's logits are known already. For drafts that are drawn from a
distribution q of their own, x is accepted with probability min(1, p(x) / q(x)), else max(p − q, 0),
normalised, is drawn from.

Source: Leviathan et al. 2023, "Fast Inference from Transformers via Speculative Decoding", algorithm 1 and
appendix A.1 (drawn chains); Yang et al. 2025, "LongSpec", section 3.3 (trees; the rule for temperatures above
0 is the one above, which is exact for any tree).
"""

from collections.abc import Callable, Collection, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from shoestring.generation.speculation.draft_tree import DraftTree

Choose = Callable[[int], int]
"""The target's next token after a node; asked once for each node of the path, from the root on."""
Odds = Callable[[int], Tensor]
"""The target's distribution (vocab) after a node; asked once for each node of the path, from the root on."""


def follow(
    tree: DraftTree, choose: Choose, ends: Collection[int] = frozenset()
) -> tuple[list[int], list[int]]:
    """(nodes, tokens): the accepted path from the root, and the text it adds, one token for each node.

    A token of `ends` is the last one.
    """
    path, tokens = [0], [choose(0)]
    while tokens[-1] not in ends:
        child = tree.child(path[-1], tokens[-1])
        if child is None:
            break
        path.append(child)
        tokens.append(choose(child))
    return path, tokens


def follow_drawn(
    tree: DraftTree, odds: Odds, generator: torch.Generator, ends: Collection[int] = frozenset()
) -> tuple[list[int], list[int]]:
    """`follow` for a chain whose tokens were drawn from `tree.odds`.

    Raises: ValueError for a tree that has none.
    """
    if tree.odds is None:
        raise ValueError("the drafted tokens carry no odds; verify them with follow.")
    path: list[int] = [0]
    tokens: list[int] = []
    for node, drafted in enumerate(tree.tokens[1:]):
        p, q = odds(node).double(), tree.odds[node].double()
        draw = torch.rand((), generator=generator, dtype=torch.float64)
        if float(draw) * float(q[drafted]) >= float(p[drafted]):
            return path, [*tokens, draw_from((p - q).clamp(min=0), generator)]
        tokens.append(drafted)
        if drafted in ends:
            return path, tokens
        path.append(node + 1)
    return path, [*tokens, draw_from(odds(len(tree) - 1), generator)]


def draw_from(weights: Float[Tensor, " vocab"], generator: torch.Generator) -> int:
    """A token with probability in proportion to its weight."""
    return int(torch.multinomial(weights, 1, generator=generator))


def naive_greedy(tree: DraftTree, best: Sequence[int]) -> tuple[list[int], list[int]]:
    """`follow` for the likeliest tokens, by marking: a node stands if it is the best token after its parent
    and its parent stands; the last one that stands is the deepest."""
    stands = [True]
    for node in range(1, len(tree)):
        parent = tree.parents[node]
        stands.append(stands[parent] and best[parent] == tree.tokens[node])
    node = max(i for i, ok in enumerate(stands) if ok)
    path: list[int] = []
    while node >= 0:
        path.insert(0, node)
        node = tree.parents[node]
    return path, [*(tree.tokens[i] for i in path[1:]), best[path[-1]]]
