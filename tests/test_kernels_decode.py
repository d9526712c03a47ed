"""Decoding by a kernel: numbers, slots, what is changed in place, and when `step` takes it.

It runs in Triton's interpreter here, on a GPU where there is one.
"""

import math
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import linviz as lv
from linviz.mechanism import resolve

pytest.importorskip("triton")

from test_kernels import Traffic, interpreter_only

from linviz.kernels import decode, launch

ROOT = Path(__file__).parents[1]
DEVICE = "cpu" if launch.interpreted() else "cuda"
TOLERANCE = 1e-5
NAMES = "linear_attention retnet gla mamba mamba2 rwkv4 rwkv5 rwkv6 rwkv7 deltanet gated_deltanet"
MECHANISMS = [lv.registry[name] for name in [*NAMES.split(), "kda"]]
SIZES = {"B": 2, "H": 2, "K": 20, "V": 37, "N": 20, "P": 37, "D": 37}  # nothing fills its tiles

every = pytest.mark.parametrize("m", MECHANISMS, ids=lambda m: m.name)


def tokens(m, T, **more):
    """Inputs of T tokens in float32, and a state that is not empty."""
    letters = {letter for x in m.inputs for _, letter in x.letters}
    sizes = {**SIZES, **more} | ({"G": 1} if "G" in letters else {})
    sizes = {letter: n for letter, n in sizes.items() if letter in letters}
    inputs = [x.to(DEVICE) for x in m.example(T, 0, **sizes)]
    _, S = m.recurrent(*(x.to(DEVICE) for x in m.example(3, 1, **sizes)))
    return inputs, S


def decoded(m, inputs, S, **how):
    """The mechanism by its kernel for decoding, through the room's own mapping."""
    kernel = partial(resolve(m.decode), **how)
    run = partial(m.functions["triton"], kernel) if m.recurrence else kernel
    sizes = m.sizes(inputs, None, m.options, "here")
    return run(*inputs, S=S, **m.settled(dict(m.options), sizes, inputs, True))


def exact(m, inputs, S):
    """The loop in float64."""
    return m.recurrent(*(x.double() for x in inputs), S=each(torch.Tensor.double, S))


def each(f, S):
    """A function of every part of a state."""
    return f(S) if isinstance(S, torch.Tensor) else tuple(map(f, S))


def parts(*results):
    """All tensors of outputs and states, in a row."""
    return [x for y in results for x in ([y] if isinstance(y, torch.Tensor) else y)]


def agree(found, truth, tolerance=TOLERANCE):
    """Equal, by the greatest number of each tensor."""
    for n, (x, y) in enumerate(zip(parts(*found), parts(*truth), strict=True)):
        assert x.shape == y.shape and torch.isfinite(x).all(), n
        error = (x - y).abs().max() / y.abs().max().clamp(min=1)
        assert error < tolerance, f"number {n}: error {error:.1e}"


# -------------------------------------------------------------------------------------- the numbers


@every
@pytest.mark.parametrize("T", [1, 2, 16])
def test_it_is_the_recurrence(m, T):
    inputs, S = tokens(m, T)
    agree(decoded(m, inputs, S), exact(m, inputs, S))


def test_every_mechanism_with_a_matrix_state_decodes():
    assert {m.name for m in lv.registry if m.decode} == {m.name for m in MECHANISMS}
    for m in lv.registry:
        if m.recurrence in ("scalar_decay", "vector_decay", "delta_rule", "rank_one"):
            assert m.decode == f"linviz.kernels.decode:{m.recurrence}"


def given(name, T=3, B=2, H=2, K=5, V=3):
    """Inputs of a function of decode, by name, and the shape of its state."""
    draw = lambda *shape: torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    q, v = draw(B, T, H, K).to(DEVICE), draw(B, T, H, V).to(DEVICE)
    gates = {"w" if name == "rank_one" else "g": -q.abs()}
    more = {"delta_rule": {"beta": q[..., 0].sigmoid()}, "rank_one": {"a": q, "b": -q}}
    more["scalar_decay"] = gates = {"g": -q[..., 0].abs()} if name == "scalar_decay" else gates
    return {"q": q, "k": q.flip(1), "v": v} | gates | more.get(name, {}), (B, H, K, V)


MATRICES = ["scalar_decay", "vector_decay", "delta_rule", "rank_one"]


@pytest.mark.parametrize("name", MATRICES)
def test_no_state_is_a_state_of_zeros(name):
    inputs, shape = given(name)
    run = getattr(decode, name)
    zeros = torch.zeros(shape, device=DEVICE)
    for x, y in zip(run(**inputs), run(**inputs, S=zeros), strict=True):
        assert torch.equal(x, y)


