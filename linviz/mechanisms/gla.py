r"""Gated linear attention: each key channel forgets at a rate that the data choose, token by token.

Paper: Yang et al., "Gated Linear Attention Transformers with Hardware-Efficient Training", 2023,
arXiv:2312.06635.

Equations (in brackets: the paper's):
    (1)  S_t = \operatorname{diag}(e^{g_t})\, S_{t-1} + k_t v_t^\top [sec. 4.1]
    (2)  o_t = S_t^\top q_t [sec. 4.1]
    (3)  A_{ij} = \sum_c q_{ic} k_{jc} \exp \sum_{m=j+1}^{i} g_{mc} \quad (i \ge j),
         \qquad o = A V [sec. 4.2]

Glossary (ours | the paper's | shape | meaning):
    q | Q | [B, T, H, K] | query
    k | K | [B, T, H, K] | key
    v | V | [B, T, H, V] | value
    g | log alpha | [B, T, H, K] | log gate <= 0 of each key channel
    S | S | [B, H, K, V] | state
    o | O | [B, T, H, V] | output

We differ from the paper in: the gate is given as its logarithm (the layer makes it: logsigmoid of a
low-rank projection, over 16); no gate on the value channels (the paper drops it too); q is not
scaled (the flash-linear-attention library scales it by K^{-1/2}).

The paper factors (3) into (q e^{G}) and (k e^{-G}) with one running sum G and computes the blocks
on the diagonal apart, because e^{-G} overflows. Here every exponent is the sum over its own
interval: see linviz/recurrences/exponents.py.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from linviz.inputs import Input, log_gate
from linviz.mechanism import Edge, Mechanism, through
from linviz.mechanisms import retnet
from linviz.moves import Made, Move
from linviz.recurrences import vector_decay


def run(
    form: Callable, q: Tensor, k: Tensor, v: Tensor, g: Tensor, S: Tensor
) -> tuple[Tensor, Tensor]:
    """GLA is vector_decay, (1) to (3), letter by letter."""
    return form(q, k, v, g, S)


def like_retnet(T: int, seed: int) -> tuple[Tensor, Tensor]:
    """The same gate gamma_h on every channel and token."""
    q, k, v = retnet.MECHANISM.example(T, seed, dtype=torch.float64)
    gamma = torch.tensor([0.9, 0.8], dtype=torch.float64)
    g = gamma.log()[:, None].expand(k.shape)
    return MECHANISM.recurrent(q, k, v, g)[0], retnet.MECHANISM.recurrent(q, k, v, gamma=gamma)[0]


MECHANISM = Mechanism(
    name="gla",
    title="Gated linear attention",
    paper="Gated Linear Attention Transformers with Hardware-Efficient Training",
    year=2023,
    arxiv="2312.06635",
    decay="from the data, per key channel",
    inputs=(
        Input("q", "b t h k"),
        Input("k", "b t h k"),
        Input("v", "b t h v"),
        Input("g", "b t h k", high=0.0, draw=log_gate),
    ),
    output=Input("o", "b t h v"),
    state=(Input("S", "b h k v"),),
    value="v",
    functions=through(vector_decay, run),
    flops=lambda n: 5 * n["H"] * n["K"] * n["V"],
    doc=__doc__,
    recurrence="vector_decay",
    kernel="linviz.kernels.vector_decay:chunked",
    decode="linviz.kernels.decode:vector_decay",
    edges=(Edge("retnet", "g = log gamma_h on every channel and token", like_retnet),),
    moves=(
        Move("decay", r"\operatorname{diag}(e^{g_t})", "S", (Made("a", "b t h k", ("g",)),), 1),
        Move("write", r"k_t v_t^\top", "S", ("k", "v"), 1),
        Move("read", r"S_t^\top q_t", "S", ("q",), 2, gives=("o",), over="k"),
    ),
)
