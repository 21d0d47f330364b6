"""The grid of savings while generating: caches x selections x drafts, on SmolLM2-135M.

python benchmarks/combinations.py [--context 1024] [--rounds 1] [--tokens 32] [--again] [--out FILE]

Of every combination that `generate` takes: bytes of cache for each token of the text, tokens/s over those of
plain decoding (a dense cache, no selection, no draft), which takes turns with it; perplexity over that of
plain decoding, by known tokens fed one by one behind a prompt; how many codes hidden in prompts come out
right. Drafts do not change the text, so that quality is measured without them. Two works are timed: `copy`
repeats a passage, where looking up must win, and `free` goes on with one. Weights are in bfloat16: prompts
are products of matrices.

What two savings do together is compared with the product of what each does alone: 1 means that they multiply
as if they knew nothing of each other. Combinations that are refused are listed with the reason. What is in
the file of results already is not measured again, unless --again.
"""

import argparse
import itertools
import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from shoestring.data.needles import needle_prompts
from shoestring.data.text import token_windows
from shoestring.files import write_text
from shoestring.generation.cache_forms import CacheForm
from shoestring.generation.combination import combined_cache
from shoestring.generation.decode import generate
from shoestring.generation.evicting_cache import CachePolicy, NeedsWholePrompt
from shoestring.generation.runner import Runner, make_runner
from shoestring.generation.saving_menu import SELECTIONS, Sizes, named_cache, named_selection
from shoestring.generation.speculation.prompt_lookup import PromptLookup
from shoestring.models.built_in import built_in_file
from shoestring.models.decoder import Decoder
from shoestring.models.load import load_decoder, load_tokenizer
from shoestring.systems.language_task import text_halves
from shoestring.yardstick.decode_quality import decode_quality, recall_quality
from shoestring.yardstick.environment import Environment

RESULT = Path(__file__).with_name("results") / "combinations.json"
CACHES: dict[str, tuple[str | None, tuple[int, int] | None]] = {
    "dense": (None, None),
    "tokens 8": ("tokens", (8, 8)),
    "tokens k8v4": ("tokens", (8, 4)),
    "groups 2": ("groups", (2, 2)),
}
OWN = "its own"
"""The cache of a selection that stores in a form of its own."""
NONE = "none"
DRAFTS = (NONE, "lookup")
WINDOWS, WINDOW_TOKENS, NEEDLES, CHUNK = 2, 32, 6, 512


@dataclass(frozen=True)
class Cell:
    """One combination, by names."""

    cache: str
    selection: str = NONE
    draft: str = NONE

    @property
    def key(self) -> str:
        return f"{self.cache} + {self.selection} + {self.draft}"

    @property
    def form(self) -> CacheForm | None:
        return named_cache(*CACHES.get(self.cache, (None, None)))

    def policy(self, sizes: Sizes) -> CachePolicy | None:
        return named_selection(None if self.selection == NONE else self.selection, None, sizes)

    @property
    def speculation(self) -> PromptLookup | None:
        return PromptLookup() if self.draft == "lookup" else None


PLAIN = Cell("dense")


class ChunkedRunner:
    """A runner that reads a long prompt in parts, as `generate` does."""

    def __init__(self, runner: Runner, chunk: int) -> None:
        self.runner, self.chunk = runner, chunk

    def feed(self, ids: torch.Tensor) -> torch.Tensor:
        return [self.runner.feed(part) for part in ids.split(self.chunk, 1)][-1]

    def prompt_is_read(self) -> None:
        self.runner.prompt_is_read()


