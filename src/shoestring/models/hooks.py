"""How others take part in a decoder's forward pass: the kinds of hooks, and what they answer.

A hook is any object with one or more of the methods below. Several hooks are composed from left to right:
those that wrap (`embed`, `linear`) get what follows as `proceed`; decisions about tokens and attention are
merged, and two that contradict raise `HookConflict`; the others each see what the one before gave.
"""

import enum
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from shoestring.layers.attention import AttendOut, attend
from shoestring.layers.attention_masks import KVView, Mask
from shoestring.models.protocols import HookConflict, KVCache


class Phase(enum.Enum):
    """What a forward pass is for: reading a prompt, or making one more token."""

    PREFILL = "prefill"
    DECODE = "decode"


@dataclass
class Context:
    """What hooks know and share beside hidden states.

    tokens: tables with a row per token, (batch, n, …), such as token types or frame numbers; they follow the
    tokens when some are dropped or routed. groups: for `embed`, e.g. which ids make up a slot. shared:
    anything kept between layers and calls, such as an index per group of layers. generator: for hooks that
    draw. phase: None lets the decoder say: DECODE where it is fed one token. pos, cache, logits: set by the
    decoder; logits are what `Want` asks for.
    """

    tokens: Mapping[str, Tensor] = field(default_factory=dict)
    groups: Any = None
    shared: dict[Any, Any] = field(default_factory=dict)
    generator: torch.Generator | None = None
    phase: Phase | None = None
    pos: Tensor | None = None
    cache: KVCache | None = None
    logits: str | Tensor | None = None

    @property
    def all_logits(self) -> bool:
        """Whether those of every token are wanted."""
        return isinstance(self.logits, str) and self.logits == "all"

    def at(self, index: Int[Tensor, "batch m"], pos: Int[Tensor, "batch m"]) -> "Context":
        """The context of some of the tokens only; `shared` stays the same object."""
        rows = torch.arange(index.shape[0], device=index.device)[:, None]
        tokens = {name: table[rows, index.clamp(min=0)] for name, table in self.tokens.items()}
        return replace(self, tokens=tokens, pos=pos)


@dataclass(frozen=True)
class Keep:
    """All tokens go through this layer."""


@dataclass(frozen=True)
class Drop:
    """Only these tokens go on, through this and all later layers. keep: ascending, −1 fills up a row."""

    keep: Int[Tensor, "batch m"]


@dataclass(frozen=True)
class Route:
    """Only these tokens go through this layer; it leaves the others as they are. take: as in `Drop`."""

    take: Int[Tensor, "batch m"]


@dataclass(frozen=True)
class AttendCall:
    """An attention about to happen. `read` gives keys, values and mask; with a cache, the tokens of this call
    are stored by then. `default` does what would be done without a hook."""

    layer: int
    q: Float[Tensor, "batch heads n dim"]
    pos: Int[Tensor, "batch n"]
    read: Callable[[], tuple[KVView, Mask]]
    scale: float
    window: int | None
    policy: Tensor | None
    need: frozenset[str]
    cache: KVCache | None

    def default(self) -> AttendOut:
        """The plain attention."""
        view, mask = self.read()
        return attend(self.q, view, mask, self.scale, self.window, self.policy, self.need)


@dataclass(frozen=True)
class AttnPlan:
    """What one layer's attention does differently; None leaves a thing as it is.

    rows: tokens whose attention is computed, ascending, −1 fills up; the output of the others is 0 (their
    keys and values take part). select: slots of the cache to read, of what is in it before this call; the
    tokens of this call are always read. mask: in place of the causal one. policy: see `attend`; over all keys
    that are read. store: tokens that others may see and the cache keeps; the rest see themselves. need:
    statistics for `post_attn`. attend: in place of the attention itself.
    """

    rows: Int[Tensor, "batch m"] | None = None
    select: Int[Tensor, "batch heads m"] | None = None
    mask: Mask | None = None
    policy: Float[Tensor, "batch slots"] | Bool[Tensor, "batch slots"] | None = None
    store: Bool[Tensor, "batch n"] | None = None
    need: frozenset[str] = frozenset()
    attend: Callable[[AttendCall], AttendOut] | None = None

    def joined(self, other: "AttnPlan", layer: int) -> "AttnPlan":
        """Both plans at once. Raises: HookConflict where both decide the same thing."""
        found: dict[str, Any] = {"need": self.need | other.need}
        for name in (f.name for f in fields(self)):
            mine, theirs = getattr(self, name), getattr(other, name)
            if name == "store" and mine is not None and theirs is not None:
                found[name] = mine & theirs
            elif name != "need":
                if mine is not None and theirs is not None:
                    raise HookConflict(f"layer {layer}: two hooks decide {name!r} of one attention.")
                found[name] = theirs if mine is None else mine
        return AttnPlan(**found)


