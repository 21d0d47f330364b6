"""Drafting with a `GlideDraft`: a layer over the target's last keys and values and a ring of its own.

Its own matrices and the target's head take part in bfloat16 where that is read faster: see `drafting_form`.

Source: Yang et al. 2025, "LongSpec", section 3.1 and 3.3.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from shoestring.generation.dense_cache import DenseCache
from shoestring.generation.ring_cache import RingCache
from shoestring.generation.slot_cache import Mark
from shoestring.generation.speculation.draft_length import FixedLength, LengthRule, MeasuredLength
from shoestring.generation.speculation.draft_tree import DraftTree
from shoestring.generation.speculation.target import Target
from shoestring.generation.speculation.tree_attention import tree_attend
from shoestring.layers.attention import attend
from shoestring.layers.attention_masks import Causal, Full
from shoestring.models.drafting_form import drafting_form, drafting_head
from shoestring.models.glide_draft import GlideDraft
from shoestring.models.protocols import HookConflict

CHUNK = 64


@dataclass(frozen=True)
class Glide:
    """Draft with `module`: chains of up to `tokens`, or trees with `shape` nodes at each depth.

    allow_lossy_draft: also read a last layer that is quantised or evicted from; the output is the same then,
    drafts are worse. slack: nodes that the draft's ring can take back.

    Raises: ValueError for a shape that is empty, has a level below 1, or more nodes than the slack.
    """

    module: GlideDraft
    tokens: int = 3
    shape: tuple[int, ...] | None = None
    length: LengthRule | None = None
    allow_lossy_draft: bool = False
    slack: int = 72

    def __post_init__(self) -> None:
        if self.shape is not None:
            if not self.shape or min(self.shape) < 1 or sum(self.shape) + 1 > self.slack:
                raise ValueError(
                    f"shape={self.shape}: give nodes for each depth, 1 or more, together at most "
                    f"{self.slack - 1}, which is what slack={self.slack} leaves."
                )
            object.__setattr__(self, "tokens", len(self.shape))
        if not 1 <= self.tokens < self.slack:
            raise ValueError(f"tokens={self.tokens} must be 1 to {self.slack - 1}.")

    def length_rule(self) -> LengthRule:
        """`length`; else by measured time for chains, and always the whole tree."""
        usual = MeasuredLength() if self.shape is None else FixedLength()
        return (self.length or usual).fresh()

    def draft(self, generator: torch.Generator, temperature: float) -> "GlideRun":
        """A draft with an empty ring."""
        return GlideRun(self)


class GlideRun:
    """The draft of one text. What it has read lies in the ring; what it has not yet is `unread`, the last of
    which is the root of the next tree."""

    free = False

    def __init__(self, options: Glide) -> None:
        cfg = options.module.cfg
        self.options, self.module = options, drafting_form(options.module)
        parameter = next(options.module.parameters())
        self.dtype = parameter.dtype
        self.ring = RingCache(
            1, 1, cfg.num_key_value_heads, cfg.head_dim, options.module.options.window, options.slack,
            dtype=parameter.dtype, device=parameter.device,
        )  # fmt: skip
        self.unread: list[int] = []
        self._mark: Mark | None = None
        self._read_nodes = 0

    def begin(self, target: Target, text: Sequence[int]) -> None:
        """Read the last tokens of the prompt.

        Raises: ValueError for a target that does not fit, or a prompt of one token; HookConflict where the
        target's last layer is not there as it was."""
        prompt = list(text[:-1])
        self.module.check_fits(target.runner.model)
        if len(prompt) < 2:
            raise ValueError("the prompt has one token; a draft needs two or more to go on from.")
        self.model, self.cache = target.runner.model, target.runner.cache
        if not self.options.allow_lossy_draft and not isinstance(self.cache, DenseCache):
            raise HookConflict(
                "cross-attention needs the exact last-layer cache, and this is a "
                f"{type(self.cache).__name__}; use a DenseCache, or allow_lossy_draft=True: the output stays "
                "the same, drafts get worse."
            )
        self.head = drafting_head(self.model, self.options.module)
        first = max(0, len(prompt) - self.module.options.window - 1)
        self.ring.next_pos += first
        self._read(prompt[first:])
        self.unread = [text[-1]]

    def propose(self, root: int, most: int) -> DraftTree:
        """The likeliest tokens, one after the other, or the likeliest tree of the shape asked for."""
        if most < 1:
            return DraftTree.chain(root, ())
        *before, last = self.unread
        self.unread = [root]
        if before:
            self._read(before)
        self._mark = self.ring.mark()
        logits = self._read([last])
        self._read_nodes = 1
        if self.options.shape is None:
            return self._grow_chain(root, logits[0, -1:], most)
        return self._grow(root, logits[0, -1:], self.options.shape[:most])

    def settle(self, tree: DraftTree, path: Sequence[int], tokens: Sequence[int]) -> None:
        """Keep of the ring what stands; what stands and was not read is read next time."""
        if self._mark is None:
            self.unread = [*self.unread, *tokens]
            return
        kept = [node for node in path if node < self._read_nodes]
        self.ring.keep_path(self._mark, torch.tensor([kept], device=self.ring.next_pos.device))
        self._mark = None
        text = [tree.tokens[node] for node in path] + [tokens[-1]]
        self.unread = text[len(kept) :]

    def _grow_chain(self, root: int, logits: Float[Tensor, "1 words"], most: int) -> DraftTree:
        """As `_grow` with one node at each depth: a chain is text like any other to the layer."""
        drafted = [self._likeliest(logits)]
        while len(drafted) < most:
            drafted.append(self._likeliest(self._read(drafted[-1:])))
            self._read_nodes += 1
        return DraftTree.chain(root, drafted)

    def _likeliest(self, logits: Float[Tensor, "*one words"]) -> int:
        return int(self.module.tokens(logits.argmax(-1)))

    def _grow(self, root: int, logits: Float[Tensor, "1 words"], shape: Sequence[int]) -> DraftTree:
        tokens, parents, depth = [root], [-1], [0]
        seen = torch.ones(1, 1, dtype=torch.bool, device=logits.device)
        level, scores = [0], logits.new_zeros(1)
        start = int(self.ring.next_pos) - 1
        for number, width in enumerate(shape, 1):
            above, places, scores = likeliest(logits, scores, width)
            chosen = self.module.tokens(torch.tensor(places, device=logits.device)).tolist()
            rows = torch.zeros(len(chosen), len(tokens) + len(chosen), dtype=torch.bool, device=logits.device)
            for row, (parent, token) in enumerate(zip(above, chosen, strict=True)):
                rows[row, : seen.shape[1]] = seen[level[parent]]
                rows[row, len(tokens)] = True
                parents.append(level[parent])
                tokens.append(token)
                depth.append(number)
            grown = torch.zeros(len(tokens), len(tokens), dtype=torch.bool, device=logits.device)
            grown[: len(seen), : len(seen)] = seen
            grown[len(seen) :] = rows[:, : len(tokens)]
            seen, level = grown, list(range(len(tokens) - len(chosen), len(tokens)))
            if number == len(shape):
                break
            pos = torch.full((1, len(level)), start + number, device=logits.device)
            logits = self._layer([tokens[node] for node in level], pos, seen[level])[0]
            self._read_nodes = len(tokens)
        return DraftTree(tuple(tokens), tuple(parents))

    def _read(self, tokens: list[int]) -> Float[Tensor, "1 n words"]:
        """Tokens that stand, after those in the ring; the logits of the last chunk's last token."""
        logits = None
        for at in range(0, len(tokens), CHUNK):
            part = tokens[at : at + CHUNK]
            pos = self.ring.next_pos[:, None] + torch.arange(len(part), device=self.ring.next_pos.device)
            logits = self._layer(part, pos, None)
        assert logits is not None
        return logits

    def _layer(self, tokens: list[int], pos: Tensor, among: Tensor | None) -> Float[Tensor, "1 n words"]:
        module, scale = self.module, self.module.cfg.head_dim**-0.5
        x = self.model.model.embed_tokens(torch.tensor([tokens], device=pos.device)).to(self.dtype)
        q, k, v = module.project(x, pos)
        self.ring.append(0, k, v, pos)
        view, window = self.ring.view(0), module.options.window + 1
        if among is None:
            out = attend(q, view, Causal(pos, view.pos, newest=True), scale, window).out
        else:
            out = tree_attend(q, view, pos, among, scale, window)
        x = module.add_self(x, out)
        q, seen = module.cross_queries(x, pos), self.cache.view(module.cfg.num_hidden_layers - 1)
        # What is drafted, and what it is drafted from, stands behind all that the target's cache holds.
        drafted = among is not None or int(pos[0, 0]) >= int(self.cache.next_pos[0])
        behind = Full() if drafted else Causal(pos - 1, seen.pos)
        # In the type of the cache: its keys and values are many, the queries few.
        x = module.finish(x, attend(q.to(seen.k.dtype), seen, behind, scale).out.to(x.dtype))
        return self.head(module.to_head(self.model, x[:, -1:] if among is None else x))


