"""Texts with much that is predictable, made from a seed: JSON records and Python classes, each after a line
that decides all of it.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from shoestring.data.seeded import numpy_generator


def words(text: str) -> list[str]:
    """The words of a text."""
    return text.split()


FIRST_NAMES = words(
    "Anna Bruno Carla David Elena Felix Greta Hugo Irene Jonas Karin Leon Marta Nadia Oscar Paula Rosa "
    "Stefan Tania Victor"
)
LAST_NAMES = words(
    "Adler Becker Conti Dumont Engel Fischer Garcia Horvat Ivanov Jansen Keller Lopez Moreau Novak Olsen "
    "Petrov Rossi Silva Tanaka Weber"
)
CITIES = words(
    "Basel Cairo Dublin Geneva Hanoi Kyoto Lima Madrid Naples Oslo Porto Quito Rome Seoul Tunis Vienna"
)
ITEMS = words("candle chair clock hammer kettle ladder lamp mirror pencil pillow shovel table ticket wallet")
COLOURS = words("amber black brown green grey orange purple red silver white yellow")
LANGUAGES = words("Arabic Danish English French German Greek Italian Japanese Polish Spanish")
WORDS = words("garden harbour island journey letter market mountain ocean river shadow silence winter")
FIELDS = words(
    "angle area balance colour count depth height label length level limit mass name offset owner price "
    "radius ratio scale score size speed status total value weight width"
)
CLASSES = words(
    "Account Bridge Camera Circle Engine Folder Invoice Journal Machine Message Network Parcel Planet "
    "Player Point Record Report Sample Sensor Signal Ticket Vector Vehicle Window"
)

Draw = Callable[[np.random.Generator], Any]


@dataclass(frozen=True)
class Example:
    """A prompt and what should follow it."""

    prompt: str
    response: str


def _one_of(words: list[str]) -> Draw:
    return lambda g: words[int(g.integers(len(words)))]


def _number(low: int, high: int) -> Draw:
    return lambda g: int(g.integers(low, high))


def _two(first: list[str], second: list[str]) -> Draw:
    one, other = _one_of(first), _one_of(second)
    return lambda g: f"{one(g)} {other(g)}"


def _flag(g: np.random.Generator) -> bool:
    return bool(g.integers(2))


KINDS: dict[str, dict[str, Draw]] = {
    "person": {
        "name": _two(FIRST_NAMES, LAST_NAMES), "age": _number(18, 90), "city": _one_of(CITIES),
        "language": _one_of(LANGUAGES), "active": _flag,
    },
    "order": {
        "order_id": _number(1000, 9999), "item": _one_of(ITEMS), "colour": _one_of(COLOURS),
        "quantity": _number(1, 40), "customer": _two(FIRST_NAMES, LAST_NAMES), "paid": _flag,
    },
    "book": {
        "title": _two(COLOURS, WORDS), "author": _two(FIRST_NAMES, LAST_NAMES), "year": _number(1900, 2024),
        "language": _one_of(LANGUAGES), "pages": _number(80, 900),
    },
    "flight": {
        "flight_id": _number(100, 999), "origin": _one_of(CITIES), "destination": _one_of(CITIES),
        "seats": _number(40, 300), "delayed": _flag,
    },
}  # fmt: skip
"""Kinds of records: their fields in the order of the JSON text."""


@dataclass(frozen=True)
class JsonRecords:
    """Record `number`: the prompt names kind and fields in some order, the response is the record as JSON.

    Raises: ValueError for a seed below 0.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        _check(self.seed)

    def __call__(self, number: int) -> Example:
        """A function of seed and number."""
        return self.draw(number)[0]

    def fields(self, number: int) -> dict[str, Any]:
        """What a right response holds."""
        return self.draw(number)[1]

    def draw(self, number: int) -> tuple[Example, dict[str, Any]]:
        """The example, and the fields its response holds."""
        g = numpy_generator(self.seed, 0, number)
        kind = list(KINDS)[int(g.integers(len(KINDS)))]
        record = {name: draw(g) for name, draw in KINDS[kind].items()}
        names = list(record)
        said = [f"{names[i]} {_plain(record[names[i]])}" for i in g.permutation(len(names))]
        document = json.dumps({"type": kind, **record}, indent=2)
        return Example(f"{kind}: {', '.join(said)}\n", document + "\n"), {"type": kind, **record}


@dataclass(frozen=True)
class PythonClasses:
    """Class `number`: the prompt names class and fields, the response is the class, by one of two templates.

    Raises: ValueError for a seed below 0.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        _check(self.seed)

    def __call__(self, number: int) -> Example:
        """A function of seed and number."""
        g = numpy_generator(self.seed, 1, number)
        name, count = CLASSES[int(g.integers(len(CLASSES)))], int(g.integers(2, 5))
        fields = [FIELDS[i] for i in g.choice(len(FIELDS), count, replace=False)]
        plain = bool(g.integers(2))
        kind, write = ("class", _plain_class) if plain else ("frozen", _frozen_class)
        return Example(f"# {kind} {name}: {', '.join(fields)}\n", write(name, fields))


def read_fields(text: str) -> dict[str, Any]:
    """The fields of a JSON object in a text; {} where it is none."""
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _plain_class(name: str, fields: list[str]) -> str:
    lines = [f"class {name}:", f"    def __init__(self, {', '.join(fields)}):"]
    lines += [f"        self.{field} = {field}" for field in fields]
    shown = ", ".join(f"{field}={{self.{field}}}" for field in fields)
    lines += ["", "    def __repr__(self):", f'        return f"{name}({shown})"']
    lines += ["", "    def __eq__(self, other):"]
    same = " and ".join(f"self.{field} == other.{field}" for field in fields)
    return "\n".join([*lines, f"        return {same}", ""])


def _frozen_class(name: str, fields: list[str]) -> str:
    lines = ["@dataclass(frozen=True)", f"class {name}:"]
    lines += [f"    {field}: float" for field in fields]
    for field in fields:
        lines += [
            "",
            f"    def with_{field}(self, {field}):",
            f"        return replace(self, {field}={field})",
        ]
    return "\n".join([*lines, ""])


def _plain(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _check(seed: int) -> None:
    if seed < 0:
        raise ValueError(f"seed={seed} must be 0 or more")