PLAIN = AttnPlan()
Project = Callable[[Tensor], tuple[Tensor, ...]]
Embed = Callable[[Tensor, Tensor, Context], tuple[Tensor, Tensor]]


@runtime_checkable
class EmbedHook(Protocol):
    """Makes the first hidden states: several ids may become one, or embeddings may come from elsewhere."""

    def embed(self, ids: Tensor, pos: Tensor, ctx: Context, proceed: Embed) -> tuple[Tensor, Tensor]:
        """ids (batch, n), or embeddings, at positions (batch, n) -> x (batch, m, hidden), pos (batch, m)."""
        ...


@runtime_checkable
class PreLayerHook(Protocol):
    """Decides which tokens go through a layer."""

    def pre_layer(self, layer: int, x: Tensor, pos: Tensor, ctx: Context) -> Keep | Drop | Route:
        """x (batch, n, hidden), pos (batch, n), −1 where a row has no more tokens."""
        ...


@runtime_checkable
class LinearHook(Protocol):
    """Takes the place of linear maps that share an input: (q_proj, k_proj, v_proj), (o_proj,),
    (gate_proj, up_proj), (down_proj,)."""

    def linear(
        self, layer: int, names: tuple[str, ...], x: Tensor, phase: Phase, proceed: Project
    ) -> tuple[Tensor, ...]:
        """One output for each name; `proceed(x)` gives those of the hooks that follow and the layers."""
        ...


@runtime_checkable
class AttnPlanHook(Protocol):
    """Plans an attention; None: as always."""

    def attn_plan(self, layer: int, q: Tensor, pos: Tensor, ctx: Context) -> AttnPlan | None:
        """q (batch, heads, n, dim), already rotated; the tokens of this call are not in the cache yet."""
        ...


@runtime_checkable
class PostAttnHook(Protocol):
    """Sees what each head gave, and the statistics that plans asked for."""

    def post_attn(self, layer: int, out: Tensor, stats: AttendOut, ctx: Context) -> Tensor:
        """out (batch, heads, n, dim), before the output projection."""
        ...


@runtime_checkable
class PostLayerHook(Protocol):
    """Changes what a layer gave, for the tokens that went through it."""

    def post_layer(self, layer: int, x_in: Tensor, x_out: Tensor, ctx: Context) -> Tensor:
        """x_in, x_out (batch, n, hidden): before and after the layer."""
        ...


@runtime_checkable
class PostStepHook(Protocol):
    """Chooses what a step emits: none, one or several tokens for each sample."""

    def post_step(self, logits: Tensor, ctx: Context) -> list[list[int]]:
        """logits (batch, m, vocabulary) of the step."""
        ...


KINDS: Mapping[str, type] = {
    "embed": EmbedHook,
    "pre_layer": PreLayerHook,
    "linear": LinearHook,
    "attn_plan": AttnPlanHook,
    "post_attn": PostAttnHook,
    "post_layer": PostLayerHook,
    "post_step": PostStepHook,
}
"""By the name of the method."""


