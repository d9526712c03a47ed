r"""Mamba-2: one decay a head turns the selective state space into a masked linear attention.

Paper: Dao and Gu, "Transformers are SSMs: Generalized Models and Efficient Algorithms Through
Structured State Space Duality", 2024, arXiv:2405.21060.

Equations (in brackets: the paper's):
    (1)  S_t = e^{\Delta_t A} S_{t-1} + B_t (\Delta_t x_t)^\top [sec. 5.1]
    (2)  y_t = S_t^\top C_t + D x_t [sec. 5.1]
    (3)  y = \bigl( (C B^\top) \odot L \bigr) (\Delta x) + D x, \quad
         L_{ij} = \exp\Bigl(A \sum_{m=j+1}^{i} \Delta_m\Bigr) [sec. 5.2]

Glossary (ours | the paper's | shape | meaning):
    x | X | [B, T, H, P] | values
    dt | Delta | [B, T, H] | step size >= 0
    A | A | [H] | decay rate <= 0 of each head
    B | B | [B, T, G, N] | keys, shared by the H / G heads of a group
    C | C | [B, T, G, N] | queries, shared likewise
    D | D | [H] | skip
    S | H | [B, H, N, P] | state
    y | Y | [B, T, H, P] | output

We differ from the paper in: nothing but letters; the short convolution, the softplus of dt, the
gate and the norm belong to the layer.

The recurrence is scalar_decay with q = C, k = B, v = dt x and g = dt A. The matrix of (3) is
1-semiseparable times a Gram matrix: that is the duality.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from linviz.inputs import Input, Sizes, ones, rates, time_step
from linviz.mechanism import Edge, Mechanism, through
from linviz.mechanisms import mamba, retnet
from linviz.moves import Made, Move
from linviz.recurrences import scalar_decay


def run(
    form: Callable, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, S: Tensor
) -> tuple[Tensor, Tensor]:
    """Map to scalar_decay, (1) to (3): a group's B and C serve all of its heads."""
    heads = x.shape[2] // B.shape[2]
    q, k = (z[:, :, :, None].expand(-1, -1, -1, heads, -1).flatten(2, 3) for z in (C, B))
    y, S = form(q, k, (dt[..., None] * x).to(x.dtype), dt * A, S)  # one group: q and k are views
    return y + D[:, None] * x, S


def groups(sizes: Sizes) -> str:
    """What is wrong with H and G, if anything."""
    H, G = sizes["H"], sizes["G"]
    return "" if G and H % G == 0 else f"the groups G={G} must divide the heads H={H}"


def like_retnet(T: int, seed: int) -> tuple[Tensor, Tensor]:
    """With dt = 1, A = log gamma, D = 0."""
    q, k, v = retnet.MECHANISM.example(T, seed, dtype=torch.float64)
    gamma = torch.tensor([0.9, 0.8], dtype=torch.float64)
    dt = torch.ones_like(q[..., 0])
    ours = MECHANISM.recurrent(v, dt, gamma.log(), k, q, torch.zeros_like(gamma))
    return ours[0], retnet.MECHANISM.recurrent(q, k, v, gamma=gamma)[0]


def like_mamba(T: int, seed: int) -> tuple[Tensor, Tensor]:
    """One head: a Mamba whose channels share dt and whose A is one number."""
    x, dt, A, B, C, D = MECHANISM.example(T, seed, H=1, dtype=torch.float64)
    P, N = x.shape[-1], B.shape[-1]
    theirs = mamba.MECHANISM.recurrent(
        x[:, :, 0], dt.expand(-1, -1, P), A.expand(P, N), B[:, :, 0], C[:, :, 0], D.expand(P)
    )
    return MECHANISM.recurrent(x, dt, A, B, C, D)[0][:, :, 0], theirs[0]


MECHANISM = Mechanism(
    name="mamba2",
    title="Mamba-2 (state space duality)",
    paper="Transformers are SSMs",
    year=2024,
    arxiv="2405.21060",
    decay="from the data, per head",
    inputs=(
        Input("x", "b t h p"),
        Input("dt", "b t h", low=0.0, draw=time_step),
        Input("A", "h", high=0.0, draw=rates),
        Input("B", "b t g n"),
        Input("C", "b t g n"),
        Input("D", "h", draw=ones),
    ),
    output=Input("y", "b t h p"),
    state=(Input("S", "b h n p"),),
    value="x",
    functions=through(scalar_decay, run),
    flops=lambda n: n["H"] * (5 * n["N"] * n["P"] + 3 * n["P"]),
    doc=__doc__,
    recurrence="scalar_decay",
    kernel="linviz.kernels.scalar_decay:chunked",
    decode="linviz.kernels.decode:scalar_decay",
    edges=(
        Edge("retnet", "dt = 1, A = log gamma_h, D = 0", like_retnet),
        Edge("mamba", "a Mamba whose channels share dt and one A", like_mamba),
    ),
    check=groups,
    moves=(
        Move("decay", r"e^{\Delta_t A}", "S", (Made("a", "b t h", ("dt", "A")),), 1),
        Move(
            "write",
            r"B_t (\Delta_t x_t)^\top",
            "S",
            (Made("k", "b t h n", ("B",)), Made("v", "b t h p", ("dt", "x"))),
            1,
        ),
        Move(
            "read", r"S_t^\top C_t", "S", (Made("q", "b t h n", ("C",)),), 2, gives=("y",), over="n"
        ),
        Move("skip", r"D x_t", "", ("D", "x"), 2, gives=("y",)),
    ),
)
