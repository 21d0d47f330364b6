"""Small real data and seeded generators."""

from shoestring.data.copying import Copying, DelayedSignal, SelectiveCopying
from shoestring.data.corpora import load_corpus
from shoestring.data.digits import load_digits
from shoestring.data.fashion_mnist import load_fashion_mnist
from shoestring.data.labelled_images import LabelledImages, TrainTest
from shoestring.data.listops import ListOps
from shoestring.data.needles import RecallPrompt, key_value_prompts, needle_prompts
from shoestring.data.pathfinder import Pathfinder
from shoestring.data.pixel_sequences import PixelSequences, PixelTask, digit_pixels, fashion_pixels
from shoestring.data.recall import AssociativeRecall, PairRecall, ScatteredRecall
from shoestring.data.shuffled import ShuffledBatches
from shoestring.data.tokens import Bytes, Characters, TextBatches

__all__ = [
    "AssociativeRecall",
    "Bytes",
    "Characters",
    "Copying",
    "DelayedSignal",
    "LabelledImages",
    "ListOps",
    "PairRecall",
    "Pathfinder",
    "PixelSequences",
    "PixelTask",
    "RecallPrompt",
    "ScatteredRecall",
    "SelectiveCopying",
    "ShuffledBatches",
    "TextBatches",
    "TrainTest",
    "digit_pixels",
    "fashion_pixels",
    "key_value_prompts",
    "load_corpus",
    "load_digits",
    "load_fashion_mnist",
    "needle_prompts",
]
