r"""Kimi delta attention: each key channel fades at its own rate, then one key is replaced.

Paper: Kimi Team, "Kimi Linear: An Expressive, Efficient Attention Architecture", 2025,
arXiv:2510.26692.

Equations (in brackets: the paper's):
    (1)  S_t = (I - \beta_t k_t k_t^\top)\, \tilde S_t + \beta_t k_t v_t^\top
         = \tilde S_t - \beta_t k_t (k_t^\top \tilde S_t) + \beta_t k_t v_t^\top,
         \quad \tilde S_t = \operatorname{diag}(e^{g_t})\, S_{t-1} [eq. 1]
    (2)  o_t = S_t^\top q_t [eq. 1]
    (3)  e_t = v_t - \tilde S_t^\top k_t [eq. 1]

Glossary (ours | the paper's | shape | meaning):
    q | q | [B, T, H, K] | query
    k | k | [B, T, H, K] | key, of length 1
    v | v | [B, T, H, V] | value
    beta | beta | [B, T, H] | how much of the old value is replaced
    g | log alpha | [B, T, H, K] | log gate <= 0 of each key channel
    e | - | [B, T, H, V] | error of the lookup in the faded state
    S | S | [B, H, K, V] | state
    o | o | [B, T, H, V] | output

We differ from the paper in: the gate is given as its logarithm; keys come in normalised; q is not
scaled.

The recurrence is delta_rule with a gate per key channel.
"""

import torch
from torch import Tensor

from linviz.inputs import Input, log_gate
from linviz.mechanism import Edge, Mechanism, through
from linviz.mechanisms import deltanet, gated_deltanet, gla
from linviz.moves import Made, Move
from linviz.recurrences import delta_rule


def like_gated_deltanet(T: int, seed: int) -> tuple[Tensor, Tensor]:
    """The same gate on every channel."""
    q, k, v, beta, g = gated_deltanet.MECHANISM.example(T, seed, dtype=torch.float64)
    ours = MECHANISM.recurrent(q, k, v, beta, g[..., None].expand(k.shape))
    return ours[0], gated_deltanet.MECHANISM.recurrent(q, k, v, beta, g)[0]


def like_gla(T: int, seed: int) -> tuple[Tensor, Tensor]:
    """Each key an axis of its own and beta = 1: there is never anything to erase."""
    q, k, v, beta, g = MECHANISM.example(T, seed, K=T, dtype=torch.float64)
    k = torch.eye(T, dtype=k.dtype)[None, :, None].expand(k.shape)
    ours = MECHANISM.recurrent(q, k, v, torch.ones_like(beta), g)
    return ours[0], gla.MECHANISM.recurrent(q, k, v, g)[0]


MECHANISM = Mechanism(
    name="kda",
    title="Kimi delta attention",
    paper="Kimi Linear: An Expressive, Efficient Attention Architecture",
    year=2025,
    arxiv="2510.26692",
    decay="from the data, per key channel; and what a key held is replaced",
    inputs=(*deltanet.INPUTS, Input("g", "b t h k", high=0.0, draw=log_gate)),
    output=Input("o", "b t h v"),
    state=(Input("S", "b h k v"),),
    value="v",
    functions=through(delta_rule, gated_deltanet.run),
    flops=lambda n: 7 * n["H"] * n["K"] * n["V"],
    doc=__doc__,
    recurrence="delta_rule",
    kernel="linviz.kernels.delta_rule:chunked",
    decode="linviz.kernels.decode:delta_rule",
    edges=(
        Edge("gated_deltanet", "g the same on every channel", like_gated_deltanet),
        Edge("gla", "each key its own axis, beta = 1", like_gla),
    ),
    moves=(
        Move("decay", r"\operatorname{diag}(e^{g_t})", "S", (Made("a", "b t h k", ("g",)),), 1),
        Move("read", r"k_t^\top \tilde S_t", "S", ("k",), 1, gives=("found",), over="k"),
        Move("erase", r"\beta_t k_t (k_t^\top \tilde S_t)", "S", ("beta", "k", "found"), 1),
        Move("write", r"\beta_t k_t v_t^\top", "S", ("beta", "k", "v"), 1),
        Move("read", r"S_t^\top q_t", "S", ("q",), 2, gives=("o",), over="k"),
    ),
)
