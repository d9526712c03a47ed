r"""DeltaNet: write the difference between the value and what the state already holds under the key.

Papers: Schlag, Irie and Schmidhuber, "Linear Transformers Are Secretly Fast Weight Programmers",
2021, arXiv:2102.11174; in parallel over time: Yang et al., 2024, arXiv:2406.06484.

Equations (in brackets: the paper's):
    (1)  e_t = v_t - S_{t-1}^\top k_t [sec. 4.2]
    (2)  S_t = S_{t-1} + \beta_t k_t e_t^\top
         = S_{t-1} - \beta_t k_t (k_t^\top S_{t-1}) + \beta_t k_t v_t^\top
         = (I - \beta_t k_t k_t^\top) S_{t-1} + \beta_t k_t v_t^\top [sec. 4.2]
    (3)  o_t = S_t^\top q_t [sec. 4.2]

Glossary (ours | the paper's | shape | meaning):
    q | q | [B, T, H, K] | query
    k | k | [B, T, H, K] | key, of length 1
    v | v | [B, T, H, V] | value
    beta | beta | [B, T, H] | how much of the old value is replaced: 0 nothing, 1 all of it
    e | v - v bar | [B, T, H, V] | error of the lookup
    S | W | [B, H, K, V] | state
    o | y | [B, T, H, V] | output

We differ from the paper in: the state is [K, V] and not its transpose; keys come in normalised (the
layer does it) and no feature map is applied; no scale on q. With |k| = 1 the factor along k is
1 - beta: beta up to 2 is stable and gives negative eigenvalues (arXiv:2411.12537).

The recurrence is delta_rule without a gate. (2) is one step of gradient descent with rate beta on
|S^T k - v|^2 / 2.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from linviz.inputs import Input, strength, unit
from linviz.mechanism import Edge, Mechanism, through
from linviz.mechanisms import linear_attention
from linviz.moves import Move
from linviz.recurrences import delta_rule

INPUTS = (
    Input("q", "b t h k"),
    Input("k", "b t h k", draw=unit),
    Input("v", "b t h v"),
    Input("beta", "b t h", low=0.0, high=2.0, draw=strength),
)


def run(
    form: Callable, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, S: Tensor
) -> tuple[Tensor, Tensor]:
    """Map to delta_rule without a gate, (1) to (3)."""
    return form(q, k, v, beta, None, S)


def like_linear_attention(T: int, seed: int) -> tuple[Tensor, Tensor]:
    """Orthonormal keys and beta = 1: there is never anything to erase."""
    q, k, v, beta = MECHANISM.example(T, seed, K=T, dtype=torch.float64)
    k = torch.linalg.qr(k.transpose(1, 2)).Q.transpose(1, 2)
    plain = linear_attention.MECHANISM.having(feature_map="identity", normalize=False)
    return MECHANISM.recurrent(q, k, v, torch.ones_like(beta))[0], plain.recurrent(q, k, v)[0]


MECHANISM = Mechanism(
    name="deltanet",
    title="Delta rule",
    paper="Linear Transformers Are Secretly Fast Weight Programmers",
    year=2021,
    arxiv="2102.11174",
    decay="none; what a key held is replaced",
    inputs=INPUTS,
    output=Input("o", "b t h v"),
    state=(Input("S", "b h k v"),),
    value="v",
    functions=through(delta_rule, run),
    flops=lambda n: 7 * n["H"] * n["K"] * n["V"],
    doc=__doc__,
    recurrence="delta_rule",
    kernel="linviz.kernels.delta_rule:chunked",
    decode="linviz.kernels.decode:delta_rule",
    edges=(
        Edge(
            "linear_attention", "orthonormal keys, beta = 1, no normaliser", like_linear_attention
        ),
    ),
    moves=(
        Move("read", r"k_t^\top S_{t-1}", "S", ("k",), 2, gives=("found",), over="k"),
        Move("erase", r"\beta_t k_t (k_t^\top S_{t-1})", "S", ("beta", "k", "found"), 2),
        Move("write", r"\beta_t k_t v_t^\top", "S", ("beta", "k", "v"), 2),
        Move("read", r"S_t^\top q_t", "S", ("q",), 3, gives=("o",), over="k"),
    ),
)
