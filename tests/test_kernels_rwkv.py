"""The kernels of RWKV-4 and RWKV-7 beyond the contract: configurations, segments, what is saved.

They run in Triton's interpreter here, and on a GPU where there is one.
"""

import re
from pathlib import Path

import pytest
import torch

import linviz as lv

pytest.importorskip("triton")

from linviz.kernels import launch, rwkv7, wkv4
from linviz.recurrences import rank_one

ROOT = Path(__file__).parents[1]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = 1e-5


def averages(w, u, k, v, num, den, top, **how):
    """The kernel of RWKV-4, its state in parts."""
    o, S = wkv4.chunked(w, u, k, v, (num, den, top), **how)
    return o, *S[:2]


def truth(w, u, k, v, num, den, top):
    """What that should give."""
    o, S = lv.rwkv4.recurrent(w, u, k, v, S=(num, den, top))
    return o, *S[:2]


PAIRS = {"rwkv4": (averages, truth), "rwkv7": (rwkv7.chunked, rank_one.recurrent)}


def inputs(name, T, kind=torch.float32, **sizes):
    """Inputs and a state that is not empty, in one list."""
    m = lv.registry[name]
    given = list(m.example(T, 1, dtype=torch.float64, **sizes))
    S = m.recurrent(*m.example(4, 2, dtype=torch.float64, **sizes))[1]
    given = [x.to(DEVICE, kind) for x in given]
    return given + [x.to(DEVICE, torch.float32) for x in (S if isinstance(S, tuple) else [S])]


def everything(run, given, **how):
    """All outputs, and the gradients of a mixture of them for all inputs."""
    leaves = [x.detach().clone().requires_grad_() for x in given]
    results = run(*leaves, **how)
    rng = torch.Generator().manual_seed(1)
    mix = [torch.randn(x.shape, generator=rng).to(x) for x in results]
    total = sum((x * y).sum() for x, y in zip(results, mix, strict=True))
    return [*results, *torch.autograd.grad(total, leaves)]


def errors(name, given, **how):
    """Of outputs and gradients, against the loop in float64 on the same numbers."""
    kernel, exact = PAIRS[name]
    wanted = everything(exact, [x.double() for x in given])
    found = everything(kernel, given, **how)
    pairs = zip(found, wanted, strict=True)
    return [(x - y).abs().max().item() / max(y.abs().max().item(), 1.0) for x, y in pairs]


# ------------------------------------------------------------------------------------- the numbers


@pytest.mark.parametrize("config", wkv4.CONFIGS, ids=str)
def test_every_configuration_of_rwkv4(config, monkeypatch):
    monkeypatch.setattr(wkv4, "CONFIGS", (config._replace(bits=32, targets=launch.ALL),))
    assert max(errors("rwkv4", inputs("rwkv4", 18, B=2, D=20))) < TOLERANCE


@pytest.mark.parametrize("n", range(len(rwkv7.SWEEPS)))
def test_every_configuration_of_rwkv7(n, monkeypatch):
    for name in ("SWEEPS", "CHUNKS"):
        config = getattr(rwkv7, name)[n % len(getattr(rwkv7, name))]
        any_head = config._replace(most=256, bits=32, targets=launch.ALL)
        monkeypatch.setattr(rwkv7, name, (any_head,))
    assert max(errors("rwkv7", inputs("rwkv7", 19, H=1, K=20, V=40))) < TOLERANCE


def test_segments_of_rwkv4_make_no_difference(monkeypatch):
    """Three, the last of which ends with less than a block."""
    monkeypatch.setattr(launch, "KEEP", wkv4.BLOCK)
    given = inputs("rwkv4", 2 * wkv4.BLOCK + 3, B=2, D=3)
    assert max(errors("rwkv4", given, segments=3)) < TOLERANCE


def test_log_weights_that_overflow():
    """Far beyond e^88, where the numbers of the state alone say nothing."""
    w, u, k, v, *S = inputs("rwkv4", 20, D=4)
    with torch.no_grad():
        o, _, den = averages(w, 40 * u, 400 * k, v, *S)
        exact = truth(*(x.double() for x in (w, 40 * u, 400 * k, v, *S)))
    assert den.isfinite().all() and (o - exact[0]).abs().max() < 1e-3  # of k, 1e3 in float32


@pytest.mark.parametrize("gate", [0.0, -20.0, -1e4, -torch.inf])
def test_gates_of_rwkv7_beside_a_shut_one(gate):
    """One channel in three, one token in four."""
    given = inputs("rwkv7", 20, H=1, K=5, V=3)
    given[1][:, ::4, :, ::3] = gate
    assert max(errors("rwkv7", given)) < TOLERANCE


