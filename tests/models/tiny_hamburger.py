"""Small random HAMburgers for the tests."""

import torch

from shoestring.layers.rotary import Rope
from shoestring.models.decoder import Decoder
from shoestring.models.decoder_config import DecoderConfig
from shoestring.models.hamburger import Hamburger
from shoestring.models.hamburger_options import HamburgerOptions

VOCAB = 53


def tiny_base(seed=0, dtype=torch.float32, layers=3):
    cfg = DecoderConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, windows=(None,) * layers,
        ropes=(Rope(10_000.0),) * layers, max_position_embeddings=256, tie_word_embeddings=True,
        eos_token_id=0,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    model = Decoder(cfg, dtype=dtype)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=2 * parameter.shape[1] ** -0.5, generator=generator)
    return model.requires_grad_(False).eval()


def tiny_hamburger(seed=0, dtype=torch.float32, confidence=0.5, **options):
    given = {"features": (0, 2), "micro_layers": 2, "merge_head_size": 8, **options}
    model = Hamburger(tiny_base(seed, dtype), HamburgerOptions(**given), confidence).to(dtype)
    return model.draw_weights(torch.Generator().manual_seed(seed + 1)).requires_grad_(False).eval()


def random_ids(count, seed=0):
    return torch.randint(1, VOCAB, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
