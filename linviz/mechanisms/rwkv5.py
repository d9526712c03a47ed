r"""RWKV-5 (Eagle): heads with a matrix for a state, fixed decay per channel, a bonus.

Paper: Peng et al., "Eagle and Finch: RWKV with Matrix-Valued States and Dynamic Recurrence", 2024,
arXiv:2404.05892.

Equations (in brackets: the paper's):
    (1)  o_t = \bar S_t^\top r_t,
         \quad \bar S_t = S_{t-1} + \operatorname{diag}(u)\, k_t v_t^\top [sec. 4.1.2]
    (2)  S_t = \operatorname{diag}(e^{w})\, S_{t-1} + k_t v_t^\top [sec. 4.1.2]

Glossary (ours | the paper's | shape | meaning):
    r | r | [B, T, H, K] | receptance: the query
    k | k | [B, T, H, K] | key
    v | v | [B, T, H, V] | value
    w | log w | [H, K] | log decay <= 0
    u | u | [H, K] | bonus of the present token
    S | s | [B, H, K, V] | state
    o | wkv | [B, T, H, V] | output

We differ from the paper in: w is the log decay itself (the paper's w is its exponential); token
shift, norm and gate belong to the layer; r is not scaled.

The recurrence is vector_decay with a bonus: it reads before it writes.
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
    form: Callable, r: Tensor, k: Tensor, v: Tensor, w: Tensor, u: Tensor, S: Tensor
) -> tuple[Tensor, Tensor]:
    """Map to vector_decay with a bonus, (1) and (2)."""
    return form(r, k, v, w.expand(k.shape), S, u=u)


READ_FIRST = (
    Move("read", r"S_{t-1}", "S", (), 1, gives=("seen",)),
    Move("skip", r"\operatorname{diag}(u)\, k_t v_t^\top", "", ("u", "k", "v"), 1, gives=("seen",)),
    Move("multiply", r"\bar S_t^\top r_t", "", ("seen", "r"), 1, gives=("o",), over="k"),
)


def like_retnet(T: int, seed: int) -> tuple[Tensor, Tensor]:
    """The same decay on every channel; r = gamma q and u = 1/gamma read one token later."""
    q, k, v = retnet.MECHANISM.example(T, seed, dtype=torch.float64)
    gamma = torch.tensor([0.9, 0.8], dtype=torch.float64)
    each = gamma[:, None].expand(k.shape[2:])
    ours = MECHANISM.recurrent(gamma[:, None] * q, k, v, each.log(), 1 / each)
    return ours[0], retnet.MECHANISM.recurrent(q, k, v, gamma=gamma)[0]


MECHANISM = Mechanism(
    name="rwkv5",
    title="RWKV-5 (Eagle)",
    paper="Eagle and Finch: RWKV with Matrix-Valued States and Dynamic Recurrence",
    year=2024,
    arxiv="2404.05892",
    decay="fixed, per key channel",
    inputs=(
        Input("r", "b t h k"),
        Input("k", "b t h k"),
        Input("v", "b t h v"),
        Input("w", "h k", high=0.0, draw=log_gate),
        Input("u", "h k"),
    ),
    output=Input("o", "b t h v"),
    state=(Input("S", "b h k v"),),
    value="v",
    functions=through(vector_decay, run),
    flops=lambda n: 7 * n["H"] * n["K"] * n["V"],
    doc=__doc__,
    recurrence="vector_decay",
    kernel="linviz.kernels.vector_decay:chunked",
    decode="linviz.kernels.decode:vector_decay",
    edges=(Edge("retnet", "w = log gamma_h, r = gamma_h q, u = 1/gamma_h", like_retnet),),
    moves=(
        *READ_FIRST,
        Move("decay", r"\operatorname{diag}(e^{w})", "S", (Made("a", "b t h k", ("w",)),), 2),
        Move("write", r"k_t v_t^\top", "S", ("k", "v"), 2),
    ),
)
