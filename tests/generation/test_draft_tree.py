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
        for steps in range(STEPS)
        for text in itertools.product(range(VOCAB), repeat=steps)
    }


TARGET = toy_target()
DRAFT = {text: (p.sqrt() + 0.1) / (p.sqrt() + 0.1).sum() for text, p in TARGET.items()}


def sample_texts(accept, draft, seed=0):
    """Texts of STEPS tokens, counted, from repeated drafting and acceptance."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.zeros((VOCAB,) * STEPS)
    for _ in range(SAMPLES // 10):
        text = ()
        while len(text) < STEPS:
            tree, before = draft(text, generator), text
            text = (*text, *accept(tree, before, generator))[:STEPS]
        counts[text] += 1
    return counts


def p_value(counts):
    exact = torch.zeros_like(counts, dtype=torch.float64)
    for text in itertools.product(range(VOCAB), repeat=STEPS):
        exact[text] = torch.stack([TARGET[text[:i]][text[i]] for i in range(STEPS)]).prod()
    return stats.chisquare(counts.flatten().numpy(), (exact.flatten() * counts.sum()).numpy()).pvalue
