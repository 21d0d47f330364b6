"""TinyLM as a HAMburger, and the same TinyLM trained on without groups: both begin with the trained base."""

import copy

import torch
from torch import nn

from shoestring.errors import MissingData
from shoestring.layers.parameter_hint import ParameterHint
from shoestring.models.decoder import Decoder
from shoestring.models.hamburger import Hamburger
from shoestring.models.hamburger_checkpoint import save_small
from shoestring.models.hamburger_options import HamburgerOptions, even_features
from shoestring.models.load import load_decoder, load_tokenizer
from shoestring.training.hamburger_training import HamburgerLoss
from shoestring.training.job import Job
from shoestring.training.tiny_lm import HeldOutLoss, TinyText, prose_text, tiny_loss
from shoestring.training.trained_folder import trained_folder

BASE = "hamburger-base"
FEATURES, MICRO_LAYERS = 3, 2
FIRST_STEP = 100_000
"""Of the examples: records and classes that the base has not seen."""
BASE_RATE = 5e-4
"""Learning rate of what is trained already; new parts learn at the plan's, as in the paper twice as fast."""


def hamburger_job(seed: int) -> Job:
    """Groups are cut by the frozen base. Raises: MissingData where the base is not trained yet."""
    base, text = _trained_base(seed)
    model = tiny_hamburger(base, seed)
    loss = HamburgerLoss(base)
    return Job(
        model,
        loss,
        lambda step: text.train(FIRST_STEP + step),
        "held-out loss of tokens and stops",
        HeldOutLoss(text, loss),
        lambda m, place: save_small(_hamburger(m), place / "hamburger", text.tokenizer),
    )


def baseline_job(seed: int) -> Job:
    """As many more steps on the same examples. Raises: MissingData where the base is not trained yet."""
    base, text = _trained_base(seed)
    model = learning_at(copy.deepcopy(base).requires_grad_(True), BASE_RATE)
    return Job(
        model,
        tiny_loss,
        lambda step: text.train(FIRST_STEP + step),
        "held-out nats per token",
        HeldOutLoss(text, tiny_loss),
        lambda m, place: save_small(_decoder(m), place / "decoder", text.tokenizer),
    )


def tiny_hamburger(base: Decoder, seed: int) -> Hamburger:
    """A HAMburger on a copy of the base: 3 features, 2 micro layers that begin as the base's last ones, and
    the norm before the head that those were trained with, which the published model has not: 2 minutes are
    too short to train them from nothing."""
    own = learning_at(copy.deepcopy(base).requires_grad_(True), BASE_RATE)
    features = even_features(base.cfg.num_hidden_layers, FEATURES)
    options = HamburgerOptions(features, micro_layers=MICRO_LAYERS, output_norm=True)
    return Hamburger(own, options, confidence=0.8).draw_weights(
        torch.Generator().manual_seed(seed), from_base=True
    )


def learning_at(model: Decoder, rate: float) -> Decoder:
    """The same model, whose parameters ask for this learning rate."""
    for module in model.modules():
        names = dict(module.named_parameters(recurse=False))
        module.parameter_hints = {name: ParameterHint(learning_rate=rate) for name in names}  # type: ignore[assignment]
    return model


def _trained_base(seed: int) -> tuple[Decoder, TinyText]:
    # The table of small models names this module's jobs.
    from shoestring.training.small_models import find_small_model

    place = trained_folder(BASE, find_small_model(BASE).plan, seed) / "model" / "decoder"
    if not place.is_dir():
        raise MissingData(f"the base is not trained yet: run `shoestring train {BASE}` first ({place}).")
    return load_decoder(place), TinyText.of(prose_text(), seed, load_tokenizer(place))


def _hamburger(model: nn.Module) -> Hamburger:
    assert isinstance(model, Hamburger)
    return model


def _decoder(model: nn.Module) -> Decoder:
    assert isinstance(model, Decoder)
    return model
