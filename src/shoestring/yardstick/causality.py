"""Which outputs of a sequence model depend on which inputs, read off its gradient."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Function = Callable[[Float[Tensor, "positions dim"]], Float[Tensor, "positions_out dim_out"]]


def influence(
    function: Function, x: Float[Tensor, "positions dim"]
) -> Float[Tensor, "positions_out positions"]:
    """The largest |d y[i] / d x[j]| over the channels of both, of `function` at `x`.

    Positions are the first axis; other axes of a picture or a batch are flattened by the caller. One gradient
    is taken for each output channel, so keep it small. Raises: ValueError where no output depends on `x`.
    """
    x = x.detach().clone().requires_grad_()
    y = function(x)
    if not y.requires_grad:
        raise ValueError("the output does not depend on x through anything that has a gradient")
    rows = []
    for position in y:
        grads = [
            torch.autograd.grad(channel, x, retain_graph=True, allow_unused=True)[0] for channel in position
        ]
        stacked = torch.stack([torch.zeros_like(x) if grad is None else grad for grad in grads])
        rows.append(stacked.abs().amax(dim=(0, 2)))
    return torch.stack(rows)


def leaks(
    function: Function, x: Float[Tensor, "positions dim"], *, strict: bool = False
) -> Bool[Tensor, "positions_out positions"]:
    """Where an output depends on a later input; with `strict`, on the input of its own position too.

    A causal function has none. A gradient that is exactly zero counts as independence, so look at several x.
    """
    found = influence(function, x) != 0
    return found & torch.ones_like(found).triu(0 if strict else 1)
