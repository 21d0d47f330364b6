"""A pruned language model: its perplexity, its text, and the time of a token."""

import copy
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from shoestring.compression import MagnitudePrune, StoreSparse, Wanda, apply, capture, prune_in_place
from shoestring.compression.load_model import load_model
from shoestring.data.text import token_windows
from shoestring.generation import batch_memory
from shoestring.kernels.decode_step import LayerCache
from shoestring.layers.rotary import Rope
from shoestring.models.compiled_decoder import CompiledDecoder
from shoestring.models.decoder import Decoder
from shoestring.models.decoder_config import DecoderConfig
from shoestring.systems.flash_llm.claims import DECODING, SAME_TEXT, WANDA_AGAINST_MAGNITUDE, WANDA_QUALITY
from shoestring.systems.language_task import text_halves
from shoestring.yardstick.comparison import Row
from shoestring.yardstick.language_quality import perplexity
from shoestring.yardstick.timing import time_interleaved

DECODED_SPARSITY = 0.7
PROMPT = 64
"""Tokens that stand before those that are timed."""


@dataclass(frozen=True)
class Task:
    """A decoder and its text. calibration, held_out: windows of token ids. origin: which text and model."""

    decoder: Decoder
    calibration: Tensor
    held_out: Tensor
    origin: str


def trained_task(calibrating: int, judged: int, window: int) -> Task:
    """SmolLM2-135M on `$SHOESTRING_TEXT` or the default text: one half calibrates, the other judges.

    calibrating, judged: windows of `window` tokens, spread over their half.
    Raises: MissingData where the model is not installed.
    """
    decoder, tokenizer = load_model("smollm2-135m")
    halves = text_halves()

    def windows(text: str, count: int) -> Tensor:
        return _spread(token_windows(text, tokenizer, window, name=halves.name), count)

    calibration, held_out = windows(halves.calibration, calibrating), windows(halves.held_out, judged)
    return Task(
        decoder.float(), calibration, held_out, f"SmolLM2-135M on {halves.name}, windows of {window} tokens"
    )


def random_task(seed: int) -> Task:
    """A tiny decoder with random weights on random tokens: the same path in a second."""
    cfg = DecoderConfig(
        vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, windows=(None, None), ropes=(Rope(), Rope()),
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        decoder = Decoder(cfg).requires_grad_(False).eval()
    windows = torch.randint(128, (8, 80), generator=torch.Generator().manual_seed(seed))
    return Task(decoder, windows[:4], windows[4:], "a random decoder on random tokens")


def model_rows(task: Task, rounds: int, new_tokens: int, seed: int) -> list[Row]:
    """All rows on the model; `new_tokens` are decoded in each sample."""
    calibration = capture(task.decoder, task.calibration.split(1), names=_prunable(task.decoder))
    dense = perplexity(task.decoder, task.held_out).ppl

    def pruned(recipe: MagnitudePrune | Wanda) -> Decoder:
        model = copy.deepcopy(task.decoder)
        prune_in_place(model, recipe, calibration=calibration)
        return model

    magnitude = perplexity(pruned(MagnitudePrune(0.5)), task.held_out).ppl
    wanda = perplexity(pruned(Wanda(0.5)), task.held_out).ppl
    masked = pruned(Wanda(DECODED_SPARSITY))
    sparse = apply(copy.deepcopy(masked), {"model.layers.*": StoreSparse()})
    assert isinstance(sparse, Decoder)
    return [
        WANDA_QUALITY.row(baseline=dense, method=wanda, against="dense"),
        WANDA_AGAINST_MAGNITUDE.row(baseline=magnitude, method=wanda, against="magnitude"),
        Row(
            metric="perplexity, Wanda, 70 % zeros, without tuning", kind="quality", unit="", better="lower",
            baseline=dense, method=perplexity(masked, task.held_out).ppl, against="dense",
        ),
        _same_text_row(masked, sparse, task.held_out[0, :PROMPT], new_tokens),
        _decoding_row(task, sparse, rounds, new_tokens, seed),
        _batch_row(task.decoder.cfg),
    ]  # fmt: skip


def decode(step: CompiledDecoder, prompt: Tensor, new_tokens: int) -> list[int]:
    """Greedy tokens after a prompt; the cache holds what was fed."""
    logits, tokens = step(prompt, 0), []
    for place in range(len(prompt), len(prompt) + new_tokens):
        tokens.append(int(logits[0].argmax()))
        logits = step(torch.tensor(tokens[-1:]), place)
    return tokens


def compiled(decoder: Decoder, slots: int) -> CompiledDecoder:
    """The decoder as one compiled step with an empty cache of its own, in float32."""
    cfg = decoder.cfg
    step, shape = CompiledDecoder(decoder), (cfg.num_key_value_heads, slots, cfg.head_dim)
    step.use(
        [
            LayerCache(torch.zeros(shape), torch.zeros(shape), torch.zeros(slots, dtype=torch.int32))
            for _ in range(cfg.num_hidden_layers)
        ]
    )
    return step


@torch.inference_mode()
def _same_text_row(masked: Decoder, sparse: Decoder, prompt: Tensor, new_tokens: int) -> Row:
    texts = [
        decode(compiled(model, len(prompt) + new_tokens), prompt, new_tokens) for model in (masked, sparse)
    ]
    differing = sum(a != b for a, b in zip(*texts, strict=True))
    return SAME_TEXT.row(baseline=None, method=differing)


@torch.inference_mode()
def _decoding_row(task: Task, sparse: Decoder, rounds: int, new_tokens: int, seed: int) -> Row:
    """Seconds of a token; head and embedding are bfloat16 on both sides."""
    prompt = task.held_out[0, :PROMPT]
    dense = copy.deepcopy(task.decoder).to(torch.bfloat16)
    narrow = copy.deepcopy(sparse).to(torch.bfloat16)
    steps = {
        name: compiled(model, len(prompt) + new_tokens)
        for name, model in (("dense", dense), ("sparse", narrow))
    }
    for step in steps.values():
        step(prompt, 0)
    tokens = task.held_out[0, PROMPT : PROMPT + 1]

    def decoding(step: CompiledDecoder) -> None:
        for place in range(PROMPT, PROMPT + new_tokens):
            step(tokens, place)

    timed = time_interleaved(
        {name: partial(decoding, step) for name, step in steps.items()}, rounds=rounds, seed=seed
    )
    return DECODING.row(
        baseline=timed.median("dense") / new_tokens,
        method=timed.median("sparse") / new_tokens,
        ratio=timed.ratio("sparse", "dense"),
        spread=timed.interval("sparse", "dense"),
        against="dense bfloat16",
    )


def _batch_row(cfg: DecoderConfig) -> Row:
    """Sequences of 512 tokens that fit twice the dense weights."""
    dense, pruned = batch_memory(cfg, 512), batch_memory(cfg, 512, sparsity=DECODED_SPARSITY)
    memory = 2 * dense.weights
    return Row(
        metric="sequences of 512 tokens that fit twice the dense weights, 70 % zeros", kind="memory", unit="",
        better="higher", baseline=dense.max_batch(memory), method=pruned.max_batch(memory), against="dense",
    )  # fmt: skip


def _prunable(decoder: Decoder) -> list[str]:
    return [name for name, module in decoder.model.named_modules(prefix="model") if type(module) is nn.Linear]


def _spread(windows: Tensor, count: int) -> Tensor:
    """At most `count` windows, evenly over the text."""
    if len(windows) <= count:
        return windows
    return windows[torch.linspace(0, len(windows) - 1, count).round().long()]
