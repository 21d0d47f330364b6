"""The published systems: one card each, with what its paper claims and the experiment that measures it."""

from shoestring.systems.card import Card, Claim, Effort
from shoestring.systems.registry import System, UnknownSystem, all_cards, all_systems, find_system

__all__ = ["Card", "Claim", "Effort", "System", "UnknownSystem", "all_cards", "all_systems", "find_system"]
