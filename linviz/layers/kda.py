"""Layer of Kimi Delta Attention: the delta rule with a gate for each key channel.

Source: Kimi Team, 2025, arXiv:2510.26692, sec. 4; the gate's initial values as in Mamba-2.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from linviz.layers.base import Layer, State, X, divided
from linviz.layers.parts import (
    LowRank,
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
from linviz.mechanisms import kda


class KDA(Layer):
    """y = W_O (sigmoid(x W_down W_up) * RMSNorm of each head of lv.kda(q, k, v, beta, g)).

    g = -e^{A_log} softplus(x W_1 W_2 + dt_bias), one a key channel, A_log one a head;
    beta = sigmoid(x W_B). State: S [B, H, K, V], q_conv, k_conv, v_conv.

    Args:
        width: channels of a token, D.
        heads: how many, H.
        expand_k: H K / D.
        expand_v: H V / D.
        conv: width of the short convolutions; 0 for none.
        negative: beta up to 2 instead of 1, see DeltaNet.
        eps: of the norm.
        place: see Layer.
    """

    mechanism = kda.MECHANISM

    def __init__(
        self,
        width: int,
        *,
        heads: int = 4,
        expand_k: float = 1.0,
        expand_v: float = 1.0,
        conv: int = 4,
        negative: bool = False,
        eps: float = 1e-5,
        place: tuple[int, int] = (0, 1),
    ):
        super().__init__(width, place=place)
        self.heads, self.most = heads, 2.0 if negative else 1.0
        self.K = divided(width * expand_k, heads, "width * expand_k", "KDA")
        self.V = divided(width * expand_v, heads, "width * expand_v", "KDA")
        self.q = Projection(width, heads * self.K, conv=conv)
        self.k = Projection(width, heads * self.K, conv=conv)
        self.v = Projection(width, heads * self.V, conv=conv)
        self.beta = nn.Linear(width, heads, bias=False)
        self.g = LowRank(width, self.V, heads * self.K, bias=False)
        self.A_log = no_decay(nn.Parameter(torch.empty(heads).uniform_(1, 16).log()))
        self.dt_bias = step_bias(heads * self.K)
        self.gate = LowRank(width, self.V, heads * self.V)
        self.norm = RMSNorm(self.V, eps)
        self.out = nn.Linear(heads * self.V, width, bias=False)

    def forward(self, x: X, state: State | None = None) -> tuple[X, State]:
        """[B, T, D] -> [B, T, D], from a state."""
        (q, k, v), pasts = project(x, state, q=self.q, k=self.k, v=self.v)
        q, k, v = (heads(y, self.heads) for y in (q, k, v))
        beta = self.most * self.beta(x).sigmoid()
        g = self.log_gate(x)
        o, S = self.mix(l2norm(q) * self.K**-0.5, l2norm(k), v, beta, g, state=state)
        gate, y = self.gate(x).sigmoid(), self.norm(o).flatten(-2)
        note(self, gate=gate, normed=y)
        return self.out(gate * y), State(S | pasts)

    def log_gate(self, x: X) -> Float[Tensor, "b t h k"]:
        """The log decay g <= 0 of each key channel."""
        rate = F.softplus(wide(self.g(x)) + self.dt_bias)
        return -wide(self.A_log).exp()[:, None] * heads(rate, self.heads)
