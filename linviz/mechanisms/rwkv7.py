r"""RWKV-7 (Goose): the delta rule with its rate a vector, and an erase apart from the write.

Paper: Peng et al., "RWKV-7 'Goose' with Expressive Dynamic State Evolution", 2025,
arXiv:2503.14456.

Equations (in brackets: the paper's):
    (1)  S_t = \operatorname{diag}(e^{w_t})\, S_{t-1} + b_t (a_t^\top S_{t-1}) + k_t v_t^\top
         [sec. 4.1]
    (2)  o_t = S_t^\top r_t [sec. 4.1]
    (3)  y_t = S_{t-1}^\top a_t [sec. 4.1]

Glossary (ours | the paper's | shape | meaning):
    r | r | [B, T, H, K] | receptance: the query
    w | log w | [B, T, H, K] | log decay <= 0 of each key channel
    k | k tilde | [B, T, H, K] | key that is written
    v | v | [B, T, H, V] | value
    a | -kappa hat | [B, T, H, K] | minus the key that is erased, of length 1
    b | kappa hat * a | [B, T, H, K] | where it is taken away, times the rate per channel
    y | - | [B, T, H, V] | lookup, of the state before it decays
    S | wkv | [B, H, K, V] | state
    o | - | [B, T, H, V] | output

We differ from the paper in: the state is [K, V] and not its transpose; w is the log decay itself; a
and b are those of the official kernels, which take minus the normalised removal key and that key
times the in-context learning rate; the bonus term, token shift and norm belong to the layer.

In its cell: a is minus the key that is removed, so that what is found under it is taken away by
adding: the sign on the belt is + and its ink is the key's. The lookup sees the state before it
fades.

The recurrence is rank_one, in these letters with q = r.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from linviz.inputs import Input, log_gate, strength, unit
from linviz.mechanism import Edge, Mechanism, through
from linviz.mechanisms import deltanet, kda
from linviz.moves import Made, Move
from linviz.recurrences import rank_one


def run(
    form: Callable,
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    S: Tensor,
) -> tuple[Tensor, Tensor]:
    """RWKV-7 is rank_one, (1) to (3), letter by letter."""
    return form(r, w, k, v, a, b, S)


FORMS = through(rank_one, run)


def trace(*inputs: Tensor, S: Tensor) -> dict[str, Tensor]:
    """All that rank_one names, and the gate e^w."""
    named = FORMS["trace"](*inputs, S=S)
    return named | {"gate": named["w"].exp()}


def erase_along(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """An example that cannot blow up: b = -a times a rate between 0 and 1."""
    return {**inputs, "b": -inputs["a"] * inputs["b"]}


def like_deltanet(T: int, seed: int) -> tuple[Tensor, Tensor]:
    """With w = 0, a = -k, b = beta k, and beta k written."""
    q, k, v, beta = deltanet.MECHANISM.example(T, seed, dtype=torch.float64)
    scaled = beta[..., None] * k
    ours = MECHANISM.recurrent(q, torch.zeros_like(k), scaled, v, -k, scaled)
    return ours[0], deltanet.MECHANISM.recurrent(q, k, v, beta)[0]


def like_kda(T: int, seed: int) -> tuple[Tensor, Tensor]:
    """With a = -e^g k, since the lookup comes before the decay; b = beta k, and beta k written."""
    q, k, v, beta, g = kda.MECHANISM.example(T, seed, dtype=torch.float64)
    scaled = beta[..., None] * k
    ours = MECHANISM.recurrent(q, g, scaled, v, -g.exp() * k, scaled)
    return ours[0], kda.MECHANISM.recurrent(q, k, v, beta, g)[0]


MECHANISM = Mechanism(
    name="rwkv7",
    title="RWKV-7 (Goose)",
    paper="RWKV-7 'Goose' with Expressive Dynamic State Evolution",
    year=2025,
    arxiv="2503.14456",
    decay="from the data, per key channel; and any rank-one erase",
    inputs=(
        Input("r", "b t h k"),
        Input("w", "b t h k", high=0.0, draw=log_gate),
        Input("k", "b t h k"),
        Input("v", "b t h v"),
        Input("a", "b t h k", draw=lambda shape, rng: -unit(shape, rng)),
        Input("b", "b t h k", draw=strength),
    ),
    output=Input("o", "b t h v"),
    state=(Input("S", "b h k v"),),
    value="v",
    functions=FORMS | {"trace": trace},
    flops=lambda n: 9 * n["H"] * n["K"] * n["V"],
    doc=__doc__,
    recurrence="rank_one",
    kernel="linviz.kernels.rwkv7:chunked",
    decode="linviz.kernels.decode:rank_one",
    edges=(
        Edge("deltanet", "w = 0, a = -k, b = beta k", like_deltanet),
        Edge("kda", "a = -e^w k, b = beta k", like_kda),
    ),
    arrange=erase_along,
    moves=(
        Move("read", r"a_t^\top S_{t-1}", "S", ("a",), 1, gives=("y",), over="k"),
        Move("decay", r"\operatorname{diag}(e^{w_t})", "S", (Made("gate", "b t h k", ("w",)),), 1),
        Move("write", r"b_t (a_t^\top S_{t-1})", "S", ("b", "y"), 1),
        Move("write", r"k_t v_t^\top", "S", ("k", "v"), 1),
        Move("read", r"S_t^\top r_t", "S", ("r",), 2, gives=("o",), over="k"),
    ),
)
