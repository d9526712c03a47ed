"""In-context regression: learn a linear function from examples in the sequence."""

from dataclasses import dataclass

import torch
from torch import Tensor

from linviz.tasks.task import Batch, Task, at_least


@dataclass(frozen=True)
class Regression(Task):
    """Each sequence has weights w of its own; examples (x, w.x) come first, then a query x.

    Tokens are vectors [x, y], the last is [x, 0], and there y is asked for: x and w are standard
    normal, y = w.x plus noise. The loss is the squared error. With isotropic x the best linear
    attention has the risk d + noise^2 - n d / (n + d + 1 + noise^2) for n = T - 1 examples
    (Li et al., "Fine-grained Analysis of In-context Linear Estimation", 2024, arXiv:2407.10005).

    Source: Garg et al., "What Can Transformers Learn In-Context?", 2022, arXiv:2208.01066, with
    x and y in one token.

    Attributes:
        d: length of x; the inputs are [B, T, d + 1].
        T: examples and the query.
        noise: standard deviation of what is added to each y, the one asked for too.
    """

    d: int = 5
    T: int = 11
    noise: float = 0.0

    vocab = None
    classes = 1
    measures = ("loss",)

    def __post_init__(self):
        at_least("d", self.d, 1)
        at_least("T", self.T, 2)
        if not self.noise >= 0:
            raise ValueError(f"noise must be a standard deviation, 0 or more, got {self.noise!r}")

    def draw(self, batch: int, rng: torch.Generator) -> Batch:
        """See Task.sample; the labels are numbers, NaN where nothing is asked."""
        x = torch.randn(batch, self.T, self.d, generator=rng)
        w = torch.randn(batch, self.d, 1, generator=rng)
        y = x @ w + self.noise * torch.randn(batch, self.T, 1, generator=rng)
        inputs = torch.cat([x, y], -1)
        inputs[:, -1, -1] = 0
        labels = torch.full((batch, self.T), torch.nan)
        labels[:, -1] = y[:, -1, 0]
        return inputs, labels

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The squared error at each place where something is asked, [n]."""
        asked = ~labels.isnan()
        return (outputs[asked][:, 0] - labels[asked]) ** 2
