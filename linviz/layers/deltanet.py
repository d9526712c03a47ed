"""Layer of the delta rule: lv.deltanet with short convolutions and keys of length 1.

Source: Yang et al., 2024, arXiv:2406.06484, sec. 3.4; rates up to 2: Grazzi et al., 2024,
arXiv:2411.12537.
"""

from torch import nn

from linviz.layers.base import Layer, State, X, divided
from linviz.layers.parts import Projection, RMSNorm, heads, l2norm, project
from linviz.listening import note
from linviz.mechanisms import deltanet


class DeltaNet(Layer):
    """y = W_O RMSNorm of each head of lv.deltanet(q, k, v, beta).

    beta = sigmoid(x W_B), or twice that. State: S [B, H, K, V], q_conv, k_conv, v_conv.

    Args:
        width: channels of a token, D.
        heads: how many, H.
        expand_k: H K / D.
        expand_v: H V / D.
        conv: width of the short convolutions; 0 for none.
        negative: beta up to 2 instead of 1: a key's content can be turned around, which tracking
            a state (parity) needs.
        eps: of the norm.
        place: see Layer.
    """

    mechanism = deltanet.MECHANISM

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
        self.K = divided(width * expand_k, heads, "width * expand_k", "DeltaNet")
        self.V = divided(width * expand_v, heads, "width * expand_v", "DeltaNet")
        self.q = Projection(width, heads * self.K, conv=conv)
        self.k = Projection(width, heads * self.K, conv=conv)
        self.v = Projection(width, heads * self.V, conv=conv)
        self.beta = nn.Linear(width, heads, bias=False)
        self.norm = RMSNorm(self.V, eps)
        self.out = nn.Linear(heads * self.V, width, bias=False)

    def forward(self, x: X, state: State | None = None) -> tuple[X, State]:
        """[B, T, D] -> [B, T, D], from a state."""
        (q, k, v), pasts = project(x, state, q=self.q, k=self.k, v=self.v)
        q, k, v = (heads(y, self.heads) for y in (q, k, v))
        beta = self.most * self.beta(x).sigmoid()
        o, S = self.mix(l2norm(q) * self.K**-0.5, l2norm(k), v, beta, state=state)
        y = self.norm(o)
        note(self, normed=y)
        return self.out(y.flatten(-2)), State(S | pasts)
