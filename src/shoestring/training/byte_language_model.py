"""A small Llama over bytes and the text it learns, kept in the layout that `generate` and `fit` read."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.data.corpora import load_corpus
from shoestring.data.tokens import Bytes, Ids, TextBatches, every_window, split_ids, token_ids

LENGTH = 128
HELD_OUT_WINDOWS = 128
_END = 256
"""Id of the token that ends a text, after the 256 bytes."""


@dataclass(frozen=True)
class ByteText:
    """The training stream and the held-out bytes of a corpus."""

    batches: TextBatches
    held_out: Ids

    @classmethod
    def of(cls, corpus: str, seed: int) -> "ByteText":
        """The last twentieth of the corpus is held out. Raises: as `load_corpus`."""
        train, held_out = split_ids(token_ids(load_corpus(corpus), Bytes()), 0.05)
        return cls(TextBatches(train, LENGTH, batch_size=16, seed=seed), held_out)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean nats per byte."""
        inputs, targets = batch
        logits = model(inputs, use_cache=False).logits
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    def held_out_loss(self, model: nn.Module) -> float:
        """Nats per byte over the first windows of the held-out bytes, each byte asked once."""
        ids = self.held_out[: HELD_OUT_WINDOWS * LENGTH + 1]
        parts = [(len(batch[0]), float(self.loss(model, batch))) for batch in every_window(ids, LENGTH)]
        return sum(rows * loss for rows, loss in parts) / sum(rows for rows, _ in parts)


def build_byte_model(seed: int) -> nn.Module:
    """A LlamaForCausalLM of 4 layers and width 128; the seed decides its weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=_END + 1,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=4 * LENGTH,
        tie_word_embeddings=True,
        bos_token_id=_END,
        eos_token_id=_END,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def save_byte_model(model: nn.Module, place: Path) -> None:
    """Write model and tokenizer as a folder in the layout of Hugging Face."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = bytes_to_unicode()
    core = Tokenizer(models.BPE(vocab={letters[byte]: byte for byte in range(256)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<end>"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<end>", bos_token="<end>", clean_up_tokenization_spaces=False
    )
    model.save_pretrained(place)  # type: ignore[operator]
    tokenizer.save_pretrained(place)
