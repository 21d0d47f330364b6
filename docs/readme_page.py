"""The home page is the README, with its links turned to where things are on this site."""

import re
from pathlib import Path
from typing import Any

PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Called by mkdocs for every page."""
    if page.file.src_uri != "index.md":
        return markdown
    readme = Path(__file__).parent.parent / "README.md"
    return re.sub(r"\[([^]]+)\]\(([^)]+)\)", _link, readme.read_text(encoding="utf-8"))


def _link(match: re.Match[str]) -> str:
    text, target = match.groups()
    if target.startswith("docs/"):
        target = target.removeprefix("docs/")
    elif target in PAGES:
        target = PAGES[target]
    elif "://" not in target:
        return text  # a source file: the site holds none
    return f"[{text}]({target})"