@every
def test_every_width(m):
    """One channel, and as many as there may be, for every configuration of a kernel."""
    for wide in (1, 100, 256):
        sizes = {"B": 1, "H": 1, "K": wide, "N": wide, "V": 1, "P": 1, "D": 2}
        if m is lv.linear_attention or m is lv.mamba:
            sizes |= {"V": 2, "D": 5}
        inputs, S = tokens(m, 2, **sizes)
        agree(decoded(m, inputs, S), exact(m, inputs, S))


@every
@pytest.mark.parametrize("gate", [0.0, -math.inf, "mixed"])
def test_gates_of_all_sizes(m, gate):
    levels = torch.tensor([0.0, -1e-4, -1.0, -20.0, -1e4, -math.inf] if gate == "mixed" else [gate])
    inputs, S = tokens(m, 4)
    for n, spec in enumerate(m.inputs):
        if spec.high == 0.0:
            x, rng = inputs[n], torch.Generator().manual_seed(1)
            inputs[n] = levels[torch.randint(len(levels), x.shape, generator=rng)].to(x)
    agree(decoded(m, inputs, S), exact(m, inputs, S))


@every
def test_half_precision(m):
    """Only what comes in and goes out is rounded, and what the room computes before the kernel.

    The interpreter cuts bfloat16 off instead.
    """
    for kind, tolerance in ((torch.float16, 1e-3), (torch.bfloat16, 8e-3)):
        inputs, S = tokens(m, 2)
        inputs = [x.to(kind) for x in inputs]
        o, after = decoded(m, inputs, S)
        assert o.dtype == kind and all(x.dtype == torch.float32 for x in parts(after))
        agree((o.float(), after), exact(m, inputs, S), tolerance)


@every
def test_prefill_by_chunks_then_steps(m):
    T = 37
    inputs, S = tokens(m, T)
    truth = exact(m, inputs, S)
    at = lambda t, e: [x[:, t:e] if s.timed else x for x, s in zip(inputs, m.inputs, strict=True)]
    o, S = m.chunked(*at(0, 30), S=S, chunk=16)
    o = [o]
    for t, e in ((30, 31), (31, 32), (32, 37)):
        o_t, S = decoded(m, at(t, e), S)
        o.append(o_t)
    agree((torch.cat(o, 1), S), truth)


@every
def test_any_strides(m):
    inputs, S = tokens(m, 3)
    truth = decoded(m, inputs, S)
    turned = [x.movedim(-1, 0).contiguous().movedim(0, -1) for x in inputs]
    wider = [torch.cat([x, x], -1)[..., : x.shape[-1]] for x in inputs]
    for other in (turned, wider):
        before = [x.clone() for x in other]
        found = decoded(m, other, each(lambda x: x.mT.contiguous().mT if x.ndim > 2 else x, S))
        assert all(torch.equal(x, y) for x, y in zip(parts(*found), parts(*truth), strict=True))
        assert all(torch.equal(x, y) for x, y in zip(other, before, strict=True))


# --------------------------------------------------------------------------------- where states are


@every
@pytest.mark.parametrize("kind", [torch.int32, torch.int64], ids=str)
def test_slots(m, kind):
    """Three sequences, the second of which is none, in a pool of five that is not dense."""
    inputs, S = tokens(m, 2, B=3)
    slots = torch.tensor([4, -1, 1], dtype=kind, device=DEVICE)
    pool = each(lambda x: torch.full((5, 2, *x.shape[1:]), 7.0, device=DEVICE)[:, 1], S)
    for p, s in zip(parts(pool), parts(S), strict=True):
        p[slots[[0, 2]].long()] = s[[0, 2]]
    before = each(torch.clone, pool)
    o, after = decoded(m, inputs, pool, slots=slots)
    truth, S_truth = decoded(m, inputs, S)
    assert torch.equal(o[[0, 2]], truth[[0, 2]])
    outside = inputs[-1][:, None] * inputs[0] if m is lv.mamba2 else 0 * o  # the room's own skip
    assert torch.equal(o[1], outside[1])
    for p, old, s, a in zip(*map(parts, (pool, before, S_truth, after)), strict=True):
        assert a.data_ptr() == p.data_ptr()
        assert torch.equal(p[slots[[0, 2]].long()], s[[0, 2]])
        assert torch.equal(p[[0, 2, 3]], old[[0, 2, 3]])


def where(name):
    """A function of decode with inputs in a row, an output and a state to write into."""
    m = next(m for m in MECHANISMS if m.decode.endswith(name) and m is not lv.linear_attention)
    inputs, S = tokens(m, 2)
    if m is lv.retnet:
        inputs.append(None)
    if m is lv.mamba:  # without its skip
        x, dt, A, B, C, _ = inputs
        inputs = [x, dt, A, B, C]
    if m is lv.deltanet:
        inputs.append(None)
    return getattr(decode, name), inputs, S


