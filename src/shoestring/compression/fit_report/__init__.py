"""The page that shows what a fit chose and what it cost."""

from shoestring.compression.fit_report.drawings import recipe_name
from shoestring.compression.fit_report.page import build_page, goal_text

__all__ = ["build_page", "goal_text", "recipe_name"]
