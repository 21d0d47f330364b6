"""Torch layers that round weights, inputs, outputs, biases and gradients to number formats."""

from shoestring.layers.emulated.attention import QuantMultiheadAttention
from shoestring.layers.emulated.convert import EMULATED, emulate_layers
from shoestring.layers.emulated.module import EmulatedModule, Rounders
from shoestring.layers.emulated.plain import (
    QuantBatchNorm1d,
    QuantBatchNorm2d,
    QuantBatchNorm3d,
    QuantConv1d,
    QuantConv2d,
    QuantConv3d,
    QuantConvTranspose1d,
    QuantConvTranspose2d,
    QuantConvTranspose3d,
    QuantEmbedding,
    QuantGELU,
    QuantGroupNorm,
    QuantLayerNorm,
    QuantLinear,
    QuantReLU,
    QuantRMSNorm,
    QuantSigmoid,
    QuantSiLU,
    QuantSoftmax,
    QuantTanh,
)
from shoestring.layers.emulated.recurrent import QuantGRU, QuantLSTM, QuantRNN
from shoestring.layers.emulated.straight_through import (
    round_gradient,
    round_tensor,
    saturating_straight_through,
    straight_through,
)

__all__ = [
    "EMULATED",
    "EmulatedModule",
    "QuantBatchNorm1d",
    "QuantBatchNorm2d",
    "QuantBatchNorm3d",
    "QuantConv1d",
    "QuantConv2d",
    "QuantConv3d",
    "QuantConvTranspose1d",
    "QuantConvTranspose2d",
    "QuantConvTranspose3d",
    "QuantEmbedding",
    "QuantGELU",
    "QuantGRU",
    "QuantGroupNorm",
    "QuantLSTM",
    "QuantLayerNorm",
    "QuantLinear",
    "QuantMultiheadAttention",
    "QuantRMSNorm",
    "QuantRNN",
    "QuantReLU",
    "QuantSiLU",
    "QuantSigmoid",
    "QuantSoftmax",
    "QuantTanh",
    "Rounders",
    "emulate_layers",
    "round_gradient",
    "round_tensor",
    "saturating_straight_through",
    "straight_through",
]
