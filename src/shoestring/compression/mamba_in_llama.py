"""Attention becomes a Mamba mixer that starts from its weights: x ← W_V, B ← W_K, C ← W_Q, output ← W_O.

Without decay, step sizes, convolution and gate the mixer would be linear attention of the same queries, keys
and values where its state is as wide as a head; with a state of 16 it is a warm start, no equivalence. Rotary
positions are dropped. Gate, convolution, step sizes, decays and skip start as in any Mamba.

Source: Wang et al. 2024, "The Mamba in the Llama", section 3.1; Apriel-H1 (ServiceNow, 2025).
"""

import enum
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from shoestring.layers.mamba.grouped_mamba import GroupedMixer, MambaShape, grouped_mixer
from shoestring.models.decoder import Attention, Decoder
from shoestring.models.decoder_config import DecoderConfig
from shoestring.models.layer_layout import LayerKind, Layout, write_layout

Initial = Callable[[GroupedMixer, Attention], None]
"""Fills a new mixer, whose weights are random, from the attention whose place it takes."""


class Unmapped(enum.Enum):
    """What an attention may have that its mixer will not."""

    WINDOW = "sees a window only, while a state has seen everything"
    QK_NORM = "normalises queries and keys"
    BIAS = "has biases"
    QUERY_SCALE = "multiplies scores by a factor of its own"
    POST_NORM = "has its output normalised for attention's scale"
    SHARED = "shares its weights with another layer"


def unmapped(decoder: Decoder, layers: Iterable[int]) -> dict[Unmapped, list[int]]:
    """What of these layers' attention has no counterpart in a mixer, and in which layers. ALiBi is not among
    it: no decoder here has it."""
    cfg, found = decoder.cfg, dict[Unmapped, list[int]]()
    owners: dict[int, list[int]] = {}
    for index in cfg.layers_of(LayerKind.ATTENTION):
        owners.setdefault(_attention(decoder, index).q_proj.weight.data_ptr(), []).append(index)
    shared = {index for group in owners.values() if len(group) > 1 for index in group}
    for index in layers:
        has = {
            Unmapped.WINDOW: cfg.windows[index] is not None,
            Unmapped.QK_NORM: cfg.qk_norm,
            Unmapped.BIAS: cfg.qkv_bias or cfg.output_bias,
            Unmapped.QUERY_SCALE: cfg.query_scale is not None,
            Unmapped.POST_NORM: cfg.post_norms,
            Unmapped.SHARED: index in shared,
        }
        for reason in (reason for reason, there in has.items() if there):
            found.setdefault(reason, []).append(index)
    return found


def from_attention(mixer: GroupedMixer, attention: Attention) -> None:
    """The warm start of the paper. Raises: ValueError for an attention of other heads than the mixer."""
    given = {"x": attention.v_proj, "B": attention.k_proj, "C": attention.q_proj}
    with torch.no_grad():
        for name, projection in given.items():
            rows = mixer.in_proj.weight[mixer.rows[name]]
            if rows.shape != projection.weight.shape:
                raise ValueError(
                    f"{name} is {tuple(rows.shape)}, attention gives {tuple(projection.weight.shape)}; make "
                    "the mixer with the heads of the attention"
                )
            rows.copy_(projection.weight)
        mixer.out_proj.weight.copy_(attention.o_proj.weight)


def at_random(mixer: GroupedMixer, attention: Attention) -> None:
    """Nothing of the attention: the control that the warm start must beat."""


def convert(
    decoder: Decoder,
    layout: Layout,
    shape: MambaShape | None = None,
    *,
    initial: Initial = from_attention,
    seed: int = 0,
    accept: Iterable[Unmapped] = (),
) -> Decoder:
    """A copy of `decoder` with this layout; mixers that are there already keep their weights.

    shape: of the mixers, by default that of the decoder's. initial: fills the new ones; seed: of what is
    random in them, by layer, so that it does not matter which others are converted. accept: what may be lost
    (see `Unmapped`), e.g. all of it for Gemma.

    Raises: ValueError for a layout of another length, layers that would need a converter there is not (to
    attention, from nothing), a shape other than that of mixers there are, or attention that is not mapped.
    """
    changed = _changed(decoder.cfg, layout)
    shape = decoder.cfg.mamba if shape is None else shape
    if LayerKind.MAMBA in decoder.cfg.layout and shape != decoder.cfg.mamba:
        raise ValueError(f"shape is {shape}, but mixers of {decoder.cfg.mamba} are there already; use theirs")
    new = [index for index in changed if layout[index] is LayerKind.MAMBA]
    _refuse_unmapped(decoder, new, frozenset(accept))
    cfg = replace(decoder.cfg, layout=layout, mamba=shape)
    tensors: dict[str, Tensor] = {}
    for index in new:
        attention = _attention(decoder, index)
        mixer = _new_mixer(cfg, attention, seed + index)
        initial(mixer, attention)
        tensors |= {f"model.layers.{index}.mixer.{n}": t for n, t in mixer.state_dict().items()}
    return _rebuilt(decoder, cfg, tensors)


