r"""Gated DeltaNet: fade everything a little, then replace what one key holds.

Paper: Yang, Kautz and Hatamizadeh, "Gated Delta Networks: Improving Mamba2 with Delta Rule", 2024,
arXiv:2412.06464.

Equations (in brackets: the paper's):
    (1)  S_t = (I - \beta_t k_t k_t^\top)\, \tilde S_t + \beta_t k_t v_t^\top
         = \tilde S_t - \beta_t k_t (k_t^\top \tilde S_t) + \beta_t k_t v_t^\top,
         \quad \tilde S_t = e^{g_t} S_{t-1} [eq. 10]
    (2)  o_t = S_t^\top q_t [eq. 10]
    (3)  e_t = v_t - \tilde S_t^\top k_t [eq. 10]

Glossary (ours | the paper's | shape | meaning):
    q | q | [B, T, H, K] | query
    k | k | [B, T, H, K] | key, of length 1
    v | v | [B, T, H, V] | value
    beta | beta | [B, T, H] | how much of the old value is replaced
    g | log alpha | [B, T, H] | log gate <= 0 of the head
    e | - | [B, T, H, V] | error of the lookup in the faded state
    S | S | [B, H, K, V] | state
    o | o | [B, T, H, V] | output

We differ from the paper in: the state is [K, V] and not its transpose; the gate is given as its
logarithm; keys come in normalised; q is not scaled.

The recurrence is delta_rule with one gate a head. The order counts: first fade, then look up.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from linviz.inputs import Input, log_gate
from linviz.mechanism import Edge, Mechanism, through
from linviz.mechanisms import deltanet
from linviz.moves import Made, Move
from linviz.recurrences import delta_rule


def run(
    form: Callable, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor, S: Tensor
) -> tuple[Tensor, Tensor]:
    """The delta_rule with a gate per head, or (KDA) per key channel: (1) to (3)."""
    return form(q, k, v, beta, g, S)


def like_deltanet(T: int, seed: int) -> tuple[Tensor, Tensor]:
    """The gate g = 0."""
    q, k, v, beta = deltanet.MECHANISM.example(T, seed, dtype=torch.float64)
    ours = MECHANISM.recurrent(q, k, v, beta, torch.zeros_like(beta))
    return ours[0], deltanet.MECHANISM.recurrent(q, k, v, beta)[0]


MECHANISM = Mechanism(
    name="gated_deltanet",
    title="Gated delta rule",
    paper="Gated Delta Networks: Improving Mamba2 with Delta Rule",
    year=2024,
    arxiv="2412.06464",
    decay="from the data, per head; and what a key held is replaced",
    inputs=(*deltanet.INPUTS, Input("g", "b t h", high=0.0, draw=log_gate)),
    output=Input("o", "b t h v"),
    state=(Input("S", "b h k v"),),
    value="v",
    functions=through(delta_rule, run),
    flops=lambda n: 7 * n["H"] * n["K"] * n["V"],
    doc=__doc__,
    recurrence="delta_rule",
    kernel="linviz.kernels.delta_rule:chunked",
    decode="linviz.kernels.decode:delta_rule",
    edges=(Edge("deltanet", "g = 0", like_deltanet),),
    moves=(
        Move("decay", r"e^{g_t}", "S", (Made("a", "b t h", ("g",)),), 1),
        Move("read", r"k_t^\top \tilde S_t", "S", ("k",), 1, gives=("found",), over="k"),
        Move("erase", r"\beta_t k_t (k_t^\top \tilde S_t)", "S", ("beta", "k", "found"), 1),
        Move("write", r"\beta_t k_t v_t^\top", "S", ("beta", "k", "v"), 1),
        Move("read", r"S_t^\top q_t", "S", ("q",), 2, gives=("o",), over="k"),
    ),
)
