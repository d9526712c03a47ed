r"""Linear attention: replace e^{q.k} by a product of features, and the past folds into one matrix.

Paper: Katharopoulos et al., "Transformers are RNNs: Fast Autoregressive Transformers with Linear
Attention", 2020, arXiv:2006.16236.

Equations (in brackets: the paper's):
    (1)  S_t = S_{t-1} + \phi(k_t)\, v_t^\top [eq. 18]
    (2)  z_t = z_{t-1} + \phi(k_t) [eq. 19]
    (3)  o_t = \frac{S_t^\top \phi(q_t)}{\phi(q_t)^\top z_t + \varepsilon} [eq. 20]
    (4)  o_i = \frac{\sum_{j \le i} \phi(q_i)^\top \phi(k_j)\, v_j}
         {\sum_{j \le i} \phi(q_i)^\top \phi(k_j)} [eq. 9]

Glossary (ours | the paper's | shape | meaning):
    q | Q | [B, T, H, K] | query
    k | K | [B, T, H, K] | key
    v | V | [B, T, H, V] | value
    S | s | [B, H, R, V] | state: features by value channels
    z | z | [B, H, R] | normaliser: the sum of the key features
    o | y | [B, T, H, V] | output
    phi | phi | R from K | feature map
    eps | - | - | added to the denominator; 0 by default

We differ from the paper in: other feature maps are options; without `normalize` the output is S_t^T
phi(q_t). Where the denominator is exactly 0 (relu features that share nothing), the output is 0. A
function given as feature_map gets q and k as [B, T, H, K], float32 or better.

The recurrence is scalar_decay without a gate; the normaliser is one more value channel that is
always 1, so S and z are one matrix there.

Feature maps of x with K channels, to R features:
    elu: elu(x) + 1, R = K. The paper's; positive.
    relu: max(x, 0), R = K. Not negative; a query may share no feature with any key.
    identity: x, R = K. Signed, so use it with normalize=False.
    exp: e^x, R = K. Positive; grows fast.
    hedgehog: softmax(x) and softmax(-x), R = 2K. arXiv:2402.04347 with its matrix at the identity.
    taylor: 1, x / K^(1/4), xx' / sqrt(2K), R = 1 + K + K^2. arXiv:2402.18668; the product of two
        such features is 1 + s + s^2/2 with s = q.k / sqrt(K), the start of the series of e^s.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from linviz.inputs import Input, Sizes
from linviz.mechanism import Edge, Mechanism, through
from linviz.mechanisms import softmax
from linviz.moves import Made, Move
from linviz.recurrences import scalar_decay


def taylor(x: Tensor) -> Tensor:
    """Features whose products are 1 + s + s^2/2 with s = q.k / sqrt(K)."""
    x = x / x.shape[-1] ** 0.25
    square = (x[..., :, None] * x[..., None, :]).flatten(-2) / 2**0.5
    return torch.cat([torch.ones_like(x[..., :1]), x, square], -1)


FEATURE_MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "elu": lambda x: F.relu(x) + x.clamp(max=0).exp(),  # elu(x) + 1 without its cancellation
    "relu": F.relu,
    "identity": lambda x: x,
    "exp": torch.exp,
    "hedgehog": lambda x: torch.cat([x.softmax(-1), (-x).softmax(-1)], -1),
    "taylor": taylor,
}

Map = str | Callable[[Tensor], Tensor]


def run(
    form: Callable,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    S: tuple[Tensor, Tensor],
    *,
    feature_map: Map,
    normalize: bool,
    eps: float,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Map to scalar_decay: features for q and k, no gate, a value channel of ones for z."""
    phi = feature_function(feature_map)
    ones = v.new_ones(*v.shape[:-1], 1)
    state = torch.cat([S[0], S[1][..., None]], -1)
    o, state = form(phi(q), phi(k), torch.cat([v, ones], -1), None, state)  # (1), (2)
    o, weight = o[..., :-1], o[..., -1:]
    return divide(o, weight, eps) if normalize else o, (state[..., :-1], state[..., -1])


