"""The contract of layers, over all kinds: a new layer is tested by being in layers.KINDS."""

import copy

import pytest
import torch

from linviz import layers
from linviz.layers import RMSNorm, ShortConv, State
from linviz.layers.parts import l2norm, rotary_frequencies, rotate

D, T = 32, 37
OPTIONS = {
    "mamba": {"N": 4},
    "mamba2": {"P": 8, "N": 6},
    "s4": {"N": 6},
    "h3": {"N": 6},
    **{name: {"heads": 2} for name in ("rwkv5", "rwkv6", "rwkv7")},
}
VARIANTS = {
    "softmax gqa": ("softmax", {"kv_heads": 2, "qk_norm": True, "gate": True, "rotary": 0.5}),
    "softmax conv": ("softmax", {"conv": 4}),
    "linear_attention norm": ("linear_attention", {"normalize": False, "feature_map": "relu"}),
    "retnet rope": ("retnet", {"rotary": "rope", "conv": 3, "affine": True}),
    "gla conv": ("gla", {"conv": 4}),
    "deltanet negative": ("deltanet", {"negative": True, "conv": 0}),
    "s4 real": ("s4", {"init": "real", "N": 6}),
    "lstm cut": ("lstm", {"recurrent": False}),
    "mamba falcon": ("mamba", {"N": 4, "norm_bcdt": True, "bias": True}),
    "mamba2 groups": ("mamba2", {"P": 8, "N": 6, "groups": 4}),
    "gated_deltanet shared": ("gated_deltanet", {"qk_heads": 2, "K": 8, "V": 8}),
}
CASES = {name: (name, OPTIONS.get(name, {})) for name in layers.KINDS} | VARIANTS


def build(case, dtype=torch.float64):
    """A layer with no parameter left at its special first value, and an input."""
    name, options = CASES[case]
    torch.manual_seed(0)
    layer = layers.make(name, D, **options).to(dtype)
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return layer, torch.randn(2, T, D, dtype=dtype)


def close(a, b, tolerance=1e-11):
    scale = max(b.abs().max().item(), 1e-3) if b.numel() else 1.0
    assert a.shape == b.shape and (not b.numel() or (a - b).abs().max() <= tolerance * scale)


def same_state(a, b):
    """Equal states; RWKV-4's is only unique once its exponent is put back."""
    assert a.keys() == b.keys()
    if "max" in a:
        a, b = ({**s, "num": s["num"] * s["max"].exp(), "den": s["den"] * s["max"].exp()}
                for s in (a, b))  # fmt: skip
    for name in a.keys() - {"max"}:
        close(a[name].to(torch.complex128), b[name].to(torch.complex128))


every = pytest.mark.parametrize("case", CASES)


@every
def test_pieces_and_steps_equal_one_pass(case):
    layer, x = build(case)
    y, state = layer(x)
    assert y.shape == x.shape and isinstance(state, State)
    first, middle = layer(x[:, :15])
    kept = middle.clone()
    rest, after = layer(x[:, 15:], middle)
    close(torch.cat([first, rest], 1), y)
    same_state(after, state)
    assert all(map(torch.equal, middle.tensors(), kept.tensors())), "changed in place"
    steps, s = [], layer.first_state(2)
    for t in range(T):
        y_t, s = layer.step(x[:, t], s)
        steps.append(y_t)
    close(torch.stack(steps, 1), y)
    same_state(s, state)
    fresh = layer.step(x[:, 0])[0]
    close(fresh, y[:, 0])


@every
def test_rows_of_the_batch_are_independent(case):
    layer, x = build(case)
    y, state = layer(x)
    alone, own = layer(x[1:])
    close(alone, y[1:])
    same_state(own, state.rows([1]))
    joined = State.join([state.rows(slice(0, 1)), own])
    same_state(joined, state)
    again, _ = layer(x[:, :3], state.rows([1, 1]))
    close(layer(x[:, :3], joined.rows([1, 1]))[0], again)


@every
def test_the_past_only(case):
    layer, x = build(case)
    x.requires_grad_()
    (g,) = torch.autograd.grad(layer(x)[0][:, :20].square().sum(), x)
    assert (g[:, 20:] == 0).all() or g[:, 20:].abs().max() < 1e-13 * g.abs().max()  # S4's FFT
    assert g[:, :20].abs().amin((0, 2)).min() > 0


