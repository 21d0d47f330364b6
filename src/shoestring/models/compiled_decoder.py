"""A `Decoder` whose layers run in one compiled call per token: modules become kernels, once.

Which kernel a linear layer gets is the business of a function, so that other forms of weights take part by
giving one: `CompiledDecoder(decoder, kernel_of=my_kernel)` with my_kernel(module) -> LinearKernel | None.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from shoestring.errors import ShoestringError
from shoestring.kernels.decode_mamba import LayerState, StepMixer
from shoestring.kernels.decode_step import PROMPT_TOKENS, DecodeStep, LayerCache, StepLayer, StepShape
from shoestring.kernels.dense_linear import STORAGE_KINDS, dense_linear
from shoestring.kernels.grouped_linear import Activations
from shoestring.kernels.linear_kernel import LinearKernel
from shoestring.layers.dual_binary_linear import DualBinaryLinear
from shoestring.layers.mamba.grouped_mamba import GroupedMambaMixer, ScanKind
from shoestring.layers.norm import RMSNorm
from shoestring.layers.packed_kernel import packed_kernel
from shoestring.layers.packed_linear import PackedEmbedding, PackedLinear, PackedWeight
from shoestring.layers.row_sparse_linear import RowSparseLinear, row_sparse_kernel
from shoestring.layers.sparse_linear import SparseLinear
from shoestring.models.decoder import Attention, Decoder, DecoderLayer, FeedForward
from shoestring.models.decoder_config import Activation, DecoderConfig
from shoestring.models.layer_layout import LayerKind

KernelOf = Callable[[nn.Module], LinearKernel | None]
"""The kernel of a linear layer, or None where the usual one will do."""
_FIRST_POSITIONS = 1024
_KNOWN = (Decoder, DecoderLayer, Attention, FeedForward, RMSNorm, GroupedMambaMixer)


class CannotCompile(ShoestringError, TypeError):
    """A decoder holds something that the compiled step does not know; the message names it."""


class CompiledDecoder:
    """The layers and head of a decoder as one compiled step; the embedding stays a module.

    kernel_of: asked first for every linear layer; where it gives None, and without it, `usual_kernel` is.
    activations: in what the inputs of packed layers take part; those of others are float32. Where that is
    int8, attention of prompts may round to bfloat16, which is finer. head: in place of
    the decoder's own, perhaps with other outputs; a final norm that is an `nn.Identity` is none. Weights are
    used where they are, or as the kernels have packed them; gains of norms, and what mixers hold beside their
    projections, are copied.

    Raises: CannotCompile for a module without a kernel, or weights elsewhere than on the CPU; NoCompiler.
    """

    def __init__(
        self,
        decoder: Decoder,
        kernel_of: KernelOf | None = None,
        *,
        activations: Activations = Activations.FLOAT32,
        head: LinearKernel | None = None,
    ) -> None:
        cfg = decoder.cfg
        _require_known_layers(cfg)
        _require_plain_modules(decoder)
        self.decoder, self.activations = decoder, activations
        self._kernel_of = kernel_of
        self._ropes = tuple(dict.fromkeys(cfg.ropes))
        # The largest matrix first: while it is packed it is there twice, and the others are not there yet.
        head = self._kernel("lm_head", decoder.lm_head) if head is None else head
        shape = StepShape(
            cfg.hidden_size, cfg.intermediate_size, cfg.num_attention_heads, cfg.num_key_value_heads,
            cfg.head_dim, head.outputs, cfg.rms_norm_eps, cfg.scale, cfg.activation is Activation.GELU_TANH,
        )  # fmt: skip
        layers = [self._layer(index, layer) for index, layer in enumerate(decoder.model.layers)]
        last = decoder.model.norm
        gain = None if isinstance(last, nn.Identity) else _gain(last)
        self.step = DecodeStep(shape, layers, gain, head, rounded=activations is Activations.INT8)
        self._positions = 0

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that a token reads."""
        return self.step.weight_bytes

    def use(self, caches: Sequence[LayerCache | LayerState]) -> None:
        """Work on these keys and values, and states of mixers, from now on; to be called again when they
        move."""
        self.step.set_cache(caches)

    def __call__(
        self,
        x: Int[Tensor, " n"] | Float[Tensor, "n hidden"],
        start: int,
        logit_rows: int = 1,
        shift: int = 0,
    ) -> Float[Tensor, "logit_rows vocab"]:
        """Run tokens, or embeddings, at slots start, start + 1, … and positions `shift` later, in blocks of
        PROMPT_TOKENS.

        The logits are those of the last `logit_rows` tokens (at most eight), good until the next call.
        """
        hidden = x.float() if x.is_floating_point() else self._embed(x)
        self.reach(start + shift + len(hidden))
        while len(hidden) > PROMPT_TOKENS:
            # The last block is not to be shorter than the logits wanted.
            block = min(PROMPT_TOKENS, len(hidden) - logit_rows)
            self.step(hidden[:block], start, 0, shift)
            hidden, start = hidden[block:], start + block
        return self.step(hidden, start, logit_rows, shift)

    def _embed(self, ids: Int[Tensor, " n"]) -> Float[Tensor, "n hidden"]:
        embedding, head = self.decoder.model.embed_tokens, self.decoder.lm_head
        if not isinstance(embedding, PackedEmbedding) or not isinstance(head, PackedLinear):
            return embedding(ids).float()
        packed: PackedWeight = embedding.packed
        if packed is not head.packed:
            return embedding(ids).float()
        # Out of what the head has packed anyway, which takes a fraction of the time.
        rows = packed.pack_for_kernel().rows(ids).to(packed.dtype)
        return (rows if embedding.scale == 1.0 else rows * rows.new_tensor(embedding.scale)).float()

    def reach(self, positions: int) -> None:
        """Make the tables of angles long enough for so many positions."""
        if positions <= self._positions:
            return
        self._positions = max(_FIRST_POSITIONS, 2 * self._positions, positions)
        pos, head_dim = torch.arange(self._positions)[None], self.decoder.cfg.head_dim
        tables = [rope.tables(pos, head_dim, torch.float32) for rope in self._ropes]
        self.step.set_angles([(cos[0, :, 0].contiguous(), sin[0, :, 0].contiguous()) for cos, sin in tables])

    def _layer(self, index: int, layer: nn.Module) -> StepLayer:
        # What a rewritten model holds in these places is only known by asking it.
        inner: Any = layer
        mlp: Any = inner.mlp
        after: Any = inner.post_attention_layernorm
        cfg = self.decoder.cfg
        hybrid = cfg.layout[index] is LayerKind.MAMBA
        return StepLayer(
            **(self._mixer(index, inner.mixer) if hybrid else self._attention(index, inner.self_attn)),
            gate=self._kernel_in(index, "mlp.gate_proj", mlp.gate_proj),
            up=self._kernel_in(index, "mlp.up_proj", mlp.up_proj),
            down=self._kernel_in(index, "mlp.down_proj", mlp.down_proj),
            before_attention=_gain(inner.input_layernorm),
            after_attention=_gain(after) if cfg.post_norms else None,
            before_mlp=_gain(inner.pre_feedforward_layernorm if cfg.post_norms else after),
            after_mlp=_gain(inner.post_feedforward_layernorm) if cfg.post_norms else None,
            window=cfg.windows[index],
            angles=self._ropes.index(cfg.ropes[index]),
        )

    def _attention(self, index: int, attention: Any) -> dict[str, Any]:
        """The fields of `StepLayer` that attention fills."""
        normalised = self.decoder.cfg.qk_norm
        return {
            **{
                part: self._kernel_in(index, f"self_attn.{part}_proj", getattr(attention, f"{part}_proj"))
                for part in "qkvo"
            },
            "q_norm": _gain(attention.q_norm) if normalised else None,
            "k_norm": _gain(attention.k_norm) if normalised else None,
        }

    def _mixer(self, index: int, mixer: GroupedMambaMixer) -> dict[str, Any]:
        """The fields of `StepLayer` that a Mamba mixer fills."""
        name = f"model.layers.{index}.mixer"
        if mixer.conv_weight.device.type != "cpu":
            raise CannotCompile(f"{name} is on {mixer.conv_weight.device}; the step runs on the CPU.")
        if not isinstance(getattr(mixer.dt_proj, "weight", None), Tensor):
            raise CannotCompile(
                f"{name}.dt_proj is a {type(mixer.dt_proj).__name__}, which has no weight to compute with."
            )
        return {
            "q": self._kernel_in(index, "mixer.in_proj", mixer.in_proj),
            "k": self._kernel_in(index, "mixer.dt_in_proj", mixer.dt_in_proj),
            "v": None,
            "o": self._kernel_in(index, "mixer.out_proj", mixer.out_proj),
            "q_norm": None,
            "k_norm": None,
            "mamba": StepMixer(
                mixer.d_xb, mixer.dt_proj.weight, mixer.dt_proj.bias, mixer.conv_weight, mixer.conv_bias,
                mixer.A(), mixer.D,
            ),
        }  # fmt: skip

    def _kernel_in(self, index: int, path: str, module: nn.Module) -> LinearKernel:
        return self._kernel(f"model.layers.{index}.{path}", module)

    def _kernel(self, name: str, module: nn.Module) -> LinearKernel:
        kernel = self._kernel_of(module) if self._kernel_of else None
        kernel = usual_kernel(module, self.activations) if kernel is None else kernel
        if kernel is None:
            weight = getattr(module, "weight", None)
            where = f" of {weight.dtype} on {weight.device}" if isinstance(weight, Tensor) else ""
            raise CannotCompile(
                f"{name}, a {type(module).__name__}{where}, has no kernel for the decode step."
            )
        return kernel