@pytest.mark.parametrize("name", PAIRS)
def test_half_precision_is_as_good_as_it_can_be(name):
    given = inputs(name, 40, torch.float16, B=1, **({"H": 1} if name == "rwkv7" else {}))
    if name == "rwkv7":
        given[4], given[5] = given[4] / 2, given[5] / 2
    assert max(errors(name, given)) < 2e-3


# ------------------------------------------------------------------------- what is kept, types, ...


@pytest.mark.parametrize("name", PAIRS)
def test_what_is_saved(name):
    """The inputs and, for RWKV-4, three numbers a channel in 16 tokens and the state at the end."""
    given = inputs(name, 64)
    saved = []
    keep = lambda x: saved.append(x) or x
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        PAIRS[name][0](*(x.requires_grad_() for x in given))
    states = given[3].numel() * 3 // wkv4.BLOCK + 8 * given[4].numel() if name == "rwkv4" else 0
    assert sum(x.numel() for x in saved) <= sum(x.numel() for x in given) + states


@pytest.mark.parametrize("name", PAIRS)
def test_nothing_is_kept_where_no_gradient_is_wanted(name, monkeypatch):
    kept = []
    run = wkv4.run
    monkeypatch.setattr(wkv4, "run", lambda *x: kept.append(x[6]) or run(*x))
    given = inputs(name, 3, B=1)
    results = PAIRS[name][0](*given)
    assert not any(x.requires_grad for x in results) and not any(kept)


@pytest.mark.parametrize("name", PAIRS)
def test_mixed_types_and_any_strides(name):
    """Outputs in the type of v, gradients in the type of each; channels apart change nothing."""
    given = inputs(name, 17, B=1, **({"H": 1} if name == "rwkv7" else {}))
    wide, narrow = 2 if name == "rwkv4" else 0, 3
    given[narrow] = given[narrow].half()
    kernel = PAIRS[name][0]
    found = everything(kernel, given)
    assert found[0].dtype == torch.float16 and found[1].dtype == torch.float32
    gradients = found[-len(given) :]
    assert [x.dtype for x in gradients] == [x.dtype for x in given]
    apart = [x.movedim(-1, 0).contiguous().movedim(0, -1) for x in given]
    assert apart[wide].stride(-1) != 1
    for x, y in zip(found, everything(kernel, apart), strict=True):
        assert torch.equal(x, y)


def test_only_the_gradients_that_are_wanted_and_no_second():
    for name, (kernel, _) in PAIRS.items():
        given = inputs(name, 5, B=1)
        given[3].requires_grad_()
        o, *_ = kernel(*given)
        (first,) = torch.autograd.grad((o**2).sum(), given[3], create_graph=True)
        assert all(x.grad is None for x in given)
        with pytest.raises(RuntimeError, match="differentiate twice"):
            first.sum().backward()


def test_too_wide_for_float32():
    given = inputs("rwkv7", 3, B=1, H=1, K=130, V=3)
    with pytest.raises(launch.Unsupported, match="128 key channels of torch"):
        rwkv7.chunked(*given)


def test_all_configurations_have_a_use():
    one = {16: 1, 32: 1}
    for configs, most in (
        (wkv4.CONFIGS, one),
        (rwkv7.SWEEPS, rwkv7.WIDEST),
        (rwkv7.CHUNKS, rwkv7.WIDEST),
    ):
        assert len(configs) <= 8 and all(c.why and c.targets for c in configs)
        used = set()
        for target in launch.ALL:
            for bits in (16, 32):
                for channels in range(1, most[bits] + 1):
                    fit = launch.narrowest(configs, channels, bits, target)
                    assert fit, f"nothing for {channels} channels, {bits} bits, sm_{target}"
                    used |= set(fit)
        assert used == set(configs)


@pytest.mark.parametrize(
    "kernel, room", [("rwkv7", "recurrences/rank_one"), ("wkv4", "mechanisms/rwkv4")]
)
def test_comments_cite_equations(kernel, room):
    source = (ROOT / "kernels" / f"{kernel}.py").read_text(encoding="utf-8")
    known = (ROOT / "linviz" / f"{room}.py").read_text(encoding="utf-8")
    cited = set(re.findall(r"# .*?\((\d)\)", source))
    assert len(cited) >= 2 and cited <= set(re.findall(r"^ {4}\((\d)\)", known, re.M))
