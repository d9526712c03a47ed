r"""The diagonal scan with the same coefficients at all times: a convolution (S4, H3).

Equations:
    (1)  h_t = a \odot h_{t-1} + b\, u_t
    (2)  y_t = 2\,\mathrm{Re} \sum_n C_n h_{tn}
    (3)  y = \kappa * u + \text{echo}, \quad \kappa_l = 2\,\mathrm{Re} \sum_n C_n a_n^{\,l} b_n ,
         \quad \text{echo}_t = 2\,\mathrm{Re} \sum_n C_n a_n^{\,t} h_{0n}
    (4)  h_T = a^T \odot h_0 + \sum_j a^{T-j} b\, u_j

h [B, D, N] holds N modes for each of D channels; u [B, T, D]; a, b, C [D, N]. Complex modes stand
for pairs of conjugates: hence 2 Re. With real modes the 2 Re falls away.

Nothing depends on the data, so all times share the powers of a: the parallel form is one long
convolution and the echo of the state that came in. A long convolution goes by FFT, whose rounding
errors are those of the greatest number in the sequence: where the input grows a thousandfold, the
early outputs lose three digits. Chunks are short enough for plain products.
"""

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

Channel = Float[Tensor, "b t d"]
Modes = Inexact[Tensor, "d n"]
State = Inexact[Tensor, "b d n"]
SHORT = 128  # up to here the convolution is a product of matrices, exactly causal


def step(u: Tensor, a: Modes, b: Modes, C: Modes, h: State) -> tuple[Tensor, State]:
    """One token: u [B, D]."""
    h = a * h + b * u[..., None]  # (1)
    return read("bdn,dn->bd", h, C), h  # (2)


def recurrent(
    u: Channel, a: Modes, b: Modes, C: Modes, S: State | None = None
) -> tuple[Channel, State]:
    """The loop over time, (1) and (2)."""
    h, y = start(S, u, b), []
    for u_t in u.unbind(1):
        y_t, h = step(u_t, a, b, C, h)
        y.append(y_t)
    return torch.stack(y, 1), h


def parallel(
    u: Channel, a: Modes, b: Modes, C: Modes, S: State | None = None
) -> tuple[Channel, State]:
    """One convolution for the whole sequence, (3) and (4)."""
    h, T = start(S, u, b), u.shape[1]
    power = powers(a, T + 1)
    convolve = by_products if T <= SHORT else by_fft
    y = convolve(u, read("tdn,dn->td", power[:-1] * b, C))  # (3)
    y = y + read("tdn,bdn->btd", power[1:] * C, h)
    new = torch.einsum("tdn,btd->bdn", power[:-1].flip(0) * b, u.to(b.dtype))
    return y, power[-1] * h + new  # (4)


def chunked(
    u: Channel, a: Modes, b: Modes, C: Modes, S: State | None = None, *, chunk: int = 64
) -> tuple[Channel, State]:
    """(3) inside every chunk from zero, then (4) from chunk to chunk and the echo of each state."""
    h, (B, T, _), entering = start(S, u, b), u.shape, []
    chunk = min(chunk, T)
    whole = T - T % chunk
    y, new = parallel(u[:, :whole].unflatten(1, (-1, chunk)).flatten(0, 1), a, b, C)
    power = powers(a, chunk + 1)
    for new_n in new.unflatten(0, (B, -1)).unbind(1):
        entering.append(h)
        h = power[-1] * h + new_n
    echo = read("tdn,bmdn->bmtd", power[1:] * C, torch.stack(entering, 1))
    y = (y.unflatten(0, (B, -1)) + echo).flatten(1, 2)
    if whole < T:  # the ragged end follows by itself
        rest, h = parallel(u[:, whole:], a, b, C, h)
        y = torch.cat([y, rest], 1)
    return y, h


def trace(u: Channel, a: Modes, b: Modes, C: Modes, S: State | None = None) -> dict[str, Tensor]:
    """All of (1) to (3): the kernel kappa [D, T] and the state h [B, T, D, N] after each token."""
    h, y, path = start(S, u, b), [], []
    for u_t in u.unbind(1):
        y_t, h = step(u_t, a, b, C, h)
        y.append(y_t)
        path.append(h)
    kappa = read("tdn,dn->dt", powers(a, u.shape[1]) * b, C)
    states, y = torch.stack(path, 1), torch.stack(y, 1)
    return {"u": u, "a": a, "b": b, "C": C, "kappa": kappa, "S": states, "o": y}


def start(S: State | None, u: Tensor, b: Modes) -> State:
    """The state [B, D, N] that a sequence starts from: S, or zeros."""
    return b.new_zeros(u.shape[0], *b.shape) if S is None else S


def powers(a: Modes, n: int) -> Inexact[Tensor, "t d n"]:
    """a^0, a^1, ..., a^(n-1) along a new first axis, by doubling: log2(n) products."""
    power, a = torch.ones_like(a)[None], a[None]
    while power.shape[0] < n:
        power = torch.cat([power, power * a])
        a = a * a
    return power[:n]


def by_products(u: Channel, kappa: Float[Tensor, "t d"]) -> Channel:
    """The causal convolution over time, as a triangular matrix for each channel."""
    t = torch.arange(u.shape[1], device=u.device)
    lag = t[:, None] - t
    matrix = kappa[lag.clamp(min=0)] * (lag >= 0)[..., None]
    return torch.einsum("ijd,bjd->bid", matrix, u)


def by_fft(u: Channel, kappa: Float[Tensor, "t d"]) -> Channel:
    """The causal convolution over time; rounding is that of the greatest number, early or late."""
    n = 2 * u.shape[1]
    product = torch.fft.rfft(u, n, 1) * torch.fft.rfft(kappa, n, 0)
    return torch.fft.irfft(product, n, 1)[:, : u.shape[1]]


def read(equation: str, h: Tensor, C: Tensor) -> Tensor:
    """The sum over modes in (2) and (3): twice the real part where modes stand for pairs."""
    y = torch.einsum(equation, h, C.to(h.dtype) if h.is_complex() else C)
    return 2 * y.real if y.is_complex() else y
