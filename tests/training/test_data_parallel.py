import pytest
import torch
from torch import distributed, nn
from torch.nn import functional as F

from shoestring.training import Trainer, TrainingPlan
from shoestring.training.data_parallel import world


class SometimesUsed(nn.Module):
    """One layer that only samples with a positive first value need, and one that nobody needs."""

    def __init__(self):
        super().__init__()
        self.main, self.rare, self.never = nn.Linear(3, 1), nn.Linear(3, 1), nn.Linear(3, 1)
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x):
        self.seen += 1
        y = self.main(x)
        needed = x[:, :1] > 0
        return y + self.rare(x) * needed if bool(needed.any()) else y


def loss(model, batch):
    return F.mse_loss(model(batch), batch.sum(1, keepdim=True))


def batches(step):
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
    x[:, 0] = x[:, 0].abs()
    x[:4, 0] *= -1  # the first process never uses `rare`
    return x


def build(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return SometimesUsed()


def test_one_process_is_a_world_of_its_own():
    assert world() == (0, 1)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_give_the_weights_of_one(tmp_path, forked, accumulate):
    plan = TrainingPlan(6, 1e-2, weight_decay=0.1, accumulate=accumulate)

    def run(rank):
        distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=rank, world_size=2)
        model = build(seed=rank)  # they begin apart: process 0 decides
        record = Trainer(model, loss, plan, folder=tmp_path / "run").run(batches)
        torch.save((model.state_dict(), record.losses), tmp_path / f"{rank}.pt")
        distributed.destroy_process_group()

    assert forked(run, 2) == [0, 0]
    (first, losses), (second, other_losses) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    alone = build(seed=0)
    record = Trainer(alone, loss, plan).run(batches)
    for name, tensor in alone.named_parameters():
        torch.testing.assert_close(first[name], tensor, rtol=0, atol=1e-5)
        assert torch.equal(first[name], second[name])
    assert losses == other_losses == pytest.approx(record.losses, abs=1e-5)
    assert torch.equal(first["never.weight"], build(seed=0).never.weight)  # no decay without a gradient
    assert torch.equal(first["seen"], second["seen"])
    # a run of two processes goes on in one
    assert Trainer(build(seed=5), loss, plan, folder=tmp_path / "run").run(batches).resumed_from == 6
