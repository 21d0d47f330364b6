"""Batch normalisation folded into the convolution before it, as a deployed network computes it.

Source: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", section 3.2.
"""

from typing import Any

import torch.fx
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from shoestring.notices import notice_fallback

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def fuse_conv_bn(model: nn.Module) -> list[str]:
    """Fold, in place, every batch norm whose only input is a convolution used by nothing else.

    The norm becomes `nn.Identity`; its running statistics are used, so the model must be in eval mode.
    Returns the names of the folded norms. A model that cannot be traced stays as it is, with a notice.

    Raises: ValueError for a model in training mode.
    """
    modules = dict(model.named_modules())
    if not any(type(each) in _NORMS for each in modules.values()):
        return []
    if model.training:
        raise ValueError("fuse_conv_bn folds running statistics; call model.eval() first")
    try:
        graph = torch.fx.Tracer().trace(model)
    except Exception as error:  # whatever stops symbolic tracing, the model still runs unfused
        reason = str(error).partition("\n")[0]
        notice_fallback("fuse_conv_bn", f"batch norms stay apart, the model cannot be traced ({reason})")
        return []
    calls = [node.target for node in graph.nodes if node.op == "call_module"]
    folded = []
    for node in graph.nodes:
        pair = _pair(node, modules, calls)
        if pair is not None:
            conv, norm = pair
            _replace(model, conv, fuse_conv_bn_eval(modules[conv], modules[norm]))
            _replace(model, norm, nn.Identity())
            folded.append(norm)
    return folded


def _pair(node: Any, modules: dict[str, nn.Module], calls: list[str]) -> tuple[str, str] | None:
    """Names of a convolution and a norm, each called once, the norm being all that the former feeds."""
    if node.op != "call_module" or type(modules[node.target]) not in _NORMS or not node.args:
        return None
    source = node.args[0]
    if source.op != "call_module" or type(modules[source.target]) not in _CONVOLUTIONS:
        return None
    if len(source.users) > 1 or calls.count(source.target) > 1 or calls.count(node.target) > 1:
        return None
    if modules[node.target].running_mean is None:
        return None
    return source.target, node.target


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, module)
