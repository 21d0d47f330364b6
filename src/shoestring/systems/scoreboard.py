"""Cards and saved results side by side."""

from collections.abc import Mapping

from shoestring.systems.card import Card
from shoestring.yardstick.comparison import Comparison
from shoestring.yardstick.report import Entry, PaperClaim


def scoreboard(cards: Mapping[str, Card], results: Mapping[str, Comparison]) -> list[Entry]:
    """One entry for each system, measured or not, by its main saving, then by slug."""
    entries = [_entry(card, results.get(slug)) for slug, card in cards.items()]
    return sorted(entries, key=lambda entry: (entry.saves[0], entry.slug))


def _entry(card: Card, comparison: Comparison | None) -> Entry:
    return Entry(
        slug=card.slug,
        title=card.title,
        paper=card.paper,
        year=card.year,
        saves=card.saves,
        authors_code=card.authors_code,
        claims=tuple(
            PaperClaim(
                text=claim.text,
                figure=claim.figure,
                setting=claim.setting,
                metric=claim.metric,
                needs_gpu=claim.needs_gpu,
            )
            for claim in card.claims
        ),
        comparison=comparison,
    )
