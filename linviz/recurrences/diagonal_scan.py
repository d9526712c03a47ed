r"""Every number of the state on its own: no channel mixes with another (Mamba, an LSTM with W = 0).

Equations:
    (1)  h_t = a_t \odot h_{t-1} + u_t B_t^\top , \qquad a_t = e^{\Delta_t A}
    (2)  y_t = h_t C_t

h [B, D, N] holds N numbers for each of D channels; u, dt [B, T, D] are what is written and for how
long (\Delta is dt), A [D, N] <= 0 is the rate of decay, B, C [B, T, N] say where to write and where
to read. The log gate is dt A.

Two steps in a row are one step of the same kind, so the steps can be joined in any grouping:
    (3)  (a, b) \text{ then } (a', b') = (a' a,\; a' b + b')

`associative_scan` joins neighbours, then neighbours of neighbours: log2(T) rounds. Nothing is ever
divided by a product of gates, which may be zero.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Channel = Float[Tensor, "b t d"]
Modes = Float[Tensor, "b t n"]
Rate = Float[Tensor, "d n"]
State = Float[Tensor, "b d n"]
Element = tuple[Tensor, ...]


def step(u: Tensor, dt: Tensor, A: Rate, B: Tensor, C: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """One token, with any leading axes: u, dt [..., D], B, C [..., N], h [..., D, N]."""
    h = torch.addcmul(u[..., None] * B[..., None, :], (dt[..., None] * A).exp(), h)  # (1)
    return (h @ C[..., None]).squeeze(-1), h  # (2)


def recurrent(
    u: Channel, dt: Channel, A: Rate, B: Modes, C: Modes, S: State | None = None
) -> tuple[Channel, State]:
    """The loop over time, (1) and (2)."""
    h, y = start(S, u, A), []
    for u_t, dt_t, B_t, C_t in zip(*(x.unbind(1) for x in (u, dt, B, C)), strict=True):
        y_t, h = step(u_t, dt_t, A, B_t, C_t, h)
        y.append(y_t)
    return torch.stack(y, 1), h


def parallel(
    u: Channel, dt: Channel, A: Rate, B: Modes, C: Modes, S: State | None = None
) -> tuple[Channel, State]:
    """An associative scan over time, (3), then (2) for all times at once."""
    h = scan((dt[..., None] * A).exp(), u[..., None] * B[:, :, None], start(S, u, A))
    return (h @ C[..., None]).squeeze(-1), h[:, -1]


def chunked(
    u: Channel,
    dt: Channel,
    A: Rate,
    B: Modes,
    C: Modes,
    S: State | None = None,
    *,
    chunk: int = 64,
) -> tuple[Channel, State]:
    """All chunks walk side by side, twice: from zero to see what they leave, then in earnest."""
    T = u.shape[1]
    chunk = min(chunk, T)
    whole = T - T % chunk
    chunks = [x[:, :whole].unflatten(1, (-1, chunk)) for x in (u, dt, B, C)]
    tokens = list(zip(*(x.unbind(2) for x in chunks), strict=True))
    left = u.new_zeros(1)
    for u_t, dt_t, B_t, _ in tokens:
        left = torch.addcmul(u_t[..., None] * B_t[..., None, :], (dt_t[..., None] * A).exp(), left)
    total = (chunks[1].sum(2)[..., None] * A).exp()
    h, entering = start(S, u, A), []
    for total_n, left_n in zip(total.unbind(1), left.unbind(1), strict=True):
        entering.append(h)
        h = torch.addcmul(left_n, total_n, h)
    walking, y = torch.stack(entering, 1), []
    for u_t, dt_t, B_t, C_t in tokens:
        y_t, walking = step(u_t, dt_t, A, B_t, C_t, walking)
        y.append(y_t)
    y = torch.stack(y, 2).flatten(1, 2)
    if whole < T:  # the ragged end walks alone
        rest, h = recurrent(u[:, whole:], dt[:, whole:], A, B[:, whole:], C[:, whole:], h)
        y = torch.cat([y, rest], 1)
    return y, h


def trace(
    u: Channel, dt: Channel, A: Rate, B: Modes, C: Modes, S: State | None = None
) -> dict[str, Tensor]:
    """Everything (1) and (2) name: the gate a and the state h [B, T, D, N] after each token, ..."""
    h, path, y = start(S, u, A), [], []
    for u_t, dt_t, B_t, C_t in zip(*(x.unbind(1) for x in (u, dt, B, C)), strict=True):
        y_t, h = step(u_t, dt_t, A, B_t, C_t, h)
        y.append(y_t)
        path.append(h)
    a = (dt[..., None] * A).exp()
    h, y = torch.stack(path, 1), torch.stack(y, 1)
    return {"u": u, "dt": dt, "A": A, "B": B, "C": C, "a": a, "S": h, "o": y}


def scan(
    a: Float[Tensor, "b t ..."], b: Float[Tensor, "b t ..."], h: Float[Tensor, "b ..."]
) -> Float[Tensor, "b t ..."]:
    """h_t = a_t h_{t-1} + b_t for all t, elementwise, from the state h."""
    b = torch.cat([torch.addcmul(b[:, :1], a[:, :1], h[:, None]), b[:, 1:]], 1)
    return associative_scan(join, (a, b))[1]


def join(first: Element, then: Element) -> Element:
    """(3): two stretches of the recurrence as one."""
    (a, b), (a_then, b_then) = first, then
    return a * a_then, torch.addcmul(b_then, a_then, b)


def associative_scan(join: Callable[[Element, Element], Element], x: Element) -> Element:
    """All prefixes of x_1, x_2, ... (time on axis 1) under an associative `join`.

    Neighbours are joined, the half as long sequence is scanned, and the times in between are filled
    in.
    """
    T = x[0].shape[1]
    if T < 2:
        return x
    odd = tuple(z[:, 1::2] for z in x)
    pairs = join(tuple(z[:, 0 : T - 1 : 2] for z in x), odd)
    pairs = associative_scan(join, pairs)  # the prefixes that end at times 1, 3, 5, ...
    even = tuple(z[:, 2::2] for z in x)
    n = even[0].shape[1]
    even = join(tuple(z[:, :n] for z in pairs), even)  # those that end at 2, 4, 6, ...
    return tuple(interleave(z[:, :1], p, e) for z, p, e in zip(x, pairs, even, strict=True))


def interleave(first: Tensor, odd: Tensor, even: Tensor) -> Tensor:
    """first, odd_1, even_1, odd_2, even_2, ... along axis 1."""
    n = even.shape[1]
    middle = torch.stack([odd[:, :n], even], 2).flatten(1, 2)
    return torch.cat([first, middle, odd[:, n:]], 1)


def start(S: Tensor | None, u: Tensor, A: Tensor) -> Tensor:
    """The state [B, D, N] that a sequence starts from: S, or zeros."""
    return u.new_zeros(u.shape[0], *A.shape) if S is None else S
