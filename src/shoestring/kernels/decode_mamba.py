"""The Mamba mixers of a compiled decode step: the structs of `decode_mamba.h` and what keeps them alive."""

import ctypes
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from shoestring.kernels.dense_linear import STORAGE_KINDS


class MixerFields(ctypes.Structure):
    """`mamba_mixer` of decode_mamba.h."""

    _fields_ = (
        *(
            (name, ctypes.c_void_p)
            for name in ("dt_weight", "dt_bias", "conv_weight", "conv_bias", "decays", "skip")
        ),
        *((name, ctypes.c_int64) for name in ("inner", "shared", "states", "rank", "width")),
    )


class StateFields(ctypes.Structure):
    """`mamba_states` of decode_mamba.h."""

    _fields_ = (("conv", ctypes.c_void_p), ("ssm", ctypes.c_void_p), ("conv_kind", ctypes.c_int64))


@dataclass(frozen=True)
class LayerState:
    """Where one mixer keeps what it has seen, of all samples; a call overwrites it.

    conv: (samples, width − 1, inner) of a type in `STORAGE_KINDS`; ssm: (samples, inner, states) float32.

    Raises: ValueError or TypeError for other types, or tensors that are not contiguous.
    """

    conv: Tensor
    ssm: Tensor

    def __post_init__(self) -> None:
        if self.conv.dtype not in STORAGE_KINDS or self.ssm.dtype != torch.float32:
            raise TypeError(
                f"states of {self.conv.dtype} and {self.ssm.dtype}: conv must be one of "
                f"{list(STORAGE_KINDS)}, ssm torch.float32."
            )
        if not (self.conv.is_contiguous() and self.ssm.is_contiguous()):
            raise ValueError("states must be contiguous; pass tensor.contiguous().")

    @property
    def nbytes(self) -> int:
        """Bytes of the states of one sample."""
        return (self.conv.nbytes + self.ssm.nbytes) // len(self.ssm)

    @property
    def struct(self) -> StateFields:
        """For C; good as long as the tensors are."""
        return StateFields(self.conv.data_ptr(), self.ssm.data_ptr(), STORAGE_KINDS[self.conv.dtype])


class StepMixer:
    """What a mixer holds beside its projections, copied to float32.

    shared: channels of x and of B before they are repeated. A: decay rates, below 0.

    Raises: ValueError for sizes that do not go together.
    """

    def __init__(
        self,
        shared: int,
        dt_weight: Float[Tensor, "inner rank"],
        dt_bias: Float[Tensor, " inner"],
        conv_weight: Float[Tensor, "inner width"],
        conv_bias: Float[Tensor, " inner"],
        A: Float[Tensor, "inner states"],
        D: Float[Tensor, " inner"],
    ) -> None:
        (self.inner, self.rank), self.shared = dt_weight.shape, shared
        self.width, self.states = conv_weight.shape[1], A.shape[1]
        if self.inner % shared or shared % self.states:
            raise ValueError(
                f"a mixer of {self.inner} channels from {shared}, with {self.states} states: each must "
                "divide the one before."
            )
        held = [dt_weight, dt_bias, conv_weight.T, conv_bias, A * math.log2(math.e), D]
        self._alive = [part.detach().float().contiguous().clone() for part in held]
        self.fields = MixerFields(
            *(part.data_ptr() for part in self._alive),
            self.inner, shared, self.states, self.rank, self.width,
        )  # fmt: skip

    @property
    def address(self) -> int:
        """Where the struct is; good as long as this object lives."""
        return ctypes.addressof(self.fields)

    @property
    def mixed(self) -> int:
        """Outputs of the first projection: z, x, B and C."""
        return 2 * (self.inner + self.shared)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors that a call reads."""
        return sum(part.nbytes for part in self._alive)

    @property
    def flops(self) -> int:
        """Operations of a token beside the projections; an exponential counts as one: 6 for each state, and
        for each channel 4, the taps of the convolution and the rank of the step sizes."""
        return self.inner * (6 * self.states + 4 + 2 * self.width + 2 * self.rank)

    def check_state(self, state: LayerState) -> None:
        """Raises: ValueError for a state of other sizes."""
        samples = len(state.ssm)
        expected = (samples, self.width - 1, self.inner), (samples, self.inner, self.states)
        if (tuple(state.conv.shape), tuple(state.ssm.shape)) != expected:
            raise ValueError(
                f"states {tuple(state.conv.shape)} and {tuple(state.ssm.shape)} do not fit a mixer whose are "
                f"{expected[0]} and {expected[1]}."
            )
