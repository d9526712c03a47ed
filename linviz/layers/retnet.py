"""Layer of retention: lv.retnet with rotated queries and keys, a norm a head and a swish gate.

Source: Sun et al., 2023, arXiv:2307.08621, sec. 2.3; initial values as in torchscale.
"""

import torch
import torch.nn.functional as F
from torch import nn

from linviz.layers.base import Layer, State, X, divided
from linviz.layers.parts import (
    Projection,
    RMSNorm,
    heads,
    positions,
    project,
    rotary_frequencies,
    rotate,
)
from linviz.listening import note
from linviz.mechanisms import retnet


class RetNet(Layer):
    """y = W_O (silu(x W_G) * RMSNorm of each head of lv.retnet(q, k, v)).

    q and k are rotated by their position. State: S [B, H, K, V], seen [B] (tokens so far), and
    q_conv, k_conv, v_conv where there is a short convolution. The three stabilisers of the paper
    are left out: they change nothing but what the norm takes away.

    Args:
        width: channels of a token, D.
        heads: how many, H.
        expand_k: H K / D.
        expand_v: H V / D.
        rotary: "paper" (pairs side by side, angles from 1 to 1/10000, ends included), "rope" (as
            the flash-linear-attention library), or "none".
        affine: whether the norm has a weight (the paper: no).
        conv: width of the short convolutions; 0 for none, as published.
        eps: of the norm.
        place: see Layer.
    """

    mechanism = retnet.MECHANISM

    def __init__(
        self,
        width: int,
        *,
        heads: int = 4,
        expand_k: float = 1.0,
        expand_v: float = 2.0,
        rotary: str = "paper",
        affine: bool = False,
        conv: int = 0,
        eps: float = 1e-6,
        place: tuple[int, int] = (0, 1),
    ):
        super().__init__(width, place=place)
        if rotary not in ("paper", "rope", "none"):
            raise ValueError(f"RetNet: rotary must be 'paper', 'rope' or 'none', got {rotary!r}")
        self.heads, self.rotary = heads, rotary
        self.K = divided(width * expand_k, heads, "width * expand_k", "RetNet")
        self.V = divided(width * expand_v, heads, "width * expand_v", "RetNet")
        self.q = Projection(width, heads * self.K, conv=conv)
        self.k = Projection(width, heads * self.K, conv=conv)
        self.v = Projection(width, heads * self.V, conv=conv)
        self.gate = nn.Linear(width, heads * self.V, bias=False)
        self.norm = RMSNorm(self.V, eps, affine=affine)
        self.out = nn.Linear(heads * self.V, width, bias=False)
        if rotary == "paper":
            frequency = 10_000.0 ** -torch.linspace(0, 1, self.K // 2)
        else:
            frequency = rotary_frequencies(self.K)
        self.register_buffer("frequency", frequency, persistent=False)
        small = [self.gate]
        if not conv:  # behind convolutions so small a product of q, k and v would vanish beside eps
            small += [self.q.linear, self.k.linear, self.v.linear]
        for linear in small:
            nn.init.xavier_uniform_(linear.weight, gain=2**-2.5)
        nn.init.xavier_uniform_(self.out.weight, gain=2**-1)

    def forward(self, x: X, state: State | None = None) -> tuple[X, State]:
        """[B, T, D] -> [B, T, D], from a state."""
        (q, k, v), pasts = project(x, state, q=self.q, k=self.k, v=self.v)
        q, k, v = (heads(y, self.heads) for y in (q, k, v))
        B, T, _ = x.shape
        seen = x.new_zeros(B, dtype=torch.long) if state is None else state["seen"]
        if self.rotary != "none":
            at, pairs = positions(seen, T), self.rotary == "paper"
            q, k = (rotate(y, at, self.frequency, interleaved=pairs) for y in (q, k))
        o, S = self.mix(q, k * self.K**-0.5, v, state=state)
        gate = F.silu(self.gate(x))
        y = self.norm(o).flatten(-2)
        note(self, gate=gate, normed=y)
        return self.out(gate * y), State(S | pasts | {"seen": seen + T})
