"""Layer of RWKV-7 (Goose): lv.rwkv7 on shifted tokens, with values that remember the first layer's.

Source: Peng et al., 2025, arXiv:2503.14456, sec. 4; initial values as in the authors' training
code, github.com/BlinkDL/RWKV-LM.
"""

import math
from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from linviz.layers.base import Layer, State, X, divided
from linviz.layers.channel_mix import Place, above, height, mixtures, ramp, token_shift
from linviz.layers.parts import heads, no_decay, wide
from linviz.layers.rwkv5 import HeadNorm
from linviz.layers.rwkv6 import LowRankBend
from linviz.listening import note
from linviz.mechanisms import rwkv7

SHIFTED = {"r": 0.2, "w": 0.9, "k": 0.7, "v": 0.7, "a": 0.9, "g": 0.2}  # powers of the mixtures


class RWKV7(Layer):
    r"""y = W_O (g * (HeadNorm(o) + (r \cdot r_k k~) v)), o = lv.rwkv7(r, w, k~, v, -kk, alpha kk).

    With x_* = x + mu_* (s - x), s the token before, and LR_* two maps through few numbers:
    r = x_r W_R, k = x_k W_K, v = x_v W_V, g = sigmoid(x_g G_1) G_2,
    w = -e^{-1/2} sigmoid(LR_w(x_w)), with tanh between its maps, alpha = sigmoid(LR_a(x_a)),
    kk = k k_k at length 1, k~ = k (1 + (alpha - 1) k_a). After the first layer v goes towards the
    first layer's v by the share sigmoid(LR_v(x_v)).
    State: S [B, H, K, V] and shift [B, D], the last token.

    Args:
        width: channels of a token, D.
        heads: H; by default as many of 64 channels as there is room for, at least one.
        decay_rank: numbers that the decay goes through; 2.5 sqrt(D) by default, like all ranks
            rounded to a multiple of 32 and at least 32.
        rate_rank: the same for alpha; 2.5 sqrt(D).
        value_rank: for the share of the first layer's value; 1.7 sqrt(D).
        gate_rank: for the gate; 5 sqrt(D).
        spare: layer 0 has LR_v too, which nothing uses, as in some published models.
        place: see Layer. Layer 0 is the first.
    """

    mechanism = rwkv7.MECHANISM
    shares: ClassVar[bool] = True

    def __init__(
        self,
        width: int,
        *,
        heads: int | None = None,
        decay_rank: int | None = None,
        rate_rank: int | None = None,
        value_rank: int | None = None,
        gate_rank: int | None = None,
        spare: bool = False,
        place: Place = (0, 1),
    ):
        super().__init__(width, place=place)
        self.heads = max(width // 64, 1) if heads is None else heads
        self.K = divided(width, self.heads, "width by heads", "RWKV7")
        self.mu = mixtures(**{n: 1 - ramp(width, p * above(place)) for n, p in SHIFTED.items()})
        line = torch.linspace(0, 1, width)
        bow = torch.linspace(-1, 1, self.K).repeat(self.heads)
        bow = bow * bow.abs()
        speed = -5.5 + 6 * line ** (1 + height(place) ** 0.3) + 2.5 * bow
        self.decay = low_rank(width, decay_rank, 2.5, torch.tanh, speed)
        rate = -0.19 + 0.3 * bow + 0.4 * (line - 0.5)
        self.rate = low_rank(width, rate_rank, 2.5, nn.Identity(), rate)
        self.value = None
        if place[0] > 0 or spare:
            share = 0.73 - 0.4 * (line - 0.5)
            self.value = low_rank(width, value_rank, 1.7, nn.Identity(), share)
        self.gate = low_rank(width, gate_rank, 5.0, torch.sigmoid)
        self.k_k = no_decay(nn.Parameter(0.71 - 0.1 * (line - 0.5)))
        self.k_a = no_decay(nn.Parameter(torch.full((width,), 1.02)))
        self.r_k = no_decay(nn.Parameter(torch.full((self.heads, self.K), -0.04)))
        self.r, self.k, self.v, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.norm = HeadNorm(width, place)
        for linear, bound in ((self.r, 0.5), (self.k, 0.05), (self.v, 0.5), (self.out, 0.0)):
            nn.init.uniform_(linear.weight, -bound * width**-0.5, bound * width**-0.5)

    def forward(
        self, x: X, state: State | None = None, shared: dict[str, Tensor] | None = None
    ) -> tuple[X, State]:
        """[B, T, D] -> [B, T, D], from a state.

        Args:
            x: tokens.
            state: from an earlier call.
            shared: one dict for all layers of a call. Layer 0 writes its "v_first" [B, T, D], the
                others read it.

        Raises:
            ValueError: x or the state is not this layer's, or a later layer finds no "v_first".
        """
        before, last = token_shift(x, state, "RWKV7")
        seen = {name: torch.lerp(x, before, mu) for name, mu in self.mu.items()}
        r, k, v = self.r(seen["r"]), self.k(seen["k"]), self.v(seen["v"])
        v = self.with_first(v, seen["v"], {} if shared is None else shared)
        w = -math.exp(-0.5) * self.decay(seen["w"]).sigmoid()
        rate = self.rate(seen["a"]).sigmoid()
        removed = F.normalize(heads(wide(k * self.k_k), self.heads), dim=-1, eps=1e-12)
        k = k * (1 + (rate - 1) * self.k_a).to(k.dtype)
        r, w, k, v, rate = (heads(y, self.heads) for y in (r, w, k, v, rate))
        o, S = self.mix(r, w, k, v, -removed, removed * rate, state=state)
        gate, y = self.gate(seen["g"]), self.norm(o)
        note(self, gate=gate, rate=rate, normed=y)
        bonus = (r * k * self.r_k).sum(-1, keepdim=True) * v
        return self.out(gate * (y + bonus.flatten(-2))), State(S, shift=last)

    def with_first(self, v: X, x_v: X, shared: dict[str, Tensor]) -> X:
        """The value, mixed with the first layer's."""
        if self.place[0] == 0:
            shared["v_first"] = v
            return v
        first = shared.get("v_first")
        if first is None or first.shape != v.shape:
            came = "none" if first is None else f"shape {list(first.shape)}"
            raise ValueError(
                f"RWKV7: layer {self.place[0]} needs shared['v_first'] {list(v.shape)}, which "
                f"layer 0 writes: hand one dict to all layers of a call; got {came}"
            )
        return torch.lerp(v, first, self.value(x_v).sigmoid().to(v.dtype))

    def step(
        self,
        x_t: Float[Tensor, "b d"],
        state: State | None = None,
        shared: dict[str, Tensor] | None = None,
    ) -> tuple[Float[Tensor, "b d"], State]:
        """One token."""
        y, state = self(x_t[:, None], state, shared=shared)
        return y[:, 0], state

    def first_state(self, batch: int = 1) -> State:
        """The state before the first token."""
        nothing = self.k_k.new_empty(batch, 0, self.width)
        with torch.no_grad():
            return self(nothing, shared={"v_first": nothing})[1]


def low_rank(
    width: int, rank: int | None, factor: float, bend: Callable, bias: Tensor | None = None
) -> LowRankBend:
    """A map through `rank` numbers, or about factor sqrt(D), with the initial values of RWKV-7."""
    rank = max(32, round(factor * width**0.5 / 32) * 32) if rank is None else rank
    made = LowRankBend(width, rank, bend, bias)
    nn.init.orthogonal_(made.up, 0.1 * max(rank / width, 1) ** 0.5)
    return made
