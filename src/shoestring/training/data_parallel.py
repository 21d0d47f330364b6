"""Data parallel training through `torch.distributed`, applied from outside: the model knows nothing of it.

Every process runs the same code on the same joined batch and computes its own share; gradients are summed.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, distributed, nn


def world() -> tuple[int, int]:
    """The number of this process and how many there are; (0, 1) without torch.distributed."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def share_weights(model: nn.Module) -> None:
    """Every process takes the parameters and buffers of process 0."""
    for tensor in (*model.parameters(), *model.buffers()):
        distributed.broadcast(tensor.data, 0)


def share_buffers(model: nn.Module) -> None:
    """Every process takes the buffers of process 0, e.g. the running averages of batch norm."""
    for buffer in model.buffers():
        distributed.broadcast(buffer.data, 0)


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Sum the gradients of all processes, in place.

    A parameter that no process used keeps no gradient, so that the optimizer leaves it alone; one that only
    some used counts as 0 in the others.
    """
    if not parameters:
        return
    used = torch.tensor([float(p.grad is not None) for p in parameters], device=parameters[0].device)
    distributed.all_reduce(used)
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for parameter, users in zip(parameters, used.tolist(), strict=True):
        if users:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            by_type.setdefault(parameter.dtype, []).append(parameter.grad)
    for gradients in by_type.values():  # one message each: many small ones cost a round trip apiece
        joined = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(joined)
        for gradient, part in zip(gradients, joined.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))


def summed(value: Tensor) -> Tensor:
    """The sum of a tensor over all processes."""
    value = value.clone()
    distributed.all_reduce(value)
    return value


def of_first(value: float, device: torch.device) -> float:
    """The number that process 0 has."""
    shared = torch.tensor(value, dtype=torch.float64, device=device)
    distributed.broadcast(shared, 0)
    return shared.item()
