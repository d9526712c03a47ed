"""Layer of H3: lv.h3 between projections.

Source: Fu et al., 2022, arXiv:2212.14052, sec. 3, with heads of one channel; biases, initial values
and the bilinear discretization as in its code.
"""

import torch
from torch import nn

from linviz.layers.base import Layer, State, X
from linviz.layers.s4 import DiagonalSystem, discretized
from linviz.mechanisms import h3


class H3(Layer):
    """y = W_O lv.h3(q, k, v, c, dt, A, C, D) + b_O, where q, k, v = x W + b, each its own.

    State: k_last [B, D, N] and h [B, D, N], complex unless the modes are real.

    The skip that the code has beside the filter on the keys is part of c: it only adds to c_0.

    Args:
        width: channels of a token, D.
        N: keys that the filter sees, and modes a channel, see S4.
        init: the modes at first, see DiagonalSystem.
        discretization: "zoh" or "bilinear".
        place: see Layer.
    """

    def __init__(
        self,
        width: int,
        *,
        N: int = 32,
        init: str = "lin",
        discretization: str = "bilinear",
        place: tuple[int, int] = (0, 1),
    ):
        super().__init__(width, place=place)
        self.mechanism = discretized(h3.MECHANISM, discretization)
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.c = nn.Parameter(torch.empty(width, N).uniform_(-(N**-0.5), N**-0.5))
        with torch.no_grad():
            self.c[:, 0] += torch.randn(width)
        self.system = DiagonalSystem(width, N, init)
        self.out = nn.Linear(width, width)

    def forward(self, x: X, state: State | None = None) -> tuple[X, State]:
        """[B, T, D] -> [B, T, D], from a state."""
        dt, A, C, D = self.system()
        o, S = self.mix(self.q(x), self.k(x), self.v(x), self.c, dt, A, C, D, state=state)
        return self.out(o), State(S)