def run_kernel(
    kernel: Callable,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    S: tuple[Tensor, Tensor],
    *,
    feature_map: Map,
    normalize: bool,
    eps: float,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The same in two calls: one more channel beside V would leave rows of memory out of line."""
    phi = feature_function(feature_map)
    q, k = phi(q), phi(k)
    ones = v.new_ones(1).expand(*v.shape[:-1], 1)
    o, state = kernel(q, k, v, None, S[0])  # (1)
    if not normalize:
        return o, (state, S[1] + k.float().sum(1))  # (2)
    weight, z = kernel(q, k, ones, None, S[1][..., None])  # (2)
    return divide(o, weight, eps), (state, z[..., 0])


def divide(o: Tensor, weight: Tensor, eps: float) -> Tensor:
    """(3); where no key shares a feature with the query, there is nothing to divide."""
    weight = weight + eps
    return o / weight.masked_fill(weight == 0, torch.inf)


def feature_function(feature_map: Map) -> Callable[[Tensor], Tensor]:
    """The function of that name, or the function itself."""
    if callable(feature_map):
        return feature_map
    if not isinstance(feature_map, str) or feature_map not in FEATURE_MAPS:
        known = ", ".join(FEATURE_MAPS)
        raise ValueError(
            f"lv.linear_attention: feature_map must be one of {known} or a function, "
            f"got {feature_map!r}"
        )
    return FEATURE_MAPS[feature_map]


def features(sizes: Sizes, options: dict[str, Any], like: Tensor) -> Sizes:
    """R, the number of features, from those of zeros; the other options are checked too."""
    eps, normalize = options["eps"], options["normalize"]
    if not isinstance(normalize, bool):
        raise ValueError(f"lv.linear_attention: normalize must be True or False, got {normalize!r}")
    if not isinstance(eps, int | float) or not eps >= 0:
        raise ValueError(f"lv.linear_attention: eps must be a number >= 0, got {eps!r}")
    phi = feature_function(options["feature_map"])
    return {"R": phi(like.new_zeros(1, 1, sizes["H"], sizes["K"])).shape[-1]}


def like_softmax(T: int, seed: int) -> tuple[Tensor, Tensor]:
    """One key channel and q = 1: e^{qk} = e^k is a feature already."""
    q, k, v = softmax.MECHANISM.example(T, seed, K=1, dtype=torch.float64)
    q = torch.ones_like(q)
    exp = MECHANISM.having(feature_map="exp")
    return exp.recurrent(q, k, v)[0], softmax.MECHANISM.recurrent(q, k, v)[0]


MECHANISM = Mechanism(
    name="linear_attention",
    title="Linear attention",
    paper="Transformers are RNNs",
    year=2020,
    arxiv="2006.16236",
    decay="none: everything is added up",
    inputs=(Input("q", "b t h k"), Input("k", "b t h k"), Input("v", "b t h v")),
    output=Input("o", "b t h v"),
    state=(Input("S", "b h r v"), Input("z", "b h r")),
    value="v",
    functions=through(scalar_decay, run, {"q": "phi_q", "k": "phi_k", "v": "v_and_1"})
    | {"triton": run_kernel},
    flops=lambda n: n["H"] * (5 * n["R"] * (n["V"] + 1) + 2 * n["V"]),
    doc=__doc__,
    recurrence="scalar_decay",
    kernel="linviz.kernels.scalar_decay:chunked",
    decode="linviz.kernels.decode:scalar_decay",
    options={"feature_map": "elu", "normalize": True, "eps": 0.0},
    edges=(Edge("softmax", "one key channel, q = 1, features e^k", like_softmax),),
    derived=features,
    moves=(
        Move("write", r"\phi(k_t)", "z", (Made("phi_k", "b t h r", ("k",)),), 2),
        Move("write", r"\phi(k_t)\, v_t^\top", "S", (Made("phi_k", "b t h r", ("k",)), "v"), 1),
        Move(
            "read",
            r"S_t^\top \phi(q_t)",
            "S",
            (Made("phi_q", "b t h r", ("q",)),),
            3,
            gives=("o",),
            over="r",
        ),
        Move(
            "read",
            r"\phi(q_t)^\top z_t",
            "z",
            (Made("phi_q", "b t h r", ("q",)),),
            3,
            gives=("weight",),
            over="r",
            when="normalize",
        ),
        Move("divide", "", "", ("o", "weight", "eps"), 3, gives=("o",), when="normalize"),
    ),
)
