"""What only the RWKV layers have: token shift, channel mixing, values from the first layer."""

import math

import pytest
import torch
import torch.nn.functional as F

from linviz import layers
from linviz.layers import State
from linviz.layers.channel_mix import CHANNEL_MIXES, ChannelMix
from linviz.layers.rwkv5 import HeadNorm

D, T = 32, 11
KINDS = {"rwkv4": {}, "rwkv5": {"heads": 2}, "rwkv6": {"heads": 2}, "rwkv7": {"heads": 2}}


def build(name, place=(0, 1), **options):
    torch.manual_seed(1)
    return layers.make(name, D, place=place, **KINDS[name], **options).double()


def perturbed(module):
    torch.manual_seed(2)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return module


def tokens(batch=2):
    torch.manual_seed(3)
    return torch.randn(batch, T, D, dtype=torch.float64)


def close(a, b, tolerance=1e-12):
    assert a.shape == b.shape
    assert (a - b).abs().max() <= tolerance * b.abs().max().clamp(min=1e-3)


def is_orthogonal(weight, gain):
    eye = torch.eye(min(weight.shape), dtype=weight.dtype)
    wide = weight if weight.shape[0] <= weight.shape[1] else weight.T
    return torch.allclose(wide @ wide.T, gain**2 * eye, atol=1e-6)


@pytest.mark.parametrize("name", KINDS)
def test_the_last_token_is_remembered(name):
    layer, x = perturbed(build(name)), tokens()
    _, state = layer(x)
    assert torch.equal(state["shift"], x[:, -1])
    other = State(state, shift=torch.zeros_like(state["shift"]))
    assert (layer(x[:, :1], state)[0] - layer(x[:, :1], other)[0]).abs().max() > 1e-3
    parts = {n: s for n, s in state.items() if n != "shift"}
    for wrong in (State(parts), State(parts, shift=state["shift"][:, 1:])):
        with pytest.raises(ValueError, match=r"state must have shift \[B=2, D=32\]"):
            layer(x, wrong)


def test_first_values_of_4():
    first, middle = build("rwkv4"), build("rwkv4", (1, 3))
    assert first.decay[[0, -1]].tolist() == [-5, 3]
    n = 10
    assert middle.decay[n].item() == pytest.approx(-5 + 8 * (n / 31) ** 1.35, rel=1e-6)
    zigzag = [0.0, 0.5, -0.5, 0.0]
    assert first.u[:4].tolist() == pytest.approx([math.log(0.3) + z for z in zigzag])
    assert first.mu["k"][n].item() == pytest.approx(n / 32)
    assert middle.mu["k"][n].item() == pytest.approx((n / 32) ** (2 / 3))
    assert middle.mu["v"][n].item() == pytest.approx((n / 32) ** (2 / 3) + 0.15)
    assert middle.mu["r"][n].item() == pytest.approx((n / 32) ** (1 / 3))
    assert is_orthogonal(first.v.weight, 1)
    assert all((m.weight == 0).all() for m in (first.r, first.k, first.out))


def test_first_values_of_5():
    first, middle = build("rwkv5"), build("rwkv5", (1, 3))
    kept = torch.exp(-first.decay.exp())
    assert kept[0, 0].item() == pytest.approx(0.99752, abs=1e-5)
    assert kept[-1, -1].item() == pytest.approx(0.69220, abs=1e-5)
    n = 10
    assert middle.decay.flatten()[n].item() == pytest.approx(-6 + 5 * (n / 31) ** 1.35, rel=1e-6)
    assert middle.u.flatten()[:3].tolist() == pytest.approx(
        [0.5 * (1 - c / 31) + z for c, z in enumerate((0.0, 0.1, -0.1))]
    )
    assert middle.mu["g"][n].item() == pytest.approx((n / 32) ** (1 / 3))
    assert middle.norm.weight[0].item() == pytest.approx((2 / 3) ** 0.7)
    gains = ((first.r, 1), (first.k, 0.1), (first.v, 1), (first.gate, 0.1), (first.out, 0))
    assert all(is_orthogonal(linear.weight, gain) for linear, gain in gains)
    assert layers.RWKV5(256).heads == 4 and layers.RWKV5(48).heads == 1


def test_6_begins_as_5():
    five, six = build("rwkv5", (1, 3)), build("rwkv6", (1, 3))
    torch.nn.init.normal_(five.out.weight)
    own = six.state_dict()
    for name, x in five.state_dict().items():
        if name.startswith("mu."):
            close(own[name], 1 - x, 1e-7)
        own[name] = 1 - x if name.startswith("mu.") else x
    six.load_state_dict(own)
    close(six(tokens())[0], five(tokens())[0])
    assert 0 < six.decay_map.up.abs().max() <= 0.01 and 0 < six.mix_up.abs().max() <= 0.01
    assert (six.mix_down == 0).all() and (six.decay_map.down == 0).all()


