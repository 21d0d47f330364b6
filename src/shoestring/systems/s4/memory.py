"""A signal said again half a sequence later: what HiPPO remembers and a random state matrix does not."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.data.copying import DelayedSignal
from shoestring.layers.state_space import S4, DiagonalPlusLowRank, dplr_legs, random_dplr
from shoestring.systems.s4.claims import DELAY_STEPS, HIPPO
from shoestring.training import Trainer, TrainingPlan
from shoestring.yardstick.comparison import Row

CUTOFF, BATCH, RATE, TESTS = 0.03, 16, 1e-2, 8
D_MODEL, D_STATE = 32, 64


def memory_rows(steps: int, seed: int, length: int = DELAY_STEPS) -> list[Row]:
    """Share of the variance of the delayed signal that one layer explains, in percent; 0 is chance."""
    control = random_dplr(D_STATE, torch.Generator().manual_seed(seed))
    explained = {name: _explained(matrix, steps, seed, length) for name, matrix in
                 (("HiPPO", dplr_legs(D_STATE)), ("random", control))}  # fmt: skip
    return [
        HIPPO.row(baseline=explained["random"], method=explained["HiPPO"], against="a random stable matrix")
    ]


def _explained(matrix: DiagonalPlusLowRank, steps: int, seed: int, length: int) -> float:
    torch.manual_seed(seed)
    layer = S4(D_MODEL, initial=matrix, dt_min=1 / length, dt_max=10 / length)
    model = nn.Sequential(nn.Linear(1, D_MODEL), layer, nn.Linear(D_MODEL, 1))
    task = DelayedSignal(length=length, delay=length // 2, cutoff=CUTOFF, batch_size=BATCH, seed=seed)
    plan = TrainingPlan(steps, RATE, warmup_steps=steps // 10, seed=seed)
    Trainer(model, lambda net, batch: _error(net, batch, length), plan).run(task)
    with torch.no_grad():
        errors = [_error(model.eval(), task(steps + index), length) for index in range(TESTS)]
        powers = [task(steps + index)[1][:, length // 2 :].square().mean() for index in range(TESTS)]
    return 100 * (1 - float(sum(errors) / sum(powers)))


def _error(model: nn.Module, batch: tuple[Tensor, Tensor], length: int) -> Tensor:
    """Mean square error where there is something to say."""
    signal, target = batch
    return F.mse_loss(model(signal)[:, length // 2 :], target[:, length // 2 :])
