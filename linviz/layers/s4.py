"""Layer of S4D: lv.s4 on every channel, GELU, then a gated linear map that mixes the channels.

Source: Gu, Goel and Re, 2021, arXiv:2111.00396; Gu et al., 2022, arXiv:2206.11893, sec. 4 (modes),
and its code (initial values, learning rates).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linviz.layers.base import Layer, State, X
from linviz.layers.parts import no_decay, wide
from linviz.listening import note
from linviz.mechanism import Mechanism
from linviz.mechanisms import s4


class S4(Layer):
    """y = a * sigmoid(b), (a, b) = gelu(lv.s4(x, dt, A, 1, C, D)) W_O + b_O.

    State: h [B, D, N], complex unless the modes are real.

    Args:
        width: channels of a token, D.
        N: modes a channel; complex ones stand for pairs of conjugates, so that the papers' 64
            states are N = 32.
        init: the modes at first: "lin", "inv", "legs" or "real", see DiagonalSystem.
        discretization: "zoh" or "bilinear".
        place: see Layer.
    """

    def __init__(
        self,
        width: int,
        *,
        N: int = 32,
        init: str = "lin",
        discretization: str = "zoh",
        place: tuple[int, int] = (0, 1),
    ):
        super().__init__(width, place=place)
        self.mechanism = discretized(s4.MECHANISM, discretization)
        self.system = DiagonalSystem(width, N, init)
        self.out = nn.Linear(width, 2 * width)

    def forward(self, x: X, state: State | None = None) -> tuple[X, State]:
        """[B, T, D] -> [B, T, D], from a state."""
        dt, A, C, D = self.system()
        y, h = self.mix(x, dt, A, torch.ones_like(A), C, D, state=state)
        y, gate = self.out(F.gelu(y)).chunk(2, -1)
        gate = gate.sigmoid()
        note(self, gate=gate)
        return y * gate, State(h)


class DiagonalSystem(nn.Module):
    """A diagonal system for each channel: dt = e^{dt_log}, A = -e^{A_log} + i A_imag, C and D.

    All parameters are real. dt and A learn at a rate of at most 1e-3 (`max_lr`) and do not decay.
    Keep them in float32: rounded to bfloat16, a mode turns at another speed.

    Args:
        width: channels of a token, D.
        N: modes a channel.
        init: "lin" -1/2 + i pi n; "inv" those of s4.s4d_inv; "legs" the diagonal of HiPPO-LegS
            (its normal part); "real" -1, -2, ..., for which A_imag is None.

    Attributes:
        C: [D, N, 2], real and imaginary part; [D, N] where the modes are real.
    """

    def __init__(self, width: int, N: int, init: str):
        super().__init__()
        if init not in MODES:
            raise ValueError(f"init must be one of {', '.join(MODES)}, got {init!r}")
        A = MODES[init](N).expand(width, N)
        dt = torch.empty(width).uniform_(math.log(1e-3), math.log(0.1))
        self.dt_log = slow(dt)
        self.A_log = slow((-A.real).log().float())
        self.A_imag = slow(A.imag.float()) if A.is_complex() else None
        C = torch.randn(width, N, dtype=torch.cfloat if A.is_complex() else torch.float)
        self.C = nn.Parameter(torch.view_as_real(C) if A.is_complex() else C)
        self.D = nn.Parameter(torch.randn(width))

    def forward(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The coefficients dt [D], A [D, N], C [D, N] and D [D]."""
        A, C = -wide(self.A_log).exp(), wide(self.C)
        if self.A_imag is not None:
            A, C = torch.complex(A, wide(self.A_imag)), torch.view_as_complex(C)
        return wide(self.dt_log).exp(), A, C, self.D


def legs(N: int) -> Tensor:
    """The modes of HiPPO-LegS without its low-rank part: one of each of N pairs."""
    return s4.nplr(2 * N)[0][N:]


MODES = {"lin": s4.s4d_lin, "inv": s4.s4d_inv, "legs": legs, "real": s4.s4d_real}


def slow(x: Tensor) -> nn.Parameter:
    """A parameter with a learning rate of at most 1e-3 and no weight decay."""
    parameter = no_decay(nn.Parameter(x.contiguous()))
    parameter.max_lr = 1e-3
    return parameter


def discretized(mechanism: Mechanism, discretization: str) -> Mechanism:
    """The mechanism with that discretization.

    Raises:
        ValueError: there is none of that name.
    """
    one = torch.ones(1, 1)
    s4.discretize(one[0], -one, one, discretization)  # refuses what it does not know
    return mechanism.having(discretization=discretization)
