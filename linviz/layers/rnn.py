"""Layer of the plain recurrent network: lv.rnn between two projections.

Source: Elman, "Finding Structure in Time", Cognitive Science 14(2), 1990; initial values as in
Keras: W orthogonal, forget bias 1 (Jozefowicz et al., 2015).
"""

from typing import ClassVar

import torch
from torch import nn

from linviz.layers.base import Layer, State, X
from linviz.mechanisms import rnn


class RNN(Layer):
    """y = W_O lv.rnn(x W_X + b, W).

    State: h [B, D].

    Args:
        width: channels of a token, D.
        recurrent: whether the old state is fed back through W; without, W is zero and what is
            computed of a token depends on that token alone.
        place: see Layer.

    Attributes:
        biases: the initial bias of each pre-activation.
    """

    mechanism = rnn.MECHANISM
    biases: ClassVar[tuple[float, ...]] = (0.0,)

    def __init__(self, width: int, *, recurrent: bool = True, place: tuple[int, int] = (0, 1)):
        super().__init__(width, place=place)
        size = len(self.biases) * width
        self.x = nn.Linear(width, size)
        nn.init.xavier_uniform_(self.x.weight)
        self.x.bias = nn.Parameter(torch.tensor(self.biases).repeat_interleave(width))
        W = nn.init.orthogonal_(torch.empty(width, size))
        self.W = nn.Parameter(W) if recurrent else None
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: X, state: State | None = None) -> tuple[X, State]:
        """[B, T, D] -> [B, T, D], from a state."""
        x = self.x(x)
        W = x.new_zeros(self.width, x.shape[-1]) if self.W is None else self.W
        o, S = self.mix(x, W, state=state)
        return self.out(o), State(S)