def test_first_values_of_7():
    layer = build("rwkv7", (1, 3))
    n, bow = 10, (10 - 7.5) / 7.5  # channel 10 of 16 in its head
    bow *= abs(bow)
    speed = -6 + 6 * (n / 31) ** (1 + 0.5**0.3) + 0.5 + 2.5 * bow
    assert layer.decay.bias[n].item() == pytest.approx(speed, rel=1e-6)
    line = n / 31 - 0.5
    assert layer.rate.bias[n].item() == pytest.approx(-0.19 + 0.3 * bow + 0.4 * line, rel=1e-5)
    assert layer.value.bias[n].item() == pytest.approx(0.73 - 0.4 * line, rel=1e-6)
    assert layer.k_k[n].item() == pytest.approx(0.71 - 0.1 * line, rel=1e-6)
    assert layer.k_a.tolist() == pytest.approx([1.02] * 32)
    assert layer.r_k.flatten().tolist() == pytest.approx([-0.04] * 32)
    for name, power in {"r": 0.2, "w": 0.9, "k": 0.7, "v": 0.7, "a": 0.9, "g": 0.2}.items():
        assert layer.mu[name][n].item() == pytest.approx(1 - (n / 32) ** (power * 2 / 3), rel=1e-5)
    assert build("rwkv7").value is None
    for low in (layer.decay, layer.rate, layer.value, layer.gate):
        assert (low.down == 0).all() and is_orthogonal(low.up, 0.1)
    for linear, bound in ((layer.r, 0.5), (layer.k, 0.05), (layer.v, 0.5)):
        most = linear.weight.abs().max()
        assert 0.9 * bound / 32**0.5 < most <= bound / 32**0.5
    assert (layer.out.weight == 0).all()
    big = layers.RWKV7(768, place=(1, 2))
    ranks = [low.down.shape[1] for low in (big.decay, big.rate, big.value, big.gate)]
    assert ranks == [64, 64, 32, 128]  # those of the published model of this width


def test_7_hands_on_the_first_value():
    first, later, x = build("rwkv7"), perturbed(build("rwkv7", (1, 2))), tokens()
    with pytest.raises(ValueError, match=r"layer 1 needs shared\['v_first'\] \[2, 11, 32\].* none"):
        later(x)
    with pytest.raises(ValueError, match="got shape"):
        later(x, shared={"v_first": x[:, :1]})
    shared = {}
    first(x, shared=shared)
    before = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)
    close(shared["v_first"], first.v(x + (before - x) * first.mu["v"]))
    y, state = later(x, shared=shared)
    steps, s = [], later.first_state(2)
    for t in range(T):
        token = {"v_first": shared["v_first"][:, t : t + 1]}
        y_t, s = later.step(x[:, t], s, shared=token)
        steps.append(y_t)
    close(torch.stack(steps, 1), y)
    close(s["S"], state["S"])
    with torch.no_grad():
        later.value.bias.fill_(60.0)  # all of the first value, none of its own
        y, _ = later(x, shared=shared)
        later.v.weight.mul_(-3)
    close(later(x, shared=shared)[0], y)


def test_head_norm_is_a_group_norm():
    norm = perturbed(HeadNorm(D, (0, 1)).double())
    o = 0.1 * tokens().unflatten(-1, (4, 8))
    flat = o.flatten(0, 1).flatten(1)
    close(norm(o).flatten(0, 1), F.group_norm(flat, 4, norm.weight, norm.bias, 64e-5))


@pytest.mark.parametrize("version", [4, 5, 6, 7])
def test_channel_mix(version):
    mix = perturbed(ChannelMix(D, version=version, hidden=40, place=(1, 3)).double())
    x, y = tokens(), []
    before = torch.zeros(2, D, dtype=x.dtype)
    for x_t in x.unbind(1):
        seen = {}
        for name, mu in mix.mu.items():
            mu = mu if version < 6 else 1 - mu  # the share of the present token
            seen[name] = mu * x_t + (1 - mu) * before
        y_t = F.relu(seen["k"] @ mix.k.weight.T) ** 2 @ mix.v.weight.T
        if version < 7:
            y_t = torch.sigmoid(seen["r"] @ mix.r.weight.T) * y_t
        y.append(y_t)
        before = x_t
    y = torch.stack(y, 1)
    close(mix(x)[0], y)
    one, state = mix(x[:, :4])
    two, state = mix(x[:, 4:4], state)
    assert two.shape == (2, 0, D)
    two, state = mix(x[:, 4:], state)
    close(torch.cat([one, two], 1), y)
    assert torch.equal(state["shift"], x[:, -1])
    y.square().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in mix.parameters())


def test_first_values_of_channel_mixes():
    made = {name: kind(D, place=(1, 3)) for name, kind in CHANNEL_MIXES.items()}
    assert [m.k.weight.shape[0] for m in made.values()] == [128, 96, 96, 128]
    n = 10
    for m, mu in zip(made.values(), (2 / 3, 2 / 3, 2 / 3, (2 / 3) ** 4), strict=True):
        share = (n / 32) ** mu
        expected = share if m.version < 6 else 1 - share
        assert m.mu["k"][n].item() == pytest.approx(expected, rel=1e-5)
        assert (m.v.weight == 0).all() and (m.r is None or (m.r.weight == 0).all())
    assert is_orthogonal(made["rwkv4"].k.weight, 2) and is_orthogonal(made["rwkv6"].k.weight, 1)
    assert made["rwkv7"].k.weight.abs().max() <= 0.5 / 32**0.5


def test_channel_mix_bad_input():
    mix, x = ChannelMix(D, version=6).double(), tokens()
    with pytest.raises(ValueError, match="version must be 4, 5, 6 or 7, got 3"):
        ChannelMix(D, version=3)
    for wrong in (x[0], x[..., :-1], "text"):
        with pytest.raises(ValueError, match=r"x must be a tensor \[B, T, D=32\]"):
            mix(wrong)
    with pytest.raises(ValueError, match="state must be a State or None, got dict"):
        mix(x, {"shift": x[:, -1]})
    with pytest.raises(ValueError, match=r"state must have shift \[B=2, D=32\]"):
        mix(x, mix(x[:1])[1])