FUNCTIONS = [*MATRICES, "diagonal_scan", "rwkv4"]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_out(name):
    """Into other tensors, in place, and one of both; the state that came in is kept otherwise."""
    run, inputs, S = where(name)
    kept = each(torch.clone, S)
    o, after = run(*inputs, S)
    bits = lambda x: [y.view(torch.int32).tolist() for y in parts(*x)]
    assert bits([S]) == bits([kept])
    nan = lambda x: torch.full_like(x, torch.nan)
    for end in (each(nan, S), each(torch.clone, S), S):  # the last is S itself
        y = nan(o)
        found = run(*inputs, S, out=(y, end))
        assert found[0] is y
        assert all(a is b for a, b in zip(parts(found[1]), parts(end), strict=True))
        assert bits(found) == bits((o, after))
    again = each(torch.clone, kept)
    assert bits(run(*inputs, again, out=(None, again))) == bits((o, after))


class Made(TorchDispatchMode):
    """The names of operations that ran."""

    def __init__(self):
        """None so far."""
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.names.append(operation.overloadpacket.__name__)
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_nothing_is_allocated_where_out_is_given(name, monkeypatch):
    run, inputs, S = where(name)
    o, _ = run(*inputs, S)
    monkeypatch.setattr(decode, "pick", lambda *_: None)  # the interpreter has tensors of its own
    with Made() as made:
        run(*inputs, S, out=(o, S))
    assert {*made.names} <= {"detach", "alias", "expand"}


@interpreter_only
@pytest.mark.parametrize("name", MATRICES)
def test_the_state_is_read_once_and_written_once(name, monkeypatch):
    inputs, shape = given(name, B=1, T=5, K=32, V=64)
    S = torch.randn(shape)
    traffic = Traffic(monkeypatch)
    moved = traffic.of(lambda: getattr(decode, name)(**inputs, S=S, out=(None, S)))
    names = {x.data_ptr(): x.nbytes for x in inputs.values()}
    assert moved == 2 * S.nbytes + sum(names.values()) + inputs["v"].nbytes


# ---------------------------------------------------------------------------------- what is refused


def test_what_is_refused():
    inputs, shape = given("scalar_decay")
    S = torch.zeros(5, *shape[1:], device=DEVICE)
    run = partial(decode.scalar_decay, **inputs)
    slots = lambda *n, kind=torch.int64: torch.tensor(n, dtype=kind, device=DEVICE)
    for message, how in (
        (r"S must be \[2, 2, 5, 3\], got \[5, 2, 5, 3\]", {"S": S}),
        (r"slots must be \[2\] in torch.int32 or torch.int64", {"S": S, "slots": slots(1)}),
        (r"slots must be .*float32", {"S": S, "slots": slots(1, 2, kind=torch.float32)}),
        (r"slots want a pool S", {"slots": slots(1, 2)}),
        (r"slots want a pool S", {"S": S, "slots": slots(1, 2), "out": (None, S.clone())}),
        (r"the pool S must be .*float32.*float64", {"S": S.double(), "slots": slots(1, 2)}),
        (r"the state of out must be \[2, 2, 5, 3\]", {"out": (None, S)}),
        (r"the output of out must be \[2, 3, 2, 3\]", {"out": (S, None)}),
        (r"state of out must have .*side by", {"out": (None, S[:2].mT.contiguous().mT)}),
        (r"state of out must have .*side by", {"out": (None, S[:1].expand(shape))}),
    ):
        kind = launch.Unsupported if "float64" in message else ValueError
        with pytest.raises(ValueError, match=message if kind is ValueError else "float64"):
            run(**how)


@interpreter_only
@pytest.mark.parametrize("slots", [(1, 1), (0, 5)])
def test_slots_are_looked_at_on_the_cpu(slots):
    inputs, shape = given("scalar_decay")
    S = torch.zeros(5, *shape[1:])
    with pytest.raises(ValueError, match="slots must differ and be below 5"):
        decode.scalar_decay(**inputs, S=S, slots=torch.tensor(slots))
    decode.scalar_decay(**inputs, S=S, slots=torch.tensor([-1, -1]))
    assert not S.any()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_other_forms_must_do(name):
    run, inputs, S = where(name)
    k = next(n for n, x in enumerate(inputs) if x is not None and x.ndim > 2)
    inputs[k].requires_grad_()
    with pytest.raises(launch.Unsupported, match=f"{name}: . wants a gradient"):
        run(*inputs, S)
    with torch.no_grad():
        run(*inputs, S)
        for T in (0, 17):
            long = [
                x[:, :1].expand(-1, T, *x.shape[2:]) if x is not None and x.ndim > 2 else x
                for x in inputs
            ]
            with pytest.raises(launch.Unsupported, match=f"1 to 16 tokens, got {T}"):
                run(*long, S)
        wide = [x if x is None else x.double() for x in inputs]
        with pytest.raises(launch.Unsupported, match="float64"):
            run(*wide, S)


