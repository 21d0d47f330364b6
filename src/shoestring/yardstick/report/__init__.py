"""The scoreboard: one self-contained page over all systems."""

from shoestring.yardstick.report.entry import Entry, PaperClaim, State
from shoestring.yardstick.report.page import build_page

__all__ = ["Entry", "PaperClaim", "State", "build_page"]