def restore_attention(student: Decoder, layers: Iterable[int], teacher: Decoder) -> Decoder:
    """A copy of `student` whose layers have the teacher's attention, and the norm before it, again.

    Attention cannot be computed from a mixer: the teacher is the only way back.
    Raises: ValueError where the teacher has no attention there, or another shape.
    """
    layers = list(layers)
    same = replace(teacher.cfg, layout=student.cfg.layout, mamba=student.cfg.mamba) == student.cfg
    missing = [index for index in layers if teacher.cfg.layout[index] is not LayerKind.ATTENTION]
    if not same or missing:
        raise ValueError(f"the teacher cannot give back the attention of layers {missing or layers}")
    kinds = [LayerKind.ATTENTION if i in layers else kind for i, kind in enumerate(student.cfg.layout)]
    prefixes = tuple(f"model.layers.{i}.{part}." for i in layers for part in ("self_attn", "input_layernorm"))
    own = {name: tensor for name, tensor in teacher.state_dict().items() if name.startswith(prefixes)}
    return _rebuilt(student, replace(student.cfg, layout=tuple(kinds)), own)


def with_mamba(layout: Layout, layers: Iterable[int]) -> Layout:
    """The layout with mixers in these layers too."""
    chosen = frozenset(layers)
    return tuple(LayerKind.MAMBA if index in chosen else kind for index, kind in enumerate(layout))


def _changed(cfg: DecoderConfig, layout: Layout) -> list[int]:
    if len(layout) != len(cfg.layout):
        raise ValueError(f"layout {write_layout(layout)!r} is not of {len(cfg.layout)} layers")
    changed = [i for i, (old, new) in enumerate(zip(cfg.layout, layout, strict=True)) if old is not new]
    for index in changed:
        old, new = cfg.layout[index], layout[index]
        if new is LayerKind.ATTENTION:
            raise ValueError(
                f"layer {index}: there is no converter from {old.name.lower()} to attention; "
                "restore_attention takes it from the teacher"
            )
        if old is not LayerKind.ATTENTION and new is LayerKind.MAMBA:
            raise ValueError(
                f"layer {index} has no attention ({old.name.lower()}) that a mixer could replace"
            )
    return changed


def _refuse_unmapped(decoder: Decoder, layers: list[int], accepted: frozenset[Unmapped]) -> None:
    found = {reason: own for reason, own in unmapped(decoder, layers).items() if reason not in accepted}
    if found:
        listed = "; ".join(f"{reason.name} ({reason.value}) in layers {own}" for reason, own in found.items())
        raise ValueError(f"attention has what a mixer has not: {listed}. Pass accept= to lose it knowingly.")


def _new_mixer(cfg: DecoderConfig, attention: Attention, seed: int) -> GroupedMixer:
    weight = attention.q_proj.weight
    heads = cfg.num_attention_heads, cfg.num_key_value_heads, cfg.head_dim
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mixer = grouped_mixer(cfg.hidden_size, *heads, cfg.mamba, dtype=weight.dtype)
    return mixer.to(weight.device)


def _rebuilt(decoder: Decoder, cfg: DecoderConfig, tensors: Mapping[str, Tensor]) -> Decoder:
    """A copy under another layout: of its own tensors those that still have a place, and these."""
    needed = {name for name, _ in Decoder(cfg, device="meta").named_parameters(remove_duplicate=False)}
    own = {name: tensor for name, tensor in decoder.state_dict().items() if name in needed}
    made = Decoder.from_weights(
        cfg, {name: tensor.clone() for name, tensor in {**own, **tensors}.items()}, config=decoder.config
    )
    for attribute in ("generation_config", "kv_cache_format"):
        setattr(made, attribute, getattr(decoder, attribute))
    return made


def _attention(decoder: Decoder, index: int) -> Any:
    return decoder.model.layers[index].self_attn
