"""HAMburger: a decoder that emits several tokens a step and keeps one slot of its cache for all of them.

A group of s tokens enters the base as one embedding, at the position of its last token. The base's state
there gives the first token of the next group; a micro decoder over states of several layers and the tokens
so far gives the others, until a stop head says that the group ends.

Source: Liu and Zhang 2025, "HAMburger: Accelerating LLM Inference via Token Smashing", section 3.
"""

import copy
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.layers.norm import RMSNorm
from shoestring.models.decoder import Decoder, DecoderLayer
from shoestring.models.decoder_config import DecoderConfig
from shoestring.models.decoder_step import Step, Want
from shoestring.models.hamburger_options import HamburgerOptions, check_confidence
from shoestring.models.hooks import Context
from shoestring.models.layer_layout import LayerKind
from shoestring.models.protocols import KVCache


class MergeEmbedder(nn.Module):
    """Several embeddings to one: x̄ + W_o attention(W_q x̄, [X; P]), where x̄ is their mean; one stays as it is.

    P holds a learned row for every place in a group, half as wide as X.
    """

    def __init__(self, hidden_size: int, max_steps: int, head_size: int) -> None:
        super().__init__()
        self.heads, self.head_size = hidden_size // head_size, head_size
        self.places = nn.Parameter(torch.empty(max_steps, hidden_size // 2))
        nn.init.xavier_normal_(self.places)
        wide = hidden_size + hidden_size // 2
        self.q_proj, self.o_proj = nn.Linear(hidden_size, hidden_size), nn.Linear(hidden_size, hidden_size)
        self.k_proj, self.v_proj = nn.Linear(wide, hidden_size), nn.Linear(wide, hidden_size)

    def forward(
        self, x: Float[Tensor, "groups steps hidden"], sizes: Int[Tensor, " groups"]
    ) -> Float[Tensor, "groups hidden"]:
        """x: of each group the first `sizes` embeddings; what follows is not looked at."""
        steps = x.shape[1]
        present = torch.arange(steps, device=x.device) < sizes[:, None]
        # Padding may be anything, also not finite.
        x = torch.where(present[..., None], x, 0.0)
        mean = x.sum(1) / sizes[:, None].to(x.dtype)
        z = torch.cat([x, self.places[:steps].to(x.dtype).expand(len(x), -1, -1)], -1)
        q, k, v = (self._heads(t) for t in (self.q_proj(mean)[:, None], self.k_proj(z), self.v_proj(z)))
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=present[:, None, None])
        merged = mean + self.o_proj(seen.transpose(1, 2).reshape(len(x), -1))
        return torch.where((sizes == 1)[:, None], x[:, 0], merged)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, self.head_size)).transpose(1, 2)


def naive_merge(embedder: MergeEmbedder, x: Float[Tensor, "s hidden"]) -> Float[Tensor, " hidden"]:
    """`MergeEmbedder` of one group, head by head."""
    if len(x) == 1:
        return x[0]
    mean, size = x.mean(0), embedder.head_size
    z = torch.cat([x, embedder.places[: len(x)]], 1)
    q, k, v = embedder.q_proj(mean), embedder.k_proj(z), embedder.v_proj(z)
    seen = []
    for head in range(embedder.heads):
        own = slice(head * size, (head + 1) * size)
        weights = (k[:, own] @ q[own] * size**-0.5).softmax(0)
        seen.append(weights @ v[:, own])
    return mean + embedder.o_proj(torch.cat(seen))


class MicroDecoder(nn.Module):
    """Layers of the base's kind over [features, embeddings of the group's tokens so far], at positions 0,
    1, …"""

    def __init__(self, cfg: DecoderConfig, output_norm: bool) -> None:
        super().__init__()
        self.cfg = cfg
        self.layers = nn.ModuleList(DecoderLayer(cfg, index) for index in range(cfg.num_hidden_layers))
        self.norm: nn.Module = RMSNorm(cfg.hidden_size, cfg.rms_norm_eps) if output_norm else nn.Identity()

    def forward(
        self, x: Float[Tensor, "groups n hidden"], cache: KVCache | None = None
    ) -> Float[Tensor, "groups n hidden"]:
        """What goes to the head, at every place. cache: of what came before, one slot for each place."""
        pos = torch.arange(x.shape[1], device=x.device).expand(x.shape[0], -1)
        if cache is not None:
            pos = pos + cache.next_pos[:, None]
        ropes, context = frozenset(self.cfg.ropes), Context()
        step = Step.start(pos, True, ropes, self.cfg.head_dim, x.dtype, cache, None, context)
        for layer in self.layers:
            x = layer(x, step)
        return self.norm(x)


