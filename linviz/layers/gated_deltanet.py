"""Layer of Gated DeltaNet: DeltaNet with a gate on the state and one on the output.

Source: Yang et al., 2024, arXiv:2412.06464, sec. 3.4; the gate as in Mamba-2.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from linviz.layers.base import Layer, State, X, divided
from linviz.layers.parts import (
    Projection,
    RMSNorm,
    heads,
    l2norm,
    no_decay,
    project,
    step_bias,
    wide,
)
from linviz.listening import note
from linviz.mechanisms import gated_deltanet


class GatedDeltaNet(Layer):
    """y = W_O (silu(x W_G) * RMSNorm of each head of lv.gated_deltanet(q, k, v, beta, g)).

    g = -e^{A_log} softplus(x W_A + dt_bias), beta = sigmoid(x W_B). State: S [B, H, K, V], q_conv,
    k_conv, v_conv.

    Args:
        width: channels of a token, D.
        heads: H, heads of values.
        qk_heads: heads of queries and keys, each shared by H / qk_heads values; H by default.
        K: key channels a head; 3/4 D / H by default.
        V: value channels a head; 2 K by default.
        conv: width of the short convolutions; 0 for none.
        negative: beta up to 2 instead of 1, see DeltaNet.
        eps: of the norm.
        place: see Layer.
    """

    mechanism = gated_deltanet.MECHANISM

    def __init__(
        self,
        width: int,
        *,
        heads: int = 4,
        qk_heads: int | None = None,
        K: int | None = None,
        V: int | None = None,
        conv: int = 4,
        negative: bool = False,
        eps: float = 1e-5,
        place: tuple[int, int] = (0, 1),
    ):
        super().__init__(width, place=place)
        self.heads, self.most = heads, 2.0 if negative else 1.0
        self.qk_heads = heads if qk_heads is None else qk_heads
        self.shared = divided(heads, self.qk_heads, "heads by qk_heads", "GatedDeltaNet")
        self.K = divided(0.75 * width, heads, "3/4 width", "GatedDeltaNet") if K is None else K
        self.V = 2 * self.K if V is None else V
        self.q = Projection(width, self.qk_heads * self.K, conv=conv)
        self.k = Projection(width, self.qk_heads * self.K, conv=conv)
        self.v = Projection(width, heads * self.V, conv=conv)
        self.beta = nn.Linear(width, heads, bias=False)
        self.g = nn.Linear(width, heads, bias=False)
        self.A_log = no_decay(nn.Parameter(torch.empty(heads).uniform_(0.01, 16).log()))
        self.dt_bias = step_bias(heads)
        self.gate = nn.Linear(width, heads * self.V, bias=False)
        self.norm = RMSNorm(self.V, eps)
        self.out = nn.Linear(heads * self.V, width, bias=False)

    def forward(self, x: X, state: State | None = None) -> tuple[X, State]:
        """[B, T, D] -> [B, T, D], from a state."""
        (q, k, v), pasts = project(x, state, q=self.q, k=self.k, v=self.v)
        q, k = (l2norm(heads(y, self.qk_heads)).repeat_interleave(self.shared, 2) for y in (q, k))
        beta = self.most * self.beta(x).sigmoid()
        g = self.log_gate(x)
        o, S = self.mix(q * self.K**-0.5, k, heads(v, self.heads), beta, g, state=state)
        gate = F.silu(heads(self.gate(x), self.heads))
        y = self.norm(o)
        note(self, gate=gate, normed=y)
        return self.out((y * gate).flatten(-2)), State(S | pasts)

    def log_gate(self, x: X) -> Float[Tensor, "b t h"]:
        """The log decay g <= 0 of each head."""
        return -wide(self.A_log).exp() * F.softplus(wide(self.g(x)) + self.dt_bias)