def likeliest(
    logits: Float[Tensor, "nodes vocab"], scores: Float[Tensor, " nodes"], width: int
) -> tuple[list[int], list[int], Float[Tensor, " kept"]]:
    """The `width` continuations with the largest summed log-probability: node, token and sum of each; ties go
    to the earlier node, then to the earlier of its tokens.

    One log-sum-exp a node and the best few logits: log-probabilities of a whole vocabulary are never formed.
    """
    width_of_each = min(width, logits.shape[1])
    best, tokens = logits.float().topk(width_of_each, -1)
    sums = best - logits.float().logsumexp(-1, keepdim=True) + scores[:, None]
    order = sums.flatten().sort(descending=True, stable=True).indices[:width]
    nodes = (order // width_of_each).tolist()
    return nodes, tokens.flatten()[order].tolist(), sums.flatten()[order]


def naive_likeliest(
    logits: Float[Tensor, "nodes vocab"], scores: Float[Tensor, " nodes"], width: int
) -> tuple[list[int], list[int], Float[Tensor, " kept"]]:
    """The same from all log-probabilities."""
    sums = (logits.float().log_softmax(-1) + scores[:, None]).flatten()
    order = sums.sort(descending=True, stable=True).indices[:width]
    vocab = logits.shape[1]
    return (order // vocab).tolist(), (order % vocab).tolist(), sums[order]
