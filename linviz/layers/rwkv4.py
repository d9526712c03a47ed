"""Layer of RWKV-4: lv.rwkv4 on shifted tokens, behind a receptance.

Source: Peng et al., 2023, arXiv:2305.13048, eq. 11-17 and app. E; initial values of the maps as in
the authors' training code, github.com/BlinkDL/RWKV-LM.
"""

import math

import torch
from torch import nn

from linviz.layers.base import Layer, State, X
from linviz.layers.channel_mix import Place, above, height, mixtures, ramp, token_shift, zigzag
from linviz.layers.parts import no_decay, wide
from linviz.listening import note
from linviz.mechanisms import rwkv4


class RWKV4(Layer):
    """y = W_O (sigmoid(x_r W_R) * lv.rwkv4(w, u, x_k W_K, x_v W_V)).

    x_* = mu_* x + (1 - mu_*) s, s the token before; w = -e^decay, one a channel, as the bonus u.
    State: num, den, max [B, D] and shift [B, D], the last token.

    Args:
        width: channels of a token, D.
        place: see Layer.
    """

    mechanism = rwkv4.MECHANISM

    def __init__(self, width: int, *, place: Place = (0, 1)):
        super().__init__(width, place=place)
        high, late = height(place), above(place)
        self.mu = mixtures(
            k=ramp(width, late), v=ramp(width, late) + 0.3 * high, r=ramp(width, late / 2)
        )
        speed = -5 + 8 * torch.linspace(0, 1, width) ** (0.7 + 1.3 * high)
        self.decay = no_decay(nn.Parameter(speed))
        self.u = no_decay(nn.Parameter(math.log(0.3) + 0.5 * zigzag(width)))
        self.r, self.k, self.v, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        nn.init.orthogonal_(self.v.weight)
        for linear in (self.r, self.k, self.out):
            nn.init.zeros_(linear.weight)

    def forward(self, x: X, state: State | None = None) -> tuple[X, State]:
        """[B, T, D] -> [B, T, D], from a state."""
        before, last = token_shift(x, state, "RWKV4")
        x_r, x_k, x_v = (torch.lerp(before, x, self.mu[name]) for name in "rkv")
        w = -wide(self.decay).exp()
        o, S = self.mix(w, wide(self.u), self.k(x_k), self.v(x_v), state=state)
        gate = self.r(x_r).sigmoid()
        note(self, gate=gate)
        return self.out(gate * o), State(S, shift=last)
