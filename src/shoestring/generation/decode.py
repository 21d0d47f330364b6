"""The decode loop: a prompt in, text out while it is made."""

import enum
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from shoestring.generation.combination import combined_cache
from shoestring.generation.decode_steps import DecodeSteps
from shoestring.generation.evicting_cache import CachePolicy, NeedsWholePrompt
from shoestring.generation.hamburger.compiled_group_runner import group_runner
from shoestring.generation.hamburger.group_runner import GroupRunner
from shoestring.generation.hamburger.group_steps import GroupSteps
from shoestring.generation.runner import Runner, make_runner
from shoestring.generation.sampling import Sampling
from shoestring.generation.speculation.draft import Speculation
from shoestring.generation.speculation.speculative_steps import SpeculativeSteps
from shoestring.generation.text_stream import TextStream, Tokenizer
from shoestring.kernels.grouped_linear import Activations
from shoestring.models.hamburger import Hamburger


class Finish(enum.Enum):
    """Why an output ended."""

    END_TOKEN = "end token"
    STOP_STRING = "stop string"
    LENGTH = "max_new_tokens"
    CONTEXT = "context length"


@dataclass(frozen=True)
class Piece:
    """What one step adds: the token (None for the last piece) and the text it completes, perhaps empty."""

    text: str
    token: int | None


@dataclass
class Generation:
    """An output, complete or growing.

    prompt_seconds: until the first tokens are there; decode_seconds: all steps after the first.
    """

    prompt_tokens: int
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    finish: Finish | None = None
    prompt_seconds: float = 0.0
    decode_seconds: float = 0.0
    cache_bytes: int = 0
    passes: int = 0
    """Forward passes after the prompt's: one for each further token, fewer where drafts are right or groups
    come at once."""
    first_tokens: int = 1
    """Those that the prompt's pass gave: one, or a group."""

    @property
    def tokens_per_second(self) -> float | None:
        """Speed of decoding; the first tokens are the prompt's work. None where nothing was decoded."""
        decoded = len(self.tokens) - self.first_tokens
        return decoded / self.decode_seconds if decoded > 0 and self.decode_seconds > 0 else None

    @property
    def tokens_per_pass(self) -> float | None:
        """Accepted length: tokens that a pass gives, the model's own one included; 1 without drafts. None
        where nothing was decoded."""
        return (len(self.tokens) - self.first_tokens) / self.passes if self.passes else None


class Stream:
    """An output in the making: iterate for its pieces; `result` holds what there is so far.

    Leaving the loop early is fine: nothing runs on in the background.
    """

    def __init__(self, result: Generation, pieces: Iterator[Piece]) -> None:
        self.result, self._pieces = result, pieces

    def __iter__(self) -> Iterator[Piece]:
        return self._pieces


