"""Whole networks assembled from layers, and the protocols by which others take part in them."""

from shoestring.models.axial_image_config import AxialImageConfig
from shoestring.models.axial_image_model import AxialImageModel
from shoestring.models.checkpoint import Checkpoint, open_checkpoint
from shoestring.models.conv_nets import PlainConvNet, ResidualNet
from shoestring.models.decoder import Decoder
from shoestring.models.decoder_config import DecoderConfig
from shoestring.models.decoder_step import DecoderOutput, Want
from shoestring.models.gguf_decoder import GGUFDecoder
from shoestring.models.gguf_file import GGUFFile
from shoestring.models.hooks import AttendCall, AttnPlan, Context, Drop, Keep, Phase, Route
from shoestring.models.load import load_decoder, load_tokenizer
from shoestring.models.protocols import CacheCannot, HookConflict, KVCache, KVView, Traffic
from shoestring.models.safetensors_file import SafetensorsFile, ShardedSafetensors

__all__ = [
    "AttendCall",
    "AttnPlan",
    "AxialImageConfig",
    "AxialImageModel",
    "CacheCannot",
    "Checkpoint",
    "Context",
    "Decoder",
    "DecoderConfig",
    "DecoderOutput",
    "Drop",
    "GGUFDecoder",
    "GGUFFile",
    "HookConflict",
    "KVCache",
    "KVView",
    "Keep",
    "Phase",
    "PlainConvNet",
    "ResidualNet",
    "Route",
    "SafetensorsFile",
    "ShardedSafetensors",
    "Traffic",
    "Want",
    "load_decoder",
    "load_tokenizer",
    "open_checkpoint",
]
