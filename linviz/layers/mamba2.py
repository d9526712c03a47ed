"""Layer of Mamba-2: lv.mamba2 with a short convolution before it, a gate and a norm after it.

Source: Dao and Gu, 2024, arXiv:2405.21060, sec. 7.1, and its code.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from linviz.layers.base import Layer, State, X, divided
from linviz.layers.parts import RMSNorm, ShortConv, heads, no_decay, step_bias, wide
from linviz.listening import note
from linviz.mechanisms import mamba2


class Mamba2(Layer):
    """y = W_O RMSNorm of each group of (silu(z) * lv.mamba2(u, dt, -e^{A_log}, B, C, D)).

    (z, u, B, C, dt) = x W_I; u, B and C go through the short convolution and SiLU;
    dt = softplus(dt + dt_bias). State: S [B, H, N, P] and conv [B, conv - 1, H P + 2 G N].

    Args:
        width: channels of a token, D.
        P: channels a head; the heads are H = expand D / P.
        N: keys' channels, which are rows of the state.
        groups: G, the heads of a group share B and C.
        expand: H P / D.
        conv: width of the short convolution.
        dt_limit: least and greatest dt.
        conv_bias: of the convolution.
        bias: of the projections in and out.
        eps: of the norm.
        place: see Layer.
    """

    mechanism = mamba2.MECHANISM

    def __init__(
        self,
        width: int,
        *,
        P: int = 64,
        N: int = 128,
        groups: int = 1,
        expand: float | int = 2,
        conv: int = 4,
        dt_limit: tuple[float, float] = (0.0, math.inf),
        conv_bias: bool = True,
        bias: bool = False,
        eps: float = 1e-5,
        place: tuple[int, int] = (0, 1),
    ):
        super().__init__(width, place=place)
        H = divided(width * expand, P, "width * expand by P", "Mamba2")
        divided(H, groups, "heads by groups", "Mamba2")
        self.heads, self.groups, self.dt_limit = H, groups, dt_limit
        self.sizes = (H * P, groups * N, groups * N)  # u, B, C
        self.in_proj = nn.Linear(width, H * P + sum(self.sizes) + H, bias=bias)
        self.conv = ShortConv(sum(self.sizes), conv, bias=conv_bias)
        self.dt_bias = step_bias(H)
        self.A_log = no_decay(nn.Parameter(torch.empty(H).uniform_(1, 16).log()))
        self.D = no_decay(nn.Parameter(torch.ones(H)))
        self.norm = RMSNorm(H * P // groups, eps)
        self.norm.weight = nn.Parameter(torch.ones(groups, H * P // groups))  # each group its own
        self.out_proj = nn.Linear(H * P, width, bias=bias)

    def forward(self, x: X, state: State | None = None) -> tuple[X, State]:
        """[B, T, D] -> [B, T, D], from a state."""
        z, u, dt = self.in_proj(x).split([self.sizes[0], sum(self.sizes), self.heads], -1)
        u, past = self.conv(u, None if state is None else state["conv"])
        u, B, C = F.silu(u).split(self.sizes, -1)
        dt = F.softplus(wide(dt) + self.dt_bias).clamp(*self.dt_limit)
        A, u = -wide(self.A_log).exp(), heads(u, self.heads)
        B, C = heads(B, self.groups), heads(C, self.groups)
        y, S = self.mix(u, dt, A, B, C, self.D, state=state)
        gate = F.silu(z)
        y = self.norm(heads(gate * y.flatten(-2), self.groups)).flatten(-2)
        note(self, gate=gate, normed=y)
        return self.out_proj(y), State(S | {"conv": past})
