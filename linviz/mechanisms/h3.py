r"""H3: a shift puts the previous key beside the present value, a second system remembers the pair.

Paper: Fu et al., "Hungry Hungry Hippos: Towards Language Modeling with State Space Models", 2022,
arXiv:2212.14052.

Equations (in brackets: the paper's):
    (1)  \bar k_t = \sum_{n=0}^{N-1} c_n k_{t-n} [sec. 3.1, shift SSM]
    (2)  h_t = \bar A h_{t-1} + \bar B\, (\bar k_t \odot v_t), \quad
         s_t = 2\,\mathrm{Re} \sum_n C_n h_{tn} + D\, (\bar k_t \odot v_t) [sec. 3.1, diagonal SSM]
    (3)  y_t = q_t \odot s_t [sec. 3.1]

Glossary (ours | the paper's | shape | meaning):
    q | Q | [B, T, D] | query
    k | K | [B, T, D] | key
    v | V | [B, T, D] | value
    c | C of the shift SSM | [D, N] | filter over the last N keys, newest first
    dt | Delta | [D] | step size of the diagonal system
    A | A | [D, N] | its modes
    C | C | [D, N] | how each mode is read
    D | D | [D] | its skip
    k_last | x of the shift SSM | [B, D, N] | the last N keys, newest first
    h | x of the diagonal SSM | [B, D, N] | state of the diagonal system, whose B is 1
    y | O | [B, T, D] | output

We differ from the paper in: one head channel (the code's default); no skip on the shift; the filter
and the diagonal system have the same length N.

In its cell: the diagonal system has B = 1, so that its step and its modes alone decide how a pair
enters.

The recurrence of (2) is S4's, convolution; (1) is a short convolution over the last N keys.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from linviz.inputs import Input, time_step
from linviz.mechanism import Edge, Mechanism, through
from linviz.mechanisms import s4
from linviz.moves import Made, Move
from linviz.recurrences import convolution

State = tuple[Tensor, Tensor]


def run(
    form: Callable,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    c: Tensor,
    dt: Tensor,
    A: Tensor,
    C: Tensor,
    D: Tensor,
    S: State,
    *,
    discretization: str,
) -> tuple[Tensor, State]:
    """(1), then S4 with B = 1 on the pairs, (2), then (3)."""
    past, N = with_past(k, S[0]), c.shape[-1]
    k_bar = torch.conv1d(past[:, 1:].mT, c.flip(-1)[:, None], groups=len(c)).mT  # (1)
    system = dt, A, torch.ones_like(A), C, D
    s, h = s4.run(form, k_bar * v, *system, S[1], discretization=discretization)  # (2)
    return q * s, (past[:, -N:].mT.flip(-1), h)  # (3)


def with_past(k: Tensor, k_last: Tensor) -> Tensor:
    """All keys, the N before the first among them, oldest first: [B, N + T, D]."""
    return torch.cat([k_last.flip(-1).mT, k], 1)


def run_kernel(
    kernel: Callable, *inputs: Tensor, S: State, discretization: str
) -> tuple[Tensor, State]:
    """The same where the state comes in float32: all is float32 at least."""
    inputs, S = (tuple(map(s4.at_least_float32, x)) for x in (inputs, S))
    return run(kernel, *inputs, S, discretization=discretization)


FORMS = through(convolution, run) | {"triton": run_kernel}


def trace(*inputs: Tensor, S: State, discretization: str) -> dict[str, Tensor | State]:
    """S4's trace on the pairs u, and the last keys at each time."""
    named = FORMS["trace"](*inputs, S=S, discretization=discretization)
    windows = with_past(inputs[1], S[0])[:, 1:].unfold(1, S[0].shape[-1], 1)  # [B, T, D, N]
    return named | {"S": (windows.flip(-1), named["S"][1])}


def like_s4(T: int, seed: int) -> tuple[Tensor, Tensor]:
    """Only the newest key in the filter, v = 1 and q = 1: S4 with B = 1 on the keys."""
    q, k, v, c, dt, A, C, D = MECHANISM.example(T, seed, dtype=torch.float64)
    q, v, c = torch.ones_like(q), torch.ones_like(v), torch.zeros_like(c)
    c[:, 0] = 1
    ours = MECHANISM.recurrent(q, k, v, c, dt, A, C, D)
    return ours[0], s4.MECHANISM.recurrent(k, dt, A, torch.ones_like(A), C, D)[0]


MECHANISM = Mechanism(
    name="h3",
    title="Hungry Hungry Hippos",
    paper="Hungry Hungry Hippos: Towards Language Modeling with State Space Models",
    year=2022,
    arxiv="2212.14052",
    decay="fixed, per channel and mode, and rotating",
    inputs=(
        Input("q", "b t d"),
        Input("k", "b t d"),
        Input("v", "b t d"),
        Input("c", "d n"),
        Input("dt", "d", low=0.0, draw=time_step),
        Input("A", "d n", high=0.0, complex=True, draw=s4.lin_modes),
        Input("C", "d n", complex=True, draw=s4.complex_normal),
        Input("D", "d"),
    ),
    output=Input("y", "b t d"),
    state=(Input("k_last", "b d n"), Input("h", "b d n", complex=True)),
    value="v",
    functions=FORMS | {"trace": trace},
    flops=lambda n: n["D"] * (24 * n["N"] + 5),
    doc=__doc__,
    recurrence="convolution",
    kernel="linviz.kernels.diagonal_scan:fixed",
    options={"discretization": "zoh"},
    edges=(Edge("s4", "the filter keeps the newest key, q = v = 1", like_s4),),
    moves=(
        Move("push", "", "k_last", ("k",), 1),
        Move(
            "read", r"\sum_{n=0}^{N-1} c_n k_{t-n}", "k_last", ("c",), 1, gives=("k_bar",), over="n"
        ),
        Move("multiply", r"\bar k_t \odot v_t", "", ("k_bar", "v"), 2, gives=("pair",)),
        Move("decay", r"\bar A", "h", (Made("a", "d n", ("dt", "A")),), 2),
        Move(
            "write",
            r"\bar B\, (\bar k_t \odot v_t)",
            "h",
            (Made("b", "d n", ("dt", "A")), "pair"),
            2,
        ),
        Move("read", r"2\,\mathrm{Re} \sum_n C_n h_{tn}", "h", ("C",), 2, gives=("s",), over="n"),
        Move("skip", r"D\, (\bar k_t \odot v_t)", "", ("D", "pair"), 2, gives=("s",)),
        Move("multiply", r"q_t \odot s_t", "", ("q", "s"), 3, gives=("y",)),
    ),
)
