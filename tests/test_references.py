"""Every mechanism that transformers computes on a CPU, against that code, in float32.

This code was written by other people from the same papers. It differs in layout (state transposed,
time last), in scale (the delta rules multiply q by K^-1/2) and in what it calls a decay.
"""

from types import SimpleNamespace

import pytest
import torch

import linviz as lv
from linviz.peers import PEERS, theirs

pytest.importorskip(
    "transformers",
    reason="transformers is missing (dependency group test): nothing to compare with",
)

# The greatest error allowed, over the greatest number: float32 on both sides.
TOLERANCE = {
    "mamba": 2e-6,
    "mamba2": 2e-6,
    "rwkv4": 1e-5,  # the exponent of the state is itself a sum over time
    "retnet": 2e-6,
    "deltanet": 2e-6,
    "gated_deltanet": 2e-6,
    "kda": 2e-6,
}
HEADS = {"B": 2, "H": 4, "K": 8, "V": 5}
SIZES = {
    "mamba": {"B": 2, "D": 6, "N": 7},
    "mamba2": {"B": 2, "H": 4, "P": 5, "G": 2, "N": 7},
    "rwkv4": {"B": 2, "D": 6},
    "deltanet": HEADS,
    "gated_deltanet": HEADS,
    "kda": HEADS,
}
CHUNK = 16
FORMS = ("recurrent", "parallel", "chunked")


def same(ours, reference, mechanism, what):
    """Equal but for the rounding of float32."""
    assert ours.shape == reference.shape and ours.dtype == reference.dtype == torch.float32
    error = ((ours - reference).abs().max() / reference.abs().max()).item()
    assert error <= TOLERANCE[mechanism], f"{mechanism}: {what} differs by {error:.1e}"


REFERENCES = [(name, form) for name, forms in PEERS.items() for form in forms]


# --- comparisons ---------------------------------------------------------------------------------


def parts(name, S):
    """The state as tensors that are unique: RWKV-4 may take any exponent out of its sums."""
    if name == "rwkv4":
        num, den, top = S
        return num * top.exp(), den * top.exp()
    return (S,)


def run(name, form, inputs, S):
    chunk = {"chunk": CHUNK} if form == "chunked" else {}
    return getattr(getattr(lv, name), form)(*inputs, S, **chunk)


@pytest.mark.parametrize("resumed", [False, True], ids=["from zero", "from a state"])
@pytest.mark.parametrize("T", [1, 17, 130])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("reference", REFERENCES, ids=" ".join)
def test_form_is_the_reference(reference, form, T, resumed):
    name, code = reference[0], PEERS[reference[0]][reference[1]]
    inputs = getattr(lv, name).example(T, seed=0, **SIZES[name])
    S = code(*getattr(lv, name).example(9, seed=1, **SIZES[name]))[1] if resumed else None
    expected, expected_S = code(*inputs, S)
    o, S = run(name, form, inputs, S)
    same(o, expected, name, "output")
    for ours, reference in zip(parts(name, S), parts(name, expected_S), strict=True):
        same(ours, reference, name, "state")


@pytest.mark.parametrize(
    ("name", "model", "function"),
    [
        ("gated_deltanet", "qwen3_next", "torch_chunk_gated_delta_rule"),
        ("kda", "kimi_linear", "chunk_kimi_delta_attention"),
    ],
)
def test_delta_rule_as_their_layers_call_it(name, model, function):
    """With q and k of any length: x / sqrt(|x|^2 + 1e-6) and K^-1/2 are the layer's, not ours."""
    q, k, v, beta, g = getattr(lv, name).example(40, **HEADS)
    q, k = 3 * q, 0.5 * k
    o, _ = theirs(model, function)(q, k, v, g, beta, use_qk_l2norm_in_kernel=True)
    q, k = (x * torch.rsqrt((x * x).sum(-1, keepdim=True) + 1e-6) for x in (q, k))
    same(getattr(lv, name).chunked(q * HEADS["K"] ** -0.5, k, v, beta, g)[0], o, name, "output")


@pytest.mark.parametrize("T", [1, 17, 40])
@pytest.mark.parametrize("form", FORMS)
def test_retnet_is_lightning_attention(form, T):
    """MiniMax's layer: another slope. Its last five tokens go on from its cache."""
    torch.manual_seed(0)
    heads, width = 4, 8
    config = SimpleNamespace(
        hidden_size=12,
        num_attention_heads=heads,
        head_dim=width,
        num_hidden_layers=4,
        block_size=8,
        hidden_act="silu",
        layer_types=["linear_attention"] * 4,
    )
    layer = theirs("minimax", "MiniMaxLightningAttention")(config, layer_idx=1)
    x, cache = torch.randn(2, T + 5, 12), theirs("minimax", "MiniMaxCache")()
    with torch.no_grad():
        half = [layer(y, None, None, past_key_values=cache) for y in x.split([T, 5], 1)]
        heads_of_qkv = layer.act_fn(layer.qkv_proj(x)).unflatten(-1, (heads, 3 * width))
        q, k, v = heads_of_qkv.split(width, -1)
        options = {"gamma": torch.exp(-layer.slope_rate.flatten())} | (
            {"chunk": CHUNK} if form == "chunked" else {}
        )
        S = None
        for now, (expected, expected_S) in zip((slice(T), slice(T, None)), half, strict=True):
            o, S = getattr(lv.retnet, form)(q[:, now], k[:, now], v[:, now], S, **options)
            same(S, expected_S, "retnet", "state")
            y = layer.norm(o.flatten(-2)) * torch.sigmoid(layer.output_gate(x[:, now]))
            same(layer.out_proj(y), expected, "retnet", "output")
