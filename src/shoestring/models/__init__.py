"""Whole networks assembled from layers, and the protocols by which others take part in them."""

from shoestring.models.conv_nets import PlainConvNet, ResidualNet
from shoestring.models.decoder import Decoder
from shoestring.models.decoder_config import DecoderConfig
from shoestring.models.decoder_step import DecoderOutput, Want
from shoestring.models.hooks import AttendCall, AttnPlan, Context, Drop, Keep, Phase, Route
from shoestring.models.protocols import CacheCannot, HookConflict, KVCache, KVView, Traffic

__all__ = [
    "AttendCall",
    "AttnPlan",
    "CacheCannot",
    "Context",
    "Decoder",
    "DecoderConfig",
    "DecoderOutput",
    "Drop",
    "HookConflict",
    "KVCache",
    "KVView",
    "Keep",
    "Phase",
    "PlainConvNet",
    "ResidualNet",
    "Route",
    "Traffic",
    "Want",
]
