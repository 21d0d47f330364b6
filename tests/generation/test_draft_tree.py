"""Drafted trees and the rules that accept them: exact against definitions and against distributions."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from shoestring.generation.speculation.acceptance import draw_from, follow, follow_drawn, naive_greedy
from shoestring.generation.speculation.draft_tree import DraftTree

from .speculation_inputs import random_tree

VOCAB, STEPS, SAMPLES = 5, 3, 200_000


@given(nodes=st.integers(1, 23), seed=st.integers(0, 10**6))
def test_a_path_is_the_deepest_node_that_stands(nodes, seed):
    generator = torch.Generator().manual_seed(seed)
    tree = random_tree(nodes, 30, generator)
    best = torch.randint(30, (nodes,), generator=generator).tolist()
    for parent, token in zip(tree.parents[1:], tree.tokens[1:], strict=True):
        if float(torch.rand((), generator=generator)) < 0.5:
            best[parent] = token
    assert follow(tree, best.__getitem__) == naive_greedy(tree, best)


@given(nodes=st.integers(1, 17), seed=st.integers(0, 10**6))
def test_nodes_see_themselves_and_those_above(nodes, seed):
    tree = random_tree(nodes, 30, torch.Generator().manual_seed(seed))
    seen, depths = tree.ancestors(), tree.depths()
    for node in range(nodes):
        path, up = set(), node
        while up >= 0:
            path.add(up)
            up = tree.parents[up]
        assert set(seen[node].nonzero()[:, 0].tolist()) == path
        assert depths[node] == len(path) - 1
    short = tree.cut(nodes // 2)
    assert short.tokens == tree.tokens[: nodes // 2 + 1]


def test_an_end_token_ends_a_path():
    tree = DraftTree.chain(0, [1, 2, 3])
    following = {0: 1, 1: 2, 2: 3, 3: 4}
    assert follow(tree, following.__getitem__) == ([0, 1, 2, 3], [1, 2, 3, 4])
    assert follow(tree, following.__getitem__, {2}) == ([0, 1], [1, 2])


@pytest.mark.parametrize(
    ("tokens", "parents", "message"),
    [
        ((), (), "give a parent for each"),
        ((1, 2), (-1,), "give a parent for each"),
        ((1, 2), (0, 0), "−1 for the root"),
        ((1, 2), (-1, 1), "node 1 has parent 1"),
        ((1, 2, 2), (-1, 0, 0), "same token"),
    ],
)
def test_a_tree_that_is_none_is_refused(tokens, parents, message):
    with pytest.raises(ValueError, match=message):
        DraftTree(tokens, parents)


def test_odds_belong_to_chains():
    with pytest.raises(ValueError, match="2 distributions for 1 drafted"):
        DraftTree.chain(0, [1], odds=torch.ones(2, 3))
    with pytest.raises(ValueError, match="carry no odds"):
        follow_drawn(DraftTree.chain(0, [1]), lambda node: torch.ones(3), torch.Generator())


def toy_target():
    """Distributions of a three-step text by the tokens before each step."""
    generator = torch.Generator().manual_seed(3)
    return {
        text: (torch.randn(VOCAB, generator=generator, dtype=torch.float64) * 1.5).softmax(0)
        for steps in range(STEPS + 1)
        for text in itertools.product(range(VOCAB), repeat=steps)
    }


TARGET = toy_target()
"""After three tokens too: a path that was accepted whole ends in one more token."""
DRAFT = {text: (p.sqrt() + 0.1) / (p.sqrt() + 0.1).sum() for text, p in TARGET.items()}


def chosen_tree(before):
    """The two likeliest first tokens of the draft, and the likeliest after each."""
    tokens, parents = [0], [-1]
    for first in DRAFT[before].topk(2).indices.tolist():
        tokens.append(first)
        parents.append(0)
        if len(before) + 1 < STEPS:
            tokens.append(int(DRAFT[(*before, first)].argmax()))
            parents.append(len(tokens) - 2)
    return DraftTree(tuple(tokens), tuple(parents))


def path_text(tree, node):
    text = []
    while node:
        text.insert(0, tree.tokens[node])
        node = tree.parents[node]
    return tuple(text)


def by_tree(before, generator):
    """What one step with a tree adds."""
    tree = chosen_tree(before)
    return follow(tree, lambda node: draw_from(TARGET[(*before, *path_text(tree, node))], generator))[1]


def drawn_chain(before, generator, draw=draw_from):
    text, odds = before, []
    while len(text) < STEPS:
        odds.append(DRAFT[text])
        text = (*text, draw(DRAFT[text], generator))
    return DraftTree.chain(0, text[len(before) :], odds=torch.stack(odds))


def by_chain(before, generator):
    """What one step with a drawn chain adds."""
    tree = drawn_chain(before, generator)
    return follow_drawn(tree, lambda node: TARGET[(*before, *tree.tokens[1 : node + 1])], generator)[1]


def with_argmax(before, generator):
    """Wrong: the chain is the likeliest one, and is verified as if it had been drawn."""
    tree = drawn_chain(before, generator, lambda odds, _: int(odds.argmax()))
    return follow_drawn(tree, lambda node: TARGET[(*before, *tree.tokens[1 : node + 1])], generator)[1]


def without_residual(before, generator):
    """Wrong: after a rejection it draws from p, not from what q leaves of it."""
    tree, tokens = drawn_chain(before, generator), []
    for node, drafted in enumerate(tree.tokens[1:]):
        p, q = TARGET[(*before, *tokens)], tree.odds[node]
        if float(torch.rand((), generator=generator)) * q[drafted] >= p[drafted]:
            return [*tokens, draw_from(p, generator)]
        tokens.append(drafted)
    return [*tokens, draw_from(TARGET[(*before, *tokens)], generator)]


def p_value(step, samples, seed=0):
    """That so many texts, made step by step, come from the target's joint distribution (chi-square)."""
    generator, counts = torch.Generator().manual_seed(seed), dict.fromkeys(
        itertools.product(range(VOCAB), repeat=STEPS), 0
    )  # fmt: skip
    for _ in range(samples):
        text = ()
        while len(text) < STEPS:
            text = (*text, *step(text, generator))[:STEPS]
        counts[text] += 1
    exact = [
        samples * float(torch.stack([TARGET[text[:i]][text[i]] for i in range(STEPS)]).prod())
        for text in counts
    ]
    return stats.chisquare(list(counts.values()), exact).pvalue


@pytest.mark.slow
@pytest.mark.parametrize("step", [by_tree, by_chain])
def test_texts_have_the_targets_distribution(step):
    assert p_value(step, SAMPLES) > 0.01


@pytest.mark.parametrize("step", [by_tree, by_chain])
def test_fewer_texts_have_the_targets_distribution(step):
    assert p_value(step, 1500) > 0.01


@pytest.mark.parametrize("step", [with_argmax, without_residual])
def test_the_faulty_rules_are_found_out(step):
    assert p_value(step, 1500) < 0.01
