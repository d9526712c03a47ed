"""The kernels of diagonal_scan beyond the contract: Mamba's scan, and S4's with fixed coefficients.

They run in Triton's interpreter here, and on a GPU where there is one.
"""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import linviz as lv

pytest.importorskip("triton")

from linviz.kernels import diagonal_scan, launch
from linviz.recurrences import convolution
from linviz.recurrences import diagonal_scan as truth

ROOT = Path(__file__).parents[1]
KINDS = ["selective", "skip", "fused", "real", "complex"]


def inputs(kind, T=13, D=10, N=5, B=2, seed=0):
    """Inputs by name, with a state; in float32 or complex64."""
    rng = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=rng)
    u, S = draw(B, T, D), draw(B, D, N)
    if kind in ("real", "complex"):
        a, b, C = -draw(D, N).abs() / 8, draw(D, N), draw(D, N)
        if kind == "complex":
            turned = lambda x: torch.complex(x, draw(*x.shape))
            a, b, C, S = (turned(x) for x in (a, b, C, S))
        return {"u": u, "a": a.exp(), "b": b, "C": C, "S": S}
    given = {"u": u, "dt": draw(B, T, D).abs() / 4, "A": -draw(D, N).abs() * 2}
    given |= {"B": draw(B, T, N), "C": draw(B, T, N), "S": S}
    if kind == "fused":  # dt before its softplus: from e^-9 to 5
        steps = torch.linspace(-9, 5, T * D).reshape(T, D)
        given |= {"dt": steps + draw(B, T, D) / 9, "z": draw(B, T, D)}
    return given | ({"D": draw(D)} if kind in ("skip", "fused") else {})


def exact(u, S=None, D=None, z=None, **more):
    """The loop in the types that come in."""
    if z is not None:
        o, S = exact(u, S, D, **more | {"dt": F.softplus(more["dt"])})
        return o * F.silu(z), S
    if "a" in more:
        return convolution.recurrent(u, **more, S=S)
    o, S = truth.recurrent(u if D is None else more["dt"] * u, **more, S=S)
    return o if D is None else o + D * u, S


def ours(*, u, **more):
    """The kernel of the same kind."""
    if "a" in more:
        return diagonal_scan.fixed(u, **more)
    return diagonal_scan.chunked(u, **more, softplus="z" in more)


def everything(run, given, **how):
    """Outputs, the last state, and the gradients of a mixture of both for all inputs."""
    leaves = {n: x.detach().requires_grad_() for n, x in given.items()}
    o, S = run(**leaves, **how)
    rng = torch.Generator().manual_seed(1)
    total = 0
    for x in (o, S):
        mix = torch.randn(*x.shape, generator=rng)
        other = torch.complex(mix, torch.randn(*x.shape, generator=rng))
        total += (x * (other if x.is_complex() else mix).to(x.dtype)).real.sum()
    return [o, S, *torch.autograd.grad(total, leaves.values())]


def wide(given):
    """The same in float64 or complex128."""
    return {n: x.to(torch.promote_types(x.dtype, torch.float64)) for n, x in given.items()}


def errors(found, given):
    """The greatest error of each number, as a part of the greatest number, or of 1."""
    wanted = everything(exact, wide(given))
    return [
        ((x - y).abs().max() / y.abs().max().clamp(min=1)).item()
        for x, y in zip(found, wanted, strict=True)
    ]


def only(monkeypatch, config, chunk=None):
    """Leave one configuration, for any state; and another distance of states that are kept."""
    monkeypatch.setattr(diagonal_scan, "CONFIGS", (config._replace(most=64),))
    if chunk:
        monkeypatch.setattr(diagonal_scan, "CHUNK", chunk)


# ------------------------------------------------------------------------------------- the numbers