def usual_kernel(module: nn.Module, activations: Activations) -> LinearKernel | None:
    """The kernel of a plain `nn.Linear` on the CPU, or of a packed, sparse or row-sparse one; else None."""
    if type(module) is PackedLinear:
        return packed_kernel(module, activations)
    if type(module) is RowSparseLinear and module.rows.dtype in (torch.float32, torch.bfloat16):
        return row_sparse_kernel(module)
    if type(module) is DualBinaryLinear:
        return module.kernel()
    if type(module) is SparseLinear and module.masks.device.type == "cpu":
        return module.kernel()
    if type(module) is not nn.Linear:
        return None
    weight = module.weight
    if weight.device.type != "cpu" or weight.dtype not in STORAGE_KINDS:
        return None
    return dense_linear(weight, module.bias)


def _require_known_layers(cfg: DecoderConfig) -> None:
    for index, kind in enumerate(cfg.layout):
        if kind not in (LayerKind.ATTENTION, LayerKind.MAMBA):
            raise CannotCompile(
                f"layer {index} is {kind.name.lower()}; the compiled step knows only layers with attention "
                "or a Mamba mixer."
            )
    if LayerKind.MAMBA in cfg.layout and cfg.mamba.scan is not ScanKind.SELECTIVE:
        raise CannotCompile(
            f"the mixers have the {cfg.mamba.scan.value} scan; the compiled step knows only the selective "
            "one."
        )


def _require_plain_modules(decoder: Decoder) -> None:
    """The step does what these classes do, without calling them."""
    for name, module in decoder.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            raise CannotCompile(
                f"{name or 'the decoder'} has forward hooks, which a compiled step would not call."
            )
        if isinstance(module, _KNOWN) and type(module) not in _KNOWN:
            raise CannotCompile(
                f"{name or 'the decoder'} is a {type(module).__name__}, which may do as it likes."
            )


def _gain(norm: nn.Module) -> Float[Tensor, " dim"]:
    if not isinstance(norm, RMSNorm):
        raise CannotCompile(f"a {type(norm).__name__} stands in the place of an RMSNorm.")
    if norm.weight.device.type != "cpu":
        raise CannotCompile(f"the norms are on {norm.weight.device}; the compiled step runs on the CPU.")
    # A copy, even of a float32 one: an inference tensor that nobody trains.
    return norm.weight.detach().float() + norm.offset