def stop_head(hidden_size: int) -> nn.Sequential:
    """What says after each token whether its group ends: three linear maps with SiLU between them."""
    return nn.Sequential(
        nn.Linear(hidden_size, hidden_size), nn.SiLU(),
        nn.Linear(hidden_size, hidden_size), nn.SiLU(),
        nn.Linear(hidden_size, 1),
    )  # fmt: skip


class Hamburger(nn.Module):
    """A base decoder with what makes it emit groups. `confidence` decides how readily groups go on.

    Raises: ValueError for options that do not fit the base; TypeError for a base with layers that have no
    attention.
    """

    def __init__(self, base: Decoder, options: HamburgerOptions, confidence: float | None = 0.9) -> None:
        super().__init__()
        cfg = base.cfg
        if any(kind is not LayerKind.ATTENTION for kind in cfg.layout):
            raise TypeError(
                "the base has layers without attention; a HAMburger needs attention in every layer."
            )
        options.check_fits(cfg.num_hidden_layers, cfg.hidden_size)
        self.options, self.base = options, base
        self.embedder = MergeEmbedder(cfg.hidden_size, options.max_steps, options.merge_head_size)
        self.micro = MicroDecoder(micro_config(cfg, options.micro_layers), options.output_norm)
        self.stop = stop_head(cfg.hidden_size)
        self.confidence = confidence

    @property
    def confidence(self) -> float | None:
        """A group goes on while the next token is trusted this much; None: while it is likelier than not."""
        return self._confidence

    @confidence.setter
    def confidence(self, value: float | None) -> None:
        check_confidence(value)
        self._confidence = value

    @property
    def cfg(self) -> DecoderConfig:
        """The base's."""
        return self.base.cfg

    @property
    def want(self) -> tuple[int | str, ...]:
        """The features as `Want.hidden` names them."""
        return (*self.options.features[:-1], "norm")

    @torch.no_grad()
    def draw_weights(self, generator: torch.Generator, *, from_base: bool = False) -> "Hamburger":
        """New parts from `generator`: normal matrices, biases 0, gains 1. from_base: the micro decoder
        begins as a copy of the base's last layers, and ends with its norm if it has one, which shortens the
        training of a small base. Raises: ValueError for a base with fewer layers than the micro decoder."""
        for module in (self.embedder, self.micro, self.stop):
            for name, parameter in module.named_parameters():
                if name == "places":
                    nn.init.xavier_normal_(parameter, generator=generator)
                elif parameter.dim() > 1:
                    nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5, generator=generator)
                else:
                    nn.init.constant_(parameter, 1.0 if "norm" in name else 0.0)
        return self._copy_last_layers() if from_base else self

    def features(self, hidden: dict[int | str, Tensor]) -> Float[Tensor, "batch n features hidden"]:
        """The states that `want` names, of every place."""
        return torch.stack([hidden[name] for name in self.want], 2)

    def merge(
        self, ids: Int[Tensor, "groups steps"], sizes: Int[Tensor, " groups"]
    ) -> Float[Tensor, "groups hidden"]:
        """One embedding for each group; ids behind a group's size are not looked at."""
        return self.embedder(self.base.model.embed_tokens(ids.clamp(min=0)), sizes)

    def read(self, x: Tensor, pos: Tensor | None, cache: KVCache | None, hooks: Any = ()) -> Tensor:
        """Features of every place of tokens, or embeddings, that the base reads."""
        want = Want(logits=None, hidden=self.want)
        return self.features(self.base(x, pos, cache, hooks=hooks, want=want).hidden)

    def _copy_last_layers(self) -> "Hamburger":
        layers, count = self.base.model.layers, self.options.micro_layers
        if count > len(layers):
            raise ValueError(f"micro_layers={count}, and the base has {len(layers)} layers to copy.")
        for own, theirs in zip(self.micro.layers, layers[-count:], strict=True):
            own.load_state_dict(theirs.state_dict())
        if self.options.output_norm:
            self.micro.norm.load_state_dict(copy.deepcopy(self.base.model.norm.state_dict()))
        return self


def micro_config(cfg: DecoderConfig, layers: int) -> DecoderConfig:
    """The base's configuration with so many of its last kind of layer."""
    fields = {name: getattr(cfg, name) for name in cfg.__dataclass_fields__}
    fields.update(
        num_hidden_layers=layers, windows=(None,) * layers, ropes=(cfg.ropes[-1],) * layers, layout=()
    )
    return DecoderConfig(**fields)
