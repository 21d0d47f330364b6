"""Drafts for tests of speculation: from always right to always wrong, as chains and as trees."""

from dataclasses import dataclass, field

import torch

from shoestring.generation.speculation.draft_length import FixedLength
from shoestring.generation.speculation.draft_tree import DraftTree


@dataclass
class Oracle:
    """Knows the whole output; in `wrong` of 10 places it says something else. Branches: wrong ones first."""

    output: list
    vocab: int
    wrong: int = 0
    branches: int = 1
    tokens: int = 5
    free: bool = True
    at: int = 0
    passes: list = field(default_factory=list)

    def length_rule(self):
        return FixedLength()

    def draft(self, generator, temperature):
        return self

    def begin(self, target, text):
        self.at = 0

    def propose(self, root, most):
        # The first token comes from the prompt's logits, without a draft.
        here = self.at + 1
        tokens, parents, last = [root], [-1], 0
        for step in range(min(most, len(self.output) - here)):
            right = self.output[here + step]
            if (here + step) * 7 % 10 < self.wrong:
                right = (right + 1) % self.vocab
            for branch in range(self.branches - 1, -1, -1):
                tokens.append((right + branch) % self.vocab)
                parents.append(last)
            last = len(tokens) - 1
        return DraftTree(tuple(tokens), tuple(parents))

    def settle(self, tree, path, tokens):
        self.passes.append(len(tokens))
        self.at += len(tokens)


def random_tree(nodes, vocab, generator):
    """Random parents; the tokens of siblings differ."""
    tokens, parents = [int(torch.randint(vocab, (), generator=generator))], [-1]
    while len(tokens) < nodes:
        parent = int(torch.randint(len(tokens), (), generator=generator))
        token = int(torch.randint(vocab, (), generator=generator))
        if (parent, token) not in zip(parents, tokens, strict=True):
            tokens.append(token)
            parents.append(parent)
    return DraftTree(tuple(tokens), tuple(parents))
