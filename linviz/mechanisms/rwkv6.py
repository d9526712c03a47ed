r"""RWKV-6 (Finch): RWKV-5 with a decay that the data choose at every token.

Paper: Peng et al., "Eagle and Finch: RWKV with Matrix-Valued States and Dynamic Recurrence", 2024,
arXiv:2404.05892.

Equations (in brackets: the paper's):
    (1)  o_t = \bar S_t^\top r_t,
         \quad \bar S_t = S_{t-1} + \operatorname{diag}(u)\, k_t v_t^\top [sec. 4.2.2]
    (2)  S_t = \operatorname{diag}(e^{w_t})\, S_{t-1} + k_t v_t^\top [sec. 4.2.2]

Glossary (ours | the paper's | shape | meaning):
    r | r | [B, T, H, K] | receptance: the query
    k | k | [B, T, H, K] | key
    v | v | [B, T, H, V] | value
    w | log w | [B, T, H, K] | log decay <= 0 of each key channel
    u | u | [H, K] | bonus of the present token
    S | s | [B, H, K, V] | state
    o | wkv | [B, T, H, V] | output

We differ from the paper in: w is the log decay itself (the paper's w is its exponential); token
shift, norm and gate belong to the layer; r is not scaled.

The recurrence is vector_decay with a bonus: GLA that reads one gate earlier.
"""

import torch
from torch import Tensor

from linviz.inputs import Input, log_gate
from linviz.mechanism import Edge, Mechanism, through
from linviz.mechanisms import rwkv5
from linviz.moves import Made, Move
from linviz.recurrences import vector_decay


def like_rwkv5(T: int, seed: int) -> tuple[Tensor, Tensor]:
    """The same decay at every token."""
    r, k, v, w, u = rwkv5.MECHANISM.example(T, seed, dtype=torch.float64)
    ours = MECHANISM.recurrent(r, k, v, w.expand(k.shape), u)
    return ours[0], rwkv5.MECHANISM.recurrent(r, k, v, w, u)[0]


MECHANISM = Mechanism(
    name="rwkv6",
    title="RWKV-6 (Finch)",
    paper="Eagle and Finch: RWKV with Matrix-Valued States and Dynamic Recurrence",
    year=2024,
    arxiv="2404.05892",
    decay="from the data, per key channel",
    inputs=(
        Input("r", "b t h k"),
        Input("k", "b t h k"),
        Input("v", "b t h v"),
        Input("w", "b t h k", high=0.0, draw=log_gate),
        Input("u", "h k"),
    ),
    output=Input("o", "b t h v"),
    state=(Input("S", "b h k v"),),
    value="v",
    functions=through(vector_decay, rwkv5.run),
    flops=lambda n: 7 * n["H"] * n["K"] * n["V"],
    doc=__doc__,
    recurrence="vector_decay",
    kernel="linviz.kernels.vector_decay:chunked",
    decode="linviz.kernels.decode:vector_decay",
    edges=(Edge("rwkv5", "w the same at every token", like_rwkv5),),
    moves=(
        *rwkv5.READ_FIRST,
        Move("decay", r"\operatorname{diag}(e^{w_t})", "S", (Made("a", "b t h k", ("w",)),), 2),
        Move("write", r"k_t v_t^\top", "S", ("k", "v"), 2),
    ),
)
