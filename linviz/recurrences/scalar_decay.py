r"""One gate per head: the whole state fades at one rate (linear attention, RetNet, Mamba-2).

Equations:
    (1)  S_t = a_t S_{t-1} + k_t v_t^\top , \qquad a_t = e^{g_t}
    (2)  o_t = S_t^\top q_t
    (3)  o = \bigl( (Q K^\top) \odot L \bigr) V + \operatorname{diag}(e^{G}) Q S_0 , \qquad
         L_{ij} = \exp \sum_{m=j+1}^{i} g_m \; (i \ge j),\; 0 \text{ else}
    (4)  S_T = e^{G_T} S_0 + \sum_j \exp\Bigl(\sum_{m=j+1}^{T} g_m\Bigr)\, k_j v_j^\top

(1) and (2) are the definition; (3) and (4) are the same numbers for all times at once, with G_i the
sum of g over [1, i]. q [B, T, H, K], k [B, T, H, K], v [B, T, H, V]; g is [B, T, H], [H] for a
fixed gate, or None for none. S [B, H, K, V]. q is not scaled.
"""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from linviz.recurrences.exponents import decayed_scores
from linviz.recurrences.matrix_state import all_at_once, by_chunks, loop, start, states

Query = Float[Tensor, "b t h k"]
Value = Float[Tensor, "b t h v"]
Gate = Float[Tensor, "b t h"] | Float[Tensor, " h"] | None
State = Float[Tensor, "b h k v"]


def step(q: Tensor, k: Tensor, v: Tensor, g: Tensor, S: State) -> tuple[Tensor, State]:
    """One token: q, k [B, H, K], v [B, H, V], g [B, H, 1]."""
    S = torch.addcmul(g.exp()[..., None] * S, k[..., :, None], v[..., None, :])  # (1)
    return (q[..., None, :] @ S).squeeze(-2), S  # (2)


def recurrent(q: Query, k: Query, v: Value, g: Gate, S: State | None = None) -> tuple[Value, State]:
    """The loop over time, (1) and (2)."""
    return loop(step, (q, k, v, gates(g, k)), start(S, k, v))


def parallel(q: Query, k: Query, v: Value, g: Gate, S: State | None = None) -> tuple[Value, State]:
    """All pairs of times at once, (3) and (4)."""
    return all_at_once(*stretch(q, k, v, g), start(S, k, v))


def chunked(
    q: Query, k: Query, v: Value, g: Gate, S: State | None = None, *, chunk: int = 64
) -> tuple[Value, State]:
    """(3) and (4) inside every chunk, and (M2) from chunk to chunk."""
    return by_chunks(*stretch(q, k, v, g), start(S, k, v), chunk)


def trace(q: Query, k: Query, v: Value, g: Gate, S: State | None = None) -> dict[str, Tensor]:
    """All of (1) and (2): the gate a [B, T, H], the state S [B, T, H, K, V] after each token."""
    g = gates(g, k)
    o, _, S = states(step, (q, k, v, g), start(S, k, v))
    return {"q": q, "k": k, "v": v, "g": g[..., 0], "a": g[..., 0].exp(), "S": S, "o": o}


def gates(g: Gate, k: Query) -> Float[Tensor, "b t h 1"]:
    """The log gate of each token, one channel wide; none is a gate of exp(0) = 1."""
    if g is None:
        g = k.new_zeros(k.shape[:3])
    return g.expand(k.shape[:3])[..., None]


def stretch(q: Query, k: Query, v: Value, g: Gate) -> tuple[Callable, tuple[Tensor, ...]]:
    """What works out a stretch, and what it takes; a fixed gate makes one mask L for all chunks."""
    if g is not None and g.ndim == 3:
        return within, (q, k, v, gates(g, k))
    return partial(steady, g=k.new_zeros(k.shape[2]) if g is None else g), (q, k, v)


def steady(
    q: Tensor, k: Tensor, v: Tensor, g: Float[Tensor, " h"]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`within` at a fixed gate: [H, T, 1], or [H, 1, T, 1] for all chunks."""
    g = g.view(-1, *[1] * (q.ndim - 2))
    return within(q, k, v, g.expand(*g.shape[:-2], q.shape[-2], 1))


def within(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(o_0, R, M, N) of a stretch: q, k [..., T, K], v [..., T, V], g [..., T, 1]."""
    [[A]], [R], [k_left], total = decayed_scores([q], [k], g)
    return A @ v, R, total.exp(), k_left.mT @ v  # (3), (3), (4), (4)
