"""TinyLM: a decoder of 3 M parameters with a vocabulary of its own, for experiments that two cores can
train."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.data.corpora import PYDOC, load_corpus
from shoestring.data.mixed_examples import MixedExamples, TokenExample
from shoestring.data.structured_text import JsonRecords, PythonClasses
from shoestring.errors import MissingData
from shoestring.layers.rotary import Rope
from shoestring.models.decoder import Decoder
from shoestring.models.decoder_config import DecoderConfig
from shoestring.models.save_decoder import save_decoder
from shoestring.notices import notice_fallback
from shoestring.training.job import Job
from shoestring.training.packed_text import PackedText, WithinExamples

VOCABULARY = 2048
END = "<end>"
TOKENIZER_SAMPLES = 4000
HELD_OUT_SEED = 1
"""Added to the seed of the training examples; held-out prose is the end of the text."""


def tiny_config(vocab_size: int = VOCABULARY, layers: int = 6) -> DecoderConfig:
    """6 layers of width 192: 3.05 M parameters, the embedding tied to the head."""
    return DecoderConfig(
        vocab_size=vocab_size, hidden_size=192, intermediate_size=512, num_hidden_layers=layers,
        num_attention_heads=6, num_key_value_heads=6, head_dim=32, windows=(None,) * layers,
        ropes=(Rope(10_000.0),) * layers, max_position_embeddings=1024, tie_word_embeddings=True,
        eos_token_id=0,
    )  # fmt: skip


def new_tiny_lm(seed: int, vocab_size: int = VOCABULARY, layers: int = 6) -> Decoder:
    """Normal weights of standard deviation 0.02; the seed decides them."""
    generator = torch.Generator().manual_seed(seed)
    model = Decoder(tiny_config(vocab_size, layers))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.02, generator=generator)
    return model


def train_tokenizer(
    prose: str, seed: int, vocab_size: int = VOCABULARY, samples: int = TOKENIZER_SAMPLES
) -> Any:
    """A byte-level BPE of the prose and `samples` texts of each other kind, as a tokenizer of transformers;
    its end token has id 0."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    core.train_from_iterator(_texts(prose, seed, samples), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END, clean_up_tokenization_spaces=False)


def _texts(prose: str, seed: int, samples: int) -> Iterator[str]:
    yield prose
    for number in range(samples):
        for made in (JsonRecords(seed)(number), PythonClasses(seed)(number)):
            yield made.prompt + made.response


def prose_text() -> str:
    """Tiny Shakespeare; where it is not to be had, the default text stands in, which is said."""
    try:
        return load_corpus("shakespeare")
    except MissingData as error:
        notice_fallback("shakespeare", f"the default text stands in for it: {error}")
        return load_corpus(PYDOC)


@dataclass(frozen=True)
class TinyText:
    """Tokenizer, training examples and held-out ones."""

    tokenizer: Any
    train: MixedExamples
    held_out: MixedExamples

    @classmethod
    def of(cls, prose: str, seed: int, tokenizer: Any = None, *, of_each: int = 6) -> "TinyText":
        """The last twentieth of the prose is held out. tokenizer: by default one trained on the rest."""
        cut = len(prose) * 19 // 20
        tokenizer = tokenizer or train_tokenizer(prose[:cut], seed)
        first, rest = (torch.tensor(tokenizer.encode(part)) for part in (prose[:cut], prose[cut:]))
        end = tokenizer.eos_token_id
        return cls(
            tokenizer,
            MixedExamples(tokenizer, first, end, of_each, seed),
            MixedExamples(tokenizer, rest, end, of_each, seed + HELD_OUT_SEED),
        )


def tiny_loss(model: nn.Module, examples: list[TokenExample]) -> Float[Tensor, ""]:
    """Mean nats per token, over every token that has one before it in its example."""
    assert isinstance(model, Decoder)
    packed = PackedText.of(examples)
    logits = model(packed.ids, packed.rows.pos, hooks=(WithinExamples(packed.rows),)).logits
    follows = (packed.rows.pos[:, 1:] > 0).flatten()
    return F.cross_entropy(
        logits[:, :-1].flatten(0, 1)[follows].float(), packed.ids[:, 1:].flatten()[follows]
    )


def save_tiny(model: nn.Module, place: Path, tokenizer: Any) -> None:
    """The decoder and its tokenizer as a folder that `load_decoder` reads."""
    assert isinstance(model, Decoder)
    save_decoder(model, place / "decoder", tokenizer)


@dataclass(frozen=True)
class HeldOutLoss:
    """Mean nats per token of a loss over the examples of the first `steps` held-out steps."""

    text: TinyText
    loss: Callable[[nn.Module, list[TokenExample]], Tensor]
    steps: int = 4

    def __call__(self, model: nn.Module) -> float:
        return (
            sum(float(self.loss(model, self.text.held_out(step))) for step in range(self.steps)) / self.steps
        )


def tiny_job(seed: int) -> Job:
    """TinyLM from nothing, on the mix."""
    text = TinyText.of(prose_text(), seed)
    return Job(
        new_tiny_lm(seed),
        tiny_loss,
        text.train,
        "held-out nats per token",
        HeldOutLoss(text, tiny_loss),
        lambda model, place: save_tiny(model, place, text.tokenizer),
    )
