"""Generation with a state of fixed size beside a Transformer, with and without a cache of keys and values."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from shoestring.generation.dense_cache import DenseCache
from shoestring.layers.rotary import Rope
from shoestring.layers.state import State, state_bytes
from shoestring.models.decoder import Decoder
from shoestring.models.decoder_config import DecoderConfig
from shoestring.models.decoder_step import Want
from shoestring.models.state_space_lm import StateSpaceLM
from shoestring.systems.s4.claims import CACHED_GENERATION, FLAT, GENERATION, STATE
from shoestring.yardstick.comparison import Row
from shoestring.yardstick.timing import InterleavedTimes, TimeFigures, time_interleaved

VOCABULARY, HEAD_DIM = 256, 32


@dataclass(frozen=True)
class GenerationSettings:
    """tokens is what is generated, context what a cache holds, early and late where time is compared."""

    n_layers: int
    d_model: int
    batch: int
    tokens: int
    context: int
    early: int
    late: int
    rounds: int
    parts: int


@torch.inference_mode()
def generation_rows(settings: GenerationSettings, seed: int) -> list[Row]:
    """Greedy decoding of random models of one size: time, its growth, and bytes kept."""
    torch.manual_seed(seed)
    lm = StateSpaceLM(VOCABULARY, settings.d_model, settings.n_layers).eval()
    lm.setup_step()
    transformer = transformer_like(lm, settings)
    ours = _Writer(lm, settings.batch)
    cache = filled_cache(transformer, settings)
    stepped = time_interleaved(
        {"ours": ours.write, "cached": _cached_step(transformer, cache, settings)},
        rounds=settings.rounds, min_sample_seconds=0.05,
    )  # fmt: skip
    state, kept = (
        state_bytes(ours.state),
        sum(store.nbytes["k"] + store.nbytes["v"] for store in cache.layers),
    )
    return [
        _without_cache(transformer, ours, settings),
        CACHED_GENERATION.row(**stepped.figures("ours", "cached"), against="KV cache, fused attention"),
        STATE.row(baseline=kept, method=state, against=f"KV cache of {settings.context} tokens"),
        FLAT.row(**_flat(lm, settings, seed), against=f"after {settings.early} tokens"),
        Row(
            metric="parameters", kind="storage", unit="", better="lower", baseline=_size(transformer),
            method=_size(lm),
        ),
    ]  # fmt: skip


@dataclass
class _Writer:
    """A state space model that writes on by its own most likely tokens."""

    lm: StateSpaceLM
    batch: int
    state: State = field(init=False)
    ids: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.state = self.lm.init_state(self.batch)
        self.ids = torch.zeros(self.batch, dtype=torch.int64)

    def write(self) -> None:
        """One more token of each sample."""
        logits, self.state = self.lm.step(self.ids, self.state)
        self.ids = logits.argmax(-1)


def transformer_like(lm: StateSpaceLM, settings: GenerationSettings) -> Decoder:
    """A decoder of the Llama family with as many parameters, by the width of its feed-forward networks."""

    def made(intermediate: int) -> Decoder:
        cfg = DecoderConfig(
            vocab_size=VOCABULARY, hidden_size=settings.d_model, intermediate_size=intermediate,
            num_hidden_layers=settings.n_layers, num_attention_heads=settings.d_model // HEAD_DIM,
            num_key_value_heads=settings.d_model // HEAD_DIM, head_dim=HEAD_DIM,
            windows=(None,) * settings.n_layers, ropes=(Rope(),) * settings.n_layers,
            tie_word_embeddings=True, max_position_embeddings=2 * settings.context,
        )  # fmt: skip
        return Decoder(cfg)

    one = made(1)
    each = 3 * settings.d_model * settings.n_layers
    return made(1 + max(0, round((_size(lm) - _size(one)) / each))).requires_grad_(False).eval()


def filled_cache(transformer: Decoder, settings: GenerationSettings) -> DenseCache:
    """A cache that holds `context` random tokens of each sample, with room for those to come."""
    cfg = transformer.cfg
    cache = DenseCache(
        cfg.num_hidden_layers, settings.batch, cfg.num_key_value_heads, cfg.head_dim,
        capacity=settings.context + 512,
    )  # fmt: skip
    cache.claim(settings.context)
    for columns in cache.storage():
        columns["k"].normal_()
        columns["v"].normal_()
        columns["pos"][..., : settings.context] = torch.arange(settings.context, dtype=torch.int32)
    return cache


def _cached_step(transformer: Decoder, cache: DenseCache, settings: GenerationSettings) -> Callable[[], None]:
    ids = torch.zeros(settings.batch, 1, dtype=torch.int64)

    def step() -> None:
        nonlocal ids
        logits = transformer(ids, cache=cache, want=Want(logits="last")).logits
        assert logits is not None
        ids = logits[:, -1:].argmax(-1)

    return step


def _without_cache(transformer: Decoder, ours: _Writer, settings: GenerationSettings) -> Row:
    """Every token reads all before it again: its cost is summed over `parts` middles of the sequence."""
    width = settings.tokens // settings.parts
    middles = [width // 2 + width * part for part in range(settings.parts)]
    generator = torch.Generator().manual_seed(0)

    def read(length: int) -> Callable[[], object]:
        ids = torch.randint(VOCABULARY, (settings.batch, length), generator=generator)
        return lambda: transformer(ids, want=Want(logits="last")).logits

    works: dict[str, Callable[[], object]] = {f"{length}": read(length) for length in middles}
    timed = time_interleaved({"ours": ours.write, **works}, rounds=3, warmup=1)
    seconds = [_summed(timed, works, turn) * width for turn in range(3)]
    mine = [value * settings.tokens for value in timed.seconds["ours"]]
    ratios = sorted(own / other for own, other in zip(mine, seconds, strict=True))
    return GENERATION.row(
        baseline=sorted(seconds)[1], method=sorted(mine)[1], ratio=ratios[1], spread=(ratios[0], ratios[-1]),
        against=f"no cache, timed at {', '.join(works)} tokens",
    )  # fmt: skip


def _summed(timed: InterleavedTimes, names: Iterable[str], turn: int) -> float:
    return sum(timed.seconds[name][turn] for name in names)


def _flat(lm: StateSpaceLM, settings: GenerationSettings, seed: int) -> TimeFigures:
    """One step from the state after `early` tokens and one from that after `late`, in turns."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(VOCABULARY, (settings.batch, settings.late), generator=generator)
    works = {}
    for name, length in (("early", settings.early), ("late", settings.late)):
        _, state = lm.prefill(ids[:, :length], lm.init_state(settings.batch))
        works[name] = lambda state=state: lm.step(ids[:, 0], state)
    timed = time_interleaved(works, rounds=settings.rounds, min_sample_seconds=0.05)
    return timed.figures("late", "early")


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
