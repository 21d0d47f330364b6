"""Finds the cards: a look-up from slug to module, and nothing more."""

import difflib
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass

from shoestring import systems
from shoestring.systems import card_cache
from shoestring.systems.card import Card
from shoestring.yardstick.comparison import Comparison, Effort

Measure = Callable[[Effort, int], Comparison]


@dataclass(frozen=True)
class System:
    """A card and the experiment that measures it."""

    card: Card
    measure: Measure


class UnknownSystem(ValueError):
    """No card has this slug; `near` are the slugs that resemble it."""

    def __init__(self, slug: str, known: list[str]) -> None:
        self.near = difflib.get_close_matches(slug, known, n=3, cutoff=0.5)
        if self.near:
            hint = f"did you mean {' or '.join(self.near)}?"
        else:
            hint = "there are " + ", ".join(known) if known else "no system has a card yet"
        super().__init__(f"unknown system {slug!r}; {hint}")


def all_systems() -> dict[str, System]:
    """Every system that has a card, by slug, in alphabetical order."""
    found = {}
    for info in pkgutil.iter_modules(systems.__path__):
        system = _read(info.name)
        if system is not None:
            found[system.card.slug] = system
    return dict(sorted(found.items()))


def all_cards() -> dict[str, Card]:
    """The cards of `all_systems`; the modules are imported only if a file of this package has changed.

    Importing all experiments takes seconds, most of them torch's: too long for a list.
    """
    folders = [*systems.__path__]
    cards = card_cache.load(folders)
    if cards is None:
        cards = {slug: system.card for slug, system in all_systems().items()}
        card_cache.save(folders, cards)
    return cards


def find_system(slug: str) -> System:
    """The system of this slug; imports only its own module.

    Raises: UnknownSystem with the near matches.
    """
    name = slug.replace("-", "_")
    if any(info.name == name for info in pkgutil.iter_modules(systems.__path__)):
        system = _read(name)
        if system is not None and system.card.slug == slug:
            return system
    raise UnknownSystem(slug, list(all_cards()))


def _read(name: str) -> System | None:
    """The system in a module of this storey; None for a module without a card.

    Raises: TypeError when a module has a card but no `measure`, or a card under another module's name.
    """
    module = importlib.import_module(f"{systems.__name__}.{name}")
    card = getattr(module, "card", None)
    if not isinstance(card, Card):
        return None
    if card.slug.replace("-", "_") != name:
        raise TypeError(
            f"{module.__name__} holds the card {card.slug!r}; its file or folder must be named after it"
        )
    if not callable(getattr(module, "measure", None)):
        raise TypeError(f"{module.__name__} has a card but no function measure(effort, seed)")
    return System(card=card, measure=module.measure)