def test_no_sequences():
    inputs, (_, *shape) = given("rank_one", B=0)
    o, S = decode.rank_one(**inputs)
    assert o.shape == (0, 3, 2, 3) and S.shape == (0, *shape)


def test_a_call_is_never_timed():
    """Timing repeats a call, and a state that is changed in place would not be the same again."""
    for configs in (decode.MATRIX, decode.DIAGONAL):
        for target in (80, 90, 100):
            fit = [launch.narrowest(configs, K, 32, target) for K in range(1, 257)]
            assert all(len(x) == 1 for x in fit) and {x[0] for x in fit} == {*configs}
    assert len(decode.AVERAGE) == 1


# ----------------------------------------------------------------------------------- lv.<name>.step


@pytest.fixture
def called(monkeypatch):
    """Every tensor seems to be on a GPU; which forms compute."""
    names = []
    compute = type(lv.gla.step).compute

    def note(form, name, *rest):
        names.append(name)
        return compute(form, name, *rest)

    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    monkeypatch.setattr(type(lv.gla.step), "compute", note)
    return names


def token(m, inputs):
    """The first token."""
    return [x[:, 0] if spec.timed else x for x, spec in zip(inputs, m.inputs, strict=True)]


@every
def test_step_takes_the_kernel_on_a_gpu(m, called):
    inputs, S = tokens(m, 1)
    called.clear()
    o, after = m.step(*token(m, inputs), S)
    assert called == ["decode"]
    truth, S_truth = exact(m, inputs, S)
    agree((o[:, None], after), (truth, S_truth))
    first, _ = m.step(*token(m, inputs))
    agree([first[:, None]], [m.recurrent(*inputs)[0]])


@every
def test_step_falls_back(m, called):
    """Gradients, float64, and more channels than a kernel has registers for."""
    inputs, S = tokens(m, 1)
    leaves = [x.clone().requires_grad_() for x in inputs]
    called.clear()
    o, _ = m.step(*token(m, leaves), S)
    assert called == ["decode", "step"]
    truth = m.recurrent(*leaves, S=S)[0][:, 0]
    mix = torch.randn(o.shape)
    for x, y in zip(
        torch.autograd.grad((o * mix).sum(), leaves, allow_unused=True),
        torch.autograd.grad((truth * mix).sum(), leaves, allow_unused=True),
        strict=True,
    ):
        assert (x is None and y is None) or torch.equal(x, y)
    called.clear()
    with torch.no_grad():
        m.step(*token(m, leaves), S)
    assert called == ["decode"]
    called.clear()
    o, _ = m.step(*token(m, [x.double() for x in inputs]), S)
    assert o.dtype == torch.float64 and called == ["decode", "step"]
    if m is not lv.rwkv4:
        wide, _ = tokens(m, 1, K=300, N=300)
        called.clear()
        m.step(*token(m, wide))
        assert called == ["decode", "step"]


def test_on_the_cpu_step_is_the_loop(monkeypatch):
    """Bit by bit: the interpreter is not for use."""
    monkeypatch.setattr(decode, "vector_decay", None)
    inputs, S = tokens(lv.gla, 1)
    if DEVICE == "cpu":
        o, _ = lv.gla.step(*token(lv.gla, inputs), S)
        assert torch.equal(o[:, None], lv.gla.recurrent(*inputs, S=S)[0])


def test_a_state_in_float64_is_not_narrowed(called):
    inputs, S = tokens(lv.gla, 1)
    called.clear()
    _, after = lv.gla.step(*token(lv.gla, inputs), S.double())
    assert after.dtype == torch.float64 and called == ["decode", "step"]


# -------------------------------------------------------------------------------------- readability


def test_comments_cite_equations_that_there_are():
    source = (ROOT / "kernels" / "decode.py").read_text(encoding="utf-8")
    cited = {*re.findall(r"# .*?(\w+) \((\d)\)", source)}
    assert {("rank_one", "1"), ("delta_rule", "3"), ("vector_decay", "5")} <= cited
    for name, number in cited:
        folder = "mechanisms" if name == "rwkv4" else "recurrences"
        known = (ROOT / "linviz" / folder / f"{name}.py").read_text(encoding="utf-8")
        assert re.search(rf"^ {{4}}\({number}\)", known, re.M), (name, number)
