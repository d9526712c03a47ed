r"""Decay between two times, as a sum of log gates, never as a difference of sums.

What a token wrote at time j is read at time i through the product of the gates in between,

    (E1)  \prod_{m=j+1}^{i} a_m = \exp \sum_{m=j+1}^{i} g_m , \qquad g_m = \log a_m \le 0 .

With one running sum G the exponent is G_i - G_j. That is right on paper; in float32 a single gate
of -1e4 leaves no digits for its neighbours, and a gate of -inf leaves NaN. Every function here
therefore adds up only the gates that belong to the interval: nothing overflows, nothing cancels,
and a gate of exactly zero is an ordinary number.

Shapes: t is time, c is the key channel, "..." any leading axes. Masks are applied before exp.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def prefix_sums(g: Float[Tensor, "... t c"], before: bool = False) -> Float[Tensor, "... t c"]:
    """Log decay from the block's start to time i: the sum over [1, i], or [1, i-1] if `before`."""
    if not before:
        return g.cumsum(-2)
    return F.pad(g[..., :-1, :], (0, 0, 1, 0)).cumsum(-2)


def suffix_sums(g: Float[Tensor, "... t c"]) -> Float[Tensor, "... t c"]:
    """Log decay from time j to the end of the block: the sum of g over (j, T]."""
    return F.pad(g[..., 1:, :], (0, 0, 0, 1)).flip(-2).cumsum(-2).flip(-2)


def segment_sums(g: Float[Tensor, "... t"]) -> Float[Tensor, "... t t"]:
    """(E1) for one gate per time: entry [i, j] is the sum of g over (j, i], and -inf where j > i.

    A running sum down each column, started anew at the column's own j ("segsum", arXiv:2405.21060,
    listing 1).
    """
    t = g.shape[-1]
    later = torch.ones(t, t, dtype=torch.bool, device=g.device).tril(
        -1
    )  # row m later than column j
    gates = g[..., :, None].masked_fill(~later, 0.0)
    return gates.cumsum(-2).masked_fill(later.mT, -torch.inf)


def decayed_scores(
    q: Float[Tensor, "... t c"],
    k: Float[Tensor, "... t c"],
    g: Float[Tensor, "... t _"],
    before: bool = False,
) -> Float[Tensor, "... t t"]:
    r"""The matrix of weights A_ij = \sum_c q_ic k_jc \exp \sum_{j<m\le i} g_mc, zero where j > i.

    With `before` the reader comes before the gate of its own time: the exponent is the sum over (j,
    i-1] and the diagonal is zero (RWKV reads before it decays).

    One gate per time (g has one channel): a product of two matrices. One gate per channel: the
    block is halved; a pair (i in the right half, j in the left) is anchored at the midpoint, so
    that its exponent is what the reader has walked since the midpoint plus what the writer still
    had to walk to it. Both are <= 0, and the quarter is a plain matrix product. The two halves on
    the diagonal are smaller problems of the same kind: log2(t) levels.

    Args:
        q: readers. Leading axes broadcast against those of k and g.
        k: writers.
        g: log gates <= 0, with c channels or with one.
        before: read before the gate of the reader's own time is applied.
    """
    t = q.shape[-2]
    if g.shape[-1] == 1 and not before:
        return (q @ k.mT) * segment_sums(g[..., 0]).exp()
    if t == 1:
        diagonal = (q * k).sum(-1, keepdim=True)
        return torch.zeros_like(diagonal) if before else diagonal
    if t % 2:
        q, k, g = (F.pad(x, (0, 0, 0, 1)) for x in (q, k, g))
        return decayed_scores(q, k, g, before)[..., :t, :t]
    q, k, g = (x.unflatten(-2, (2, t // 2)) for x in (q, k, g))
    walked = prefix_sums(g[..., 1, :, :], before).exp()
    ahead = suffix_sums(g[..., 0, :, :]).exp()
    across = (q[..., 1, :, :] * walked) @ (k[..., 0, :, :] * ahead).mT
    halves = decayed_scores(q, k, g, before)
    top = F.pad(halves[..., 0, :, :], (0, t // 2))
    return torch.cat([top, torch.cat([across, halves[..., 1, :, :]], -1)], -2)
