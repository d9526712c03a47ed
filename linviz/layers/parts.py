"""What several layers are built of: norms, short convolution, rotation by position, low rank."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """x / sqrt(mean of x^2 + eps) over the last axis, times a weight.

    Source: Zhang and Sennrich, 2019, arXiv:1910.07467, eq. 4. Computed in float32 or better.

    Attributes:
        weight: [size], or None.
        offset: added to the weight: 1 where a model keeps its weights around zero.
    """

    def __init__(self, size: int, eps: float = 1e-5, *, affine: bool = True, offset: float = 0.0):
        super().__init__()
        self.eps, self.offset = eps, offset
        self.weight = nn.Parameter(torch.full((size,), 1 - offset)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        """[..., size] -> [..., size]."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        y = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        if self.weight is not None:
            y = y * (self.weight + self.offset)
        return y.to(x.dtype)


class ShortConv(nn.Module):
    """A causal convolution over time, each channel for itself.

    Its state is the last width - 1 inputs.

    Attributes:
        weight: [channels, width]; the last column meets the newest token.
        bias: [channels], or None.
    """

    def __init__(self, channels: int, width: int = 4, *, bias: bool = False):
        super().__init__()
        bound = width**-0.5  # as torch.nn.Conv1d
        self.weight = nn.Parameter(torch.empty(channels, width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(channels).uniform_(-bound, bound)) if bias else None

    def forward(
        self, x: Float[Tensor, "b t c"], past: Float[Tensor, "b w c"] | None = None
    ) -> tuple[Float[Tensor, "b t c"], Float[Tensor, "b w c"]]:
        """The convolved tokens, and the inputs that the next token will need."""
        channels, width = self.weight.shape
        if past is None:
            past = x.new_zeros(len(x), width - 1, channels)
        seen = torch.cat([past, x], 1)
        past = seen[:, seen.shape[1] - width + 1 :]
        if x.shape[1] == 0:
            return x, past
        y = F.conv1d(seen.transpose(1, 2), self.weight[:, None], self.bias, groups=channels)
        return y.transpose(1, 2), past


class LowRank(nn.Sequential):
    """Two linear maps through few numbers: x W_1 W_2 + b, as the gates of GLA and KDA are made."""

    def __init__(self, size: int, rank: int, out: int, *, bias: bool = True):
        super().__init__(nn.Linear(size, rank, bias=False), nn.Linear(rank, out, bias=bias))


def heads(x: Float[Tensor, "b t d"], H: int) -> Float[Tensor, "b t h k"]:
    """The channels cut into H heads."""
    return x.unflatten(-1, (H, -1))


def l2norm(x: Tensor, eps: float = 1e-6) -> Tensor:
    """X / sqrt(sum of x^2 + eps) over the last axis (eps inside the root, as in Gated DeltaNet)."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + eps)


def rotate(
    x: Float[Tensor, "b t h k"],
    position: Int[Tensor, "b t"],
    frequency: Float[Tensor, " f"],
    *,
    interleaved: bool = False,
) -> Float[Tensor, "b t h k"]:
    """Turn pairs of channels by an angle that grows with the position.

    Source: Su et al., 2021, arXiv:2104.09864, eq. 34. Only the first 2F channels are turned.

    Args:
        x: queries or keys.
        position: of each token.
        frequency: radians a token, one a pair.
        interleaved: pairs are (0, 1), (2, 3), ...; otherwise (0, F), (1, F + 1), ...
    """
    turned, rest = x.split([2 * len(frequency), x.shape[-1] - 2 * len(frequency)], -1)
    angle = position[..., None, None].to(frequency.dtype) * frequency  # [B, T, 1, F]
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    if interleaved:
        a, b = turned[..., ::2], turned[..., 1::2]
        turned = torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)
    else:
        a, b = turned.chunk(2, -1)
        turned = torch.cat([a * cos - b * sin, a * sin + b * cos], -1)
    return torch.cat([turned, rest], -1)


def rotary_frequencies(channels: int, base: float = 10_000.0) -> Float[Tensor, " f"]:
    """base^(-2 i / channels) for the pairs i = 0, 1, ...: arXiv:2104.09864, sec. 3.2.2."""
    return base ** -(torch.arange(0, channels, 2, dtype=torch.float32) / channels)


def positions(seen: Int[Tensor, " b"], T: int) -> Int[Tensor, "b t"]:
    """The positions of the next T tokens after `seen` tokens."""
    return seen[:, None] + torch.arange(T, device=seen.device)


def step_bias(size: int, low: float = 1e-3, high: float = 0.1) -> nn.Parameter:
    """A bias b with softplus(b) spread evenly over the logarithm of [low, high].

    Source: Gu and Dao, 2023, arXiv:2312.00752, sec. 3.6; the floor 1e-4 is that of their code.
    """
    dt = torch.exp(torch.rand(size) * math.log(high / low) + math.log(low)).clamp(min=1e-4)
    return no_decay(nn.Parameter(dt + torch.log(-torch.expm1(-dt))))  # softplus inverted


def no_decay(parameter: nn.Parameter) -> nn.Parameter:
    """Mark a parameter that weight decay must leave alone."""
    parameter.no_weight_decay = True
    return parameter


def wide(x: Tensor) -> Tensor:
    """X in float32 or better: gates must not be rounded."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Projection(nn.Module):
    """A linear map of the tokens, then a short convolution and SiLU where there is one.

    Args:
        size: channels in.
        out: channels out.
        conv: width of the convolution; 0 leaves it and SiLU out.
        bias: of the linear map.
        silu: whether SiLU follows the convolution.
    """

    def __init__(
        self, size: int, out: int, *, conv: int = 0, bias: bool = False, silu: bool = True
    ):
        super().__init__()
        self.linear = nn.Linear(size, out, bias=bias)
        self.conv = ShortConv(out, conv) if conv else None
        self.silu = silu

    def forward(
        self, x: Float[Tensor, "b t d"], past: Tensor | None = None
    ) -> tuple[Float[Tensor, "b t c"], Tensor | None]:
        """The tokens, and what the convolution needs next time (None without one)."""
        y = self.linear(x)
        if self.conv is None:
            return y, None
        y, past = self.conv(y, past)
        return F.silu(y) if self.silu else y, past


def project(
    x: Tensor, state: dict[str, Tensor] | None, **projections: Projection
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Apply projections by name; their convolutions' pasts are `<name>_conv` in the state."""
    ys, pasts = [], {}
    for name, projection in projections.items():
        y, past = projection(x, None if state is None else state.get(f"{name}_conv"))
        ys.append(y)
        if past is not None:
            pasts[f"{name}_conv"] = past
    return ys, pasts
