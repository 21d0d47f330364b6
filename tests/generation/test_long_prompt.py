"""A long prompt on SmolLM2-135M's shape: what lean caches take beside dense ones, tensor by tensor."""

import pytest
import torch

from shoestring.generation.combination import combined_cache
from shoestring.generation.decode import generate
from shoestring.generation.saving_menu import Sizes, named_cache, named_selection
from shoestring.models.decoder import Decoder
from shoestring.models.decoder_config import DecoderConfig
from shoestring.yardstick.memory import LiveMemory, tensor_bytes

TOKENS, CHUNK, NEW = 4096, 256, 3
GIB = 1 << 30
SHARE = TOKENS / 32_768
"""Of a prompt of 32k tokens, whose budget is 1 GiB with the weights."""


@pytest.fixture(scope="module")
def model():
    """The shape, random weights: 272 MB in bfloat16."""
    fields = {
        "model_type": "llama", "vocab_size": 49_152, "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64,
        "max_position_embeddings": TOKENS + NEW, "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
        "rope_theta": 100_000.0,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Decoder(DecoderConfig.from_dict(fields), dtype=torch.bfloat16).requires_grad_(False).eval()


def peak_beside_weights(model, form, selection):
    ids = torch.randint(49_152, (TOKENS,), generator=torch.Generator().manual_seed(1)).tolist()
    with LiveMemory(model) as memory:
        cache = combined_cache(model, form, selection, capacity=TOKENS + NEW)
        settings = {"max_new_tokens": NEW, "stop_tokens": (), "prefill_chunk": CHUNK}
        result = generate(model, ids, cache=cache, selection=selection, **settings)
    assert len(result.tokens) == NEW
    return memory.peak_bytes - tensor_bytes(model)


@pytest.fixture(scope="module")
def dense_peak(model):
    """Of a cache that holds everything in the model's bfloat16."""
    return peak_beside_weights(model, named_cache("dense"), None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "select"), [(("tokens", (8, 4)), None), (("groups", (2, 2)), None), (("dense", None), "window")]
)
def test_a_share_of_the_prompt_takes_its_share_of_the_budget(model, dense_peak, form, select):
    """What grows with the prompt stays under its share of what 1 GiB leaves beside the weights."""
    sizes = Sizes(30, TOKENS, TOKENS + NEW)
    selection = named_selection(select, None if select is None else 128.0, sizes)
    lean = peak_beside_weights(model, named_cache(*form), selection)
    # Beside the cache a chunk's own tensors live, which a longer prompt has no more of.
    chunk = CHUNK * (3 * 1536 + 8 * 576) * 2 + 49_152 * 4
    assert lean < (GIB - tensor_bytes(model)) * SHARE + chunk
    assert lean < 0.7 * dense_peak
