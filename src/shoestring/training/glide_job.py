"""The draft of SmolLM2-135M as a training task: it begins as a copy of the target's last layer."""

import hashlib
from dataclasses import replace

import torch
from torch import nn

from shoestring.data.corpora import load_corpus
from shoestring.data.text import cut_in_halves, default_halves
from shoestring.files import cache_folder
from shoestring.models.built_in import built_in_file
from shoestring.models.glide_draft import GlideDraft, GlideOptions
from shoestring.models.load import load_decoder, load_tokenizer
from shoestring.training.glide_text import GlideText, Writing
from shoestring.training.glide_training import GlideBatches, GlideLoss, passes_per_token, save_trained
from shoestring.training.job import Job

TARGET = "smollm2-135m"
CORPUS = "wikitext2-valid"
KINDS = (
    Writing(samples=64, prompt=192, written=192),
    Writing(samples=16, prompt=1024, written=128),
    Writing(samples=64, prompt=192, written=192, temperature=1.0),
    Writing(samples=8, prompt=3072, written=128, offset=False),
)
"""Mostly greedy, as that is what is drafted most; a quarter of each kind of shard."""
SHARDS = 42
WORDS = 12288
"""That are drafted, of 49152: 97 % of what the target writes."""
HELD_OUT = Writing(samples=16, prompt=512, written=96, offset=False)


def glide_job(seed: int) -> Job:
    """Prompts are pieces of one half of WikiText-2 and of the default text; WikiText's other half judges.

    What the target writes is kept in the user cache, 1.9 GB in all. What is common in the prompts and in the
    first text of each kind is what the draft can draft.

    Raises: MissingData where the target or WikiText is not installed.
    """
    file = built_in_file(TARGET)
    target, tokenizer = load_decoder(file, torch.bfloat16), load_tokenizer(file)
    wiki = cut_in_halves(load_corpus(CORPUS), CORPUS)
    prompts, unseen = (
        torch.tensor(tokenizer.encode(text))
        for text in (wiki.calibration + "\n\n" + default_halves().calibration, wiki.held_out)
    )
    text = _kept(GlideText(target, prompts, KINDS, SHARDS, cache_folder("glide-text"), seed=seed))
    judge = _kept(GlideText(target, unseen, (HELD_OUT,), 1, cache_folder("glide-text"), seed=seed))

    def passes(draft: nn.Module) -> float:
        with torch.autocast("cpu", torch.bfloat16):
            return passes_per_token(draft, target, judge.shard(0), HELD_OUT.prompt)

    ids = torch.cat([prompts, *(text.shard(number).ids.flatten() for number in range(len(KINDS)))])
    draft = GlideDraft(target.cfg, GlideOptions(words=WORDS)).copy_last_layer(target)
    return Job(
        draft.choose_words(ids.bincount(minlength=target.cfg.vocab_size)),
        GlideLoss(target),
        GlideBatches(text),
        "held-out passes of the target per token, 3 drafted",
        passes,
        save_trained,
        text.seconds_to_write,
    )


def _kept(text: GlideText) -> GlideText:
    """With a folder of its own."""
    name = hashlib.sha256(text.name().encode()).hexdigest()[:16]
    return replace(text, folder=text.folder / name)
