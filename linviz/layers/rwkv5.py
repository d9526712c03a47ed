"""Layer of RWKV-5 (Eagle, in its version 5.2): lv.rwkv5 on shifted tokens, a norm a head, a gate.

Source: Peng et al., 2024, arXiv:2404.05892, sec. 4.1; initial values as in the authors' training
code, github.com/BlinkDL/RWKV-LM.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from linviz.layers.base import Layer, State, X, divided
from linviz.layers.channel_mix import Place, above, height, mixtures, ramp, token_shift, zigzag
from linviz.layers.parts import heads, no_decay, wide
from linviz.listening import note
from linviz.mechanisms import rwkv5


class HeadNorm(nn.Module):
    """A layer norm of each head, then a weight and a bias for each channel: a group norm.

    Attributes:
        weight: [D]; ((1 + i) / n)^0.7 at first, in layer i of n.
        bias: [D].
    """

    eps = 64e-5

    def __init__(self, width: int, place: Place):
        super().__init__()
        i, n = place
        self.weight = nn.Parameter(torch.full((width,), ((1 + i) / n) ** 0.7))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, o: Float[Tensor, "b t h v"]) -> X:
        """[B, T, H, V] -> [B, T, D]."""
        y = F.layer_norm(o, o.shape[-1:], eps=self.eps)
        return y.flatten(-2) * self.weight + self.bias


class RWKV5(Layer):
    """y = W_O (silu(x_g W_G) * HeadNorm of lv.rwkv5(x_r W_R, x_k W_K, x_v W_V, w, u)).

    x_* = mu_* x + (1 - mu_*) s, s the token before; w = -e^decay, one a key channel, as the bonus
    u. State: S [B, H, K, V] and shift [B, D], the last token.

    Args:
        width: channels of a token, D.
        heads: H; by default as many of 64 channels as there is room for, at least one.
        place: see Layer.
    """

    mechanism = rwkv5.MECHANISM

    def __init__(self, width: int, *, heads: int | None = None, place: Place = (0, 1)):
        super().__init__(width, place=place)
        self.heads = max(width // 64, 1) if heads is None else heads
        self.K = divided(width, self.heads, "width by heads", type(self).__name__)
        high, late, line = height(place), above(place), torch.linspace(0, 1, width)
        self.mu = mixtures(
            r=ramp(width, late / 2),
            k=ramp(width, late),
            v=ramp(width, late) + 0.3 * high,
            g=ramp(width, late / 2),
        )
        speed = -6 + 5 * line ** (0.7 + 1.3 * high)
        self.decay = no_decay(nn.Parameter(speed.view(self.heads, self.K)))
        u = high * (1 - line) + 0.1 * zigzag(width)
        self.u = no_decay(nn.Parameter(u.view(self.heads, self.K)))
        self.r, self.k, self.v, self.gate, self.out = (
            nn.Linear(width, width, bias=False) for _ in range(5)
        )
        self.norm = HeadNorm(width, place)
        for linear, gain in ((self.r, 1.0), (self.k, 0.1), (self.v, 1.0), (self.gate, 0.1)):
            nn.init.orthogonal_(linear.weight, gain)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: X, state: State | None = None) -> tuple[X, State]:
        """[B, T, D] -> [B, T, D], from a state."""
        before, last = token_shift(x, state, type(self).__name__)
        seen = self.mixed(x, before)
        r, k, v = (self.r(seen["r"]), self.k(seen["k"]), self.v(seen["v"]))
        r, k, v = (heads(y, self.heads) for y in (r, k, v))
        o, S = self.mix(r, k, v, self.log_decay(seen), wide(self.u), state=state)
        gate, y = F.silu(self.gate(seen["g"])), self.norm(o)
        note(self, gate=gate, normed=y)
        return self.out(gate * y), State(S, shift=last)

    def mixed(self, x: X, before: X) -> dict[str, X]:
        """What each map sees: each token mixed with the one before it."""
        return {name: torch.lerp(before, x, mu) for name, mu in self.mu.items()}

    def log_decay(self, seen: dict[str, X]) -> Float[Tensor, "*bt h k"]:
        """The log decay w <= 0 of each key channel."""
        return -wide(self.decay).exp()
