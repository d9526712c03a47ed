r"""Decay, erase, write: what a key held is replaced (DeltaNet, Gated DeltaNet, KDA).

Equations:
    (1)  S_t = (I - \beta_t k_t k_t^\top) \operatorname{diag}(a_t) S_{t-1} + \beta_t k_t v_t^\top ,
         \qquad a_t = e^{g_t}
    (2)  o_t = S_t^\top q_t

(1) says: fade the state, look up what it holds under k_t, and write the difference,
    (3)  e_t = v_t - (\operatorname{diag}(a_t) S_{t-1})^\top k_t , \qquad
         S_t = \operatorname{diag}(a_t) S_{t-1} + k_t u_t^\top , \qquad u_t = \beta_t e_t .

So the state is that of a decayed linear attention with u in the place of v. For all times at once
the rows of U depend on each other through a unit lower triangular system. With E_ij(x, y) the sum
over c of x_ic y_jc times e to the sum of g_mc over (j, i], and G the sum of g over [1, i],
    (4)  \bigl(I + \operatorname{stril}(\operatorname{diag}(\beta) E(K, K))\bigr) U
         = \operatorname{diag}(\beta) \bigl(V - (K \odot e^{G}) S_0\bigr)
    (5)  O = (Q \odot e^{G}) S_0 + \operatorname{tril}(E(Q, K))\, U
    (6)  S_T = \operatorname{diag}(e^{G_T}) S_0
         + \sum_j \Bigl(k_j \odot \exp \sum_{m=j+1}^{T} g_m\Bigr) u_j^\top

The solution is affine in S_0: U = U_0 - W S_0.

q, k [B, T, H, K], v [B, T, H, V], beta [B, T, H]; g is [B, T, H, K] (KDA), [B, T, H] (Gated
DeltaNet) or None (DeltaNet). S [B, H, K, V]. q and k are neither scaled nor normalised; with |k| =
1 and 0 <= beta <= 2 the state cannot blow up. With beta near 2 and keys that keep coming back the
system (4) is badly conditioned: the loop then loses two digits of float32, the other forms three.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from linviz.recurrences.exponents import decayed_scores, solve_unit_lower
from linviz.recurrences.matrix_state import all_at_once, by_chunks, loop, start, states

Query = Float[Tensor, "b t h k"]
Value = Float[Tensor, "b t h v"]
Strength = Float[Tensor, "b t h"]
Gate = Float[Tensor, "b t h k"] | Float[Tensor, "b t h"] | None
State = Float[Tensor, "b h k v"]


def step(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor, S: State
) -> tuple[Tensor, State]:
    """One token: q, k [B, H, K], v [B, H, V], beta [B, H, 1], g [B, H, K] or [B, H, 1]."""
    S = g.exp()[..., None] * S
    e = v - (k[..., None, :] @ S).squeeze(-2)  # (3)
    S = torch.addcmul(S, k[..., :, None], (beta * e)[..., None, :])
    return (q[..., None, :] @ S).squeeze(-2), S  # (2)


def recurrent(
    q: Query, k: Query, v: Value, beta: Strength, g: Gate = None, S: State | None = None
) -> tuple[Value, State]:
    """The loop over time, (3) and (2)."""
    return loop(step, (q, k, v, *columns(beta, g)), start(S, k, v))


def parallel(
    q: Query, k: Query, v: Value, beta: Strength, g: Gate = None, S: State | None = None
) -> tuple[Value, State]:
    """One triangular system for the whole sequence, (4) to (6)."""
    return all_at_once(within, (q, k, v, *columns(beta, g)), start(S, k, v))


def chunked(
    q: Query,
    k: Query,
    v: Value,
    beta: Strength,
    g: Gate = None,
    S: State | None = None,
    *,
    chunk: int = 64,
) -> tuple[Value, State]:
    """(4) to (6) inside every chunk, and (M2) from chunk to chunk."""
    return by_chunks(within, (q, k, v, *columns(beta, g)), start(S, k, v), chunk)


def trace(
    q: Query, k: Query, v: Value, beta: Strength, g: Gate = None, S: State | None = None
) -> dict[str, Tensor]:
    """All of (1) to (3): the gate a, error e [B, T, H, V], written u, S after each token."""
    given = {} if g is None else {"g": g, "a": g.exp()}
    strength, g = columns(beta, g)
    o, old, S = states(step, (q, k, v, strength, g), start(S, k, v))
    e = v - (k[..., None, :] @ (g.exp()[..., None] * old)).squeeze(-2)
    return (
        given | {"q": q, "k": k, "v": v, "beta": beta} | {"e": e, "u": strength * e, "S": S, "o": o}
    )


def columns(beta: Strength, g: Gate) -> tuple[Float[Tensor, "b t h 1"], Float[Tensor, "b t h _"]]:
    """Beta and g with a channel axis: one channel for a gate per head, and for none."""
    if g is None:
        g = torch.zeros_like(beta)
    return beta[..., None], g if g.ndim == 4 else g[..., None]


def within(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(o_0, R, M, N): q, k [..., T, K], v [..., T, V], beta [..., T, 1], g [..., T, c]."""
    [[E_qk], [E_kk]], [q_since, k_since], [k_left], total = decayed_scores([q, k], [k], g)
    right = torch.cat([beta * v, beta * k_since], -1)
    U, W = solve_unit_lower(beta * E_kk.tril(-1), right).split(
        [v.shape[-1], k.shape[-1]], -1
    )  # (4)
    R = q_since - E_qk @ W  # (5)
    M = torch.diag_embed(total[..., 0, :].exp().expand_as(k[..., 0, :])) - k_left.mT @ W  # (6)
    return E_qk @ U, R, M, k_left.mT @ U
