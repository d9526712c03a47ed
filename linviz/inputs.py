"""What a mechanism takes in: names, axes, allowed values, and how an example is drawn."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

Draw = Callable[[Sequence[int], torch.Generator], Tensor]
Sizes = dict[str, int]


@dataclass(frozen=True)
class Input:
    """One input of a mechanism, its output, or one part of its state.

    Attributes:
        name: as in the signature and the glossary.
        axes: a letter an axis, "b t h k"; "4d" is an axis of four times the size d. With a "t"
            there is one value per token.
        low: least value allowed (of the real part), or None.
        high: greatest value allowed (of the real part), or None.
        complex: complex numbers are welcome too.
        draw: `draw(shape, rng)` makes an example in float64; None stands for `normal`.
    """

    name: str
    axes: str
    low: float | None = None
    high: float | None = None
    complex: bool = False
    draw: Draw | None = None

    @cached_property
    def letters(self) -> tuple[tuple[int, str], ...]:
        """For each axis its factor and letter: "b 4d" is ((1, "B"), (4, "D"))."""
        tokens = (re.fullmatch(r"(\d*)(\w)", axis) for axis in self.axes.split())
        return tuple((int(token[1] or 1), token[2].upper()) for token in tokens)

    @cached_property
    def timed(self) -> bool:
        """Whether there is one value per token."""
        return "t" in self.axes.split()

    @cached_property
    def without_time(self) -> "Input":
        """The same for one token."""
        return replace(self, axes=" ".join(x for x in self.axes.split() if x != "t"))

    @property
    def shape_text(self) -> str:
        """The shape as people write it: [B, T, H, K]."""
        return "[" + ", ".join(axis.upper() for axis in self.axes.split()) + "]"

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape at the given sizes."""
        return tuple(factor * sizes[letter] for factor, letter in self.letters)

    def example(self, sizes: Mapping[str, int], rng: torch.Generator) -> Tensor:
        """An example in float64 (or complex128)."""
        return (self.draw or normal)(self.shape(sizes), rng)

    def measure(self, x: Any, sizes: Sizes, owners: dict[str, str], where: str) -> None:
        """Check x against the axes and note the sizes found.

        Args:
            x: what came in.
            sizes: sizes by letter, found so far; new ones are added.
            owners: which input each size was found in, for the message.
            where: the function called, for the message.
        """
        wanted = f"{where}: {self.name} must be a tensor {self.shape_text}"
        if not isinstance(x, Tensor):
            raise ValueError(f"{wanted}, got {type(x).__name__}")
        if not (x.is_floating_point() or (self.complex and x.is_complex())):
            kinds = "floating-point or complex" if self.complex else "floating-point"
            raise ValueError(f"{wanted} of {kinds} numbers, got {x.dtype}")
        came = f"{wanted}, got shape {tuple(x.shape)}"
        if x.ndim != len(self.letters):
            raise ValueError(f"{came}: {x.ndim} axes instead of {len(self.letters)}")
        for size, (factor, letter) in zip(x.shape, self.letters, strict=True):
            if size % factor:
                raise ValueError(f"{came}: {factor}{letter} must be a multiple of {factor}")
            known = sizes.setdefault(letter, size // factor)
            if known != size // factor:
                other = f"{owners[letter]} has {letter}={known}"
                raise ValueError(f"{came}: {letter}={size // factor} here, but {other}")
            owners.setdefault(letter, self.name)

    def check_values(self, x: Tensor, where: str) -> None:
        """Refuse numbers outside [low, high]; NaN passes, to be seen where it arises."""
        if self.low is None and self.high is None:
            return
        x = x.real if x.is_complex() else x
        low = -math.inf if self.low is None else self.low
        high = math.inf if self.high is None else self.high
        wrong = (x < low) | (x > high)
        if wrong.any():
            raise ValueError(
                f"{where}: {self.name} must lie in [{low:g}, {high:g}], got "
                f"{x[wrong][0].item():.4g} ({int(wrong.sum())} of {x.numel()} values are outside; "
                f"validate=False skips this check)"
            )


def normal(shape: Sequence[int], rng: torch.Generator) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def unit(shape: Sequence[int], rng: torch.Generator) -> Tensor:
    """Vectors of length 1 along the last axis."""
    return torch.nn.functional.normalize(normal(shape, rng), dim=-1)


def strength(shape: Sequence[int], rng: torch.Generator) -> Tensor:
    """Numbers between 0 and 1."""
    return normal(shape, rng).sigmoid()


def log_gate(shape: Sequence[int], rng: torch.Generator) -> Tensor:
    """Log gates as GLA starts with: logsigmoid(normal) / 16, half-lives of about 16 tokens."""
    return torch.nn.functional.logsigmoid(normal(shape, rng)) / 16


def time_step(shape: Sequence[int], rng: torch.Generator) -> Tensor:
    """Step sizes from 0.001 to 0.1, evenly over the logarithm, as S4 and Mamba start with."""
    u = torch.rand(*shape, generator=rng, dtype=torch.float64)
    return 10 ** (-3 + 2 * u)


def rates(shape: Sequence[int], rng: torch.Generator) -> Tensor:
    """Decay rates -1, -2, -3, ... along the last axis (S4D-Real, as Mamba starts with)."""
    return -torch.arange(1, shape[-1] + 1, dtype=torch.float64).expand(*shape).clone()


def ones(shape: Sequence[int], rng: torch.Generator) -> Tensor:
    """Ones."""
    return torch.ones(*shape, dtype=torch.float64)
