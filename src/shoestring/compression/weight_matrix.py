"""The modules that hold one weight matrix, seen alike: rows are outputs or tokens, columns inputs."""

import sys
from typing import cast

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from shoestring.layers.scaled_embedding import ScaledEmbedding


def is_linear(module: nn.Module) -> bool:
    """Whether the module computes x Wᵀ + b: `nn.Linear`, or the `Conv1D` of GPT-2."""
    return type(module) in (nn.Linear, NonDynamicallyQuantizableLinear) or _is_conv1d(module)


def is_embedding(module: nn.Module) -> bool:
    """Whether the module is a look-up table of a known kind, which another may replace."""
    return type(module) in (nn.Embedding, ScaledEmbedding)


def is_table(module: nn.Module) -> bool:
    """Whether the module looks rows up, replaceable or not."""
    return isinstance(module, nn.Embedding)


def row_scale(module: nn.Module) -> float:
    """What an embedding multiplies its rows by as it reads them."""
    return module.scale if isinstance(module, ScaledEmbedding) else 1.0


def holds_matrix(module: nn.Module) -> bool:
    """Whether the module is meant to be a linear map or an embedding, rewritable or not."""
    return isinstance(module, nn.Linear | nn.Embedding) or _is_conv1d(module)


def why_no_matrix(name: str, module: nn.Module) -> str | None:
    """The reason why `module` cannot be replaced by another linear map or table; None if it can."""
    kind = type(module).__name__
    if not (is_linear(module) or is_embedding(module)):
        if isinstance(module, nn.Linear | nn.Embedding):
            return f"{name!r} is a {kind}, whose forward may differ from that of its base class."
        return f"{name!r} is a {kind}, neither a linear layer nor an embedding."
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        return f"{name!r} renormalises its rows as it is used (max_norm={module.max_norm})."
    weight = cast(Tensor, module.weight)
    if not weight.is_floating_point():
        return f"{name!r} holds {weight.dtype} weights; load the model in a floating-point type."
    if weight.is_meta:
        return f"{name!r} holds no values (meta device); load its weights first."
    return None


def weight_matrix(module: nn.Module) -> Float[Tensor, "rows cols"]:
    """The weight of a linear map or embedding as (outputs, inputs); a view, detached."""
    weight = cast(Tensor, module.weight).detach()
    return weight.T if _is_conv1d(module) else weight


def matrix_shape(module: nn.Module) -> tuple[int, int]:
    """(rows, columns) of `weight_matrix`."""
    rows, cols = weight_matrix(module).shape
    return rows, cols


def _is_conv1d(module: nn.Module) -> bool:
    loaded = sys.modules.get("transformers.pytorch_utils")
    return loaded is not None and type(module) is loaded.Conv1D
