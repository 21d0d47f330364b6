"""Structured state space layers: a state space, then a pointwise mix of its features.

Source: Gu et al. 2021, "Efficiently Modeling Long Sequences with Structured State Spaces", section 3.4 (S4);
Gu et al. 2022, "On the Parameterization and Initialization of Diagonal State Space Models" (S4D).
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.layers.state import State
from shoestring.layers.state_space.hippo import DiagonalPlusLowRank, diagonal_legs, dplr_legs
from shoestring.layers.state_space.s4_kernel import S4Kernel
from shoestring.layers.state_space.s4d_kernel import S4DKernel
from shoestring.layers.state_space.state_space import StateSpace


class StateSpaceLayer(nn.Module):
    """y = GLU(Linear(dropout(GELU(SSM(u))))), where dropout takes a feature from all steps or from none.

    Shapes: u (batch, seq, d_model) -> y (batch, seq, d_model). `Recurrent`, after `setup_step`.
    """

    def __init__(self, ssm: StateSpace, dropout: float = 0.0) -> None:
        super().__init__()
        d_model = ssm.kernel.d_model
        self.ssm, self.dropout = ssm, nn.Dropout1d(dropout)
        self.mix = nn.Linear(ssm.channels * d_model, 2 * d_model)

    def forward(
        self, u: Float[Tensor, "batch seq d_model"], rate: float = 1.0
    ) -> Float[Tensor, "batch seq d_model"]:
        return self._mixed(self.ssm(u, rate))

    def setup_step(self, mode: str = "linear") -> None:
        """As `StateSpace.setup_step`."""
        self.ssm.setup_step(mode)

    def init_state(
        self, batch: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """As `StateSpace.init_state`."""
        return self.ssm.init_state(batch, device=device, dtype=dtype)

    def prefill(
        self, x: Float[Tensor, "batch seq d_model"], state: State
    ) -> tuple[Float[Tensor, "batch seq d_model"], State]:
        """As `Recurrent.prefill`."""
        y, state = self.ssm.prefill(x, state)
        return self._mixed(y), state

    def step(
        self, x: Float[Tensor, "batch d_model"], state: State
    ) -> tuple[Float[Tensor, "batch d_model"], State]:
        """As `Recurrent.step`."""
        y, state = self.ssm.step(x, state)
        return self._mixed(y.unsqueeze(1)).squeeze(1), state

    def _mixed(self, y: Tensor) -> Tensor:
        y = F.gelu(y)
        if self.training and self.dropout.p:
            y = self.dropout(y.transpose(1, 2)).transpose(1, 2)
        return F.glu(self.mix(y), dim=-1)


class S4(StateSpaceLayer):
    """S4: the state matrix is diagonal plus low rank, at first HiPPO-LegS, with its long memory.

    channels: filters a feature; n_ssm: copies of the state matrix that the features share; initial: another
    state matrix, e.g. `random_dplr(64)`. Modes of `setup_step`: linear, dense, diagonal.
    Raises: ValueError for an odd d_state, and as `S4Kernel` and `StateSpace`.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        *,
        channels: int = 1,
        n_ssm: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        initial: DiagonalPlusLowRank | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        kernel = S4Kernel(
            d_model, initial or dplr_legs(d_state), channels=channels * (2 if bidirectional else 1),
            n_ssm=n_ssm, dt_min=dt_min, dt_max=dt_max, generator=generator,
        )  # fmt: skip
        super().__init__(StateSpace(kernel, bidirectional=bidirectional, generator=generator), dropout)


class S4D(StateSpaceLayer):
    """S4D: the state matrix is diagonal. Cheaper than S4 and nearly as good; any length without set-up.

    Arguments and errors as `S4`; initial: `diagonal_legs` unless given. Modes of `setup_step`: diagonal,
    dense.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        *,
        channels: int = 1,
        n_ssm: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        initial: DiagonalPlusLowRank | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        kernel = S4DKernel(
            d_model, initial or diagonal_legs(d_state), channels=channels * (2 if bidirectional else 1),
            n_ssm=n_ssm, dt_min=dt_min, dt_max=dt_max, generator=generator,
        )  # fmt: skip
        super().__init__(StateSpace(kernel, bidirectional=bidirectional, generator=generator), dropout)

    def setup_step(self, mode: str = "diagonal") -> None:
        """As `StateSpace.setup_step`."""
        super().setup_step(mode)
