"""The layers and scans that `sequence_layers.py` compares: ours, and other people's of the same kind.

Each is built for one length and maps (1, length, DIM) to a tensor, or to one first of several.
"""

import math
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

DIM, HEADS = 128, 4
STATES = 64
"""Of a head in the scans with one decay a head."""


@dataclass(frozen=True)
class Contestant:
    """build: length -> layer. rivals: the kinds of peer that ours is judged by; kind: that of a peer.

    growth: the bar on the exponent with which the memory of ours grows.
    """

    name: str
    build: Callable[[int], nn.Module]
    rivals: tuple[str, ...] = ()
    growth: float | None = None
    kind: str | None = None

    @property
    def is_ours(self) -> bool:
        return self.kind is None

    @property
    def colour(self) -> str:
        """What has a colour of its own in a picture: a kind, or one of ours that no package offers."""
        if self.kind is not None:
            return self.kind
        return self.name if self.rivals[0] == "attention" else self.rivals[0]


def s4(length: int) -> nn.Module:
    from shoestring.layers.state_space.s4 import S4

    return S4(DIM)


def long_convolution(length: int) -> nn.Module:
    from shoestring.layers.long_convolution.long_convolution import LongConv

    return LongConv(DIM, length, copies=1, causal=True)


def mamba(length: int) -> nn.Module:
    from shoestring.layers.mamba.mamba import MambaMixer

    return MambaMixer(DIM)


def clusters(length: int) -> int:
    """sqrt(length), rounded to a power of two: clusters of as many tokens as there are clusters."""
    return 2 ** round(math.log2(length) / 2)


