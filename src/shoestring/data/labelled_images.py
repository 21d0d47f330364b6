"""Pictures with their classes."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8


@dataclass(frozen=True)
class LabelledImages:
    """Grey pictures and their classes, as bytes."""

    images: UInt8[np.ndarray, "n height width"]
    labels: UInt8[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class TrainTest:
    """The two parts of a data set, as its authors drew them."""

    train: LabelledImages
    test: LabelledImages
