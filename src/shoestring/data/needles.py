"""Recall in long prompts: facts hidden in real text, one of which is asked for at the end.

"The secret code of Oslo is 4711." stands somewhere in a text, and the prompt ends with "The secret code of
Oslo is". Prompts have exactly the length that is asked for, and depend on the seed alone.

Source: Kamradt 2023, "Needle In A Haystack" (one fact, by depth); Hsieh et al. 2024, "RULER: What's the Real
Context Size of Your Long-Context Language Models?", section 3 (several facts, keys and values).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from shoestring.data.seeded import torch_generator
from shoestring.data.text import Encoder

NAMES = (
    "Oslo", "Lima", "Cairo", "Delhi", "Paris", "Tokyo", "Quito", "Accra", "Dublin", "Madrid", "Vienna",
    "Lisbon", "Athens", "Warsaw", "Havana", "Nairobi", "Bogota", "Prague", "Berlin", "Sydney", "Boston",
    "Denver", "Dallas", "Seoul", "Hanoi", "Manila", "Jakarta", "Geneva", "Munich", "Naples", "Venice", "Milan",
)  # fmt: skip
DIGITS = 4


@dataclass(frozen=True)
class RecallPrompt:
    """A prompt that asks for a fact hidden in it. depth: where it is, 0 at the start and 1 at the end."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    depth: float


def needle_prompts(
    text: str, tokenizer: Encoder, length: int, count: int, *, needles: int = 1, seed: int = 0
) -> list[RecallPrompt]:
    """`count` prompts of `length` tokens of `text`, each with `needles` facts of which one is asked for.

    The depths of the facts asked for are spread evenly over the prompts; the others lie at random places.
    Each prompt takes its filler from another part of the text.

    Raises: ValueError for a text too short for one prompt, a length too small for the facts and the question,
    more needles than there are names, or numbers below 1.
    """
    _check(length, count, needles, seed)
    filler = tokenizer.encode(text)
    facts = [_facts(tokenizer, needles, torch_generator(seed, index)) for index in range(count)]
    found = []
    for index, (pairs, ending) in enumerate(facts):
        room = length - sum(len(ask) + len(answer) + len(ending) for ask, answer in pairs) - len(pairs[0][0])
        _check_room(room, needles, length)
        if len(filler) < room:
            raise ValueError(
                f"the text has {len(filler)} tokens, too few for a prompt of {length}; give more text."
            )
        start = (len(filler) - room) * index // max(1, count - 1)
        depth = (index + 0.5) / count
        others = torch.randint(room + 1, (needles - 1,), generator=torch_generator(seed, index, 1)).tolist()
        places = [round(depth * room), *others]
        prompt = _hidden(filler[start : start + room], pairs, places, ending)
        found.append(RecallPrompt((*prompt, *pairs[0][0]), tuple(pairs[0][1]), depth))
    return found


def key_value_prompts(
    tokenizer: Encoder, length: int, count: int, *, text: str, seed: int = 0
) -> list[RecallPrompt]:
    """`count` prompts of `length` tokens that hold as many facts as fit, one after the other, in random order;
    any one is asked for. What they leave over at the front is filled with the end of `text`.

    Raises: as `needle_prompts`.
    """
    _check(length, count, 1, seed)
    filler = tokenizer.encode(text)
    found = []
    for index in range(count):
        generator = torch_generator(seed, index)
        pairs, ending = _facts(tokenizer, len(NAMES), generator)
        longest = max(len(ask) for ask, _ in pairs)
        sizes = torch.tensor([len(ask) + len(answer) + len(ending) for ask, answer in pairs]).cumsum(0)
        held = int((sizes <= length - longest).sum())
        _check_room(held - 1, 1, length)
        asked = int(torch.randint(held, (1,), generator=generator))
        rest = length - int(sizes[held - 1]) - len(pairs[asked][0])
        if len(filler) < rest:
            raise ValueError(f"the text has {len(filler)} tokens, {rest} are to be filled; give more text.")
        prompt = filler[len(filler) - rest :]
        for ask, answer in pairs[:held]:
            prompt = [*prompt, *ask, *answer, *ending]
        before = rest + (int(sizes[asked - 1]) if asked else 0)
        whole = (*prompt, *pairs[asked][0])
        found.append(RecallPrompt(whole, tuple(pairs[asked][1]), before / length))
    return found


def _facts(
    tokenizer: Encoder, count: int, generator: torch.Generator
) -> tuple[list[tuple[list[int], list[int]]], list[int]]:
    """Different names with random codes, as (question, answer) in tokens, and the tokens that end a fact."""
    names = [NAMES[i] for i in torch.randperm(len(NAMES), generator=generator)[:count].tolist()]
    digits = torch.randint(10, (count, DIGITS), generator=generator).tolist()
    # Encoded in pieces: the answer has the same tokens in the fact and behind the question.
    pairs = [
        (
            tokenizer.encode(f" The secret code of {name} is"),
            tokenizer.encode(" " + "".join(map(str, code))),
        )
        for name, code in zip(names, digits, strict=True)
    ]
    return pairs, tokenizer.encode(".")


def _hidden(
    filler: Sequence[int],
    pairs: Sequence[tuple[list[int], list[int]]],
    places: Sequence[int],
    ending: list[int],
) -> list[int]:
    """The filler with each fact put in before the token at its place."""
    prompt: list[int] = []
    at = 0
    for place, index in sorted((place, index) for index, place in enumerate(places)):
        ask, answer = pairs[index]
        prompt = [*prompt, *filler[at:place], *ask, *answer, *ending]
        at = place
    return [*prompt, *filler[at:]]


def _check(length: int, count: int, needles: int, seed: int) -> None:
    for name, value in (("length", length), ("count", count), ("needles", needles)):
        if value < 1:
            raise ValueError(f"{name}={value} must be 1 or more.")
    if needles > len(NAMES):
        raise ValueError(f"needles={needles} need as many names, of which there are {len(NAMES)}.")
    if seed < 0:
        raise ValueError(f"seed={seed} must be 0 or more.")


def _check_room(room: int, needles: int, length: int) -> None:
    if room < 0:
        raise ValueError(
            f"length={length} tokens do not hold {needles} facts and a question; use a longer prompt."
        )
