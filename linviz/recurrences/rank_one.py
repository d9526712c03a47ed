r"""Decay, plus any rank-one correction of the old state (RWKV-7).

Equations:
    (1)  S_t = \operatorname{diag}(e^{w_t}) S_{t-1} + b_t y_t^\top + k_t v_t^\top ,
         \qquad y_t = S_{t-1}^\top a_t
    (2)  o_t = S_t^\top q_t

The lookup y_t reads the state before it decays. The delta rule is the case a = -e^w k, b = beta k
with beta k written. With E_ij(x, y) the sum over c of x_ic y_jc times e to the sum of w_mc over
(j, i], E' the same with (j, i-1], G the sum of w over [1, i] and G' that over [1, i-1],
    (3)  \bigl(I - \operatorname{stril} E'(A, B)\bigr) Y
         = \operatorname{stril} E'(A, K)\, V + (A \odot e^{G'}) S_0
    (4)  O = (Q \odot e^{G}) S_0 + \operatorname{tril} E(Q, K)\, V + \operatorname{tril} E(Q, B)\, Y
    (5)  S_T = \operatorname{diag}(e^{G_T}) S_0
         + \sum_j \exp\Bigl(\sum_{m=j+1}^{T} w_m\Bigr) \odot (k_j v_j^\top + b_j y_j^\top)

The solution is affine in S_0: Y = Y_0 + W S_0.

q, w, k [B, T, H, K], v [B, T, H, V], a, b [B, T, H, K], w the log decay <= 0, S [B, H, K, V]. q is
not scaled.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from linviz.recurrences.exponents import decayed_scores, solve_unit_lower
from linviz.recurrences.matrix_state import all_at_once, by_chunks, loop, start, states

Query = Float[Tensor, "b t h k"]
Value = Float[Tensor, "b t h v"]
State = Float[Tensor, "b h k v"]


def step(
    q: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, S: State
) -> tuple[Tensor, State]:
    """One token: q, w, k, a, b [B, H, K], v [B, H, V]."""
    y = a[..., None, :] @ S  # [B, H, 1, V]
    S = torch.addcmul(w.exp()[..., None] * S, b[..., :, None], y)
    S = torch.addcmul(S, k[..., :, None], v[..., None, :])  # (1)
    return (q[..., None, :] @ S).squeeze(-2), S  # (2)


def recurrent(
    q: Query, w: Query, k: Query, v: Value, a: Query, b: Query, S: State | None = None
) -> tuple[Value, State]:
    """The loop over time, (1) and (2)."""
    return loop(step, (q, w, k, v, a, b), start(S, k, v))


def parallel(
    q: Query, w: Query, k: Query, v: Value, a: Query, b: Query, S: State | None = None
) -> tuple[Value, State]:
    """One triangular system for the whole sequence, (3) to (5)."""
    return all_at_once(within, (q, w, k, v, a, b), start(S, k, v))


def chunked(
    q: Query,
    w: Query,
    k: Query,
    v: Value,
    a: Query,
    b: Query,
    S: State | None = None,
    *,
    chunk: int = 64,
) -> tuple[Value, State]:
    """(3) to (5) inside every chunk, and (M2) from chunk to chunk."""
    return by_chunks(within, (q, w, k, v, a, b), start(S, k, v), chunk)


def trace(
    q: Query, w: Query, k: Query, v: Value, a: Query, b: Query, S: State | None = None
) -> dict[str, Tensor]:
    """All of (1) and (2): the lookup y [B, T, H, V], the state [B, T, H, K, V] after each token."""
    o, old, S = states(step, (q, w, k, v, a, b), start(S, k, v))
    y = (a[..., None, :] @ old).squeeze(-2)
    return {"q": q, "w": w, "k": k, "v": v, "a": a, "b": b, "y": y, "S": S, "o": o}


def within(
    q: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(o_0, R, M, N) of a stretch: q, w, k, a, b [..., T, K], v [..., T, V]."""
    [[E_ab, E_ak], [E_qb, E_qk]], [a_since, q_since], [b_left, k_left], total = decayed_scores(
        [a, q], [b, k], w, before=[True, False]
    )
    right = torch.cat([E_ak @ v, a_since], -1)
    Y, W = solve_unit_lower(-E_ab, right).split([v.shape[-1], k.shape[-1]], -1)  # (3)
    o = E_qk @ v + E_qb @ Y  # (4)
    M = torch.diag_embed(total[..., 0, :].exp()) + b_left.mT @ W  # (5)
    return o, q_since + E_qb @ W, M, k_left.mT @ v + b_left.mT @ Y
