"""The delta rule's kernels beyond the contract: every gate, configuration, width, type and border.

They run in Triton's interpreter here; the truth is the loop over time in float64.
"""

import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from linviz.kernels import delta_rule, launch
from linviz.recurrences import delta_rule as truth

ROOT = Path(__file__).parents[1]
TOLERANCE = 1e-5
GATES = ["none", "scalar", "vector"]
TABLES = ("SWEEPS", "VALUES", "GATED_SWEEPS", "GATED_VALUES")
every_gate = pytest.mark.parametrize("gate", GATES)


def inputs(gate, T, K, V, H=1, seed=0):
    """(q, k, v, beta, g, S) in float64: keys of length 1, beta up to 2."""
    rng = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=rng, dtype=torch.float64)
    k = torch.nn.functional.normalize(draw(1, T, H, K), dim=-1)
    shape = {"none": None, "scalar": (1, T, H), "vector": (1, T, H, K)}[gate]
    g = None if shape is None else -draw(*shape).abs() / 8
    beta = 2 * draw(1, T, H).sigmoid()
    return [draw(1, T, H, K), k, draw(1, T, H, V), beta, g, draw(1, H, K, V)]


def everything(run, given):
    """Outputs, the last state, and the gradients of a mixture of both, by name."""
    leaves = [x if x is None else x.detach().clone().requires_grad_() for x in given]
    o, S = run(*leaves)
    rng = torch.Generator().manual_seed(1)
    draw = lambda x: torch.randn(x.shape, generator=rng, dtype=torch.float64).to(x.dtype)
    sum((x * draw(x)).sum() for x in (o, S)).backward()
    names = ("dq", "dk", "dv", "dbeta", "dg", "dS")
    found = {n: x.grad for n, x in zip(names, leaves, strict=True) if x is not None}
    return {"o": o, "S": S} | found


def as_kind(given, kind=torch.float32):
    """The inputs in a type; gates of a head, beta and states in float32."""
    wide = lambda x: x.float() if x.ndim < 4 or x is given[5] else x.to(kind)
    return [x if x is None else wide(x) for x in given]


def right(given, tolerance=TOLERANCE, least=1.0):
    """The kernels and the loop agree in everything, to a part of the greatest number."""
    found, wanted = (
        everything(delta_rule.chunked, as_kind(given)),
        everything(truth.recurrent, given),
    )
    for name, y in wanted.items():
        assert found[name].isfinite().all(), name
        error = (found[name] - y).abs().max() / y.abs().max().clamp(min=least)
        assert error < tolerance, f"{name}: error {error:.1e}"


# ------------------------------------------------------------------------------------- the numbers


@every_gate
@pytest.mark.parametrize("T, K, V", [(1, 3, 5), (16, 5, 3), (37, 20, 18)])
def test_outputs_states_and_gradients(gate, T, K, V):
    right(inputs(gate, T, K, V))


@every_gate
def test_every_configuration(gate, monkeypatch):
    """For any width and in float32: the wide ones see heads of other sizes than they are for."""
    sweeps, values = delta_rule.tables(inputs(gate, 1, 1, 1)[4])
    for n, sweep in enumerate(sweeps):
        for name, table, config in (
            ("SWEEPS", sweeps, sweep),
            ("VALUES", values, values[n % len(values)]),
            ("GRAMS", delta_rule.GRAMS, delta_rule.GRAMS[n % len(delta_rule.GRAMS)]),
        ):
            any_head = config._replace(most=256, bits=32, targets=launch.ALL)
            own = "GATED_" if gate == "vector" and name != "GRAMS" else ""
            assert getattr(delta_rule, own + name) is table or n
            monkeypatch.setattr(delta_rule, own + name, (any_head,))
        right(inputs(gate, 18, 10, 34))


@pytest.mark.parametrize("gate", ["scalar", "vector"])
@pytest.mark.parametrize("T", [64, 70])
def test_sums_for_gates_begin_anew_at_each_state_that_is_kept(gate, T, monkeypatch):
    for module in (launch, delta_rule):
        monkeypatch.setattr(module, "KEEP", 32)
    right(inputs(gate, T, 4, 3))


@pytest.mark.parametrize("gate", ["scalar", "vector"])
def test_gates_of_all_sizes(gate):
    """Mixed in one sequence; the gradient of a gate that lets nothing through adds up to zero."""
    given = inputs(gate, 40, 6, 4)
    levels = torch.tensor([0.0, -1e-4, -1.0, -20.0, -1e4, -torch.inf], dtype=torch.float64)
    rng = torch.Generator().manual_seed(3)
    given[4] = levels[torch.randint(len(levels), given[4].shape, generator=rng)]
    right(given, least=10.0)


@every_gate
def test_keys_that_come_back(gate):
    """Beta near 2 and keys near each other: powers of the system's matrix would reach 1e6."""
    given = inputs(gate, 32, 8, 3)
    given[1] = torch.nn.functional.normalize(given[1][:, :1] + 0.3 * given[1], dim=-1)
    given[3] = torch.full_like(given[3], 1.99)
    given[4] = None if given[4] is None else given[4] / 8
    right(given, tolerance=3e-5)


