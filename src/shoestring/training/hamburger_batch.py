"""What teacher forcing needs of segmented examples: slots in packed rows, and the groups they predict."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from shoestring.data.mixed_examples import TokenExample
from shoestring.data.packed_examples import PackedRows, lay_out, pack_lengths
from shoestring.models.hamburger_options import check_groups
from shoestring.training.packed_text import ROW
from shoestring.training.segmentation import check_prompts


@dataclass(frozen=True)
class GroupBatch:
    """Rows of slots: prompt tokens, then all groups of the response but the last, which predicts nothing.

    ids: of prompt tokens, 0 elsewhere. tokens: of each group, −1 behind its size. state: row and column of
    the slot that predicts a group. fed: row and column of its own slot, −1 of the last of an example.
    skipped: examples without a response.
    """

    ids: Int[Tensor, "rows length"]
    rows: PackedRows
    tokens: Int[Tensor, "groups steps"]
    sizes: Int[Tensor, " groups"]
    state: Int[Tensor, "groups 2"]
    fed: Int[Tensor, "groups 2"]
    skipped: int = 0

    @classmethod
    def of(
        cls,
        examples: Sequence[TokenExample],
        groups: Sequence[Sequence[int]],
        max_steps: int,
        row_length: int = ROW,
    ) -> "GroupBatch":
        """Groups are in the order of the examples.

        Raises: ValueError for groups that do not sum to a response, or an empty prompt, naming the example;
        or if no example has a response.
        """
        check_prompts(examples)
        for number, (example, sizes) in enumerate(zip(examples, groups, strict=True)):
            check_groups(sizes, example.response_length, max_steps, f"example {number}")
        kept = [(e, list(g)) for e, g in zip(examples, groups, strict=True) if e.response_length]
        if not kept:
            raise ValueError(f"none of {len(examples)} examples has a response.")
        lengths = [example.prompt_length + len(sizes) - 1 for example, sizes in kept]
        row_length = max(row_length, *lengths)
        order = pack_lengths(lengths, row_length)
        rows = lay_out(order, lengths, row_length)
        ids = torch.zeros_like(rows.pos)
        parts: list[tuple[Tensor, ...]] = [()] * len(kept)
        for row, numbers in enumerate(order):
            start = 0
            for number in numbers:
                example, sizes = kept[number]
                end = start + example.prompt_length
                ids[row, start:end] = example.ids[: example.prompt_length]
                rows.pos[row, end : start + lengths[number]] = group_positions(
                    example.prompt_length, sizes[:-1]
                )
                parts[number] = _groups(example, sizes, max_steps, row, end)
                start += lengths[number]
        tokens, size, state, fed = (torch.cat(column) for column in zip(*parts, strict=True))
        return cls(ids, rows, tokens, size, state, fed, len(examples) - len(kept))


def group_positions(prompt_length: int, sizes: Sequence[int]) -> Int[Tensor, " groups"]:
    """Of each group the position of its last token: prompt length − 1 + tokens so far."""
    return prompt_length - 1 + torch.tensor(list(sizes), dtype=torch.long).cumsum(0)


def split_groups(
    response: Int[Tensor, " tokens"], sizes: Sequence[int], max_steps: int
) -> Int[Tensor, "groups steps"]:
    """The tokens of each group, −1 behind its size."""
    table = torch.full((len(sizes), max_steps), -1)
    for number, part in enumerate(response.split(list(sizes))):
        table[number, : len(part)] = part
    return table


def _groups(
    example: TokenExample, sizes: list[int], max_steps: int, row: int, first: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tokens, sizes, state and fed places of one example, whose first group has its slot at column
    `first`."""
    count = len(sizes)
    column = torch.arange(first, first + count)
    state = torch.stack([torch.full_like(column, row), column - 1], 1)
    fed = torch.stack([torch.full_like(column, row), column], 1)
    fed[-1] = -1
    tokens = split_groups(example.ids[example.prompt_length :], sizes, max_steps)
    return tokens, torch.tensor(sizes), state, fed
