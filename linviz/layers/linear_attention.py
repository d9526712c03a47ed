"""Layer of linear attention: lv.linear_attention between projections.

Source: Katharopoulos et al., 2020, arXiv:2006.16236, sec. 3.2. Feature maps with weights of their
own: Hedgehog, Zhang et al., 2024, arXiv:2402.04347, sec. 4.
"""

from torch import nn

from linviz.layers.base import Layer, State, X, divided
from linviz.layers.parts import Projection, RMSNorm, heads, project
from linviz.listening import note
from linviz.mechanisms import linear_attention


class LinearAttention(Layer):
    """y = W_O lv.linear_attention(q, k, v).

    State: S [B, H, R, V], z [B, H, R], and q_conv, k_conv, v_conv where there is a short
    convolution.

    Args:
        width: channels of a token, D.
        heads: how many, H.
        expand_k: H K / D.
        expand_v: H V / D.
        feature_map: a name that lv.linear_attention knows.
        normalize: divide by the sum of the weights, as published; without, a norm a head.
        conv: width of the short convolutions; 0 for none, as published.
        eps: added to the sum of the weights (1e-6 in the authors' code), or of the norm.
        place: see Layer.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int = 4,
        expand_k: float = 1.0,
        expand_v: float = 1.0,
        feature_map: str = "elu",
        normalize: bool = True,
        conv: int = 0,
        eps: float = 1e-6,
        place: tuple[int, int] = (0, 1),
    ):
        super().__init__(width, place=place)
        linear_attention.feature_function(feature_map)  # refuses what it does not know
        self.mechanism = linear_attention.MECHANISM.having(
            feature_map=feature_map, normalize=normalize, eps=eps if normalize else 0.0
        )
        self.heads = heads
        K = divided(width * expand_k, heads, "width * expand_k", "LinearAttention")
        V = divided(width * expand_v, heads, "width * expand_v", "LinearAttention")
        self.q = Projection(width, heads * K, conv=conv)
        self.k = Projection(width, heads * K, conv=conv)
        self.v = Projection(width, heads * V, conv=conv)
        self.norm = None if normalize else RMSNorm(V, eps)
        self.out = nn.Linear(heads * V, width, bias=False)

    def forward(self, x: X, state: State | None = None) -> tuple[X, State]:
        """[B, T, D] -> [B, T, D], from a state."""
        (q, k, v), pasts = project(x, state, q=self.q, k=self.k, v=self.v)
        o, S = self.mix(*(heads(y, self.heads) for y in (q, k, v)), state=state)
        if self.norm is not None:
            o = self.norm(o)
            note(self, normed=o)
        return self.out(o.flatten(-2)), State(S | pasts)
