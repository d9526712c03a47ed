"""Tasks that ask at each step where one is: what a state must become, not what it must hold."""

from dataclasses import dataclass
from functools import cache
from itertools import combinations, permutations

import torch
from torch import Tensor

from linviz.tasks.task import Batch, Task, at_least

GROUPS = ("S3", "S4", "S5", "A4", "A5")


@dataclass(frozen=True)
class Parity(Task):
    """Is the number of ones so far odd? Asked at each of T random bits.

    Source: Grazzi et al., "Unlocking State-Tracking in Linear RNNs Through Negative Eigenvalues",
    2024, arXiv:2411.12537.

    Attributes:
        T: length of the sequence.
    """

    T: int = 32

    vocab = 2

    def __post_init__(self):
        at_least("T", self.T, 1)

    def draw(self, batch: int, rng: torch.Generator) -> Batch:
        """See Task.sample."""
        inputs = torch.randint(2, (batch, self.T), generator=rng)
        return inputs, inputs.cumsum(1) % 2


@dataclass(frozen=True)
class GroupWords(Task):
    """The word problem of a group: what do all the permutations so far make together?

    Tokens are elements of the group, x_t; at each step the product y_t = x_t ∘ y_{t-1} is asked
    for (x_t is applied last; y_0 is the identity). S5 and A5 are complete for NC1: by common
    conjecture no softmax or diagonal model of fixed depth solves them at every length.

    Source: Merrill, Petty and Sabharwal, "The Illusion of State in State-Space Models", 2024,
    arXiv:2404.08819.

    Attributes:
        group: "S3", "S4", "S5" (all permutations of 3, 4, 5 things), "A4" or "A5" (the even ones).
        T: length of the sequence.
        transpositions_only: tokens are swaps of two things only. One reflection makes a swap.
    """

    group: str = "S3"
    T: int = 24
    transpositions_only: bool = False

    def __post_init__(self):
        at_least("T", self.T, 1)
        if self.group not in GROUPS:
            raise ValueError(f"group must be one of {', '.join(GROUPS)}, got {self.group!r}")
        if self.transpositions_only and self.group[0] == "A":
            raise ValueError(f"transpositions_only needs an S group: {self.group} has no swaps")

    @property
    def vocab(self) -> int:
        """The number of elements."""
        return len(self.elements)

    @property
    def elements(self) -> list[tuple[int, ...]]:
        """The permutation that each id stands for: i goes to element[i]. Id 0 changes nothing."""
        return elements(self.group)

    def draw(self, batch: int, rng: torch.Generator) -> Batch:
        """See Task.sample."""
        tokens = torch.arange(self.vocab)
        if self.transpositions_only:
            moved = [sum(i != x for i, x in enumerate(element)) for element in self.elements]
            tokens = tokens[torch.tensor(moved) == 2]
        inputs = tokens[torch.randint(len(tokens), (batch, self.T), generator=rng)]
        table, labels = products(self.group), inputs.clone()
        for t in range(1, self.T):
            labels[:, t] = table[inputs[:, t], labels[:, t - 1]]
        return inputs, labels


@cache
def elements(group: str) -> list[tuple[int, ...]]:
    """The permutations of a group in the order of their images."""
    every = permutations(range(int(group[1])))
    return [p for p in every if group[0] == "S" or is_even(p)]


def is_even(permutation: tuple[int, ...]) -> bool:
    """Whether an even number of pairs stand in the wrong order."""
    return sum(a > b for a, b in combinations(permutation, 2)) % 2 == 0


@cache
def products(group: str) -> Tensor:
    """The multiplication table, int64 [n, n]: entry (a, b) is a after b."""
    every = elements(group)
    number = {element: i for i, element in enumerate(every)}
    return torch.tensor([[number[tuple(a[i] for i in b)] for b in every] for a in every])
