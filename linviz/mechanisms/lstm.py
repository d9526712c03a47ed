r"""Long short-term memory: a cell that is gated instead of overwritten, read through a gate.

Papers: Hochreiter and Schmidhuber, "Long Short-Term Memory", Neural Computation 9(8), 1997; the
forget gate is Gers, Schmidhuber and Cummins, "Learning to Forget", Neural Computation 12(10), 2000.

Equations (in brackets: the paper's):
    (1)  (\hat i_t, \hat f_t, \hat o_t, \hat c_t) = x_t + W^\top h_{t-1} [sec. 3]
    (2)  c_t = \sigma(\hat f_t) \odot c_{t-1} + \sigma(\hat i_t) \odot \tanh(\hat c_t) [sec. 3]
    (3)  o_t = h_t = \sigma(\hat o_t) \odot \tanh(c_t) [sec. 3]

Glossary (ours | the paper's | shape | meaning):
    x | net | [B, T, 4D] | pre-activations of i, f, o and c, in this order, biases included
    W | w | [D, 4D] | old output to the four pre-activations
    h | y | [B, D] | output, fed back
    c | s | [B, D] | the cell

We differ from the paper in: the forget gate of 2000; the input's projection is left out.

In its cell: h does not ride on, it is made anew from c at each token. The o with a hat is the gate
that lets c out; the output o_t is h_t.

(2) is a diagonal scan with gates that depend on the data. What makes it a loop is (1), which feeds
h back into the gates. With W = 0 the gates depend on x alone and the cell can be computed for all
times at once: that is the step from the LSTM to GLA and Mamba.
"""

import torch
from torch import Tensor

from linviz.inputs import Input
from linviz.mechanism import Mechanism
from linviz.mechanisms.rnn import NO_PARALLEL, mixing
from linviz.moves import Move


def recurrent(
    x: Tensor, W: Tensor, S: tuple[Tensor, Tensor]
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The loop over time, (1) to (3)."""
    (h, c), out = S, []
    for x_t in x.unbind(1):
        i, f, o, new = (x_t + h @ W).chunk(4, -1)  # (1)
        c = f.sigmoid() * c + i.sigmoid() * new.tanh()  # (2)
        h = o.sigmoid() * c.tanh()  # (3)
        out.append(h)
    return torch.stack(out, 1), (h, c)


def trace(x: Tensor, W: Tensor, S: tuple[Tensor, Tensor]) -> dict[str, Tensor | tuple]:
    """The gates i, f and o_gate in [0, 1], and h and c after each token."""
    gates, h, c = [], [], []
    for x_t in x.unbind(1):
        gates.append((x_t + S[0] @ W).sigmoid())
        _, S = recurrent(x_t[:, None], W, S)
        h.append(S[0])
        c.append(S[1])
    i, f, o_gate, _ = torch.stack(gates, 1).chunk(4, -1)
    h, c = torch.stack(h, 1), torch.stack(c, 1)
    return {"i": i, "f": f, "o_gate": o_gate, "o": h, "S": (h, c)}


MECHANISM = Mechanism(
    name="lstm",
    title="Long short-term memory",
    paper="Long Short-Term Memory",
    year=1997,
    arxiv="",
    decay="a gate per channel, from the data and the old output",
    inputs=(Input("x", "b t 4d"), Input("W", "d 4d", draw=mixing)),
    output=Input("o", "b t d"),
    state=(Input("h", "b d"), Input("c", "b d")),
    value="x",
    functions={"recurrent": recurrent, "trace": trace},
    flops=lambda n: 8 * n["D"] ** 2 + 13 * n["D"],
    doc=__doc__,
    alone=NO_PARALLEL,
    linear=False,
    moves=(
        Move("sigmoid", r"\sigma(\hat f_t)", "h", ("x", "W"), 2, gives=("f",), part=(1, 4)),
        Move("sigmoid", r"\sigma(\hat i_t)", "h", ("x", "W"), 2, gives=("i",), part=(0, 4)),
        Move("tanh", r"\tanh(\hat c_t)", "h", ("x", "W"), 2, gives=("new",), part=(3, 4)),
        Move("sigmoid", r"\sigma(\hat o_t)", "h", ("x", "W"), 3, gives=("gate",), part=(2, 4)),
        Move("decay", "", "c", ("f",), 2),
        Move("multiply", "", "", ("i", "new"), 2, gives=("gated",)),
        Move("write", "", "c", ("gated",), 2),
        Move("tanh", r"\tanh(c_t)", "", ("c",), 3, gives=("squashed",)),
        Move("multiply", "", "", ("gate", "squashed"), 3, gives=("h",)),
        Move("read", r"o_t = h_t", "h", (), 3, gives=("o",)),
    ),
)
