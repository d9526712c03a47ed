r"""The plain recurrent network: the new state is a squashed mixture of the old one and the input.

Paper: Elman, "Finding Structure in Time", Cognitive Science 14(2), 1990.

Equations (in brackets: the paper's):
    (1)  o_t = h_t = \tanh(x_t + W^\top h_{t-1}) [fig. 2]

Glossary (ours | the paper's | shape | meaning):
    x | - | [B, T, D] | pre-activation: what the input contributes, bias included
    W | - | [D, D] | old state to new state, from row to column
    h | context units | [B, D] | state, and output

We differ from the paper in: tanh for the logistic function; the input's projection is left out.

W stands inside the tanh, so h_t cannot be written without h_{t-1}: a loop over time is all there
is. With W = 0 the gates of an LSTM or GRU are cut from h and become parallel; here nothing of the
past is left at all.
"""

import torch
from torch import Tensor

from linviz.inputs import Input, normal
from linviz.mechanism import Mechanism
from linviz.moves import Move


def recurrent(x: Tensor, W: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    """The loop over time, (1)."""
    h, o = S, []
    for x_t in x.unbind(1):
        h = torch.tanh(x_t + h @ W)  # (1)
        o.append(h)
    return torch.stack(o, 1), h


def trace(x: Tensor, W: Tensor, S: Tensor) -> dict[str, Tensor]:
    """The state h after each token, which is also the output."""
    o, _ = recurrent(x, W, S)
    return {"o": o, "S": o}


def mixing(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """A matrix that keeps the length of a vector about the same."""
    return normal(shape, rng) / shape[0] ** 0.5


NO_PARALLEL = (
    "the old state stands inside a nonlinearity, so each step must wait for the one before; "
    "W = 0 cuts that tie"
)

MECHANISM = Mechanism(
    name="rnn",
    title="Recurrent network",
    paper="Finding Structure in Time",
    year=1990,
    arxiv="",
    decay="whatever W and tanh leave",
    inputs=(Input("x", "b t d"), Input("W", "d d", draw=mixing)),
    output=Input("o", "b t d"),
    state=(Input("h", "b d"),),
    value="x",
    functions={"recurrent": recurrent, "trace": trace},
    flops=lambda n: 2 * n["D"] ** 2 + 2 * n["D"],
    doc=__doc__,
    alone=NO_PARALLEL,
    linear=False,
    moves=(
        Move("tanh", r"\tanh(x_t + W^\top h_{t-1})", "h", ("x", "W"), 1, gives=("h",)),
        Move("read", r"o_t = h_t", "h", (), 1, gives=("o",)),
    ),
)
