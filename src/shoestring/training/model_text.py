"""Text that a model writes itself, to distil it where there is no data.

Source: Liu et al. 2023, "LLM-QAT: Data-Free Quantization Aware Training for Large Language Models", section
3.1: every sequence begins with another first token, goes on with the likeliest few, then is sampled.
"""

import torch
from jaxtyping import Int
from torch import Tensor

from shoestring.generation.compiled_batch_runner import batch_runner
from shoestring.generation.decoder_runner import decoder_cache
from shoestring.models.decoder import Decoder
from shoestring.models.decoder_step import Want

GREEDY_TOKENS = 4
"""Of the likeliest continuation after the first token; the paper takes 3 to 5."""


@torch.no_grad()
def model_text(
    model: Decoder, sequences: int, length: int, *, generator: torch.Generator, start: int | None = None
) -> Int[Tensor, "sequences length"]:
    """Token ids that `model` writes, sampled at temperature 1.

    The first tokens are the `sequences` likeliest after `start`, by default the model's first token of any
    text. Raises: ValueError for more sequences than the vocabulary has tokens, or a length below 1.
    """
    cfg = model.cfg
    if not 1 <= sequences <= cfg.vocab_size or length < 1:
        raise ValueError(
            f"sequences={sequences}, length={length}: there are {cfg.vocab_size} first tokens, "
            "and a sequence has one token or more."
        )
    if start is None:
        start = getattr(model.config, "bos_token_id", None) or 0
    first = model(torch.tensor([[start]]), want=Want(logits="last")).logits[0, -1]
    ids = first.topk(sequences).indices[:, None]
    runner = batch_runner(model, decoder_cache(model, batch=sequences, capacity=length))
    last = ids
    while ids.shape[1] < length:
        logits = runner.feed(last).float()
        if ids.shape[1] <= GREEDY_TOKENS:
            last = logits.argmax(-1, keepdim=True)
        else:
            last = torch.multinomial(logits.softmax(-1), 1, generator=generator)
        ids = torch.cat((ids, last), 1)
    return ids
