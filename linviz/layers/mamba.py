"""Layer of Mamba: lv.mamba with a short convolution before it and a gate after it.

Source: Gu and Dao, 2023, arXiv:2312.00752, sec. 3.4 and 3.6, and its code; norms of dt, B and C as
in Falcon-Mamba, Zuo et al., 2024, arXiv:2410.05355.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from linviz.layers.base import Layer, State, X, divided
from linviz.layers.parts import RMSNorm, ShortConv, no_decay, step_bias, wide
from linviz.listening import note
from linviz.mechanisms import mamba


class Mamba(Layer):
    """y = W_O (silu(z) * lv.mamba(u, dt, -e^{A_log}, B, C, D)).

    (u, z) = x W_I; u goes through the short convolution and SiLU; (dt, B, C) = u W_X;
    dt = softplus(dt W_dt + b). State: h [B, E, N] and conv [B, conv - 1, E], where E, the D of
    lv.mamba, is expand times the width.

    Args:
        width: channels of a token, D.
        N: numbers of state a channel.
        expand: E / D.
        conv: width of the short convolution.
        rank: numbers that dt goes through; ceil(D / 16) by default.
        conv_bias: of the convolution.
        bias: of the projections in and out.
        norm_bcdt: RMSNorm without weight of dt (before W_dt), B and C.
        eps: of these norms.
        place: see Layer.
    """

    mechanism = mamba.MECHANISM

    def __init__(
        self,
        width: int,
        *,
        N: int = 16,
        expand: float | int = 2,
        conv: int = 4,
        rank: int | None = None,
        conv_bias: bool = True,
        bias: bool = False,
        norm_bcdt: bool = False,
        eps: float = 1e-6,
        place: tuple[int, int] = (0, 1),
    ):
        super().__init__(width, place=place)
        E = divided(width * expand, 1, "width * expand", "Mamba")
        rank = math.ceil(width / 16) if rank is None else rank
        self.sizes = (rank, N, N)
        self.in_proj = nn.Linear(width, 2 * E, bias=bias)
        self.conv = ShortConv(E, conv, bias=conv_bias)
        self.x_proj = nn.Linear(E, sum(self.sizes), bias=False)
        self.norm = RMSNorm(N, eps, affine=False) if norm_bcdt else nn.Identity()
        self.dt_proj = nn.Linear(rank, E)
        nn.init.uniform_(self.dt_proj.weight, -(rank**-0.5), rank**-0.5)
        self.dt_proj.bias = step_bias(E)
        self.A_log = no_decay(nn.Parameter(torch.arange(1.0, N + 1).log().repeat(E, 1)))
        self.D = no_decay(nn.Parameter(torch.ones(E)))
        self.out_proj = nn.Linear(E, width, bias=bias)

    def forward(self, x: X, state: State | None = None) -> tuple[X, State]:
        """[B, T, D] -> [B, T, D], from a state."""
        u, z = self.in_proj(x).chunk(2, -1)
        u, past = self.conv(u, None if state is None else state["conv"])
        u = F.silu(u)
        dt, B, C = (self.norm(y) for y in self.x_proj(u).split(self.sizes, -1))
        dt = F.softplus(wide(F.linear(dt, self.dt_proj.weight)) + self.dt_proj.bias)
        y, h = self.mix(u, dt, -wide(self.A_log).exp(), B, C, self.D, state=state)
        gate = F.silu(z)
        note(self, gate=gate)
        return self.out_proj(gate * y), State(h | {"conv": past})