@every
def test_every_parameter_learns(case):
    layer, x = build(case)
    layer(x)[0].square().sum().backward()
    for name, p in layer.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.abs().max() > 0, name


@every
def test_float32_state_and_half_types(case):
    layer, x = build(case, torch.float32)
    y, _ = layer(x)
    low, state = copy.deepcopy(layer).bfloat16()(x.bfloat16())
    assert low.dtype == torch.bfloat16
    close(low.float(), y, 0.03)
    if not layer.mechanism.cache:
        for part in layer.mechanism.state:
            assert state[part.name].dtype in (torch.float32, torch.complex64)


@every
def test_forms_agree(case):
    layer, x = build(case)
    y, _ = layer(x)
    for form in layer.mechanism.forms:
        if form != "triton":
            layer.form = form
            close(layer(x)[0], y, 1e-10)


@every
def test_bad_input(case):
    layer, x = build(case)
    state = layer(x)[1]
    for wrong in (x[..., :-1], x[0], "text"):
        with pytest.raises(ValueError, match=r"x must be a tensor \[B, T, D=32\]"):
            layer(wrong)
    with pytest.raises(ValueError, match="state must be a State"):
        layer(x, tuple(state.values()))
    with pytest.raises(ValueError, match="state must have"):
        layer(x, State(other=x))
    with pytest.raises(ValueError, match="B=2"):
        layer(x, state.rows([0]))


def test_make():
    with pytest.raises(ValueError, match=r"name: wanted one of softmax.*got 'glad'"):
        layers.make("glad", 8)
    with pytest.raises(ValueError, match=r"layers.GLA: 'head' is not one of heads"):
        layers.make("gla", 8, head=2)
    with pytest.raises(ValueError, match="must divide evenly, got 15 by 4"):
        layers.make("gla", 30)


def test_states_are_objects():
    s = State(S=torch.ones(3, 2), inner=State(seen=torch.arange(3)))
    assert s.nbytes == 24 + 24 and "seen [3]" in repr(s)
    c = s.clone()
    c["S"].zero_()
    assert s["S"].sum() == 6
    assert s.rows([2, 0, 2])["inner"]["seen"].tolist() == [2, 0, 2]
    assert torch.equal(State.join([s.rows([0]), s.rows(slice(1, 3))])["S"], s["S"])
    assert s.to("meta")["S"].device.type == "meta"
    with pytest.raises(ValueError, match="rows: wanted a slice"):
        s.rows(1)
    with pytest.raises(ValueError, match="same parts"):
        State.join([s, State()])
    with pytest.raises(ValueError, match="S wanted one shape but for the batch"):
        State.join([State(S=torch.ones(1, 2)), State(S=torch.ones(1, 3))])


def test_norm():
    x = torch.randn(3, 8)
    norm, zero_centred = RMSNorm(8), RMSNorm(8, offset=1.0)
    expected = torch.nn.functional.rms_norm(x, (8,), eps=1e-5)
    close(norm(x).detach(), expected, 1e-6)
    close(zero_centred(x).detach(), expected, 1e-6)
    assert (zero_centred.weight == 0).all()


def test_short_convolution():
    conv, x = ShortConv(5, 3, bias=True), torch.randn(2, 9, 5)
    y, past = conv(x)
    padded = torch.cat([torch.zeros(2, 2, 5), x], 1)
    slow = sum(padded[:, i : i + 9] * conv.weight[:, i] for i in range(3)) + conv.bias
    close(y.detach(), slow.detach(), 1e-6)
    assert torch.equal(past, x[:, -2:])


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotation_depends_on_the_distance_only(interleaved):
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)
    f = rotary_frequencies(6).double()

    def score(i, j):
        at = lambda t: torch.tensor([[t]])
        turned = (rotate(x, at(t), f, interleaved=interleaved) for x, t in ((q, i), (k, j)))
        return (next(turned) * next(turned)).sum()

    close(score(7, 3), score(104, 100))
    assert abs(score(7, 3) - score(7, 4)) > 1e-3
    assert torch.equal(rotate(q, torch.tensor([[5]]), f)[..., 6:], q[..., 6:])


def test_l2norm_has_length_one():
    x = torch.randn(4, 6)
    close(l2norm(x).norm(dim=-1), torch.ones(4), 1e-5)
    assert (l2norm(torch.zeros(6)) == 0).all()
