"""The report of a fit: one HTML file, made from the proof alone, that works from disk."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from shoestring.compression.fit_report.drawings import curve, layer_map, recipe_rows
from shoestring.yardstick.quantities import format_quantity
from shoestring.yardstick.report.page import page_style

_HERE = Path(__file__).parent


def goal_text(document: Mapping[str, Any]) -> str:
    """What a proof says was asked for, to follow the name of the model: a size, a speed, or both."""
    budget, speed = document["budget_bytes"], document["tokens_per_second"]
    size = "" if budget is None else f" in {format_quantity(budget, 'B')}"
    return size + ("" if speed is None else f" at {speed:g} tokens/s")


def build_page(proof: dict[str, Any]) -> str:
    """The page of a proof (see `proven_fit`), everything inside: style and drawings."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["bytes"] = lambda number: format_quantity(number, "B")
    predicted = sum(layer["predicted_loss"] for layer in proof["layers"])
    last = proof["attempts"][-1]
    factor = proof["verified_after_tuning"] / predicted if predicted > 0 else 1.0
    fitted = proof["states"][-1]
    return environment.get_template("fit.html.j2").render(
        proof=proof,
        shipped=proof["states"][0],
        fitted=fitted,
        last=last,
        predicted=predicted,
        layer_map=layer_map(proof["layers"]),
        recipes=recipe_rows(proof["layers"]),
        curve=curve(
            proof["curve"],
            factor,
            [(proof["file_bytes"], proof["verified_after_tuning"], "this fit")],
            None if proof["budget_bytes"] is None else proof["budget_bytes"] - (proof["cache_bytes"] or 0),
        ),
        goal=goal_text(proof),
        total_bytes=proof["file_bytes"] + (proof["cache_bytes"] or 0),
        style=Markup(page_style() + (_HERE / "fit.css").read_text(encoding="utf-8")),
    )