class HookChain:
    """Hooks in their order, sorted by kind once. Raises: TypeError for an object that is no hook."""

    def __init__(self, hooks: Iterable[object] = ()) -> None:
        self._of: dict[str, list[Any]] = {name: [] for name in KINDS}
        for hook in hooks:
            kinds = [name for name, kind in KINDS.items() if isinstance(hook, kind)]
            if not kinds:
                raise TypeError(f"{type(hook).__name__} is no hook: it has none of {', '.join(KINDS)}.")
            for name in kinds:
                self._of[name].append(hook)
        self.plans, self.reads = bool(self._of["attn_plan"]), bool(self._of["post_attn"])
        self.embeds, self.projects = bool(self._of["embed"]), bool(self._of["linear"])

    def embed(self, ids: Tensor, pos: Tensor, ctx: Context, plain: Embed) -> tuple[Tensor, Tensor]:
        """Through all `embed` hooks to the plain embedding."""
        inner = plain
        for hook in reversed(self._of["embed"]):
            inner = _bind_embed(hook, inner)
        return inner(ids, pos, ctx)

    def tokens(
        self, layer: int, x: Tensor, pos: Tensor, ctx: Context
    ) -> Generator[Drop | Route, tuple[Tensor, Tensor, Context], None]:
        """Decisions of `pre_layer`, each asked once the one before has been carried out.

        The caller sends back (x, pos, ctx) as they are then; a Route comes last.
        """
        state = (x, pos, ctx)
        dropped: object = None
        route: Route | None = None
        router: object = None
        for hook in self._of["pre_layer"]:
            answer = hook.pre_layer(layer, *state)
            if isinstance(answer, Keep):
                continue
            if router is not None:
                raise HookConflict(
                    f"layer {layer}: {_name(router)} routes tokens before {_name(hook)} chooses; "
                    "put it last, and let one hook route."
                )
            if isinstance(answer, Route):
                route, router = answer, hook
                continue
            if dropped is not None:
                raise HookConflict(
                    f"layer {layer}: {_name(dropped)} and {_name(hook)} both drop tokens; let one do it."
                )
            dropped = hook
            state = yield answer
        if route is not None:
            yield route

    def linear(
        self, layer: int, names: tuple[str, ...], x: Tensor, phase: Phase, plain: Project
    ) -> tuple[Tensor, ...]:
        """Through all `linear` hooks to the layers themselves."""
        inner = plain
        for hook in reversed(self._of["linear"]):
            inner = _bind_linear(hook, layer, names, phase, inner)
        return inner(x)

    def plan(self, layer: int, q: Tensor, pos: Tensor, ctx: Context) -> AttnPlan:
        """All plans as one. Raises: HookConflict."""
        plan = PLAIN
        for hook in self._of["attn_plan"]:
            plan = plan.joined(hook.attn_plan(layer, q, pos, ctx) or PLAIN, layer)
        return plan

    def post_attn(self, layer: int, out: Tensor, stats: AttendOut, ctx: Context) -> Tensor:
        """Through all `post_attn` hooks."""
        for hook in self._of["post_attn"]:
            out = hook.post_attn(layer, out, stats, ctx)
        return out

    def post_layer(self, layer: int, x_in: Tensor, x_out: Tensor, ctx: Context) -> Tensor:
        """Through all `post_layer` hooks."""
        for hook in self._of["post_layer"]:
            x_out = hook.post_layer(layer, x_in, x_out, ctx)
        return x_out

    def post_step(self, logits: Tensor, ctx: Context) -> list[list[int]]:
        """What the step emits: the likeliest token of the last row unless a hook decides.

        Raises: HookConflict if two do.
        """
        hooks = self._of["post_step"]
        if len(hooks) > 1:
            names = " and ".join(map(_name, hooks[:2]))
            raise HookConflict(f"{names} both choose what a step emits; let one do it.")
        if hooks:
            return hooks[0].post_step(logits, ctx)
        return logits[:, -1:].argmax(-1).tolist()


def _bind_embed(hook: EmbedHook, inner: Embed) -> Embed:
    return lambda ids, pos, ctx: hook.embed(ids, pos, ctx, inner)


def _bind_linear(
    hook: LinearHook, layer: int, names: tuple[str, ...], phase: Phase, inner: Project
) -> Project:
    return lambda x: hook.linear(layer, names, x, phase, inner)


def _name(hook: object) -> str:
    return type(hook).__name__
