r"""Mamba: a diagonal system whose step size, input and output depend on the data.

Paper: Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023,
arXiv:2312.00752.

Equations (in brackets: the paper's):
    (1)  h_{t,dn} = e^{\Delta_{td} A_{dn}}\, h_{t-1,dn} + \Delta_{td}\, x_{td}\, B_{tn}
         [eq. 2a, algorithm 2]
    (2)  y_{td} = \sum_n C_{tn} h_{t,dn} + D_d x_{td} [eq. 2b]
    (3)  M^d_{ij} = \sum_n C_{in} \exp\Bigl(A_{dn} \sum_{m=j+1}^{i} \Delta_{md}\Bigr)
         \Delta_{jd} B_{jn} [2403.01590]

Glossary (ours | the paper's | shape | meaning):
    x | x | [B, T, D] | input
    dt | Delta | [B, T, D] | step size >= 0: how much of this token enters and of the past leaves
    A | A | [D, N] | decay rates <= 0
    B | B | [B, T, N] | how a token enters the state, shared by the channels
    C | C | [B, T, N] | how it is read, shared by the channels
    D | D | [D] | skip: what of the input goes straight to the output
    h | h | [B, D, N] | state
    y | y | [B, T, D] | output

We differ from the paper in: D is the width as well as the skip's name; the short convolution, the
softplus of dt and the gate belong to the layer. The paper's text discretises B by zero-order hold;
its code, and (1), uses dt B.

In its cell: the step size, B and C are computed from the token, where S4's are the same for all
tokens; only A and D stay fixed.

The recurrence is diagonal_scan with u = dt x. (3) is the effective attention: a matrix a channel.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from linviz.inputs import Input, ones, rates, time_step
from linviz.mechanism import Edge, Mechanism, through
from linviz.mechanisms import lstm, s4
from linviz.moves import Made, Move
from linviz.recurrences import diagonal_scan


def run(
    form: Callable, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, S: Tensor
) -> tuple[Tensor, Tensor]:
    """Map to diagonal_scan, (1), and add the skip, (2)."""
    y, h = form(dt * x, dt, A, B, C, S)
    return y + D * x, h


def run_kernel(
    kernel: Callable, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, S: Tensor
) -> tuple[Tensor, Tensor]:
    """The same where the kernel multiplies by dt and adds the skip itself."""
    return kernel(x, dt, A, B, C, S, D=D)


def like_s4(T: int, seed: int) -> tuple[Tensor, Tensor]:
    """The same dt and A in all channels at all times, and B of S4's zero-order hold."""
    u, dt, _, _, _, D = s4.MECHANISM.example(T, seed, dtype=torch.float64)
    dt, A = dt[:1].expand(dt.shape), -torch.arange(1, 9, dtype=u.dtype).expand(len(dt), 8)
    B, C = torch.ones_like(A), A.cos()
    _, b = s4.discretize(dt, A, B, "zoh")
    tokens = (b[0] / dt[0]).expand(*u.shape[:2], 8), C[0].expand(*u.shape[:2], 8)
    ours = MECHANISM.recurrent(u, dt.expand(u.shape), A, *tokens, D)
    return ours[0], s4.MECHANISM.recurrent(u, dt, A, B, C, D)[0]


def like_lstm(T: int, seed: int) -> tuple[Tensor, Tensor]:
    """One state a channel, f = e^{-dt}: the cell of an LSTM whose W is 0."""
    x, W = lstm.MECHANISM.example(T, seed, dtype=torch.float64)
    i, f, _, new = x.chunk(4, -1)
    dt, one = torch.nn.functional.softplus(-f), torch.ones_like(x[..., :1])
    written = i.sigmoid() * new.tanh() / dt
    ours = MECHANISM.recurrent(written, dt, -one[0, 0].expand(len(W), 1), one, one, 0 * W[:, 0])
    return ours[0], lstm.MECHANISM.trace(x, torch.zeros_like(W))["c"]


MECHANISM = Mechanism(
    name="mamba",
    title="Mamba (selective state space)",
    paper="Mamba: Linear-Time Sequence Modeling with Selective State Spaces",
    year=2023,
    arxiv="2312.00752",
    decay="from the data, per channel and state",
    inputs=(
        Input("x", "b t d"),
        Input("dt", "b t d", low=0.0, draw=time_step),
        Input("A", "d n", high=0.0, draw=rates),
        Input("B", "b t n"),
        Input("C", "b t n"),
        Input("D", "d", draw=ones),
    ),
    output=Input("y", "b t d"),
    state=(Input("h", "b d n"),),
    value="x",
    functions=through(diagonal_scan, run) | {"triton": run_kernel},
    flops=lambda n: n["D"] * (7 * n["N"] + 3),
    doc=__doc__,
    recurrence="diagonal_scan",
    kernel="linviz.kernels.diagonal_scan:chunked",
    decode="linviz.kernels.decode:diagonal_scan",
    edges=(
        Edge("s4", "dt, B and C the same at all times, real A", like_s4),
        Edge("lstm", "one state a channel, and an LSTM whose W = 0: its cell", like_lstm),
    ),
    moves=(
        Move("decay", r"e^{\Delta_{td} A_{dn}}", "h", (Made("a", "b t d n", ("dt", "A")),), 1),
        Move("write", r"\Delta_{td}\, x_{td}\, B_{tn}", "h", ("dt", "x", "B"), 1),
        Move("read", r"\sum_n C_{tn} h_{t,dn}", "h", ("C",), 2, gives=("y",), over="n"),
        Move("skip", r"D_d x_{td}", "", ("D", "x"), 2, gives=("y",)),
    ),
)
