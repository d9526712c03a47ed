r"""RWKV-4: a weighted average of all values so far, with weights that fade and a bonus.

Paper: Peng et al., "RWKV: Reinventing RNNs for the Transformer Era", 2023, arXiv:2305.13048.

Equations (in brackets: the paper's):
    (1)  o_t = \frac{\sum_{i<t} e^{(t-1-i) w + k_i} v_i + e^{u + k_t} v_t}
         {\sum_{i<t} e^{(t-1-i) w + k_i} + e^{u + k_t}} [sec. 3.1.2]
    (2)  m' = \max(m + w, k_t), \quad
         \mathrm{num}' = e^{m+w-m'} \mathrm{num} + e^{k_t-m'} v_t, \quad
         \mathrm{den}' = e^{m+w-m'} \mathrm{den} + e^{k_t-m'} [app. D]
    (3)  (n, d, m, l) \text{ then } (n', d', m', l') : \quad
         m'' = \max(m + l' w, m'), \quad n'' = e^{m+l'w-m''} n + e^{m'-m''} n',
         \quad l'' = l + l' [-]
    (4)  o_t = \frac{\mathrm{num}_{t-1} + e^{u + k_t} v_t}{\mathrm{den}_{t-1} + e^{u + k_t}},
         \quad \mathrm{num}_t = e^{w}\, \mathrm{num}_{t-1} + e^{k_t} v_t,
         \quad \mathrm{den}_t = e^{w}\, \mathrm{den}_{t-1} + e^{k_t}
         \quad \text{(all max = 0)} [sec. 3.1.2]

Glossary (ours | the paper's | shape | meaning):
    w | -w | [D] | log decay <= 0 of each channel
    u | u | [D] | bonus of the present token, added to its k
    k | k | [B, T, D] | log weight
    v | v | [B, T, D] | value
    num | a | [B, D] | numerator, over e^max
    den | b | [B, D] | denominator, over e^max
    max | p | [B, D] | the exponent taken out
    o | wkv | [B, T, D] | output

We differ from the paper in: w is the log decay itself (the paper's -w); the receptance and the
projections belong to the layer.

In its cell: the plain sums of (4). Because e^k overflows, the code also takes the greatest
exponent, max, out of num and den; their quotient stays the same.

e^k overflows, so the greatest exponent is taken out of num and den: one maximum for the output,
which sees u, and another for the state, which does not. Any max would do: the state (num, den, max)
is not unique, only num e^max and den e^max are, so no gradient goes through max. Two stretches of
tokens join by (3), with l the number of tokens: the parallel form is an associative scan. (4) is
(1) as a recurrence, before anything is taken out.
"""

import torch
from torch import Tensor

from linviz.inputs import Input, log_gate
from linviz.mechanism import Edge, Mechanism
from linviz.mechanisms import linear_attention
from linviz.moves import Exp, Move
from linviz.recurrences.diagonal_scan import associative_scan

State = tuple[Tensor, Tensor, Tensor]
NOTHING = -1e38  # the exponent of an empty sum: finite, so that differences are


def join(x: State, y: State, fade: Tensor | float) -> State:
    """(3): first x, then y, over which x fades by the log decay `fade`."""
    top = torch.maximum(x[2] + fade, y[2]).detach()
    old, new = (x[2] + fade - top).exp(), (y[2] - top).exp()
    return old * x[0] + new * y[0], old * x[1] + new * y[1], top


