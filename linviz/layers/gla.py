"""Layer of gated linear attention: lv.gla between projections, a low-rank gate and a gated norm.

Source: Yang et al., 2023, arXiv:2312.06635, sec. 4.4; sizes and initial values as in the
flash-linear-attention library, which its authors keep.
"""

import torch.nn.functional as F
from torch import nn

from linviz.layers.base import Layer, State, X, divided
from linviz.layers.parts import LowRank, Projection, RMSNorm, heads, project, wide
from linviz.listening import note
from linviz.mechanisms import gla


class GLA(Layer):
    """y = W_O (silu(x W_G) * RMSNorm of each head of lv.gla(q, k, v, g)).

    g = logsigmoid(x W_1 W_2 + b) / tau. State: S [B, H, K, V], and q_conv, k_conv, v_conv where
    there is a short convolution.

    Args:
        width: channels of a token, D.
        heads: how many, H.
        expand_k: H K / D.
        expand_v: H V / D.
        rank: numbers that the gate goes through.
        tau: divides the log gate, so that half-lives are long at first (16 tokens at logit 0).
        conv: width of the short convolutions; 0 for none, as published.
        eps: of the norm.
        place: see Layer.
    """

    mechanism = gla.MECHANISM

    def __init__(
        self,
        width: int,
        *,
        heads: int = 4,
        expand_k: float = 0.5,
        expand_v: float = 1.0,
        rank: int = 16,
        tau: float = 16.0,
        conv: int = 0,
        eps: float = 1e-5,
        place: tuple[int, int] = (0, 1),
    ):
        super().__init__(width, place=place)
        self.heads, self.tau = heads, tau
        self.K = divided(width * expand_k, heads, "width * expand_k", "GLA")
        self.V = divided(width * expand_v, heads, "width * expand_v", "GLA")
        self.q = Projection(width, heads * self.K, conv=conv)
        self.k = Projection(width, heads * self.K, conv=conv)
        self.v = Projection(width, heads * self.V, conv=conv)
        self.g = LowRank(width, rank, heads * self.K)
        self.gate = nn.Linear(width, heads * self.V, bias=False)
        self.norm = RMSNorm(self.V, eps)
        self.out = nn.Linear(heads * self.V, width, bias=False)
        small = [*self.g, self.gate, self.out]
        if not conv:  # behind convolutions so small a product of q, k and v would vanish beside eps
            small += [self.q.linear, self.k.linear, self.v.linear]
        for linear in small:
            nn.init.xavier_uniform_(linear.weight, gain=2**-2.5)

    def forward(self, x: X, state: State | None = None) -> tuple[X, State]:
        """[B, T, D] -> [B, T, D], from a state."""
        (q, k, v), pasts = project(x, state, q=self.q, k=self.k, v=self.v)
        q, k, v, g = (heads(y, self.heads) for y in (q, k, v, self.g(x)))
        g = F.logsigmoid(wide(g)) / self.tau
        o, S = self.mix(q * self.K**-0.5, k, v, g, state=state)
        gate = F.silu(self.gate(x))
        y = self.norm(o).flatten(-2)
        note(self, gate=gate, normed=y)
        return self.out(gate * y), State(S | pasts)
