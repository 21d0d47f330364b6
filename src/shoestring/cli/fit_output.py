"""What `shoestring fit` prints: a plan, a proof, or what could not be met."""

import sys
from pathlib import Path
from typing import Any

import typer

from shoestring.cli.console import Exit, out, print_json
from shoestring.cli.sizes import format_bytes

RECIPES_SHOWN = 12


def plan_lines(plan: dict[str, Any]) -> list[str]:
    """What a dry run says."""
    from shoestring.compression.fit_report import recipe_name

    counts: dict[str, list[int]] = {}
    for layer in plan["layers"]:
        entry = counts.setdefault(recipe_name(layer["recipe"]), [0, 0])
        entry[0] += 1
        entry[1] += layer["bytes"]
    rows = sorted(counts.items(), key=lambda item: -item[1][1])
    lines = [f"{n:4d} weights  {format_bytes(size):>10}  {kind}" for kind, (n, size) in rows[:RECIPES_SHOWN]]
    predicted = sum(layer["predicted_loss"] for layer in plan["layers"])
    total = plan["file_bytes"] + (plan["cache_bytes"] or 0)
    if plan["cache_bytes"] is not None:
        lines.append(f"   KV cache   {format_bytes(plan['cache_bytes']):>10}  {_cache_kind(plan)}")
        predicted += next(c["predicted_loss"] for c in plan["caches"] if c["cache"] == plan["cache"])
    if plan["speed"] is not None:
        speed = plan["speed"]
        lines.append(
            f"predicted {speed['predicted']:.1f} tokens/s at {speed['context']} tokens of context, "
            f"{speed['wanted']:g} asked for; a fit measures it"
        )
    of = "" if plan["budget_bytes"] is None else f" of {format_bytes(plan['budget_bytes'])}"
    lines.append(
        f"{format_bytes(total)}{of}; predicted divergence {predicted:.4f} nats a token "
        "(layer by layer, before correction and tuning)"
    )
    return lines


def _cache_kind(document: dict[str, Any]) -> str:
    """How the cache of a plan or proof stores `context` tokens."""
    cache, tokens = document["cache"], f"{document['context']} tokens"
    if cache is None:
        return f"{tokens} in full"
    if "key_bits" in cache:
        return f"{tokens}, keys in {cache['key_bits']} bits, values in {cache['value_bits']}"
    return f"{tokens} in {cache['bits']} bits, the last {cache['tail_tokens']} or more in full"


def show_proof(proof: dict[str, Any], folder: Path, gguf: Path | None, json: bool) -> None:
    """What was reached, as a table or as one JSON document; exits 1 where that is not what was asked for."""
    if json:
        print_json(proof)
    else:
        console = out()
        console.print(_table(proof))
        if faster := _faster_line(proof["states"]):
            console.print(faster, soft_wrap=True)
        if proof["speed"] is not None:
            console.print(_speed_line(proof["speed"]), soft_wrap=True)
        if proof["cache_bytes"] is not None:
            divergence = "" if proof["cache_kld"] is None else f"; KLD with it {proof['cache_kld']:.4f}"
            cache = f"KV cache {format_bytes(proof['cache_bytes'])}: {_cache_kind(proof)}{divergence}"
            console.print(cache, soft_wrap=True)
        console.print(f"saved in {folder}; look at {folder / 'report.html'}", soft_wrap=True)
        if gguf is not None:
            tensors, size = format_bytes(proof["exported_bytes"]), format_bytes(gguf.stat().st_size)
            line = f"wrote {gguf}: {tensors} of tensors, {size} with tokenizer and header"
            console.print(line, soft_wrap=True)
    if not proof["met"]:
        say_not_met(proof)


def _faster_line(states: list[dict[str, Any]]) -> str | None:
    """How fast the fitted model decodes beside the one as shipped, where both were timed."""
    shipped, fitted = states[0]["tokens_per_second"], states[-1]["tokens_per_second"]
    if not shipped or not fitted:
        return None
    return f"fitted, it decodes at {fitted / shipped:.1f} times the speed of the model as shipped"


def _speed_line(speed: dict[str, Any]) -> str:
    return (
        f"{speed['measured']:.1f} tokens/s measured at {speed['context']} tokens of context; "
        f"{speed['wanted']:g} asked for, {speed['predicted']:.1f} predicted"
    )


def say_not_met(document: dict[str, Any]) -> None:
    """What is out of reach and what was reached, on stderr; exits 1."""
    total = document["file_bytes"] + (document["cache_bytes"] or 0)
    budget, speed = document["budget_bytes"], document["speed"]
    reached = f"{format_bytes(total)} ({total} bytes)"
    if budget is not None and total > budget:
        line = f"{format_bytes(budget)} cannot be met; the smallest reachable size is {reached}"
    else:
        within = "" if budget is None else f" within {format_bytes(budget)}"
        known = "predicted" if speed["measured"] is None else "measured"
        if known == "measured" and speed["predicted"] >= speed["wanted"]:
            # A plan that promised the speed and was not kept says nothing of what else could be reached.
            line = f"{speed['wanted']:g} tokens/s were not reached{within}; the fastest measured are "
            line += f"{speed['measured']:.1f}, in {reached}"
        else:
            line = f"{speed['wanted']:g} tokens/s cannot be met{within}; the fastest reachable is "
            line += f"{speed[known]:.1f} tokens/s ({known}), in {reached}"
        if document.get("states"):
            line += f", at a divergence of {document['states'][-1]['quality']['kld']:.4f} nats a token"
    print(f"shoestring: {line}", file=sys.stderr)
    raise typer.Exit(Exit.SHORT)


def _table(proof: dict[str, Any]) -> Any:
    """The states side by side: what was measured goes down, so that it fits a narrow terminal."""
    from rich.table import Table

    from shoestring.compression.fit_report import goal_text

    title = f"{proof['model']}{goal_text(proof)}"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    for state in proof["states"]:
        table.add_column(state["name"], justify="right")
    for label, show in (
        ("file", lambda s: format_bytes(s["disk_bytes"])),
        ("peak memory", lambda s: format_bytes(s["peak_bytes"])),
        ("tokens/s", lambda s: "-" if s["tokens_per_second"] is None else f"{s['tokens_per_second']:.1f}"),
        ("perplexity", lambda s: f"{s['quality']['model']['ppl']:.2f}"),
        ("  95 %", lambda s: "{:.2f} to {:.2f}".format(*s["quality"]["model"]["interval"])),
        ("KLD", lambda s: f"{s['quality']['kld']:.4f}"),
    ):
        table.add_row(label, *(show(state) for state in proof["states"]))
    return table
