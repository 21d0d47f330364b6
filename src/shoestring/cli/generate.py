"""`shoestring generate`: streams text from any model or fitted folder."""

import sys
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoestring.cli.cache_bits import parse_cache_bits
from shoestring.cli.console import Exit, errors, hide_loading_bars, print_json, working

if TYPE_CHECKING:
    from shoestring.generation.cache_forms import CacheForm
    from shoestring.generation.decode import Generation, Stream
    from shoestring.generation.saving_menu import Sizes
    from shoestring.models.decoder import Decoder


@dataclass(frozen=True)
class Savings:
    """What was asked for, by name."""

    cache: str | None
    cache_bits: str | None
    select: str | None
    keep: float | None
    speculate: str | None


def generate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A built-in alias, a .gguf file, a folder or a Hugging Face id."
        ),
    ],
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The text to go on from; - reads stdin.")],
    max_new_tokens: Annotated[int, typer.Option(help="The longest output.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Draw among this many likeliest tokens; 0: all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Draw among the likeliest that hold this probability.")] = 1.0,
    min_p: Annotated[
        float, typer.Option(help="Draw among tokens this fraction as likely as the likeliest.")
    ] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1: repeat less.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of what is drawn.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; may be repeated.")] = None,
    activation_bits: Annotated[
        int,
        typer.Option(
            help="32: as exact as the proof of a fitted model; 8: inputs of layers in int8, faster."
        ),
    ] = 32,
    cache: Annotated[
        str | None,
        typer.Option(
            metavar="FORM",
            help="How keys and values are kept: dense, tokens, groups, paged, planes or tiers.",
        ),
    ] = None,
    cache_bits: Annotated[
        str | None,
        typer.Option(help="Keep keys and values in 16, 8, 4 or 2 bits; k8v4: keys in 8, values in 4."),
    ] = None,
    select: Annotated[
        str | None,
        typer.Option(
            metavar="POLICY",
            help="What of them is kept or read: window, h2o, start-recent-important, mpcache, spatten, "
            "zipvl.",
        ),
    ] = None,
    keep: Annotated[
        float | None,
        typer.Option(help="How much --select keeps: a share up to 1, or a number of tokens above 1."),
    ] = None,
    speculate: Annotated[
        str | None,
        typer.Option(
            metavar="DRAFT",
            help="Verify several drafted tokens at once: lookup, longspec (SmolLM2-135M), or the folder "
            "of a trained draft.",
        ),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat/--raw", help="Put the prompt into the model's chat template, or not.")
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document instead of the text.")
    ] = False,
) -> None:
    """Stream text from a model; what it cost goes to stderr.

    \\b
    shoestring generate smollm2-135m "A budget is"
    shoestring generate build/demo "What is a budget?" --chat --temperature 0.7 --top-p 0.9
    shoestring generate smollm2-135m "A budget is" --cache-bits k8v4
    shoestring generate smollm2-135m - --select h2o --keep 512 --speculate lookup < notes.txt
    cat notes.txt | shoestring generate model.gguf - --max-new-tokens 400 --json
    """
    hide_loading_bars()
    from shoestring.generation.sampling import Sampling

    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
    if max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens {max_new_tokens} must be 1 or more")
    text = sys.stdin.read() if prompt == "-" else prompt
    if activation_bits not in (8, 32):
        raise ValueError(f"--activation-bits {activation_bits} must be 8 or 32")
    if not text.strip():
        raise ValueError("the prompt is empty; give text to go on from")
    settings = {
        "max_new_tokens": max_new_tokens, "sampling": sampling, "seed": seed, "stop": stop or [],
        "activation_bits": activation_bits,
    }  # fmt: skip
    savings = Savings(cache, cache_bits, select, keep, speculate)
    output = _start(model, text, chat, savings, settings)
    interrupted = _write(output, quiet=json)
    peak = _peak_bytes()
    if json:
        print_json(_document(model, text, output.result, peak) | {"savings": asdict(savings)})
    print(f"shoestring: {_timings(output.result, peak)}", file=sys.stderr)
    if interrupted:
        raise typer.Exit(Exit.INTERRUPTED)


