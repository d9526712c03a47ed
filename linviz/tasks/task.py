"""What a task is: sequences with the answers that a model should give, drawn from a generator."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = -100  # the label where nothing is asked: cross_entropy's own default
Batch = tuple[Tensor, Tensor]


class Task(ABC):
    """A source of labelled sequences. Subclasses are frozen dataclasses; sizes are their fields.

    For a longer test of the same task: `dataclasses.replace(task, T=256)`.

    Attributes:
        T: length of the input.
        vocab: how many input ids there are; None where the inputs are vectors.
        classes: how many outputs a model has for each token.
        measures: what `evaluate` can say.
    """

    T: int
    vocab: int | None
    measures = ("loss", "bits", "accuracy")

    @property
    def classes(self) -> int:
        """Size of a model's output: the vocabulary, unless a task says otherwise."""
        return self.vocab

    def sample(self, batch: int, rng: torch.Generator) -> Batch:
        """Draw fresh sequences.

        Args:
            batch: how many sequences, B.
            rng: a generator on the CPU; the same state gives the same sequences.

        Returns:
            Inputs and labels. Inputs are ids [B, T] (int64), or vectors [B, T, channels]. Labels
            [B, T] (int64) are IGNORE (-100) where nothing is asked; for Regression they are
            numbers, NaN where nothing is asked. `outputs[:, t]` should predict `labels[:, t]`: no
            shift is left to do.

        Raises:
            ValueError: batch is below 1.
        """
        at_least("batch", batch, 1)
        return self.draw(batch, rng)

    @abstractmethod
    def draw(self, batch: int, rng: torch.Generator) -> Batch:
        """`sample`, for a batch that has been checked."""

    def exam(self, batches: int, batch: int, seed: int) -> Iterator[Batch]:
        """Batches to test a model on: fresh ones, from seeds that training never uses."""
        for i in range(batches):
            yield self.sample(batch, torch.Generator().manual_seed(seed_of("exam", seed, i)))

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy in nats at each place where something is asked.

        Args:
            outputs: logits [B, T, classes].
            labels: [B, T].

        Returns:
            [n], for the n labels that are not IGNORE.
        """
        asked = labels != IGNORE
        logits = outputs[asked].to(torch.promote_types(outputs.dtype, torch.float32))
        return F.cross_entropy(logits, labels[asked], reduction="none")

    def hits(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Whether the greatest logit is right, at each place where something is asked: [n]."""
        asked = labels != IGNORE
        return outputs[asked].argmax(-1) == labels[asked]

    def describe(self) -> dict:
        """The name and all that the data depend on, as plain values."""
        return {"name": type(self).__name__, **asdict(self)}


def seed_of(*parts: object) -> int:
    """A seed for what the parts name; different parts give unrelated seeds."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1  # manual_seed takes 63 bits without a sign


def at_least(name: str, value: object, least: int) -> None:
    """Refuse anything but a whole number that is large enough."""
    if not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number, {least} or more, got {value!r}")


def distinct(batch: int, count: int, n: int, rng: torch.Generator) -> Tensor:
    """`count` different numbers of 0..n-1 in random order, in each of `batch` rows."""
    return torch.rand(batch, n, generator=rng, dtype=torch.float64).topk(count).indices
