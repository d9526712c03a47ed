"""What all RWKV layers share, and their channel mixing: what follows the mixer in an RWKV block.

Token shift: every projection sees a mixture of a token and the one before it, channel by channel.

Source: Peng et al., 2023, arXiv:2305.13048, sec. 3.1.1 and eq. 18-19 (RWKV-4); 2024,
arXiv:2404.05892, sec. 4.1.1 and 4.2.3 (RWKV-5 and 6); 2025, arXiv:2503.14456, sec. 4.2 (RWKV-7).
Initial values as in the authors' training code, github.com/BlinkDL/RWKV-LM.
"""

from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from linviz.layers.base import State, X
from linviz.layers.parts import no_decay

Place = tuple[int, int]


def token_shift(x: X, state: Any, where: str) -> tuple[X, Float[Tensor, "b d"]]:
    """The token before each token, and the last token, which the next call needs.

    Args:
        x: tokens.
        state: its part "shift" [B, D] comes before the first token; zeros if the state is None.
        where: who asks, for the message.

    Raises:
        ValueError: the state has no part "shift", or one of another shape.
    """
    B, _, D = x.shape
    past = x.new_zeros(B, D) if state is None else state.get("shift")
    if past is None or past.shape != (B, D):
        raise ValueError(f"{where}: state must have shift [B={B}, D={D}], got {state}")
    seen = torch.cat([past[:, None], x], 1)
    return seen[:, :-1], seen[:, -1]


def mixtures(**mu: Float[Tensor, " d"]) -> nn.ParameterDict:
    """The weights of the mixtures, by the name of what sees them."""
    return nn.ParameterDict({name: no_decay(nn.Parameter(x.clone())) for name, x in mu.items()})


def ramp(width: int, power: float) -> Float[Tensor, " d"]:
    """(n / D)^power for the channels n = 0, 1, ..."""
    return (torch.arange(width) / width) ** power


def zigzag(width: int) -> Float[Tensor, " d"]:
    """0, 1, -1, 0, 1, -1, ..."""
    return (torch.arange(width) + 1.0) % 3 - 1


def height(place: Place) -> float:
    """0 for the first layer, 1 for the last."""
    i, n = place
    return i / max(n - 1, 1)


def above(place: Place) -> float:
    """The share of the layers that follow, this one included: 1 for the first layer."""
    i, n = place
    return 1 - i / n


class ChannelMix(nn.Module):
    """y = sigmoid(x_r W_R) * (relu(x_k W_K)^2 W_V); RWKV-7 leaves the receptance out.

    With s the token before, x_* = mu_* x + (1 - mu_*) s in RWKV-4 and 5, and
    x_* = x + mu_* (s - x) since RWKV-6. `forward(x, state=None) -> (y, state)` takes and gives
    [B, T, D]. State: shift [B, D], the last token.

    Args:
        width: channels of a token, D.
        version: 4, 5, 6 or 7.
        hidden: channels inside; 4 D by default, and 7/2 D cut to a multiple of 32 in versions 5
            and 6.
        place: (number of this block, number of blocks).
    """

    stateful = True

    def __init__(
        self, width: int, *, version: int, hidden: int | None = None, place: Place = (0, 1)
    ):
        super().__init__()
        if version not in (4, 5, 6, 7):
            raise ValueError(f"ChannelMix: version must be 4, 5, 6 or 7, got {version!r}")
        if hidden is None:
            hidden = max(32, 7 * width // 2 // 32 * 32) if version in (5, 6) else 4 * width
        self.width, self.version, late = width, version, above(place)
        mu = ramp(width, late**4 if version == 7 else late)
        mu = mu if version < 6 else 1 - mu
        self.mu = mixtures(k=mu) if version == 7 else mixtures(k=mu, r=mu)
        self.k = nn.Linear(width, hidden, bias=False)
        self.v = nn.Linear(hidden, width, bias=False)
        self.r = None if version == 7 else nn.Linear(width, width, bias=False)
        if version == 7:
            nn.init.uniform_(self.k.weight, -0.5 * width**-0.5, 0.5 * width**-0.5)
        else:
            stretch = max(hidden / width, 1) ** 0.5
            nn.init.orthogonal_(self.k.weight, stretch if version == 4 else 1)
        for linear in (self.v, self.r):
            if linear is not None:
                nn.init.zeros_(linear.weight)

    def __call__(self, x: Any, state: Any = None) -> tuple[X, State]:
        """`forward`, after a look at what came in.

        Raises:
            ValueError: x is not [B, T, D], or the state is not one of this module.
        """
        if not isinstance(x, Tensor) or x.ndim != 3 or x.shape[-1] != self.width:
            came = f"shape {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"ChannelMix: x must be a tensor [B, T, D={self.width}], got {came}")
        if state is not None and not isinstance(state, State):
            came = type(state).__name__
            raise ValueError(f"ChannelMix: state must be a State or None, got {came}")
        return super().__call__(x, state)

    def forward(self, x: X, state: State | None = None) -> tuple[X, State]:
        """[B, T, D] -> [B, T, D], from a state."""
        before, last = token_shift(x, state, "ChannelMix")
        one, other = (before, x) if self.version < 6 else (x, before)
        y = self.v(self.k(torch.lerp(one, other, self.mu["k"])).relu().square())
        if self.r is not None:
            y = self.r(torch.lerp(one, other, self.mu["r"])).sigmoid() * y
        return y, State(shift=last)

    def extra_repr(self) -> str:
        """The version and the width."""
        return f"RWKV-{self.version}, D={self.width}"


CHANNEL_MIXES = {f"rwkv{n}": partial(ChannelMix, version=n) for n in (4, 5, 6, 7)}
