r"""Gated recurrent unit: one gate decides how much of the state is replaced.

Paper: Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder for Statistical
Machine Translation", 2014, arXiv:1406.1078.

Equations (in brackets: the paper's):
    (1)  (\hat r_t, \hat z_t, \hat n_t) = W^\top h_{t-1}, \quad
         r_t = \sigma(x^r_t + \hat r_t), \quad z_t = \sigma(x^z_t + \hat z_t) [eq. 5, 6]
    (2)  n_t = \tanh(x^n_t + r_t \odot \hat n_t) [eq. 8]
    (3)  o_t = h_t = (1 - z_t) \odot n_t + z_t \odot h_{t-1} [eq. 7]

Glossary (ours | the paper's | shape | meaning):
    x | Wx | [B, T, 3D] | pre-activations of r, z and n, in this order, biases included
    W | U | [D, 3D] | old state to the three pre-activations
    h | h | [B, D] | state, and output

We differ from the paper in: r multiplies W_n^T h and not h before the product (cuDNN's and
PyTorch's variant); the input's projection is left out.

In its cell: z keeps the old state, 1 - z lets the new one in; r acts on what W made of the old
state.

With W = 0, (3) is a diagonal scan with the gate z_t, and what is written is what was forgotten.
"""

import torch
from torch import Tensor

from linviz.inputs import Input
from linviz.mechanism import Edge, Mechanism
from linviz.mechanisms import lstm, rnn
from linviz.mechanisms.rnn import NO_PARALLEL, mixing
from linviz.moves import Move


def recurrent(x: Tensor, W: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    """The loop over time, (1) to (3)."""
    h, o = S, []
    for x_t in x.unbind(1):
        _, h = step(x_t, W, h)
        o.append(h)
    return torch.stack(o, 1), h


def step(x: Tensor, W: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """One token: the gate z and the new state."""
    (x_r, x_z, x_n), (h_r, h_z, h_n) = x.chunk(3, -1), (h @ W).chunk(3, -1)
    r, z = (x_r + h_r).sigmoid(), (x_z + h_z).sigmoid()  # (1)
    n = (x_n + r * h_n).tanh()  # (2)
    return z, (1 - z) * n + z * h  # (3)


def trace(x: Tensor, W: Tensor, S: Tensor) -> dict[str, Tensor]:
    """The gate z in [0, 1] and the state h after each token."""
    z, h = [], []
    for x_t in x.unbind(1):
        z_t, S = step(x_t, W, S)
        z.append(z_t)
        h.append(S)
    h = torch.stack(h, 1)
    return {"z": torch.stack(z, 1), "o": h, "S": h}


def like_rnn(T: int, seed: int) -> tuple[Tensor, Tensor]:
    """With r = 1 and z = 0: everything is replaced."""
    x, W = rnn.MECHANISM.example(T, seed, dtype=torch.float64)
    far, none = torch.full_like(x, 1e3), torch.zeros_like(W)
    ours = MECHANISM.recurrent(torch.cat([far, -far, x], -1), torch.cat([none, none, W], -1))
    return ours[0], rnn.MECHANISM.recurrent(x, W)[0]


def like_lstm(T: int, seed: int) -> tuple[Tensor, Tensor]:
    """With W = 0: the cell of an LSTM without W that writes as much as it forgets, i = 1 - f."""
    x, W = MECHANISM.example(T, seed, dtype=torch.float64)
    _, z, n = x.chunk(3, -1)
    cell = lstm.MECHANISM.trace(torch.cat([-z, z, z, n], -1), W.new_zeros(len(W), 4 * len(W)))
    return MECHANISM.recurrent(x, torch.zeros_like(W))[0], cell["c"]


MECHANISM = Mechanism(
    name="gru",
    title="Gated recurrent unit",
    paper="Learning Phrase Representations using RNN Encoder-Decoder",
    year=2014,
    arxiv="1406.1078",
    decay="a gate per channel, from the data and the old state",
    inputs=(Input("x", "b t 3d"), Input("W", "d 3d", draw=mixing)),
    output=Input("o", "b t d"),
    state=(Input("h", "b d"),),
    value="x",
    functions={"recurrent": recurrent, "trace": trace},
    flops=lambda n: 6 * n["D"] ** 2 + 12 * n["D"],
    doc=__doc__,
    edges=(
        Edge("rnn", "r = 1, z = 0", like_rnn),
        Edge("lstm", "W = 0, and an LSTM whose W = 0 and i = 1 - f: its cell", like_lstm),
    ),
    alone=NO_PARALLEL,
    linear=False,
    moves=(
        Move("sigmoid", r"\sigma(x^z_t + \hat z_t)", "h", ("x", "W"), 1, gives=("z",), part=(1, 3)),
        Move("sigmoid", r"\sigma(x^r_t + \hat r_t)", "h", ("x", "W"), 1, gives=("r",), part=(0, 3)),
        Move(
            "tanh",
            r"\tanh(x^n_t + r_t \odot \hat n_t)",
            "h",
            ("x", "W", "r"),
            2,
            gives=("n",),
            part=(2, 3),
        ),
        Move("decay", "", "h", ("z",), 3),
        Move("rest", r"1 - z_t", "", ("z",), 3, gives=("rest",)),
        Move("multiply", "", "", ("rest", "n"), 3, gives=("new",)),
        Move("write", "", "h", ("new",), 3),
        Move("read", r"o_t = h_t", "h", (), 3, gives=("o",)),
    ),
)
