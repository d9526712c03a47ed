r"""Softmax attention: every earlier token is kept and weighed anew. The reference.

Paper: Vaswani et al., "Attention Is All You Need", 2017, arXiv:1706.03762.

Equations (in brackets: the paper's):
    (1)  s_{tj} = q_t^\top k_j / \sqrt{K} \quad (j \le t) [eq. 1]
    (2)  o_t = \sum_{j \le t} A_{tj} v_j,
         \quad A_{tj} = \frac{e^{s_{tj}}}{\sum_{l \le t} e^{s_{tl}}} [eq. 1]
    (3)  m' = \max(m, s), \quad l' = e^{m-m'} l + e^{s-m'}, \quad
         c' = e^{m-m'} c + e^{s-m'} v, \quad o = c / l [arXiv:1805.02867]

Glossary (ours | the paper's | shape | meaning):
    q | Q | [B, T, H, K] | query
    k | K | [B, T, H, K] | key
    v | V | [B, T, H, V] | value
    k_cache | - | [B, S, H, K] | the keys seen so far: S grows by one a token
    v_cache | - | [B, S, H, V] | the values seen so far
    o | - | [B, T, H, V] | output
    s | - | [B, H, T, S] | scores
    A | - | [B, H, T, S] | weights: the attention

We differ from the paper in: always causal; no projections. This is the only mechanism here that
scales q (by K^{-1/2}): it is part of the definition (1).

The state is the cache. (2) is exact for any split of the keys because of (3): the running maximum
m, the running denominator l and the running numerator c can be corrected when a greater score
appears.
"""

import torch
from torch import Tensor

from linviz.inputs import Input
from linviz.mechanism import Mechanism
from linviz.moves import Move

Cache = tuple[Tensor, Tensor]


def recurrent(q: Tensor, k: Tensor, v: Tensor, S: Cache) -> tuple[Tensor, Cache]:
    """One query after the other, each over the cache so far, (1) and (2)."""
    keys, values = S
    o = []
    for q_t, k_t, v_t in zip(q.unbind(1), k.unbind(1), v.unbind(1), strict=True):
        keys = torch.cat([keys, k_t[:, None]], 1)
        values = torch.cat([values, v_t[:, None]], 1)
        s = torch.einsum("bhk,bshk->bhs", q_t, keys) / q.shape[-1] ** 0.5  # (1)
        o.append(torch.einsum("bhs,bshv->bhv", s.softmax(-1), values))  # (2)
    return torch.stack(o, 1), (keys, values)


def parallel(q: Tensor, k: Tensor, v: Tensor, S: Cache) -> tuple[Tensor, Cache]:
    """The whole matrix of scores at once, (1) and (2)."""
    keys, values = grown(S, k, v)
    weights = scores(q, keys, S[0].shape[1]).softmax(-1)
    return torch.einsum("bhts,bshv->bthv", weights, values), (keys, values)


def chunked(q: Tensor, k: Tensor, v: Tensor, S: Cache, *, chunk: int) -> tuple[Tensor, Cache]:
    """Query chunk by query chunk; inside, key chunk by key chunk with a running maximum, (3)."""
    o = []
    for pieces in zip(*(x.split(chunk, 1) for x in (q, k, v)), strict=True):
        q_n, past = pieces[0], S[0].shape[1]
        S = grown(S, *pieces[1:])
        (B, C, H, _), V = q_n.shape, v.shape[-1]
        m = q.new_full((B, H, C, 1), -torch.inf)
        l, c = q.new_zeros(B, H, C, 1), q.new_zeros(B, H, C, V)
        for j, (keys, values) in enumerate(zip(*(x.split(chunk, 1) for x in S), strict=True)):
            s = scores(q_n, keys, past - j * chunk)
            m_new = torch.maximum(m, s.amax(-1, keepdim=True)).detach()
            fix, weights = (m - m_new).exp(), (s - m_new).exp()
            l = fix * l + weights.sum(-1, keepdim=True)  # (3)
            c = fix * c + weights @ values.transpose(1, 2)
            m = m_new
        o.append((c / l).transpose(1, 2))
    return torch.cat(o, 1), S


def trace(q: Tensor, k: Tensor, v: Tensor, S: Cache) -> dict[str, Tensor | Cache]:
    """The scores s, the attention A [B, H, T, S], and the cache after the last token."""
    keys, values = grown(S, k, v)
    s = scores(q, keys, S[0].shape[1])
    o = torch.einsum("bhts,bshv->bthv", s.softmax(-1), values)
    return {"s": s, "A": s.softmax(-1), "o": o, "S": (keys, values)}


def grown(S: Cache, k: Tensor, v: Tensor) -> Cache:
    """The cache with more tokens."""
    return torch.cat([S[0], k], 1), torch.cat([S[1], v], 1)


def scores(q: Tensor, keys: Tensor, past: int) -> Tensor:
    """(1) as [B, H, T, S]; -inf for keys later than their query, which stands at past + i."""
    s = torch.einsum("bthk,bshk->bhts", q, keys) / q.shape[-1] ** 0.5
    i, j = (torch.arange(n, device=q.device) for n in s.shape[-2:])
    return s.masked_fill(j > i[:, None] + past, -torch.inf)


MECHANISM = Mechanism(
    name="softmax",
    title="Softmax attention",
    paper="Attention Is All You Need",
    year=2017,
    arxiv="1706.03762",
    decay="none: everything is kept",
    inputs=(Input("q", "b t h k"), Input("k", "b t h k"), Input("v", "b t h v")),
    output=Input("o", "b t h v"),
    state=(Input("k_cache", "b s h k"), Input("v_cache", "b s h v")),
    value="v",
    functions={"recurrent": recurrent, "parallel": parallel, "chunked": chunked, "trace": trace},
    flops=lambda n: n["H"] * n["T"] * (2 * n["K"] + 5 + 2 * n["V"]),
    doc=__doc__,
    cache=True,
    moves=(
        Move("append", "", "k_cache", ("k",), 1),
        Move("append", "", "v_cache", ("v",), 2),
        Move(
            "score",
            r"s_{tj} = q_t^\top k_j / \sqrt{K}",
            "k_cache",
            ("q",),
            1,
            gives=("s",),
            over="k",
        ),
        Move(
            "softmax",
            r"A_{tj} = \frac{e^{s_{tj}}}{\sum_{l \le t} e^{s_{tl}}}",
            "",
            ("s",),
            2,
            gives=("weights",),
            over="s",
        ),
        Move(
            "read", r"\sum_{j \le t} A_{tj} v_j", "v_cache", ("weights",), 2, gives=("o",), over="s"
        ),
    ),
)