def test_beta_of_zero_has_a_gradient():
    given = inputs("scalar", 20, 4, 3)
    given[3][:, ::2] = 0.0
    right(given)


@every_gate
def test_float16(gate):
    """Relative errors, of the numbers as they are in float16."""
    given = as_kind(inputs(gate, 50, 16, 16), torch.float16)
    wide = [x if x is None else x.double() for x in given]
    wanted = everything(truth.recurrent, wide)
    for name, x in everything(delta_rule.chunked, given).items():
        error = (x - wanted[name]).norm() / wanted[name].norm()
        assert error < (4e-3 if name == "dg" else 2e-3), f"{name}: error {error:.1e}"


def test_a_sequence_in_two_pieces():
    """The state that is handed on, and a single token at the end."""
    given = as_kind(inputs("vector", 34, 5, 3, H=2))
    o, S = delta_rule.chunked(*given)
    at = lambda part: [x[:, part] for x in given[:5]]
    first, middle = delta_rule.chunked(*at(slice(0, 33)), given[5])
    then, end = delta_rule.chunked(*at(slice(33, 34)), middle)
    assert (torch.cat([first, then], 1) - o).abs().max() < TOLERANCE * o.abs().max()
    assert (end - S).abs().max() < TOLERANCE * S.abs().max()


# ------------------------------------------------------------------------------- widths and limits


def test_wide_heads_in_float32_go_in_pieces():
    right(inputs("scalar", 17, 9, 40))
    right(inputs("vector", 17, 9, 40))


@every_gate
def test_too_many_key_channels_in_float32_are_refused(gate):
    given = as_kind(inputs(gate, 2, 65, 3))
    with pytest.raises(launch.Unsupported, match=r"64 key channels of torch.float32 fit on chip"):
        delta_rule.chunked(*given)


def test_all_configurations_have_a_use():
    for name in (*TABLES, "GRAMS"):
        configs = getattr(delta_rule, name)
        used = set()
        for target in (80, 90, 100):
            for bits in (16, 32):
                most = max(c.most for c in configs if c.bits == bits)
                for channels in range(1, most + 1):
                    fit = launch.narrowest(configs, channels, bits, target)
                    assert fit, f"{name}: nothing for {channels}, {bits} bits, sm_{target}"
                    used |= set(fit)
        assert used == set(configs) and all(c.chunk == delta_rule.CHUNK for c in configs)
        assert launch.KEEP % delta_rule.CHUNK == 0


# -------------------------------------------------------------------------- memory, types, strides


@every_gate
def test_nothing_but_the_inputs_is_saved(gate):
    given = [x if x is None else x.requires_grad_() for x in as_kind(inputs(gate, 40, 8, 8))]
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        delta_rule.chunked(*given)
    assert sum(x.numel() for x in saved) <= sum(x.numel() for x in given if x is not None)


def test_mixed_types():
    """Outputs in the type of v, gradients in the type of each."""
    given = as_kind(inputs("vector", 17, 5, 3))
    given[0], given[2], given[4] = given[0].bfloat16(), given[2].half(), given[4].half()
    found = everything(delta_rule.chunked, given)
    kinds = [torch.float16, torch.float32, *(x.dtype for x in given)]
    assert [x.dtype for x in found.values()] == kinds


@pytest.mark.parametrize("gate", ["scalar", "vector"])
def test_any_strides(gate):
    """Channels, or heads, that do not lie side by side, forward and back."""
    given = as_kind(inputs(gate, 20, 5, 3, H=2))
    apart = lambda x: x.movedim(-1, 0).contiguous().movedim(0, -1)
    found = []
    for turn in (lambda x: x, apart):
        leaves = [x.clone().requires_grad_() for x in given]
        o, S = delta_rule.chunked(*(turn(x) for x in leaves))
        loss = (o * turn(o.detach())).sum() + S.sum()
        found.append([o, S, *torch.autograd.grad(loss, leaves)])
    assert all(torch.equal(x, y) for x, y in zip(*found, strict=True))


def test_only_the_gradients_that_are_wanted():
    given = as_kind(inputs("scalar", 20, 4, 3))
    given[2].requires_grad_()
    delta_rule.chunked(*given)[0].sum().backward()
    assert given[2].grad is not None and all(x.grad is None for x in (*given[:2], *given[3:]))


def test_no_tokens():
    given = as_kind(inputs("vector", 0, 5, 3))
    o, S = delta_rule.chunked(*given)
    assert o.shape == (1, 0, 1, 3) and torch.equal(S, given[5])
    assert delta_rule.chunked(*given[:5])[1].shape == (1, 1, 5, 3)


# ------------------------------------------------------------------------------------ readability


def test_comments_cite_equations_of_the_recurrence():
    source = (ROOT / "kernels" / "delta_rule.py").read_text(encoding="utf-8")
    known = (ROOT / "linviz" / "recurrences" / "delta_rule.py").read_text(encoding="utf-8")
    cited = set(re.findall(r"# .*?\((\d)\)", source))
    assert {"4", "5", "6"} <= cited <= set(re.findall(r"^ +\((\d)\)", known, re.M))