@pytest.mark.parametrize("config", diagonal_scan.CONFIGS, ids=str)
@pytest.mark.parametrize("kind", ["skip", "fused", "complex"])
def test_every_configuration(kind, config, monkeypatch):
    """Channels that fill no tile, tokens that fill no chunk: two chunks of 8, and 3 tokens."""
    only(monkeypatch, config, chunk=8)
    given = inputs(kind, T=19, B=1)
    assert max(errors(everything(ours, given), given)) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_segments_make_no_difference(kind, monkeypatch):
    """Three segments, the last shorter, of two chunks each."""
    monkeypatch.setattr(launch, "KEEP", 8)
    only(monkeypatch, diagonal_scan.CONFIGS[0], chunk=4)
    given = inputs(kind, T=21, D=3, N=3)
    launched = []
    leave = diagonal_scan.entering
    monkeypatch.setattr(
        diagonal_scan, "entering", lambda *a, **k: launched.append(leave(*a, **k)) or launched[-1]
    )
    assert max(errors(everything(ours, given, segments=3), given)) < 1e-5
    assert [x.shape[1] for x in launched] == [3, 3]  # forward, and backward


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("N", [1, 70])
def test_any_number_of_states(kind, N):
    """One, and more than a program can hold: they go in slices, which add up."""
    given = inputs(kind, T=3, D=2, N=N, B=1)
    assert max(errors(everything(ours, given), given)) < 1e-5


@pytest.mark.parametrize("rate", [0.0, -1e-4, -20.0, -1e4, "mixed"])
def test_rates_of_all_sizes(rate):
    given = inputs("selective", T=9, D=4, B=1)
    levels = torch.tensor([0.0, -1e-4, -1.0, -20.0, -1e4])
    which = torch.arange(given["A"].numel()).reshape(given["A"].shape) % 5
    given["A"] = levels[which] if rate == "mixed" else torch.full_like(given["A"], rate)
    found = everything(ours, given)
    assert all(x.isfinite().all() for x in found)
    assert max(errors(found, given)) < 1e-5


def test_a_rate_of_minus_infinity_forgets_everything():
    """Where dt is 0 nothing is forgotten, even so: then nothing has passed."""
    given = inputs("selective", T=6, D=4, B=1)
    given["A"] = torch.full_like(given["A"], -torch.inf)
    given["dt"][:, 3] = 0.0
    o, S = ours(**given)
    written = given["u"][..., None] * given["B"][:, :, None]
    states = written.clone()
    states[:, 3] += written[:, 2]
    assert torch.allclose(o, (states @ given["C"][..., None])[..., 0], atol=1e-5)
    assert torch.allclose(S, written[:, -1])


@pytest.mark.parametrize("kind", ["skip", "complex"])
def test_half_precision_is_as_good_as_it_can_be(kind):
    """Relative errors in float16 from the same rounded inputs; parameters stay float32."""
    given = inputs(kind, T=20)
    narrow = [n for n in given if n in (("u",) if kind == "complex" else ("u", "dt", "B", "C"))]
    given |= {n: given[n].half() for n in narrow}
    found = everything(ours, given)
    assert found[0].dtype == torch.float16
    wanted = everything(exact, wide(given))
    for x, y in zip(found, wanted, strict=True):
        assert (x - y).norm() / y.norm() < 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_a_sequence_goes_on_where_it_stopped(kind):
    given = inputs(kind)
    cut = lambda a, b: {n: x[:, a:b] if x.shape[:2] == (2, 13) else x for n, x in given.items()}
    with torch.no_grad():
        whole = ours(**given)
        first, S = ours(**cut(0, 6))
        then, S = ours(**(cut(6, 13) | {"S": S}))
    for x, y in zip((torch.cat([first, then], 1), S), whole, strict=True):
        assert torch.allclose(x, y, atol=1e-5)


# --------------------------------------------------------------------------------- what is saved


@pytest.mark.parametrize("kind", ["skip", "complex"])
def test_states_are_saved_at_chunk_borders_only(kind):
    """What a forward pass saves: its inputs, and a state before every CHUNK tokens."""
    given = inputs(kind, T=70, D=8, N=4, B=1)
    saved = []
    keep = lambda x: saved.append(x) or x
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        ours(**{n: x.requires_grad_() for n, x in given.items()})
    states = [x for x in saved if not any(x.shape == y.shape for y in given.values())]
    planes = 2 if kind == "complex" else 1
    assert [x.shape for x in states] == [(1, 2, planes, 4, 8)]
    assert len(saved) == len(given) + 1


def test_what_does_not_change_is_not_copied():
    """One dt for all times, B and C for all sequences: stride 0 comes to the kernel as it is."""
    given = inputs("selective")
    given["dt"] = given["dt"][:, :1].expand(-1, 13, -1)
    given["B"], given["C"] = (given[n][:1].expand(2, -1, -1) for n in "BC")
    x = diagonal_scan.prepared(*(given[n] for n in ("u", "dt", "A", "B", "C")), 1)
    assert x.strides[2:8] == [*given["dt"].stride()[:2], 0, 5, 0, 5] and x.strides[3] == 0
    assert max(errors(everything(ours, given), given)) < 1e-5


