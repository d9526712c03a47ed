r"""One gate per key channel: each row of the state fades at its own rate (GLA, RWKV-5, RWKV-6).

Equations:
    (1)  S_t = \operatorname{diag}(a_t) S_{t-1} + k_t v_t^\top , \qquad a_t = e^{g_t}
    (2)  o_t = S_t^\top q_t
    (3)  A_{ij} = \sum_c q_{ic} k_{jc} \exp \sum_{m=j+1}^{i} g_{mc} \; (i \ge j) , \qquad
         o = A V + (Q \odot e^{G}) S_0
    (4)  S_T = \operatorname{diag}(e^{G_T}) S_0
         + \sum_j \Bigl(k_j \odot \exp \sum_{m=j+1}^{T} g_m\Bigr) v_j^\top

With a bonus u the reader comes before the writer, and its own token is weighted by u instead:
    (5)  o_t = (S_{t-1} + \operatorname{diag}(u)\, k_t v_t^\top)^\top q_t
so that the exponents of (3) end at i-1, the mask is strict, and the sum over c of
q_ic u_c k_ic stands on the diagonal.

q, k, g [B, T, H, K], v [B, T, H, V], u [H, K], S [B, H, K, V]. q is not scaled.
"""

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from linviz.recurrences.exponents import decayed_scores
from linviz.recurrences.matrix_state import all_at_once, by_chunks, loop, start, states

Query = Float[Tensor, "b t h k"]
Value = Float[Tensor, "b t h v"]
Bonus = Float[Tensor, "h k"] | None
State = Float[Tensor, "b h k v"]


def step(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, S: State, u: Bonus = None
) -> tuple[Tensor, State]:
    """One token: q, k, g [B, H, K], v [B, H, V]."""
    row, column = v[..., None, :], k[..., :, None]
    old, S = S, torch.addcmul(g.exp()[..., None] * S, column, row)  # (1)
    if u is not None:
        S_seen = torch.addcmul(old, u[..., None] * column, row)
        return (q[..., None, :] @ S_seen).squeeze(-2), S  # (5)
    return (q[..., None, :] @ S).squeeze(-2), S  # (2)


def recurrent(
    q: Query, k: Query, v: Value, g: Query, S: State | None = None, *, u: Bonus = None
) -> tuple[Value, State]:
    """The loop over time, (1) with (2) or (5)."""
    return loop(partial(step, u=u), (q, k, v, g), start(S, k, v))


def parallel(
    q: Query, k: Query, v: Value, g: Query, S: State | None = None, *, u: Bonus = None
) -> tuple[Value, State]:
    """All pairs of times at once, (3) and (4)."""
    return all_at_once(partial(within, u=u), (q, k, v, g), start(S, k, v))


def chunked(
    q: Query,
    k: Query,
    v: Value,
    g: Query,
    S: State | None = None,
    *,
    u: Bonus = None,
    chunk: int = 64,
) -> tuple[Value, State]:
    """(3) and (4) inside every chunk, and (M2) from chunk to chunk."""
    return by_chunks(partial(within, u=u), (q, k, v, g), start(S, k, v), chunk)


def trace(
    q: Query, k: Query, v: Value, g: Query, S: State | None = None, *, u: Bonus = None
) -> dict[str, Tensor]:
    """All of (1) to (5): the gate a [B, T, H, K], the state S [B, T, H, K, V] after each token."""
    o, _, S = states(partial(step, u=u), (q, k, v, g), start(S, k, v))
    named = {"q": q, "k": k, "v": v, "g": g, "a": g.exp(), "S": S, "o": o}
    return named if u is None else named | {"u": u}


def within(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, u: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(o_0, R, M, N) of a stretch: q, k, g [..., T, K], v [..., T, V], u [H, K]."""
    [[A]], [R], [k_left], total = decayed_scores([q], [k], g, before=[u is not None])
    if u is not None:
        u = u.view(len(u), *[1] * (q.ndim - 3), -1)  # [H, 1, K], or [H, 1, 1, K] for all chunks
        A = A + torch.diag_embed((q * u * k).sum(-1))  # (5)
    return A @ v, R, total.exp().mT, k_left.mT @ v  # (3), (3), (4), (4)
