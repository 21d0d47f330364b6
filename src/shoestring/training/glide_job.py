"""The draft of SmolLM2-135M as a training task: it begins as a copy of the target's last layer."""

import torch
from torch import nn

from shoestring.data.text import default_halves, token_windows
from shoestring.models.built_in import built_in_file
from shoestring.models.glide_draft import GlideDraft
from shoestring.models.load import load_decoder, load_tokenizer
from shoestring.training.glide_training import GlideLoss, GlideText, save_trained
from shoestring.training.job import Job

TARGET = "smollm2-135m"
HELD_OUT = (8, 256)
"""Windows and tokens of the text that judges."""


def glide_job(seed: int) -> Job:
    """Prompts are pieces of one half of the default text, the other half judges.

    Raises: MissingData where the target is not installed.
    """
    file = built_in_file(TARGET)
    target, tokenizer, halves = load_decoder(file), load_tokenizer(file), default_halves()
    prompts = torch.tensor(tokenizer.encode(halves.calibration))
    windows = token_windows(halves.held_out, tokenizer, HELD_OUT[1], limit=HELD_OUT[0], name=halves.name)
    loss = GlideLoss(target)
    pos = torch.arange(windows.shape[1]).expand(windows.shape)

    def held_out_loss(draft: nn.Module) -> float:
        return loss(draft, (windows, pos, torch.ones(len(windows), dtype=torch.long))).item()

    return Job(
        GlideDraft(target.cfg).copy_last_layer(target),
        loss,
        GlideText(target, prompts, seed=seed),
        "held-out nats per token",
        held_out_loss,
        save_trained,
    )
