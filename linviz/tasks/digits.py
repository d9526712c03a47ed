"""Handwritten digits as sequences of pixels: real data that needs no download."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from linviz.tasks.task import IGNORE, Batch, Task


@dataclass(frozen=True)
class Digits(Task):
    """Which digit? Asked at the last of 64 pixels, read row by row.

    The images are scikit-learn's `load_digits`: 1797 of 8 by 8 pixels with values 0 to 16. The
    first 1437 are for training; `evaluate` uses the other 360.

    Source: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998.
    """

    T = 64
    vocab = 17
    classes = 10

    def draw(self, batch: int, rng: torch.Generator) -> Batch:
        """Training images, each drawn anew; see Task.sample."""
        pixels, digits = images()
        chosen = torch.randint(TRAINING, (batch,), generator=rng)
        return labelled(pixels[chosen], digits[chosen])

    def exam(self, batches: int, batch: int, seed: int) -> Iterator[Batch]:
        """All 360 test images in their order, whatever `batches` and `seed`."""
        parts = (part[TRAINING:].split(batch) for part in images())
        for pixels, digits in zip(*parts, strict=True):
            yield labelled(pixels, digits)


TRAINING = 1437


def labelled(pixels: Tensor, digits: Tensor) -> Batch:
    """The digit as the label of the last pixel."""
    labels = torch.full_like(pixels, IGNORE)
    labels[:, -1] = digits
    return pixels, labels


@cache
def images() -> tuple[Tensor, Tensor]:
    """Pixels [1797, 64] and digits [1797], int64."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("Digits needs scikit-learn: pip install scikit-learn") from error
    data = load_digits()
    return torch.from_numpy(data.data).long(), torch.from_numpy(data.target).long()
