"""A small network with everything that makes a resume hard: dropout, running averages, a tied weight."""

import multiprocessing

import pytest
import torch
from torch import nn
from torch.nn import functional as F


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.norm = nn.BatchNorm1d(6)
        self.second = nn.Linear(6, 6)
        self.tied = nn.Linear(6, 6)
        self.tied.weight = self.second.weight
        self.last = nn.Linear(6, 1)

    def forward(self, x):
        x = F.dropout(self.norm(self.first(x)).relu(), 0.3, self.training)
        return self.last(self.tied(self.second(x).tanh()))


@pytest.fixture
def small():
    def build(seed=0):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return Small()

    return build


def squared_error(model, batch):
    x, y = batch
    return F.mse_loss(model(x), y)


def batches(step):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(12, 4, generator=generator)
    return x, x.sum(1, keepdim=True)


def in_processes(run, count=1, seconds=60):
    """Run `run(rank)` in that many forked processes; their exit codes."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=run, args=(rank,)) for rank in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(seconds)
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode for process in processes]


@pytest.fixture(scope="session")
def forked():
    return in_processes


@pytest.fixture(scope="session")
def task():
    """(loss, batches) of a regression."""
    return squared_error, batches
