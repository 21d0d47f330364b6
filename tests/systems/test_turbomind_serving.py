"""The serving part of TurboMind's card: formats share one memory, and the smaller one holds more."""

import pytest
import torch

from shoestring.models.decoder import Decoder
from shoestring.models.decoder_config import DecoderConfig
from shoestring.serving import ChunkedPrefill
from shoestring.systems.turbomind.serving import ADMITTED, THROUGHPUT, ServingSettings, serving_rows

SETTINGS = ServingSettings(6, (4, 20), (2, 6), 64, 3, ChunkedPrefill(32, 8))


def tiny_decoder():
    torch.manual_seed(0)
    cfg = DecoderConfig.from_dict(
        {
            "model_type": "llama", "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64,
            "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
        }
    )  # fmt: skip
    return Decoder(cfg).requires_grad_(False).eval()


def test_four_bits_hold_three_and_a_half_times_the_tokens():
    rows, notes = serving_rows(tiny_decoder(), torch.arange(61), SETTINGS, seed=0)
    by_metric = {row.metric: row for row in rows}
    admitted = by_metric[ADMITTED.metric]
    # 64 channels: 128 bytes a key in 16 bits, 36 in 4; whole blocks of 16 tokens.
    assert (admitted.baseline, admitted.method) == (64, 64 * 128 // 36 // 16 * 16)
    assert by_metric[THROUGHPUT.metric].ratio > 0
    assert len(rows) == 3
    assert "6 requests arrive at once" in notes[0]
    assert len(notes) == 3


def test_a_text_without_prompts_is_refused():
    with pytest.raises(ValueError, match="20 tokens of text are no more than a prompt of 20"):
        serving_rows(tiny_decoder(), torch.arange(20), SETTINGS, seed=0)