class Grid:
    """The model, what it reads, and every measurement."""

    def __init__(self, context: int, tokens: int, rounds: int) -> None:
        file = built_in_file("smollm2-135m")
        self.model: Decoder = load_decoder(file, torch.bfloat16)
        tokenizer = load_tokenizer(file)
        halves = text_halves()
        self.context, self.tokens, self.rounds = context, tokens, rounds
        self.windows = token_windows(
            halves.held_out, tokenizer, context + WINDOW_TOKENS, limit=WINDOWS, name=halves.name
        )
        self.needles = needle_prompts(halves.calibration, tokenizer, context, NEEDLES)
        ids = tokenizer.encode(halves.held_out)
        head, again = tokenizer.encode("Text:\n"), tokenizer.encode("\nThe same text once more:\n")
        passage = ids[2000 : 2000 + context // 2 - len(head) - len(again)]
        self.works = {
            "copy": head + passage + again + head + passage[: context // 8],
            "free": ids[5000 : 5000 + context],
        }

    def refusal(self, cell: Cell) -> str | None:
        """Why `generate` does not take it."""
        try:
            combined_cache(self.model, cell.form, cell.policy(self._sizes(9)), cell.speculation)
        except ValueError as error:
            return str(error)
        return None

    def measure(self, cell: Cell, rows: dict[str, Any]) -> dict[str, Any]:
        """The row of a cell; its quality from the same without a draft, where that is there."""
        sibling = rows.get(Cell(cell.cache, cell.selection).key)
        quality = self.quality(cell) if sibling is None else sibling["quality"]
        return {"cell": asdict(cell), "quality": quality, "speed": self.speed(cell)}

    def quality(self, cell: Cell) -> dict[str, float]:
        """Perplexity and answers that are right."""
        with torch.inference_mode():
            text = decode_quality(lambda: self._feeder(cell), self.windows, self.context)
            recall = recall_quality(lambda: self._feeder(cell), self.needles)
        return {
            "perplexity": text.perplexity,
            "needles": recall.hit_rate,
            "needle_log_probability": recall.mean_log_probability,
        }

    def speed(self, cell: Cell) -> dict[str, Any]:
        """Of each work tokens/s over plain, bytes for a token, and accepted length."""
        found: dict[str, Any] = {}
        for work, prompt in self.works.items():
            ratios = []
            for turn in range(self.rounds):
                order = (PLAIN, cell) if turn % 2 else (cell, PLAIN)
                results = {one: self._generate(one, prompt) for one in order}
                last = results[cell]
                ratios.append(last.tokens_per_second / results[PLAIN].tokens_per_second)
            found[work] = {
                "speed_over_plain": statistics.median(ratios),
                "lowest": min(ratios),
                "highest": max(ratios),
                "tokens_per_second": last.tokens_per_second,
                "accepted_length": last.tokens_per_pass,
                "cache_bytes_a_token": last.cache_bytes / (len(prompt) + len(last.tokens)),
            }
        return found

    def _generate(self, cell: Cell, prompt: list[int]) -> Any:
        return generate(
            self.model, prompt, max_new_tokens=self.tokens, stop_tokens=(), prefill_chunk=CHUNK,
            cache=cell.form, selection=cell.policy(self._sizes(len(prompt))), speculation=cell.speculation,
        )  # fmt: skip

    def _feeder(self, cell: Cell) -> ChunkedRunner:
        policy = cell.policy(self._sizes(self.context))
        room = self.context + WINDOW_TOKENS
        cache = combined_cache(self.model, cell.form, policy, capacity=room)
        whole = isinstance(policy, NeedsWholePrompt) and policy.whole_prompt
        runner = make_runner(self.model, cache, room, selection=policy)
        return ChunkedRunner(runner, self.context if whole else CHUNK)

    def _sizes(self, prompt: int) -> Sizes:
        return Sizes(self.model.cfg.num_hidden_layers, prompt, prompt + self.tokens)


def cells() -> list[Cell]:
    """Every combination of the grid; those that store in a form of their own stand beside no cache."""
    own = [name for name in SELECTIONS if name in ("spatten", "zipvl")]
    shared = [NONE, *(name for name in SELECTIONS if name not in (*own, "start-recent-important"))]
    grid = [Cell(*parts) for parts in itertools.product(CACHES, shared, DRAFTS)]
    return grid + [Cell(OWN, selection, draft) for selection in own for draft in DRAFTS]


def together(rows: dict[str, Any]) -> list[dict[str, Any]]:
    """Of every pair of savings: what both do, over the product of what each does alone."""
    found = []
    for key, row in rows.items():
        cell = Cell(**row["cell"])
        parts = [
            Cell("dense", cell.selection) if cell.selection != NONE else None,
            Cell(cell.cache) if cell.cache not in ("dense", OWN) else None,
            Cell("dense", NONE, cell.draft) if cell.draft != NONE else None,
        ]
        alone = [part.key for part in parts if part is not None]
        if len(alone) != 2 or cell.cache == OWN or not all(name in rows for name in alone):
            continue
        pair: dict[str, Any] = {"pair": key}
        for name, read in FIGURES.items():
            both, one, other, plain = (read(rows[k]) for k in (key, *alone, PLAIN.key))
            pair[name] = both * plain / (one * other)
            # Lower is better of bytes and perplexity, higher of speed.
            better = max if name.startswith("speed") else min
            pair[f"{name} gains"] = better(both, better(one, other)) == both and both not in (one, other)
        found.append(pair)
    return found


FIGURES: dict[str, Callable[[dict[str, Any]], float]] = {
    "bytes": lambda row: row["speed"]["free"]["cache_bytes_a_token"],
    "speed, copy": lambda row: row["speed"]["copy"]["speed_over_plain"],
    "speed, free": lambda row: row["speed"]["free"]["speed_over_plain"],
    "perplexity": lambda row: row["quality"]["perplexity"],
}


def markdown(document: dict[str, Any]) -> str:
    """Two tables for people, with where it was measured, and what is refused."""
    rows = document["rows"]
    plain = rows[PLAIN.key]
    lines = [
        "| cache | selection | draft | bytes a token | tokens/s, copy | tokens/s, free | perplexity | "
        "needles |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows.values():
        cell, speed, quality = row["cell"], row["speed"], row["quality"]
        lines.append(
            f"| {cell['cache']} | {cell['selection']} | {cell['draft']} | "
            f"{speed['free']['cache_bytes_a_token']:.0f} | {speed['copy']['speed_over_plain']:.2f} x | "
            f"{speed['free']['speed_over_plain']:.2f} x | "
            f"{quality['perplexity'] / plain['quality']['perplexity']:.3f} x | {quality['needles']:.2f} |"
        )
    where = document["environment"]
    lines += [
        "",
        f"SmolLM2-135M in bfloat16, prompts of {document['context']} tokens, {document['tokens']} decoded, "
        f"{document['text']}; "
        f"{where['processor']}, {where['threads']} threads. Ratios are to plain decoding, in turns; "
        f"its perplexity is {plain['quality']['perplexity']:.2f}.",
        "",
        "Together over the product of each alone; bold where the pair is better than the better of the two:",
        "",
        "| pair | bytes | tokens/s, copy | tokens/s, free | perplexity |",
        "|---|---|---|---|---|",
    ]
    for pair in document["together"]:
        shown = [f"**{pair[n]:.2f}**" if pair[f"{n} gains"] else f"{pair[n]:.2f}" for n in FIGURES]
        lines.append(f"| {pair['pair'].replace(f' + {NONE}', '')} | {' | '.join(shown)} |")
    lines += ["", "Refused:", ""]
    lines += [f"- {key.replace(f' + {NONE}', '')}: {reason}" for key, reason in document["refused"].items()]
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    sizes = {name: getattr(given, name) for name in ("context", "rounds", "tokens")}
    known = json.loads(given.out.read_text(encoding="utf-8")) if given.out.is_file() else {}
    # Rows of two texts say nothing of each other.
    work = {**sizes, "text": text_halves().name}
    same = all(known.get(name) == value for name, value in work.items())
    rows: dict[str, Any] = known["rows"] if same and not given.again else {}
    grid = Grid(**sizes)
    refused = {cell.key: reason for cell in cells() if (reason := grid.refusal(cell)) is not None}
    wanted = [cell for cell in cells() if cell.key not in refused and cell.key not in rows]
    with Progress() as progress:
        task = progress.add_task("combinations", total=len(wanted))
        for cell in wanted:
            progress.update(task, description=cell.key)
            rows[cell.key] = grid.measure(cell, rows)
            document = {
                "environment": asdict(Environment.here()), **work, "rows": rows,
                "together": together(rows), "refused": refused,
            }  # fmt: skip
            write_text(given.out, json.dumps(document, indent=1) + "\n")
            write_text(given.out.with_suffix(".md"), markdown(document))
            progress.advance(task)


if __name__ == "__main__":
    main()