def output(S: State, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(1), from the state before the token."""
    num, den, _ = join(S, (v, torch.ones_like(v), u + k), 0.0)
    return num / den


def recurrent(w: Tensor, u: Tensor, k: Tensor, v: Tensor, S: State) -> tuple[Tensor, State]:
    """The loop over time, (1) and (2)."""
    o = []
    for k_t, v_t in zip(k.unbind(1), v.unbind(1), strict=True):
        o.append(output(S, u, k_t, v_t))
        S = join(S, (v_t, torch.ones_like(v_t), k_t), w)  # (2)
    return torch.stack(o, 1), S


def parallel(w: Tensor, u: Tensor, k: Tensor, v: Tensor, S: State) -> tuple[Tensor, State]:
    """An associative scan with the join (3), then (1) for all times."""
    first = tuple(x[:, None] for x in S)
    after = join(first, prefixes(w, k, v), fading(w, k.shape[1]))
    before = tuple(torch.cat([x, y[:, :-1]], 1) for x, y in zip(first, after, strict=True))
    return output(before, u, k, v), tuple(x[:, -1] for x in after)


def chunked(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, S: State, *, chunk: int
) -> tuple[Tensor, State]:
    """The scan inside every chunk, all chunks at once, and the states handed on."""
    (batch, T), chunk = k.shape[:2], min(chunk, k.shape[1])
    whole = T - T % chunk
    k_n, v_n = (x[:, :whole].unflatten(1, (-1, chunk)) for x in (k, v))
    inner = prefixes(w, k_n.flatten(0, 1), v_n.flatten(0, 1))
    inner = tuple(x.unflatten(0, (batch, -1)) for x in inner)  # [B, chunks, C, D]
    entering = []
    for n in range(whole // chunk):
        entering.append(S)
        S = join(S, tuple(x[:, n, -1] for x in inner), w * chunk)
    first = tuple(torch.stack(x, 1)[:, :, None] for x in zip(*entering, strict=True))
    after = join(first, tuple(x[:, :, :-1] for x in inner), fading(w, chunk - 1))
    before = tuple(torch.cat(x, 2) for x in zip(first, after, strict=True))
    o = output(before, u, k_n, v_n).flatten(1, 2)
    if whole < T:  # the ragged end follows by itself
        rest, S = parallel(w, u, k[:, whole:], v[:, whole:], S)
        o = torch.cat([o, rest], 1)
    return o, S


def trace(w: Tensor, u: Tensor, k: Tensor, v: Tensor, S: State) -> dict[str, Tensor | State]:
    """The output and the three parts of the state after each token."""
    o, path = [], []
    for k_t, v_t in zip(k.split(1, 1), v.split(1, 1), strict=True):
        o_t, S = recurrent(w, u, k_t, v_t, S)
        o.append(o_t)
        path.append(S)
    states = tuple(torch.stack(x, 1) for x in zip(*path, strict=True))
    return {"o": torch.cat(o, 1), "S": states}


def prefixes(w: Tensor, k: Tensor, v: Tensor) -> State:
    """The state after each token of k, v [B, T, D] from an empty one, by a scan with (3)."""

    def joined(x: tuple[Tensor, ...], y: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return *join(x[:3], y[:3], y[3] * w), x[3] + y[3]

    length = torch.ones_like(k[:1, :, :1])
    return associative_scan(joined, (v, torch.ones_like(v), k, length))[:3]


def fading(w: Tensor, T: int) -> Tensor:
    """The log decay over 1, 2, ..., T tokens: [T, D]."""
    return torch.arange(1, T + 1, dtype=w.dtype, device=w.device)[:, None] * w


def empty(part: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """One part of the state of an empty sum."""
    return like.new_full(shape, NOTHING if part == "max" else 0.0)


def like_linear_attention(T: int, seed: int) -> tuple[Tensor, Tensor]:
    """With w = 0 and u = 0: every channel is a head with one key channel and features e^k."""
    w, u, k, v = MECHANISM.example(T, seed, dtype=torch.float64)
    ours = MECHANISM.recurrent(torch.zeros_like(w), torch.zeros_like(u), k, v)[0]
    exp = linear_attention.MECHANISM.having(feature_map="exp")
    return ours, exp.recurrent(torch.zeros_like(k)[..., None], k[..., None], v[..., None])[0][
        ..., 0
    ]


MECHANISM = Mechanism(
    name="rwkv4",
    title="RWKV-4",
    paper="RWKV: Reinventing RNNs for the Transformer Era",
    year=2023,
    arxiv="2305.13048",
    decay="fixed, per channel",
    inputs=(
        Input("w", "d", high=0.0, draw=log_gate),
        Input("u", "d"),
        Input("k", "b t d"),
        Input("v", "b t d"),
    ),
    output=Input("o", "b t d"),
    state=(Input("num", "b d"), Input("den", "b d"), Input("max", "b d")),
    value="v",
    functions={"recurrent": recurrent, "parallel": parallel, "chunked": chunked, "trace": trace},
    flops=lambda n: 28 * n["D"],
    doc=__doc__,
    kernel="linviz.kernels.wkv4:chunked",
    decode="linviz.kernels.decode:rwkv4",
    edges=(Edge("linear_attention", "w = u = 0, features e^k", like_linear_attention),),
    empty=empty,
    moves=(
        Move("read", r"\mathrm{den}_{t-1}", "den", (), 4, gives=("below",)),
        Move("skip", r"e^{u + k_t}", "", (Exp("u", "k"),), 4, gives=("below",)),
        Move("read", r"\mathrm{num}_{t-1}", "num", (), 4, gives=("above",)),
        Move("skip", r"e^{u + k_t} v_t", "", (Exp("u", "k"), "v"), 4, gives=("above",)),
        Move("divide", "", "", ("above", "below"), 4, gives=("o",)),
        Move("decay", r"e^{w}", "den", (Exp("w"),), 4),
        Move("write", r"e^{k_t}", "den", (Exp("k"),), 4),
        Move("decay", r"e^{w}", "num", (Exp("w"),), 4),
        Move("write", r"e^{k_t} v_t", "num", (Exp("k"), "v"), 4),
    ),
)