def _start(name: str, text: str, chat: bool, savings: Savings, settings: dict[str, Any]) -> "Stream":
    from shoestring.compression.apply import apply
    from shoestring.compression.kv_quantize import KVQuantizeTokens
    from shoestring.compression.load_model import load_model
    from shoestring.generation.decode import stream
    from shoestring.generation.saving_menu import Sizes, named_cache
    from shoestring.models.decoder import Decoder

    widths = None if savings.cache_bits is None else parse_cache_bits(savings.cache_bits)
    form = named_cache(savings.cache, widths)
    # Elsewhere than on a terminal an error is to be the only line.
    with working(f"loading {name}") if errors().is_terminal else nullcontext():
        model, tokenizer = load_model(name, packed=True)
    ids = _chat_ids(tokenizer, name, text) if chat else list(tokenizer.encode(text))
    if isinstance(model, Decoder):
        sizes = Sizes(model.cfg.num_hidden_layers, len(ids), len(ids) + settings["max_new_tokens"])
        settings |= _parts(model, savings, form, sizes)
    elif asked := [
        option for option in ("cache", "select", "keep", "speculate") if getattr(savings, option) is not None
    ]:
        raise ValueError(
            f"--{asked[0]} needs a model of a family that this library runs itself, and {name} is a "
            f"{type(model).__name__}; leave it out, or use --cache-bits"
        )
    elif widths is not None:
        apply(model, KVQuantizeTokens(*widths))
    return stream(model, ids, tokenizer, **settings)


def _parts(model: "Decoder", savings: Savings, form: "CacheForm | None", sizes: "Sizes") -> dict[str, Any]:
    """Cache, selection and speculation for `stream`."""
    from shoestring.generation.saving_menu import named_selection, named_speculation

    return {
        "cache": form,
        "selection": named_selection(savings.select, savings.keep, sizes),
        "speculation": named_speculation(savings.speculate, model),
    }


def _chat_ids(tokenizer: Any, name: str, text: str) -> list[int]:
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(f"{name} has no chat template; use --raw")
    message = [{"role": "user", "content": text}]
    chat = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
    return list(tokenizer.encode(chat, add_special_tokens=False))


def _write(output: "Stream", *, quiet: bool) -> bool:
    """Write pieces as they come; whether Ctrl-C ended it. What was written ends with a line break."""
    interrupted = False
    try:
        for piece in output:
            if not quiet:
                sys.stdout.write(piece.text)
                sys.stdout.flush()
    except KeyboardInterrupt:
        interrupted = True
    if not quiet:
        sys.stdout.write("\n")
        sys.stdout.flush()
    return interrupted


def _peak_bytes() -> int | None:
    """The most memory that this process has had resident; None where the system does not tell."""
    from shoestring.yardstick.process_memory_child import high_water_bytes

    try:
        return high_water_bytes()
    except RuntimeError:
        return None


def _document(name: str, prompt: str, result: "Generation", peak: int | None) -> dict[str, Any]:
    return {
        "model": name,
        "prompt": prompt,
        "text": result.text,
        "tokens": result.tokens,
        "finish": "interrupted" if result.finish is None else result.finish.value,
        "prompt_tokens": result.prompt_tokens,
        "new_tokens": len(result.tokens),
        "prompt_seconds": result.prompt_seconds,
        "tokens_per_second": result.tokens_per_second,
        "accepted_length": result.tokens_per_pass,
        "cache_bytes": result.cache_bytes,
        "peak_process_bytes": peak,
    }


def _timings(result: "Generation", peak: int | None) -> str:
    speed = result.tokens_per_second
    drafted = result.tokens_per_pass or 1.0
    memory = f"cache {result.cache_bytes / 2**20:.1f} MiB"
    return ", ".join(
        [
            f"{result.prompt_tokens} prompt tokens in {result.prompt_seconds:.2f} s",
            f"{len(result.tokens)} new tokens"
            + (f" at {speed:.1f} tokens/s" if speed else "")
            + (f", {drafted:.2f} a pass" if drafted > 1 else ""),
            f"ended by {'Ctrl-C' if result.finish is None else result.finish.value}",
            memory if peak is None else f"{memory}, process peak {peak / 2**20:.0f} MiB",
        ]
    )
