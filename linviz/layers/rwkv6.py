"""Layer of RWKV-6 (Finch): RWKV-5 with mixtures and a decay that the data choose, at low rank.

Source: Peng et al., 2024, arXiv:2404.05892, sec. 4.2; initial values as in the authors' training
code, github.com/BlinkDL/RWKV-LM: at first the layer is RWKV-5's.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from linviz.layers.base import X
from linviz.layers.channel_mix import Place, above, mixtures, ramp
from linviz.layers.parts import heads, no_decay, wide
from linviz.layers.rwkv5 import RWKV5
from linviz.mechanisms import rwkv6


class LowRankBend(nn.Module):
    """f(x W_1) W_2 + b, through few numbers. With a bias it is computed in float32 or better.

    Attributes:
        down: W_1, [D, rank]; zero at first.
        up: W_2, [rank, D]; up to the caller at first.
        bias: [D], or None.
    """

    def __init__(self, width: int, rank: int, bend: Callable, bias: Tensor | None = None):
        super().__init__()
        self.bend = bend
        self.down = no_decay(nn.Parameter(torch.zeros(width, rank)))
        self.up = no_decay(nn.Parameter(torch.empty(rank, width)))
        self.bias = None if bias is None else nn.Parameter(bias)

    def forward(self, x: X) -> X:
        """[B, T, D] -> [B, T, D]."""
        y = self.bend(x @ self.down) @ self.up
        return y if self.bias is None else wide(y) + self.bias


class RWKV6(RWKV5):
    """y = W_O (silu(x_g W_G) * HeadNorm of lv.rwkv6(x_r W_R, x_k W_K, x_v W_V, w, u)).

    With s the token before: x_* = x + (s - x) (mu_* + tanh((x + (s - x) mu_x) A_*) B_*), and
    w = -e^{decay + tanh(x_w W_1) W_2}. State: S [B, H, K, V] and shift [B, D], the last token.

    Args:
        width: channels of a token, D.
        heads: H; by default as many of 64 channels as there is room for, at least one.
        mix_rank: numbers that each mixture goes through.
        decay_rank: numbers that the decay goes through.
        place: see Layer.
    """

    mechanism = rwkv6.MECHANISM

    def __init__(
        self,
        width: int,
        *,
        heads: int | None = None,
        mix_rank: int = 32,
        decay_rank: int = 64,
        place: Place = (0, 1),
    ):
        super().__init__(width, heads=heads, place=place)
        mu = {name: 1 - x.detach() for name, x in self.mu.items()}
        early = 1 - ramp(width, above(place))
        self.mu = mixtures(x=early, w=early.clone(), **mu)
        self.mix_down = no_decay(nn.Parameter(torch.zeros(width, 5 * mix_rank)))
        self.mix_up = no_decay(nn.Parameter(torch.empty(5, mix_rank, width)))
        self.decay_map = LowRankBend(width, decay_rank, torch.tanh)
        for x in (self.mix_up, self.decay_map.up):
            nn.init.uniform_(x, -0.01, 0.01)

    def mixed(self, x: X, before: X) -> dict[str, X]:
        """What each map sees: a mixture that x itself chooses."""
        z = heads(torch.tanh(torch.lerp(x, before, self.mu["x"]) @ self.mix_down), 5)
        chosen = torch.einsum("b t m r, m r d -> m b t d", z, self.mix_up)
        mu = torch.stack([self.mu[name] for name in MIXED])[:, None, None]
        return dict(zip(MIXED, x + (before - x) * (mu + chosen), strict=True))

    def log_decay(self, seen: dict[str, X]) -> Float[Tensor, "b t h k"]:
        """The log decay w <= 0 of each key channel and token."""
        return -(wide(self.decay) + heads(self.decay_map(seen["w"]), self.heads)).exp()


MIXED = "wkvrg"  # the order of the mixtures in mix_down and mix_up
