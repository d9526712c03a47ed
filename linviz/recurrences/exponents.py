r"""Decay between two times, never as a difference of long sums.

What a token wrote at time j is read at time i through the product of the gates in between,

    (E1)  \prod_{m=j+1}^{i} a_m = \exp \sum_{m=j+1}^{i} g_m , \qquad g_m = \log a_m \le 0 .

With one running sum G the exponent is G_i - G_j. That is right on paper; in float32 a single gate
of -1e4 leaves no digits for its neighbours, and a gate of -inf leaves NaN. Here only the gates that
belong to the interval are added up, or pieces of the interval multiplied: every exponent is <= 0,
nothing overflows, nothing cancels, and a gate of exactly zero is an ordinary number.

Shapes: t is time, c is the key channel, "..." any leading axes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


class Decayed(NamedTuple):
    """What `decayed_scores` finds out about a stretch of time.

    Attributes:
        scores: for each reader and each writer the weights [..., t, t], zero above the diagonal.
        readers: each reader, faded from the start of the stretch to its own time [..., t, c].
        writers: each writer, faded from its own time to the end of the stretch [..., t, c].
        total: the log decay of the whole stretch [..., 1, c].
    """

    scores: list[list[Tensor]]
    readers: list[Tensor]
    writers: list[Tensor]
    total: Tensor


def segment_gates(g: Float[Tensor, "... t"]) -> Float[Tensor, "... t t"]:
    """(E1) for one gate per time: [i, j] is the product of the gates in (j, i], zero where j > i.

    The exponent is a running sum down each column that starts anew below the diagonal ("segsum",
    arXiv:2405.21060, listing 1). Above it stand sums of nothing, so exp is safe before the mask.
    """
    t = g.shape[-1]
    sums = g[..., None].expand(*g.shape, t).tril(-1).cumsum(-2)
    return sums.exp().tril()


def decayed_scores(
    readers: Sequence[Float[Tensor, "... t c"]],
    writers: Sequence[Float[Tensor, "... t c"]],
    g: Float[Tensor, "... t _"],
    before: Sequence[bool] = (False, False),
) -> Decayed:
    r"""Weigh each writer k for each reader q: A_ij, the sum over c of q_ic k_jc faded over (j, i].

    One gate per time (g has one channel): a product of two matrices, times (E1).

    One gate per channel: the stretch is halved. A reader i in the right half and a writer j in the
    left meet at the midpoint: the reader has faded since the midpoint, the writer up to it, so that
    quarter of A is a plain matrix product. The halves themselves are smaller problems of the same
    kind, log2(t) levels in all, and what has faded to the end of a half fades on to the end of the
    whole by one more factor.

    Args:
        readers: q, or several that share the gates.
        writers: k, or several.
        g: log gates <= 0, with c channels or with one.
        before: for each reader, whether it comes before the gate of its own time. The exponent is
            then the sum over (j, i-1], and the diagonal is zero.
    """
    t = g.shape[-2]
    if g.shape[-1] == 1 and not any(before):
        between = segment_gates(g[..., 0])
        walked = between[..., :1] * g[..., :1, :].exp()  # from the start: the first gate too
        ahead = between[..., -1:, :].mT
        scores = [[(q @ k.mT) * between for k in writers] for q in readers]
        faded = [q * walked for q in readers], [k * ahead for k in writers]
        return Decayed(scores, *faded, g.sum(-2, keepdim=True))
    if t == 1:
        return one_token(readers, writers, g, before)
    if t % 2:  # one more token, which does nothing
        more = [[F.pad(x, (0, 0, 0, 1)) for x in xs] for xs in (readers, writers, [g])]
        scores, readers, writers, total = decayed_scores(more[0], more[1], more[2][0], before)
        scores = [[A[..., :t, :t] for A in row] for row in scores]
        faded = [[x[..., :t, :] for x in xs] for xs in (readers, writers)]
        return Decayed(scores, *faded, total)
    halves = [[x.unflatten(-2, (2, t // 2)) for x in xs] for xs in (readers, writers, [g])]
    scores, readers, writers, total = decayed_scores(halves[0], halves[1], halves[2][0], before)
    left, right = total.unbind(-3)
    scores = [
        [quarters(A, q[..., 1, :, :], k[..., 0, :, :]) for A, k in zip(row, writers, strict=True)]
        for row, q in zip(scores, readers, strict=True)
    ]
    one = torch.ones_like(left)
    since = torch.stack([one, left.exp()], -3)  # readers on the right fade through the left half
    until = torch.stack([right.exp(), one], -3)  # writers on the left fade through the right half
    readers = [(x * since).flatten(-3, -2) for x in readers]
    writers = [(x * until).flatten(-3, -2) for x in writers]
    return Decayed(scores, readers, writers, left + right)


def one_token(
    readers: Sequence[Tensor], writers: Sequence[Tensor], g: Tensor, before: Sequence[bool]
) -> Decayed:
    """`decayed_scores` of a stretch of one token."""
    scores, faded = [], []
    for q, early in zip(readers, before, strict=False):
        row = [(q * k).sum(-1, keepdim=True) for k in writers]
        scores.append([torch.zeros_like(x) for x in row] if early else row)
        faded.append(q if early else q * g.exp())
    return Decayed(scores, faded, list(writers), g)


def quarters(A: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """Four quarters as one matrix: the halves A [..., 2, h, h] on the diagonal, q k^T below."""
    h = A.shape[-1]
    across = (q * k).sum(-1, keepdim=True) if h == 1 else q @ k.mT
    top = F.pad(A[..., 0, :, :], (0, h))
    return torch.cat([top, torch.cat([across, A[..., 1, :, :]], -1)], -2)


def solve_unit_lower(N: Float[Tensor, "... t t"], right: Float[Tensor, "... t c"]) -> Tensor:
    """X with (I + N) X = right, N strictly lower triangular.

    Short systems, of which a chunked form has many, by the inverse: halves of the diagonal are
    inverted, and the quarter below left follows by two products. It is all matrix products, which
    is several times as fast as a batch of small substitutions; a long system is substituted.
    """
    if N.shape[-1] > 128:
        return torch.linalg.solve_triangular(N, right, upper=False, unitriangular=True)
    return unit_lower_inverse(N) @ right


def unit_lower_inverse(N: Float[Tensor, "... t t"]) -> Float[Tensor, "... t t"]:
    """The inverse of I + N, N strictly lower triangular."""
    t = N.shape[-1]
    if t <= 2:
        return torch.eye(t, dtype=N.dtype, device=N.device) - N
    if t % 2:
        return unit_lower_inverse(F.pad(N, (0, 1, 0, 1)))[..., :t, :t]
    h = t // 2
    top, bottom = N.unflatten(-2, (2, h)).unbind(-3)
    halves = unit_lower_inverse(torch.stack([top[..., :h], bottom[..., h:]], -3))
    first, second = halves.unbind(-3)
    below = -(second @ (bottom[..., :h] @ first))
    return torch.cat([F.pad(first, (0, h)), torch.cat([below, second], -1)], -2)