# -------------------------------------------------------------------------------- types, devices


def test_channels_may_lie_anywhere():
    given = inputs("skip")
    apart = {n: x.movedim(-1, 0).contiguous().movedim(0, -1) for n, x in given.items()}
    assert apart["u"].stride(-1) != 1
    for x, y in zip(everything(ours, apart), everything(ours, given), strict=True):
        assert torch.equal(x, y)


def test_gradients_have_the_types_of_their_inputs():
    given = inputs("skip") | {"dt": inputs("skip")["dt"].half()}
    given["u"] = given["u"].bfloat16()
    o, S, *gradients = everything(ours, given)
    assert o.dtype == torch.bfloat16 and S.dtype == torch.float32
    assert [x.dtype for x in gradients] == [x.dtype for x in given.values()]
    mixed = inputs("complex")
    mixed["C"] = mixed["C"].real.contiguous()
    assert [x.dtype for x in everything(ours, mixed)[2:]] == [x.dtype for x in mixed.values()]
    assert max(errors(everything(ours, mixed), mixed)) < 1e-5


def test_only_the_gradients_that_are_wanted():
    for kind in ("skip", "complex"):
        given = inputs(kind, T=5)
        given["u"].requires_grad_()
        ours(**given)[0].sum().backward()
        assert given["u"].grad is not None
        assert all(x.grad is None for n, x in given.items() if n != "u")


def test_no_tokens_no_batch():
    for kind in KINDS:
        for B, T in ((0, 5), (2, 0)):
            given = inputs(kind, T=T, B=B)
            o, S = ours(**given)
            assert o.shape == (B, T, 10) and torch.equal(S, given.pop("S"))
            assert ours(**given)[1].dtype == S.dtype


def test_what_is_refused_names_the_argument():
    given = inputs("complex", T=2)
    with pytest.raises(launch.Unsupported, match=r"convolution: a must be float32, .*float64"):
        ours(**given | {"a": given["a"].to(torch.complex128)})
    with pytest.raises(launch.Unsupported, match=r"holds 256 key .*, got 257"):
        ours(**inputs("selective", T=2, N=257))


@pytest.mark.parametrize("m", [lv.mamba, lv.s4, lv.h3], ids=lambda m: m.name)
def test_mechanisms_in_half_precision(m):
    """All inputs in float16: what belongs to the system is computed in float32."""
    given = [x.real.half() if not x.is_complex() else x.to(torch.complex64) for x in m.example(9)]
    o, _ = m.triton(*given)
    wanted, _ = m.recurrent(*given)
    assert o.dtype == torch.float16 and (o - wanted).norm() / wanted.norm() < 2e-3


# ------------------------------------------------------------------------ configurations, comments


def test_all_configurations_have_a_use():
    configs = diagonal_scan.CONFIGS
    used = set()
    for target in (80, 90, 100):
        for numbers in range(1, diagonal_scan.STATES + 1):
            fit = launch.narrowest(configs, numbers, 16, target)
            assert fit
            used |= set(fit)
    assert used == set(configs) and len(configs) <= 8
    for config in configs:
        assert launch.KEEP % config.chunk == config.chunk % config.unroll == 0
        assert config.chunk == diagonal_scan.CHUNK and len(config.why.split()) >= 3


def test_segments_fill_the_chip_with_warps(monkeypatch):
    """Mamba's shapes on a chip of 132: one segment at 8 sequences, several at one."""
    monkeypatch.setattr(launch, "processors", lambda device: 132)
    tokens = lambda B, T: [torch.empty(B, T, 1, 4096, device="meta")]
    for B, T, expected in ((8, 2048, 1), (1, 16384, 4)):
        programs = B * 4096 // 16 // diagonal_scan.WARPS
        L = launch.segment_length(T, programs, tokens(B, T), None)
        assert -(-T // L) == expected


def test_comments_cite_equations_of_the_recurrence():
    source = (ROOT / "kernels" / "diagonal_scan.py").read_text(encoding="utf-8")
    known = re.findall(r"^ {4}\((\d)\)", truth.__doc__, re.M)
    cited = set(re.findall(r"(?:#|\"\"\").*?\((\d)\)", source))
    assert {"1", "2", "3"} <= cited <= set(known)