def routing(length: int) -> nn.Module:
    from shoestring.layers.routing.routing_attention import HeadSplit, RoutingAttention
    from shoestring.layers.routing.routing_options import RoutingOptions

    k = clusters(length)
    options = RoutingOptions(n_clusters=k, window=length // k)
    return RoutingAttention(DIM, HeadSplit(HEADS, HEADS // 2, HEADS // 2, routing=options))


def axial(length: int) -> nn.Module:
    """A row and a column layer, each beside a skip, on a grid that is as square as the length allows."""
    from shoestring.layers.axial.axial_attention import AxialAttention

    height = clusters(length)

    class Grid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows, self.columns = (AxialAttention(DIM, HEADS, axis=axis, n_axes=2) for axis in (1, 0))

        def forward(self, x: Tensor) -> Tensor:
            x = x.unflatten(1, (height, -1))
            x = x + self.rows(x)
            return (x + self.columns(x)).flatten(1, 2)

    return Grid()


def linformer(length: int) -> nn.Module:
    from shoestring.layers.low_rank.linformer import LinformerAttention

    return LinformerAttention(DIM, HEADS, length, 256, bias=False)  # as its peer has none


def seqboat(length: int) -> nn.Module:
    from shoestring.layers.seqboat.seqboat import SeqBoat

    return SeqBoat(DIM)


class Scan(nn.Module):
    """A function of queries, keys, values and log decays, all made of x without weights."""

    def __init__(self, function: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        heads = x.unflatten(-1, (HEADS, -1))
        keys = heads.repeat(1, 1, 1, STATES // heads.shape[-1])
        return self.function(keys, keys, heads, -torch.sigmoid(heads[..., 0]))


def ssd_scan(length: int) -> nn.Module:
    from shoestring.kernels.ssd import ssd

    def scan(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
        # Its decay is exp(dt A) and its input dt x: dt = -g and A = -1 give exp(g).
        return ssd(v / -g[..., None], -g, torch.full((HEADS,), -1.0), k, q * STATES**-0.5)[0]

    return Scan(scan)


def recurrence(length: int) -> nn.Module:
    from shoestring.kernels.linear_scan import linear_scan

    return Scan(lambda q, k, v, g: linear_scan(g.exp()[..., None].expand_as(v).flatten(2), v.flatten(2))[0])


def peer_mambapy(length: int) -> nn.Module:
    from mambapy.mamba import MambaBlock, MambaConfig

    return MambaBlock(MambaConfig(d_model=DIM, n_layers=1))


def peer_transformers_mamba(length: int) -> nn.Module:
    from transformers.models.mamba.configuration_mamba import MambaConfig
    from transformers.models.mamba.modeling_mamba import MambaMixer

    return MambaMixer(MambaConfig(hidden_size=DIM, num_hidden_layers=1), layer_idx=0)


def peer_transformers_mamba2(length: int) -> nn.Module:
    from transformers.models.mamba2.configuration_mamba2 import Mamba2Config
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    config = Mamba2Config(
        hidden_size=DIM, num_heads=HEADS, head_dim=2 * DIM // HEADS, n_groups=1, num_hidden_layers=1
    )
    return Mamba2Mixer(config, layer_idx=0)


def peer_linformer(length: int) -> nn.Module:
    from linformer import LinformerSelfAttention

    return LinformerSelfAttention(DIM, length, k=256, heads=HEADS)


def peer_routing(length: int) -> nn.Module:
    from routing_transformer.routing_transformer import SelfAttention

    return SelfAttention(
        DIM, 1, length, HEADS, HEADS // 2, window_size=length // clusters(length), causal=True,
        local_attn_window_size=256,
    )  # fmt: skip


def peer_attention(length: int) -> nn.Module:
    from x_transformers.x_transformers import Attention

    return Attention(DIM, heads=HEADS, dim_head=DIM // HEADS, causal=True, flash=True)


def torch_attention(length: int) -> nn.Module:
    from shoestring.layers.self_attention import SelfAttention

    return SelfAttention(DIM, HEADS, causal=True)


def fft_convolution(length: int) -> nn.Module:
    """A long convolution as it is published: both transformed at twice the length, multiplied, taken back."""

    class Published(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Parameter(torch.randn(DIM, length) * 0.002)
            self.skip = nn.Parameter(torch.randn(DIM))
            self.output_linear = nn.Linear(DIM, 2 * DIM)

        def forward(self, x: Tensor) -> Tensor:
            u = x.mT
            product = torch.fft.rfft(u, 2 * length) * torch.fft.rfft(self.kernel, 2 * length)
            y = torch.fft.irfft(product, 2 * length)[..., :length] + self.skip[:, None] * u
            return nn.functional.glu(self.output_linear(nn.functional.gelu(y).mT), -1)

    return Published()


def peer_s4(folder: Path | None) -> Callable[[int], nn.Module]:
    """S4 from a checkout of its authors' repository; what that uses only for its log is replaced."""

    def build(length: int) -> nn.Module:
        if folder is None:
            raise ImportError("give --state-spaces FOLDER, a checkout of github.com/state-spaces/s4")
        sys.path.insert(0, str(folder))
        utilities = types.ModuleType("pytorch_lightning.utilities")
        utilities.__dict__["rank_zero_only"] = lambda function: function
        sys.modules.setdefault("pytorch_lightning", types.ModuleType("pytorch_lightning"))
        sys.modules.setdefault("pytorch_lightning.utilities", utilities)
        from models.s4.s4 import S4Block

        return S4Block(DIM, transposed=False)

    return build


def peer_gated_attention(length: int) -> nn.Module:
    from fla.ops.simple_gla.naive import naive_chunk_simple_gla

    return Scan(lambda q, k, v, g: naive_chunk_simple_gla(q, k, v, g)[0])


def peer_recurrence(length: int) -> nn.Module:
    from fla.ops.hgrn.naive import naive_recurrent_hgrn

    def scan(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
        return naive_recurrent_hgrn(v.flatten(2), g[..., None].expand_as(v).flatten(2))[0]

    return Scan(scan)


def contestants(state_spaces: Path | None = None) -> tuple[Contestant, ...]:
    """Ours first. Layers that no package offers are judged by exact attention, the choice of most users."""
    return (
        Contestant("S4", s4, ("S4", "attention"), 1.1),
        Contestant("long convolution", long_convolution, ("convolution", "attention"), 1.1),
        Contestant("Mamba", mamba, ("Mamba",), 1.1),
        Contestant("SSD scan", ssd_scan, ("gated attention",), 1.1),
        Contestant("linear scan", recurrence, ("recurrence",), 1.1),
        Contestant("routing", routing, ("routing",), 1.6),
        Contestant("axial, row and column", axial, ("attention",), 1.55),
        Contestant("Linformer", linformer, ("Linformer",), 1.1),
        Contestant("SeqBoat", seqboat, ("attention",), 1.1),
        Contestant("state-spaces, S4", peer_s4(state_spaces), kind="S4"),
        Contestant("torch.fft, convolution", fft_convolution, kind="convolution"),
        Contestant("mambapy", peer_mambapy, kind="Mamba"),
        Contestant("transformers, Mamba", peer_transformers_mamba, kind="Mamba"),
        Contestant("transformers, Mamba-2", peer_transformers_mamba2, kind="Mamba"),
        Contestant("fla, gated attention by chunks", peer_gated_attention, kind="gated attention"),
        Contestant("fla, recurrence", peer_recurrence, kind="recurrence"),
        Contestant("linformer", peer_linformer, kind="Linformer"),
        Contestant("routing-transformer", peer_routing, kind="routing"),
        Contestant("x-transformers, exact attention", peer_attention, kind="attention"),
        Contestant("torch, exact attention", torch_attention, kind="attention"),
    )
