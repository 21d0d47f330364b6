"""Generation by a HAMburger: several tokens a step of the base, one slot of its cache for all of them."""

from shoestring.generation.hamburger.compiled_group_runner import CompiledGroupRunner, group_runner
from shoestring.generation.hamburger.group_draft import GroupDraft
from shoestring.generation.hamburger.group_runner import GroupRunner
from shoestring.generation.hamburger.group_steps import GroupSteps
from shoestring.generation.hamburger.scoring import GroupScore, score_response

__all__ = [
    "CompiledGroupRunner",
    "GroupDraft",
    "GroupRunner",
    "GroupScore",
    "GroupSteps",
    "group_runner",
    "score_response",
]
