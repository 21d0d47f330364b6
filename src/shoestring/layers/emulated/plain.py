"""The emulated layers whose native layer is one operation. Each takes its arguments and `rounders`."""

from torch import nn

from shoestring.layers.emulated.module import EmulatedModule


class QuantLinear(EmulatedModule, nn.Linear): ...


class QuantEmbedding(EmulatedModule, nn.Embedding): ...


class QuantConv1d(EmulatedModule, nn.Conv1d): ...


class QuantConv2d(EmulatedModule, nn.Conv2d): ...


class QuantConv3d(EmulatedModule, nn.Conv3d): ...


class QuantConvTranspose1d(EmulatedModule, nn.ConvTranspose1d): ...


class QuantConvTranspose2d(EmulatedModule, nn.ConvTranspose2d): ...


class QuantConvTranspose3d(EmulatedModule, nn.ConvTranspose3d): ...


class QuantLayerNorm(EmulatedModule, nn.LayerNorm): ...


class QuantRMSNorm(EmulatedModule, nn.RMSNorm): ...


class QuantGroupNorm(EmulatedModule, nn.GroupNorm): ...


class QuantBatchNorm1d(EmulatedModule, nn.BatchNorm1d):
    """Running statistics are buffers, not operands: they keep full precision."""


class QuantBatchNorm2d(EmulatedModule, nn.BatchNorm2d):
    """Running statistics are buffers, not operands: they keep full precision."""


class QuantBatchNorm3d(EmulatedModule, nn.BatchNorm3d):
    """Running statistics are buffers, not operands: they keep full precision."""


class QuantReLU(EmulatedModule, nn.ReLU): ...


class QuantGELU(EmulatedModule, nn.GELU): ...


class QuantSiLU(EmulatedModule, nn.SiLU): ...


class QuantSigmoid(EmulatedModule, nn.Sigmoid): ...


class QuantTanh(EmulatedModule, nn.Tanh): ...


class QuantSoftmax(EmulatedModule, nn.Softmax): ...


PLAIN_LAYERS: tuple[type[EmulatedModule], ...] = (
    QuantLinear,
    QuantEmbedding,
    QuantConv1d,
    QuantConv2d,
    QuantConv3d,
    QuantConvTranspose1d,
    QuantConvTranspose2d,
    QuantConvTranspose3d,
    QuantLayerNorm,
    QuantRMSNorm,
    QuantGroupNorm,
    QuantBatchNorm1d,
    QuantBatchNorm2d,
    QuantBatchNorm3d,
    QuantReLU,
    QuantGELU,
    QuantSiLU,
    QuantSigmoid,
    QuantTanh,
    QuantSoftmax,
)