def stream(
    model: nn.Module,
    prompt: str | Sequence[int],
    tokenizer: Tokenizer | None = None,
    *,
    max_new_tokens: int = 128,
    sampling: Sampling = Sampling(),  # noqa: B008  (frozen)
    seed: int | torch.Generator = 0,
    stop: Sequence[str] = (),
    stop_tokens: Sequence[int] | None = None,
    cache: Any = None,
    prefill_chunk: int = 512,
    activation_bits: int = 32,
    selection: CachePolicy | None = None,
    speculation: Speculation | None = None,
) -> Stream:
    """Generate from `prompt`, text or token ids, one piece at a time.

    model: a `Decoder`, a `Hamburger`, or a causal language model of transformers. tokenizer: needed for
    text, in and out; without one every piece's text is empty. seed: an int, or a generator to go on drawing
    from. stop: strings before which the output ends. stop_tokens: tokens that end it, kept in `tokens`; by
    default the model's own. cache: how a `Decoder` stores keys and values (a `CacheForm`), or an empty
    cache of the model's kind; by default what the selection needs, else the model's own. prefill_chunk:
    tokens of the prompt per pass. activation_bits: of a `Decoder` on the CPU with packed weights: 8 rounds
    the inputs of its linear layers to int8, block by block, and keeps keys and values in float16, which is
    faster, above all for prompts, and costs 0.4 to 0.8 % in perplexity; 32, the default, computes with the
    weights as they are, in float32. selection: what a `Decoder` keeps of its cache, and reads of it; one
    that needs the whole prompt at once gets it in one chunk. speculation: how a `Decoder` drafts tokens
    that it then verifies several at once, e.g. `PromptLookup()`, or `Glide(draft)` with a layer that was
    trained for this model; the output is the same, and comes faster where drafts are right.

    Raises: ValueError for an empty prompt, one that the context cannot hold, ids outside the vocabulary,
    numbers below 1, a cache, selection and speculation that do not go together (see `combined_cache`), or a
    Hamburger with speculation or rounded activations;
    TypeError for a model that does not generate, does not take a selection, or cannot verify drafts.
    """
    if max_new_tokens < 1 or prefill_chunk < 1:
        raise ValueError(
            f"max_new_tokens={max_new_tokens}, prefill_chunk={prefill_chunk}: both must be 1 or more."
        )
    if tokenizer is None and (isinstance(prompt, str) or stop):
        raise ValueError(
            "text and stop strings need a tokenizer; pass tokenizer=, or token ids as the prompt."
        )
    ids = tokenizer.encode(prompt) if isinstance(prompt, str) and tokenizer else [int(i) for i in prompt]
    if activation_bits not in [choice.value for choice in Activations]:
        raise ValueError(f"activation_bits={activation_bits} is not a way to compute; use 8 or 32.")
    room = len(ids) + max_new_tokens
    if isinstance(model, Hamburger) and (speculation is not None or activation_bits != 32):
        raise ValueError(
            "a Hamburger emits groups by itself, in float32: leave speculation and activation_bits out; to "
            "have its groups verified, generate from its base with speculation=GroupDraft(hamburger)."
        )
    cache = combined_cache(model, cache, selection, speculation, capacity=room)
    runner: Runner = (
        # Most groups hold two tokens or more; a cache that turns out too small grows.
        group_runner(model, cache, len(ids) + -(-max_new_tokens // 2), selection=selection)
        if isinstance(model, Hamburger)
        else make_runner(model, cache, room, Activations(activation_bits), selection)
    )
    if isinstance(selection, NeedsWholePrompt) and selection.whole_prompt:
        prefill_chunk = max(prefill_chunk, len(ids))
    _check_prompt(ids, runner)
    result = Generation(prompt_tokens=len(ids))
    text = TextStream(tokenizer, stop) if tokenizer else None
    generator = (
        seed if isinstance(seed, torch.Generator) else torch.Generator(runner.device).manual_seed(seed)
    )
    ends = runner.end_tokens if stop_tokens is None else frozenset(stop_tokens)
    arguments = runner, ids, sampling, generator, max_new_tokens, prefill_chunk
    steps: DecodeSteps
    if isinstance(runner, GroupRunner):
        steps = GroupSteps(runner, *arguments[1:])
    else:
        steps = DecodeSteps(*arguments) if speculation is None else SpeculativeSteps(speculation, *arguments)
    return Stream(result, _pieces(steps, text, ends, result))


def generate(
    model: nn.Module,
    prompt: str | Sequence[int],
    tokenizer: Tokenizer | None = None,
    *,
    on_token: Callable[[Piece], None] | None = None,
    **settings: Any,
) -> Generation:
    """Generate from `prompt` to the end; `on_token` sees every piece as it comes.

    settings, and errors raised: those of `stream`.
    """
    output = stream(model, prompt, tokenizer, **settings)
    for piece in output:
        if on_token is not None:
            on_token(piece)
    return output.result


@dataclass(frozen=True)
class _Taken:
    text: str
    token: int
    finish: Finish | None


def _pieces(
    steps: DecodeSteps, text: TextStream | None, ends: frozenset[int], result: Generation
) -> Iterator[Piece]:
    try:
        start = time.perf_counter()
        steps.prefill()
        result.prompt_seconds = time.perf_counter() - start
        while result.finish is None and len(result.tokens) < steps.limit:
            # Timed step by step: what the reader of the stream does in between is not decoding.
            start = time.perf_counter()
            pieces = _taken(steps.step(ends), text, ends)
            steps.keep(len(pieces))
            if not steps.passes:
                result.first_tokens = len(pieces)
            result.passes = steps.passes
            seconds = time.perf_counter() - start
            result.decode_seconds += seconds if steps.passes else 0.0
            # A draft reads the prompt too.
            result.prompt_seconds += 0.0 if steps.passes else seconds
            for piece in pieces:
                result.tokens.append(piece.token)
                result.text += piece.text
                yield Piece(piece.text, piece.token)
                result.finish = piece.finish
        if result.finish is None:
            result.finish = Finish.LENGTH if steps.fits else Finish.CONTEXT
        rest = text.finish() if text else ""
        result.text += rest
        if rest:
            yield Piece(rest, None)
    finally:
        # Also for a reader that leaves early.
        result.cache_bytes = steps.runner.cache_bytes


def _taken(tokens: list[int], text: TextStream | None, ends: frozenset[int]) -> list[_Taken]:
    """The tokens of a step with the text they complete, up to one that ends the output."""
    taken: list[_Taken] = []
    for token in tokens:
        piece = text.push(token) if text else ""
        finish = None
        if token in ends:
            finish = Finish.END_TOKEN
        elif text and text.stopped is not None:
            finish = Finish.STOP_STRING
        taken.append(_Taken(piece, token, finish))
        if finish is not None:
            break
    return taken


def _check_prompt(ids: list[int], runner: Runner) -> None:
    if not ids:
        raise ValueError("the prompt is empty; give at least one token to go on from.")
    if bad := [i for i in ids if not 0 <= i < runner.vocab_size]:
        raise ValueError(f"token {bad[0]} of the prompt is not in a vocabulary of {runner.vocab_size}.")
    if runner.context is not None and len(ids) >= runner.context:
        raise ValueError(
            f"the prompt has {len(ids)} tokens, the context of this model {runner.context}: "
            f"shorten the prompt to {runner.context - 1} tokens or fewer."
        )
