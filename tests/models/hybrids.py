"""Tiny decoders in which some layers have no attention."""

import torch

from shoestring.layers.mamba.grouped_mamba import MambaShape, ScanKind
from shoestring.models.decoder import Decoder
from shoestring.models.decoder_config import DecoderConfig
from shoestring.models.layer_layout import LayerKind

VOCAB = 61
FIELDS = {
    "model_type": "llama", "vocab_size": VOCAB, "hidden_size": 24, "intermediate_size": 40,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256,
    "tie_word_embeddings": True, "rms_norm_eps": 1e-5, "eos_token_id": 2,
}  # fmt: skip


def tiny(layout="ttmt", *, seed=0, dtype=torch.float32, scan=ScanKind.SELECTIVE, d_state=4, **fields):
    """A random decoder in evaluation mode whose weights are scaled up, so that tokens differ."""
    shape = MambaShape(d_state=16 if scan is ScanKind.SSD else d_state, dt_rank=3, scan=scan)
    mamba = {"d_state": shape.d_state, "dt_rank": 3, "scan": scan.value}
    config = {**FIELDS, "num_hidden_layers": len(layout), "layout": layout, "mamba": mamba, **fields}
    torch.manual_seed(seed)
    decoder = Decoder(DecoderConfig.from_dict(config)).to(dtype)
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.ndim > 1 and parameter.shape[-1] > 4:
                parameter.mul_(2.5)
    assert decoder.cfg.layout == tuple(LayerKind(letter) for letter in layout)
    return decoder.requires_grad_(False).eval()


def ids_of(batch, n, seed=1):
    return torch.randint(VOCAB, (batch, n), generator=torch.Generator().manual_seed(seed))
