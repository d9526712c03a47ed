r"""RetNet: linear attention that forgets at a fixed rate, another one for each head.

Paper: Sun et al., "Retentive Network: A Successor to Transformer for Large Language Models", 2023,
arXiv:2307.08621.

Equations (in brackets: the paper's):
    (1)  S_t = \gamma_h S_{t-1} + k_t v_t^\top [eq. 6]
    (2)  o_t = S_t^\top q_t [eq. 6]
    (3)  o = \bigl( (Q K^\top) \odot D \bigr) V,
         \quad D_{ij} = \gamma_h^{\,i-j} \; (i \ge j),\; 0 \text{ else} [eq. 5]
    (4)  \gamma_h = 1 - 2^{-5-h}, \quad h = 0, \dots, H-1 [eq. 8]

Glossary (ours | the paper's | shape | meaning):
    q | Q | [B, T, H, K] | query
    k | K | [B, T, H, K] | key
    v | V | [B, T, H, V] | value
    gamma | gamma | [H] | what is left of the state after one token; an option
    S | S | [B, H, K, V] | state
    o | Retention(X) | [B, T, H, V] | output

We differ from the paper in: the rotation of q and k by position and the group norm belong to the
layer; q and k are not scaled; the three stabilisers before the norm are left out, because they
change the numbers and only the norm hides that.

In its cell: gamma_h is one number a head, the same for all tokens.

The recurrence is scalar_decay with the gate g = log gamma at every token. The half-lives of (4) are
22, 44, 88, ... tokens.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from linviz.inputs import Input, Sizes
from linviz.mechanism import Edge, Mechanism, through
from linviz.mechanisms import linear_attention
from linviz.moves import Made, Move
from linviz.recurrences import scalar_decay


def run(
    form: Callable, q: Tensor, k: Tensor, v: Tensor, S: Tensor, *, gamma: Tensor
) -> tuple[Tensor, Tensor]:
    """Map to scalar_decay: a gate that is the same at every token."""
    return form(q, k, v, gamma.log(), S)  # (1), (2), (3)


def settle(options: dict[str, Any], sizes: Sizes, like: Tensor, validate: bool) -> dict[str, Any]:
    """Gamma as a tensor [H] of the precision the forms compute in."""
    gamma, H = options["gamma"], sizes["H"]
    kind = torch.promote_types(like.dtype, torch.float32)
    if gamma is None:
        gamma = 1 - 2.0 ** (-5 - torch.arange(H, dtype=torch.float64, device=like.device))  # (4)
        return {**options, "gamma": gamma.to(kind)}
    wanted = f"lv.retnet: gamma must be a number or [H] = [{H}]"
    try:
        given = isinstance(gamma, Tensor)
        gamma = torch.as_tensor(gamma, dtype=None if given else torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{wanted}, got {gamma!r}") from None
    if gamma.shape not in ((), (H,)) or gamma.is_complex():
        raise ValueError(f"{wanted}, got {gamma.dtype} of shape {tuple(gamma.shape)}")
    gamma = gamma.to(like.device, kind)
    if validate and not ((gamma >= 0) & (gamma <= 1)).all():
        raise ValueError(f"lv.retnet: gamma must lie in [0, 1], got {gamma.tolist()}")
    return {**options, "gamma": gamma.expand(H)}


def like_linear_attention(T: int, seed: int) -> tuple[Tensor, Tensor]:
    """Gamma = 1."""
    inputs = MECHANISM.example(T, seed, dtype=torch.float64)
    plain = linear_attention.MECHANISM.having(feature_map="identity", normalize=False)
    return MECHANISM.recurrent(*inputs, gamma=1.0)[0], plain.recurrent(*inputs)[0]


MECHANISM = Mechanism(
    name="retnet",
    title="Retention",
    paper="Retentive Network: A Successor to Transformer for Large Language Models",
    year=2023,
    arxiv="2307.08621",
    decay="fixed, one rate a head",
    inputs=(Input("q", "b t h k"), Input("k", "b t h k"), Input("v", "b t h v")),
    output=Input("o", "b t h v"),
    state=(Input("S", "b h k v"),),
    value="v",
    functions=through(scalar_decay, run),
    flops=lambda n: 5 * n["H"] * n["K"] * n["V"],
    doc=__doc__,
    recurrence="scalar_decay",
    kernel="linviz.kernels.scalar_decay:chunked",
    decode="linviz.kernels.decode:scalar_decay",
    options={"gamma": None},
    edges=(
        Edge("linear_attention", "gamma = 1, no features, no normaliser", like_linear_attention),
    ),
    settle=settle,
    moves=(
        Move("decay", r"\gamma_h", "S", (Made("a", "b t h"),), 1),
        Move("write", r"k_t v_t^\top", "S", ("k", "v"), 1),
        Move("read", r"S_t^\top q_t", "S", ("q",), 2, gives=("o",), over="k"),
    ),
)
