"""One forward pass of a decoder: the tokens that are under way, what was asked for, and what comes out."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from shoestring.layers.attention import AttendOut, attend
from shoestring.layers.attention_masks import Causal, KVView, Mask
from shoestring.layers.mamba.grouped_mamba import GroupedMixer
from shoestring.layers.rotary import Rope
from shoestring.models.hooks import AttendCall, AttnPlan, Context, Drop, HookChain, Route
from shoestring.models.protocols import KVCache, StateCache

Tables = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Want:
    """What a forward pass should give.

    logits: of all tokens, of the last of each sample, of rows (batch, m) of the tokens that reach the end,
    or None. hidden: states after these layers, by number, and "norm": after the final norm. kv: layers whose
    keys and values to give, to be read only.
    """

    logits: Literal["all", "last"] | Tensor | None = "all"
    hidden: tuple[int | str, ...] = ()
    kv: tuple[int, ...] = ()


@dataclass(frozen=True)
class DecoderOutput:
    """What a forward pass gave. pos: positions of the tokens that reached the end, −1 where a row has no
    more; `logits` of all tokens, and `hidden["norm"]`, are in this order."""

    logits: Float[Tensor, "batch m vocab"] | None
    pos: Int[Tensor, "batch n"]
    hidden: dict[int | str, Tensor] = field(default_factory=dict)
    kv: dict[int, KVView] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """The tokens under way in one forward pass.

    pos: their positions, −1 where a row has no more. newest: no row is padding, positions ascend, and none
    is in the cache yet or before one that is. angles: cosines and sines by the kind of layer.
    """

    pos: Int[Tensor, "batch n"]
    newest: bool
    angles: dict[Rope, Tables]
    cache: KVCache | None
    hooks: HookChain | None
    ctx: Context

    @classmethod
    def start(
        cls,
        pos: Int[Tensor, "batch n"],
        newest: bool,
        ropes: frozenset[Rope],
        head_dim: int,
        dtype: torch.dtype,
        cache: KVCache | None,
        hooks: HookChain | None,
        ctx: Context,
    ) -> "Step":
        """A step with the angles of all kinds of layers."""
        angles = {rope: rope.tables(pos, head_dim, dtype) for rope in ropes}
        return cls(pos, newest, angles, cache, hooks, ctx)

    def at(self, index: Int[Tensor, "batch m"]) -> "Step":
        """The step of some of its tokens only; −1 is none.

        Raises: ValueError for an index that is not there or does not ascend.
        """
        padded = index < 0
        ends = index.masked_fill(padded, torch.iinfo(index.dtype).max)
        same = (index.diff(dim=1) == 0) & ~padded[:, 1:]
        if bool((index >= self.pos.shape[1]).any() | (ends.diff(dim=1) < 0).any() | same.any()):
            raise ValueError(
                f"tokens {index.tolist()} must be indices below {self.pos.shape[1]} that ascend, "
                "with −1 only at the end of a row."
            )
        pos = self.pos.gather(1, index.clamp(min=0)).masked_fill(padded, -1)
        rows = torch.arange(len(index), device=index.device)[:, None]
        angles = {
            rope: (cos[rows, index.clamp(min=0)], sin[rows, index.clamp(min=0)])
            for rope, (cos, sin) in self.angles.items()
        }
        newest = self.newest and not bool(padded.any())
        return replace(self, pos=pos, newest=newest, angles=angles, ctx=self.ctx.at(index, pos))

    def choose(self, layer: int, x: Tensor) -> tuple[Tensor, "Step", Route | None]:
        """Ask `pre_layer`: the tokens that go on, and which of them this layer is for (None: all)."""
        if self.hooks is None:
            return x, self, None
        step: Step = self
        decisions = self.hooks.tokens(layer, x, step.pos, step.ctx)
        answer: Drop | Route | None = next(decisions, None)
        while isinstance(answer, Drop):
            step = step.at(answer.keep)
            x = pick(x, answer.keep)
            try:
                answer = decisions.send((x, step.pos, step.ctx))
            except StopIteration:
                answer = None
        return x, step, answer

    def project(self, owner: nn.Module, layer: int, names: tuple[str, ...], x: Tensor) -> tuple[Tensor, ...]:
        """Linear maps that share their input."""

        # Not by attribute: at a token a time, looking modules up that way is felt.
        modules = [owner._modules[name] for name in names]
        if self.hooks is None or not self.hooks.projects:
            return tuple([module(x) for module in modules])  # type: ignore[misc]
        phase = self.ctx.phase
        assert phase is not None
        return self.hooks.linear(
            layer,
            names,
            x,
            phase,
            lambda y: tuple(module(y) for module in modules),  # type: ignore[misc]
        )

    def recur(self, layer: int, mixer: GroupedMixer, x: Float[Tensor, "batch n hidden"]) -> Tensor:
        """Run a mixer from the state that the cache holds of its layer, and keep the state after it there."""
        present = None if self.newest else self.pos >= 0
        if self.cache is None:
            return mixer(x, present=present)
        cache: StateCache = self.cache  # type: ignore[assignment]  # the decoder has seen to it
        state = cache.state(layer)
        if present is None and x.shape[1] == 1:
            out, state = mixer.step(x[:, 0], state)
            out = out[:, None]
        else:
            out, state = mixer.prefill(x, state, present)
        cache.set_state(layer, state, self.pos)
        return out

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None
    ) -> tuple[Float[Tensor, "batch heads m dim"], Int[Tensor, "batch m"] | None]:
        """Store keys and values, and attend, as the hooks plan it; also which rows that gave, None for all.

        The others are 0; −1 fills up samples that have fewer."""
        if self.hooks is None or not (self.hooks.plans or self.hooks.reads):
            view, newest = self._read(layer, k, v)
            return attend(q, view, Causal(self.pos, view.pos, newest), scale, window).out, None
        plan = self.hooks.plan(layer, q, self.pos, self.ctx)
        stats = self._planned(layer, q, k, v, scale, window, plan)
        rows = plan.rows if stats.rows is None else stats.rows
        if not self.hooks.reads:
            return stats.out, rows
        out = stats.out
        if rows is not None:
            out = put(torch.zeros_like(q).transpose(1, 2), rows, out.transpose(1, 2)).transpose(1, 2)
        return self.hooks.post_attn(layer, out, stats, self.ctx), None

    def project_rows(
        self,
        owner: nn.Module,
        layer: int,
        name: str,
        x: Float[Tensor, "batch m inner"],
        rows: Int[Tensor, "batch m"] | None,
    ) -> Float[Tensor, "batch n hidden"]:
        """A linear map of all tokens, of which only `rows` are not 0: the others get the bias."""
        if rows is None:
            return self.project(owner, layer, (name,), x)[0]
        (out,) = self.project(owner, layer, (name,), x)
        whole = out.new_zeros(*self.pos.shape, out.shape[-1])
        if getattr(owner._modules[name], "bias", x) is not None:
            whole += self.project(owner, layer, (name,), x.new_zeros(1, 1, x.shape[-1]))[0]
        if len(rows) > 1:
            return put(whole, rows, out)
        count = int((rows >= 0).sum())
        return whole.index_copy_(1, rows[0, :count], out[:, :count])

    def _planned(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, plan: AttnPlan
    ) -> AttendOut:
        pos, newest_rows = self.pos, True
        if plan.rows is not None:
            rows = self.at(plan.rows)
            pos, newest_rows = rows.pos, False
            q = pick(q.transpose(1, 2), plan.rows).transpose(1, 2)
        known: list[tuple[KVView, bool]] = []
        read = self._reader(layer, k, v, plan)
        if plan.attend is None or plan.store is not None or plan.policy is not None:
            known.append(read())

        def keys() -> tuple[KVView, Mask]:
            view, newest = known[0] if known else read()
            return view, plan.mask or Causal(pos, view.pos, newest and newest_rows)

        policy = self._policy(plan, known[0][0].k.shape[2]) if known else None
        call = AttendCall(layer, q, pos, keys, scale, window, policy, plan.need, self.cache)
        return call.default() if plan.attend is None else plan.attend(call)

    def _policy(self, plan: AttnPlan, slots: int) -> Tensor | None:
        """How much others see of each key: what the plan says, and nothing of what is not stored."""
        if plan.store is None:
            return plan.policy
        store = plan.store
        old = slots - store.shape[1]
        shown = torch.cat([store.new_ones(store.shape[0], old), store], 1)
        if plan.policy is None:
            return shown
        return plan.policy & shown if plan.policy.dtype == torch.bool else plan.policy * shown

    def _reader(self, layer: int, k: Tensor, v: Tensor, plan: AttnPlan) -> Callable[[], tuple[KVView, bool]]:
        """Store the new tokens; what then reads all keys, when it is asked to if that can wait."""
        waits = self.cache is not None and plan.store is None and plan.select is None
        if waits and self._keeps_exactly(k.shape[2]):
            self._append(layer, k, v, None)
            return lambda: self._view(layer)
        found = self._read(layer, k, v, plan.store, plan.select)
        return lambda: found

    def _read(
        self,
        layer: int,
        k: Tensor,
        v: Tensor,
        store: Tensor | None = None,
        select: Tensor | None = None,
    ) -> tuple[KVView, bool]:
        """Store the new tokens and give all keys, and whether the last of them are those tokens."""
        present = None if self.newest else (self.pos >= 0)[:, None]
        new = KVView(k, v, self.pos[:, None], present)
        if self.cache is None:
            if select is not None:
                raise ValueError(f"layer {layer}: a plan selects slots, but there is no cache.")
            return new, self.newest
        if store is None and select is None and self._keeps_exactly(k.shape[2]):
            self._append(layer, k, v, None)
            return self._view(layer)
        # Copied before the cache changes: what a view gives may be a window on its storage.
        view = join(self.cache.view(layer, select), new)
        self._append(layer, k, v, store)
        return view, self.newest

    def _keeps_exactly(self, n: int) -> bool:
        """Whether the cache would give back `n` new tokens as they are."""
        exact = None if self.cache is None else self.cache.exact_tokens
        return exact is None or n <= exact

    def _append(self, layer: int, k: Tensor, v: Tensor, store: Bool[Tensor, "batch n"] | None) -> None:
        assert self.cache is not None
        if not self.newest:
            present = self.pos >= 0
            if store is not None or not bool(present.all()):
                store = present if store is None else store & present
        self.cache.append(layer, k, v, self.pos, store)

    def _view(self, layer: int) -> tuple[KVView, bool]:
        assert self.cache is not None
        view = self.cache.view(layer)
        # Where samples have different lengths, the last slots are not everyone's newest.
        return view, self.newest and view.valid is None


def pick(x: Float[Tensor, "batch n *rest"], index: Int[Tensor, "batch m"]) -> Float[Tensor, "batch m *rest"]:
    """Tokens by index; −1 gives some token that nobody looks at."""
    rows = torch.arange(len(index), device=index.device)[:, None]
    return x[rows, index.clamp(min=0)]


def put(
    x: Float[Tensor, "batch n *rest"], index: Int[Tensor, "batch m"], new: Float[Tensor, "batch m *rest"]
) -> Float[Tensor, "batch n *rest"]:
    """x with the tokens at `index` replaced; −1 puts nothing."""
    row, column = (index >= 0).nonzero(as_tuple=True)
    return x.index_put((row, index[row, column]), new[row, column].to(x.dtype))


def join(old: KVView, new: KVView) -> KVView:
    """The slots of two views, one after the other."""
    if old.k.shape[2] == 0:
        return new
    rows = max(old.pos.shape[1], new.pos.shape[1])
    pos = torch.cat([old.pos.expand(-1, rows, -1), new.pos.expand(-1, rows, -1).to(old.pos)], 2)
    valid = None
    if old.valid is not None or new.valid is not None:
        parts = [torch.ones_like(view.pos, dtype=torch.bool) if view.valid is None else view.valid
                 for view in (old, new)]  # fmt: skip
        valid = torch.cat([part.expand(-1, rows, -1) for part in parts], 2)
    k, v = torch.cat([old.k, new.k.to(old.k.dtype)], 2), torch.cat([old.v, new.v.to(old.v.dtype)], 2)
    return KVView(k, v, pos, valid)
