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
from shoestring.models.layer_layout import LayerKind
from shoestring.models.load import load_decoder, load_tokenizer
from shoestring.models.protocols import CacheCannot, HookConflict, KVCache, KVView, StateCache, Traffic
from shoestring.models.safetensors_file import SafetensorsFile, ShardedSafetensors
from shoestring.models.save_decoder import save_decoder
from shoestring.models.seqboat import SeqBoatClassifier, SeqBoatLM
from shoestring.models.sequence_classifier import SequenceClassifier
from shoestring.models.transformer import (
    TransformerBlock,
    TransformerEncoder,
    TransformerLM,
    TransformerOptions,
)
from shoestring.models.vision_mamba import VisionMamba
from shoestring.models.vision_mamba_config import VisionMambaConfig, vision_mamba_size
from shoestring.models.vision_mamba_weights import load_vision_mamba, save_vision_mamba
from shoestring.models.vision_transformer import VisionTransformer, VisionTransformerConfig

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
    "LayerKind",
    "Phase",
    "PlainConvNet",
    "ResidualNet",
    "Route",
    "SafetensorsFile",
    "SeqBoatClassifier",
    "SeqBoatLM",
    "SequenceClassifier",
    "ShardedSafetensors",
    "StateCache",
    "Traffic",
    "TransformerBlock",
    "TransformerEncoder",
    "TransformerLM",
    "TransformerOptions",
    "VisionMamba",
    "VisionMambaConfig",
    "VisionTransformer",
    "VisionTransformerConfig",
    "Want",
    "load_decoder",
    "load_tokenizer",
    "load_vision_mamba",
    "open_checkpoint",
    "save_decoder",
    "save_vision_mamba",
    "vision_mamba_size",
]
