r"""What recurrences with a matrix for a state share: the loop, and the fold over chunks.

Seen from outside, a stretch of the sequence is an affine map of the state that enters it,

    (M1)  o = o_0 + R S ,
    (M2)  S' = M S + N ,

where o_0 and N are what the stretch computes from an empty state, R is how its readers see the old
state and M how much of the old state is left at its end. Each recurrence has one function `within`
that returns (o_0, R, M, N). The whole sequence as one stretch is the parallel form. Many short
stretches, all worked out in one batched call and then joined by (M2) one after the other, are the
chunked form.

Here time runs over the second to last axis: sequences are [B, H, T, channels]. M is dense [..., K,
K], or a gate [..., K, 1] or [..., 1, 1] where the map is diagonal.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Within = Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]


def start(S: Tensor | None, k: Tensor, v: Tensor) -> Tensor:
    """The state [B, H, K, V] that a sequence starts from: S, or zeros."""
    (B, _, H, K), V = k.shape, v.shape[-1]
    return k.new_zeros(B, H, K, V) if S is None else S


def loop(step: Callable, sequence: Sequence[Tensor], S: Tensor) -> tuple[Tensor, Tensor]:
    """Recurrent: one step after the other. Sequences are [B, T, H, channels]."""
    o = []
    for token in zip(*(x.unbind(1) for x in sequence), strict=True):
        o_t, S = step(*token, S)
        o.append(o_t)
    return torch.stack(o, 1), S


def states(step: Callable, sequence: Sequence[Tensor], S: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The outputs, the states [B, T, H, K, V] before each token, and those after it."""
    o, path = [], [S]
    for token in zip(*(x.unbind(1) for x in sequence), strict=True):
        o_t, S = step(*token, path[-1])
        o.append(o_t)
        path.append(S)
    path = torch.stack(path, 1)
    return torch.stack(o, 1), path[:, :-1], path[:, 1:]


def all_at_once(within: Within, sequence: Sequence[Tensor], S: Tensor) -> tuple[Tensor, Tensor]:
    """Parallel: the whole sequence is one stretch."""
    o, R, M, N = within(*(x.transpose(1, 2) for x in sequence))
    return (o + R @ S).transpose(1, 2).contiguous(), carry(M, S, N)


def by_chunks(
    within: Within, sequence: Sequence[Tensor], S: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """Chunked: all stretches in one batched call from an empty state, then the states handed on."""
    T = sequence[0].shape[1]
    chunk = min(chunk, T)
    whole = T - T % chunk
    cut = (x[:, :whole].transpose(1, 2).contiguous() for x in sequence)
    o, R, M, N = within(*(x.unflatten(2, (-1, chunk)) for x in cut))  # [B, H, chunks, chunk, ...]
    entering = []
    for M_n, N_n in zip(M.expand(*N.shape[:3], -1, -1).unbind(2), N.unbind(2), strict=True):
        entering.append(S)
        S = carry(M_n, S, N_n)
    o = (o + R @ torch.stack(entering, 2)).flatten(2, 3).transpose(1, 2)
    if whole < T:  # the ragged end is a stretch of its own
        rest, S = all_at_once(within, [x[:, whole:] for x in sequence], S)
        return torch.cat([o, rest], 1), S
    return o.contiguous(), S


def carry(M: Tensor, S: Tensor, N: Tensor) -> Tensor:
    """(M2): what is left of the old state, and what was written since."""
    return torch.addcmul(N, M, S) if M.shape[-1] == 1 else M @ S + N
