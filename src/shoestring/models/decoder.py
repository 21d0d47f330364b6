"""A decoder of the Llama family: Llama, Mistral, Qwen 2 and 3, Gemma 3 (text), and hybrids of them.

x ← x + attention(norm(x)); x ← x + W_down(act(W_gate norm(x)) · W_up norm(x)), layer by layer; logits are
W_head norm(x). In a hybrid, layers of the layout have a Mamba mixer, or nothing, in place of attention.
Parameters carry the names that the transformers library gives them, so that recipes, saved
folders and state_dicts fit as they are. Queries and keys are in the half-split order of rotary positions.

Source: Touvron et al. 2023, "LLaMA: Open and Efficient Foundation Language Models", section 2.2;
Jiang et al. 2023, "Mistral 7B" (windows); Gemma Team 2025, "Gemma 3 Technical Report", section 2.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.errors import BadModelFile
from shoestring.layers.mamba.grouped_mamba import grouped_mixer
from shoestring.layers.norm import RMSNorm
from shoestring.layers.rotary import rotate
from shoestring.layers.scaled_embedding import ScaledEmbedding
from shoestring.models.decoder_config import Activation, DecoderConfig
from shoestring.models.decoder_step import DecoderOutput, Step, Want, pick, put
from shoestring.models.hooks import Context, HookChain, Phase
from shoestring.models.layer_layout import LayerKind
from shoestring.models.protocols import KVCache, StateCache

Hidden = Float[Tensor, "batch n hidden"]


class Attention(nn.Module):
    """Attention of one layer, over the tokens of a step and what the cache holds."""

    def __init__(self, cfg: DecoderConfig, layer: int, **made: Any) -> None:
        super().__init__()
        self.layer, self.head_dim, self.scale = layer, cfg.head_dim, cfg.scale
        self.window, self.rope = cfg.windows[layer], cfg.ropes[layer]
        inner, shared = (n * cfg.head_dim for n in (cfg.num_attention_heads, cfg.num_key_value_heads))
        self.q_proj = nn.Linear(cfg.hidden_size, inner, bias=cfg.qkv_bias, **made)
        self.k_proj = nn.Linear(cfg.hidden_size, shared, bias=cfg.qkv_bias, **made)
        self.v_proj = nn.Linear(cfg.hidden_size, shared, bias=cfg.qkv_bias, **made)
        self.o_proj = nn.Linear(inner, cfg.hidden_size, bias=cfg.output_bias, **made)
        self.normalises = cfg.qk_norm
        if cfg.qk_norm:
            self.q_norm = RMSNorm(cfg.head_dim, cfg.rms_norm_eps, offset=cfg.norm_offset, **made)
            self.k_norm = RMSNorm(cfg.head_dim, cfg.rms_norm_eps, offset=cfg.norm_offset, **made)

    def forward(self, x: Hidden, step: Step) -> Hidden:
        batch, n, _ = x.shape
        q, k, v = step.project(self, self.layer, ("q_proj", "k_proj", "v_proj"), x)
        q, k, v = (t.view(batch, n, -1, self.head_dim) for t in (q, k, v))
        if self.normalises:
            q, k = self.q_norm(q), self.k_norm(k)
        cos, sin = step.angles[self.rope]
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        out, rows = step.attend(self.layer, q, k, v, self.scale, self.window)
        return step.project_rows(self, self.layer, "o_proj", out.transpose(1, 2).flatten(2), rows)


class FeedForward(nn.Module):
    """W_down(act(W_gate x) · W_up x)."""

    def __init__(self, cfg: DecoderConfig, layer: int, **made: Any) -> None:
        super().__init__()
        self.layer, self.activation = layer, cfg.activation
        self.gate_proj = nn.Linear(cfg.hidden_size, cfg.intermediate_size, bias=cfg.mlp_bias, **made)
        self.up_proj = nn.Linear(cfg.hidden_size, cfg.intermediate_size, bias=cfg.mlp_bias, **made)
        self.down_proj = nn.Linear(cfg.intermediate_size, cfg.hidden_size, bias=cfg.mlp_bias, **made)

    def forward(self, x: Hidden, step: Step) -> Hidden:
        gate, up = step.project(self, self.layer, ("gate_proj", "up_proj"), x)
        (out,) = step.project(self, self.layer, ("down_proj",), gated(gate, up, self.activation))
        return out


class DecoderLayer(nn.Module):
    """What mixes tokens, and feed-forward, each added to what comes in: `self_attn`, `mixer`, or neither."""

    def __init__(self, cfg: DecoderConfig, layer: int, **made: Any) -> None:
        super().__init__()

        def norm() -> RMSNorm:
            return RMSNorm(cfg.hidden_size, cfg.rms_norm_eps, offset=cfg.norm_offset, **made)

        self.layer, kind = layer, cfg.layout[layer]
        if kind is LayerKind.ATTENTION:
            self.self_attn = Attention(cfg, layer, **made)
        elif kind is LayerKind.MAMBA:
            heads = cfg.num_attention_heads, cfg.num_key_value_heads, cfg.head_dim
            self.mixer = grouped_mixer(cfg.hidden_size, *heads, cfg.mamba, **made)
        self.mlp = FeedForward(cfg, layer, **made)
        if kind is not LayerKind.IDENTITY:
            self.input_layernorm = norm()
        self.post_attention_layernorm = norm()
        self.post_norms = cfg.post_norms
        if cfg.post_norms:
            self.pre_feedforward_layernorm, self.post_feedforward_layernorm = norm(), norm()

    def forward(self, x: Hidden, step: Step) -> Hidden:
        mixed = self._mix(x, step)
        # The name means another place where outputs are normalised too.
        if not self.post_norms:
            x = x if mixed is None else x + mixed
            return x + self.mlp(self.post_attention_layernorm(x), step)
        x = x if mixed is None else x + self.post_attention_layernorm(mixed)
        return x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x), step))

    def _mix(self, x: Hidden, step: Step) -> Hidden | None:
        """What attention or mixer adds; None where there is neither."""
        attention = self._modules.get("self_attn")
        if attention is not None:
            return attention(self.input_layernorm(x), step)
        mixer: Any = self._modules.get("mixer")
        return None if mixer is None else step.recur(self.layer, mixer, self.input_layernorm(x))


class SkippedLayer(nn.Module):
    """A layer that is left out."""

    def forward(self, x: Hidden, step: Step) -> Hidden:
        return x


class DecoderBody(nn.Module):
    """All but the head; holds the modules under the names of the transformers library."""

    def __init__(self, cfg: DecoderConfig, **made: Any) -> None:
        super().__init__()
        sizes = cfg.vocab_size, cfg.hidden_size
        scaled = cfg.embedding_scale != 1.0
        self.embed_tokens: nn.Module = (
            ScaledEmbedding(*sizes, cfg.embedding_scale, **made) if scaled else nn.Embedding(*sizes, **made)
        )
        self.layers = nn.ModuleList(
            SkippedLayer() if kind is LayerKind.SKIPPED else DecoderLayer(cfg, index, **made)
            for index, kind in enumerate(cfg.layout)
        )
        self.norm = RMSNorm(cfg.hidden_size, cfg.rms_norm_eps, offset=cfg.norm_offset, **made)


class Decoder(nn.Module):
    """A causal language model: ids (batch, n) -> logits (batch, n, vocabulary), with a KV cache and hooks.

    cfg: the shape. device, dtype: of the new parameters, which are random. config: what other code asks
    about the model, e.g. the configuration it has in the transformers library; by default `cfg`.
    """

    kv_cache_format: Any = None
    generation_config: Any = None

    def __init__(
        self,
        cfg: DecoderConfig,
        *,
        config: Any = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.cfg, self.config = cfg, cfg if config is None else config
        self.model = DecoderBody(cfg, device=device, dtype=dtype)
        self.lm_head: nn.Module = nn.Linear(
            cfg.hidden_size, cfg.vocab_size, bias=False, device=device, dtype=dtype
        )
        self._tie()
        self._ropes = frozenset(cfg.ropes)
        self._recurrent = LayerKind.MAMBA in cfg.layout

    @property
    def transformers_class(self) -> str:
        """The class of the transformers library that runs the same model."""
        return self.cfg.transformers_class

    @classmethod
    def from_weights(
        cls, cfg: DecoderConfig, weights: Mapping[str, Tensor], *, config: Any = None
    ) -> "Decoder":
        """A decoder that holds these tensors, by their names in the transformers library, without a copy.

        A tied head need not be named. Raises: BadModelFile if one is missing, unknown or of another shape.
        """
        decoder = cls(cfg, config=config, device="meta")
        needed = {name: tensor.shape for name, tensor in decoder.state_dict().items()}
        given = dict(weights)
        if cfg.tie_word_embeddings:
            needed.pop("lm_head.weight")
            given.pop("lm_head.weight", None)
        if missing := sorted(needed.keys() - given.keys()):
            raise BadModelFile(f"the weights lack {missing[0]!r} ({len(missing)} tensors are missing).")
        if unknown := sorted(given.keys() - needed.keys()):
            raise BadModelFile(f"the weights hold {unknown[0]!r}, which a {cfg.model_type} model has not.")
        for name, shape in needed.items():
            if given[name].shape != shape:
                raise BadModelFile(f"{name!r} is {tuple(given[name].shape)} instead of {tuple(shape)}.")
        decoder.load_state_dict(given, strict=False, assign=True)
        decoder._tie()
        return decoder.requires_grad_(False).eval()

    @classmethod
    def from_transformers(cls, model: nn.Module) -> "Decoder":
        """The same model on the weights of a transformers one, shared; rewritten modules are taken over.

        Raises: BadModelFile for an architecture outside the family; TypeError for a model without a config,
        or without the modules of its architecture.
        """
        config: Any = getattr(model, "config", None)
        if config is None or not hasattr(config, "to_dict"):
            raise TypeError(f"{type(model).__name__} is no model of transformers: it has no config.")
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        decoder = cls(DecoderConfig.from_dict(text.to_dict()), config=text, device="meta")
        body = _inner(_inner(model, "model"), "language_model", optional=True)
        for name, own in list(decoder.model.named_modules()):
            theirs = _inner(body, name) if isinstance(own, RMSNorm | nn.Linear | nn.Embedding) else own
            # Modules of the same meaning and another class give their parameter only.
            if isinstance(own, RMSNorm) or (
                isinstance(own, ScaledEmbedding) and isinstance(theirs, nn.Embedding)
            ):
                own.weight = theirs.weight  # type: ignore[assignment]
            elif isinstance(own, nn.Linear | nn.Embedding):
                path, _, leaf = name.rpartition(".")
                setattr(decoder.model.get_submodule(path), leaf, theirs)
        decoder.lm_head = _inner(model, "lm_head")
        for attribute in ("generation_config", "kv_cache_format"):
            setattr(decoder, attribute, getattr(model, attribute, None))
        return decoder.train(model.training)

    def forward(
        self,
        x: Int[Tensor, "batch n"] | Float[Tensor, "batch n hidden"],
        pos: Int[Tensor, "samples tokens"] | None = None,
        cache: KVCache | None = None,
        ctx: Context | None = None,
        hooks: Iterable[object] = (),
        want: Want = Want(),  # noqa: B008  (frozen)
    ) -> DecoderOutput:
        """Run tokens, or embeddings, through all layers; with a cache, after those that it holds.

        pos: logical positions, ascending in each row, −1 for padding at its end; by default those that follow
        the cache. Positions count tokens, not slots. ctx, hooks: see `shoestring.models.hooks`.

        Raises: ValueError for no tokens at all, positions that do not fit them, or that do not ascend where a
        layer keeps a state; TypeError for a cache without states in a hybrid; HookConflict.
        """
        if x.shape[0] == 0 or x.shape[1] == 0:
            raise ValueError(f"x is {tuple(x.shape)}: there must be at least one sample and one token.")
        if pos is not None and pos.shape != x.shape[:2]:
            raise ValueError(f"pos is {tuple(pos.shape)} for {tuple(x.shape[:2])} tokens; give one for each.")
        x, step = self._start(x, pos, cache, ctx or Context(), hooks, want)
        hidden: dict[int | str, Tensor] = {}
        for index, layer in enumerate(self.model.layers):
            x, step = self._layer(index, layer, x, step)
            if index in want.hidden:
                hidden[index] = x
        if "norm" in want.hidden:
            x = hidden["norm"] = self.model.norm(x)
        logits = self._logits(x, step, want, normalised="norm" in want.hidden)
        kv = {index: _kept(cache, index) for index in want.kv}
        return DecoderOutput(logits, step.pos, hidden, kv)

    def _start(
        self,
        x: Tensor,
        pos: Tensor | None,
        cache: KVCache | None,
        ctx: Context,
        hooks: Iterable[object],
        want: Want,
    ) -> tuple[Hidden, Step]:
        """First hidden states, and where they stand."""
        chain = HookChain(hooks) if hooks else None
        newest = pos is None
        if pos is None:
            pos = torch.arange(x.shape[1], device=x.device).expand(x.shape[0], -1)
            if cache is not None:
                pos = pos + cache.next_pos[:, None]
        phase = ctx.phase or (Phase.DECODE if x.shape[1] == 1 else Phase.PREFILL)
        ctx = Context(ctx.tokens, ctx.groups, ctx.shared, ctx.generator, phase, pos, cache, want.logits)
        if chain is not None and chain.embeds:
            x, pos = chain.embed(x, pos, ctx, self._embed)
            newest, ctx.pos = False, pos
        else:
            x, pos = self._embed(x, pos, ctx)
        if not newest:
            first = 0 if cache is None else cache.next_pos[:, None]
            newest = bool((pos[:, :1] >= first).all() & (pos.diff(dim=1) > 0).all())
        if self._recurrent:
            _check_states(pos, newest, cache)
        step = Step.start(pos, newest, self._ropes, self.cfg.head_dim, x.dtype, cache, chain, ctx)
        return x, step

    def _embed(self, x: Tensor, pos: Tensor, ctx: Context) -> tuple[Hidden, Tensor]:
        return (x if x.is_floating_point() else self.model.embed_tokens(x)), pos

    def _layer(
        self, index: int, layer: nn.Module, x: Hidden, step: Step
    ) -> tuple[Float[Tensor, "batch kept hidden"], Step]:
        """One layer, for the tokens that the hooks let through."""
        hooks = step.hooks
        if hooks is None:
            return layer(x, step), step
        x, step, route = step.choose(index, x)
        if route is None:
            return hooks.post_layer(index, x, layer(x, step), step.ctx), step
        inside, routed = pick(x, route.take), step.at(route.take)
        out = hooks.post_layer(index, inside, layer(inside, routed), routed.ctx)
        return put(x, route.take, out), step

    def _logits(self, x: Hidden, step: Step, want: Want, normalised: bool) -> Tensor | None:
        if want.logits is None:
            return None
        if isinstance(want.logits, Tensor):
            x = pick(x, want.logits)
        elif want.logits == "last":
            last = None if step.newest else (step.pos >= 0).sum(1, keepdim=True) - 1
            x = x[:, -1:] if last is None else pick(x, last)
        return self.lm_head(x if normalised else self.model.norm(x))

    def _tie(self) -> None:
        if self.cfg.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight


def _check_states(pos: Tensor, newest: bool, cache: KVCache | None) -> None:
    """A state has seen its tokens in their order, each once."""
    if cache is not None and not isinstance(cache, StateCache):
        raise TypeError(
            f"a {type(cache).__name__} keeps no states, which this hybrid needs; make one with decoder_cache."
        )
    if newest:
        return
    first = 0 if cache is None else cache.next_pos[:, None]
    padding = pos < 0
    follows = ((pos[:, :1] >= first) | padding[:, :1]).all() & ((pos.diff(dim=1) > 0) | padding[:, 1:]).all()
    if not bool(follows):
        raise ValueError(f"positions {pos.tolist()} must ascend and follow the cache: layers keep a state.")


def gated(
    gate: Float[Tensor, "batch n inner"], up: Float[Tensor, "batch n inner"], activation: Activation
) -> Float[Tensor, "batch n inner"]:
    """act(gate) · up; `gate` may be overwritten where no gradient flows."""
    silu = activation is Activation.SILU
    if gate.requires_grad or up.requires_grad:
        return (F.silu(gate) if silu else F.gelu(gate, approximate="tanh")) * up
    # Of a long prompt these are the largest tensors, and fresh memory costs more than the sums.
    return (F.silu(gate, inplace=True) if silu else F.gelu(gate, approximate="tanh")).mul_(up)


def _kept(cache: KVCache | None, layer: int) -> Any:
    if cache is None:
        raise ValueError(f"keys and values of layer {layer} are wanted, but there is no cache.")
    return cache.view(layer)


def _inner(model: nn.Module, name: str, *, optional: bool = False) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        if optional:
            return model
        kind = type(model).__name__
        raise TypeError(f"{kind} has no module {name!r}, as its architecture should.") from error
