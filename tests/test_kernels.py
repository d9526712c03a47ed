"""The kernels beyond the contract: every configuration, segments, bytes moved, what is refused.

They run in Triton's interpreter here, and on a GPU where there is one (tests/test_gpu.py).
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import linviz as lv

pytest.importorskip("triton")

from linviz.kernels import launch, scalar_decay, vector_decay
from linviz.recurrences import scalar_decay as scalar_truth
from linviz.recurrences import vector_decay as vector_truth

ROOT = Path(__file__).parents[1]
TOLERANCE = 1e-5
interpreter_only = pytest.mark.skipif(
    not launch.interpreted(), reason="counts what Triton's interpreter does"
)


def inputs(kind, T, K, V, dtype=torch.float32, B=1, H=2, seed=0):
    """Inputs of a kernel by the kind of its gates: (q, k, v, g, S), and u or None."""
    rng = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=rng).to(dtype)
    shape = {"none": None, "fixed": (H,), "data": (B, T, H)}.get(kind, (B, T, H, K))
    g = None if shape is None else -draw(*shape).abs() / 8
    u = draw(H, K) if kind == "bonus" else None
    return [draw(B, T, H, K), draw(B, T, H, K), draw(B, T, H, V), g, draw(B, H, K, V).float()], u


def both(kind):
    """The kernel and the loop for gates of a kind."""
    if kind in ("vector", "bonus"):
        return vector_decay.chunked, vector_truth.recurrent
    return scalar_decay.chunked, scalar_truth.recurrent


def everything(run, given, u, **how):
    """Outputs, the last state, and the gradients of a mixture of both for all inputs."""
    leaves = [x if x is None else x.detach().clone().requires_grad_() for x in (*given, u)]
    if leaves[5] is not None:
        how["u"] = leaves[5]
    o, S = run(*leaves[:5], **how)
    rng = torch.Generator().manual_seed(1)
    total = sum((x * torch.randn(x.shape, generator=rng).to(x.dtype)).sum() for x in (o, S))
    total.backward()
    return [o, S, *(x.grad for x in leaves if x is not None)]


def right(kind, T, K, V, **how):
    """The kernel and the loop in float64 agree, in everything."""
    given, u = inputs(kind, T, K, V)
    kernel, truth = both(kind)
    found = everything(kernel, given, u, **how)
    wide = [x if x is None else x.double() for x in (*given, u)]
    for n, (x, y) in enumerate(zip(found, everything(truth, wide[:5], wide[5]), strict=True)):
        error = (x - y).abs().max() / y.abs().max().clamp(min=1)
        assert error < TOLERANCE, f"number {n}: error {error:.1e}"


# ------------------------------------------------------------------------------------- the numbers

KINDS = ["none", "fixed", "data", "vector", "bonus"]


@pytest.mark.parametrize("config", scalar_decay.CONFIGS, ids=str)
@pytest.mark.parametrize("kind", ["none", "fixed", "data"])
def test_every_configuration_of_scalar_decay(kind, config, monkeypatch):
    any_head = config._replace(most=256, bits=32, targets=(80, 90, 100))
    monkeypatch.setattr(scalar_decay, "CONFIGS", (any_head,))
    right(kind, 70, 20, 40)


@pytest.mark.parametrize("values", vector_decay.VALUES, ids=str)
@pytest.mark.parametrize("kind", ["vector", "bonus"])
def test_every_configuration_of_vector_decay(kind, values, monkeypatch):
    scores = vector_decay.SCORES[vector_decay.VALUES.index(values) % len(vector_decay.SCORES)]
    for name, config in (("SCORES", scores), ("VALUES", values)):
        any_head = config._replace(most=256, bits=32, targets=(80, 90, 100))
        monkeypatch.setattr(vector_decay, name, (any_head,))
    right(kind, 35, 20, 40)


@pytest.mark.parametrize("kind", KINDS)
def test_segments_make_no_difference(kind, monkeypatch):
    """Three segments, the last shorter, and the states kept inside one for the gates' gradient."""
    for module in (launch, scalar_decay, vector_decay):
        monkeypatch.setattr(module, "KEEP", 64)
    right(kind, 2 * 64 + 45, 5, 3, segments=3)
    if kind != "none":
        right(kind, 2 * 64 + 45, 5, 3, segments=1)


@pytest.mark.parametrize("kind", ["data", "vector", "bonus"])
def test_half_precision_is_as_good_as_it_can_be(kind):
    """Relative errors in float16, of gates too, which cancel much; bfloat16 has 8 times those."""
    given, u = inputs(kind, launch.KEEP + 60, 32, 32, torch.float16, H=1)
    given[3] = torch.nn.functional.logsigmoid(given[3].float() * 8) / 16
    kernel, truth = both(kind)
    found = everything(kernel, given, u)
    wide = [x if x is None else x.double() for x in (*given, u)]
    errors = [
        ((x - y).norm() / y.norm()).item()
        for x, y in zip(found, everything(truth, wide[:5], wide[5]), strict=True)
    ]
    assert max(*errors[:5], *errors[6:]) < 1e-3 and errors[5] < 2e-3  # number 5 is the gates'


@pytest.mark.parametrize("kind", ["data", "vector", "bonus"])
def test_wide_heads_in_float32_go_in_pieces(kind):
    right(kind, 17, 70, 130)


def test_all_configurations_have_a_use():
    """Each is the choice of some head on some target, and each head has one everywhere."""
    for configs in (scalar_decay.CONFIGS, vector_decay.SCORES, vector_decay.VALUES):
        assert len(configs) <= 8 and all(c.why and c.targets for c in configs)
        used = set()
        for target in (80, 90, 100):
            for bits, most in ((16, 256), (32, 64)):
                for K in range(1, most + 1):
                    fit = launch.narrowest(configs, K, bits, target)
                    assert fit, f"nothing for K={K}, {bits} bits, sm_{target}"
                    used |= set(fit)
        assert used == set(configs)


def test_segments_fill_the_chip(monkeypatch):
    x = torch.empty(1, 16384, 16, 128, device="meta")
    for processors, programs, expected in ((0, 16, 1), (132, 16, 15), (132, 96, 2), (132, 300, 1)):
        monkeypatch.setattr(launch, "processors", lambda device, n=processors: n)
        L = launch.segment_length(16384, programs, [x], None)
        assert -(-16384 // L) == expected and L % launch.KEEP == 0
    far = torch.empty(1, 2**20, 512, 128, device="meta")  # rows beyond what 32 bits count
    assert launch.segment_length(2**20, 512, [far], None) * far.stride(1) < 2**31


# ---------------------------------------------------------------------------------- bytes moved


class Traffic:
    """Counts what launches read and write: each address once a launch, as a cache would see it."""

    def __init__(self, monkeypatch):
        """Listen to the interpreter."""
        from triton.runtime import interpreter

        self.bytes = 0
        self.addresses = {}
        builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
        load, store = builder.create_masked_load, builder.create_masked_store
        run = executor.__call__

        def listen(kind, ptrs, mask):
            size = ptrs.get_element_ty().primitive_bitwidth // 8
            seen = self.addresses.setdefault((kind, size), set())
            seen.update(ptrs.data[mask.data.astype(bool)].ravel().tolist())

        def read(builder, ptrs, mask, *rest):
            listen("read", ptrs, mask)
            return load(builder, ptrs, mask, *rest)

        def write(builder, ptrs, value, mask, *rest):
            listen("write", ptrs, mask)
            return store(builder, ptrs, value, mask, *rest)

        def launched(self_, *args, **kwargs):
            run(self_, *args, **kwargs)
            self.bytes += sum(size * len(seen) for (_, size), seen in self.addresses.items())
            self.addresses.clear()

        monkeypatch.setattr(builder, "create_masked_load", read)
        monkeypatch.setattr(builder, "create_masked_store", write)
        monkeypatch.setattr(executor, "__call__", launched)

    def of(self, run):
        """Bytes that the launches of `run` move."""
        before = self.bytes
        run()
        return self.bytes - before


@interpreter_only
@pytest.mark.parametrize(
    ("kind", "segments", "forward", "backward"),
    [
        ("none", 1, 10, 32),
        ("data", 1, 10, 32),
        ("none", 2, 14, 32 + 8),  # going back, two passes more over what is written into states
        ("vector", 1, 10, 32),
        ("vector", 2, 14, 32 + 9),  # and the states themselves
    ],
)
def test_bytes_moved(kind, segments, forward, backward, monkeypatch):
    """In units of D a token and head, D = K = V in 16 bits: q, k, v, o are 2 D each.

    Gates of the vector kind come on top: 2 D for each sweep that reads them, and back in time 2 D
    for their gradient and 8 D for x in float32, which it is made of.
    """
    D, T = 64, 2048
    given, _ = inputs(kind, T, D, D, torch.float16, H=1)
    kernel, _ = both(kind)
    traffic, unit = Traffic(monkeypatch), D * T
    leaves = [x if x is None else x.requires_grad_() for x in given]
    results = []
    there = traffic.of(lambda: results.extend(kernel(*leaves, segments=segments))) / unit
    back = traffic.of(lambda: (results[0].sum() + results[1].sum()).backward()) / unit
    gates = kind == "vector"
    assert there <= forward + gates * 2 * segments
    assert back <= backward + gates * (3 * 2 + 4 + 8 + 4 * (segments - 1))
    assert there > 8 and back > 18  # nothing was missed: each tensor once


@pytest.mark.parametrize("kind", ["data", "vector"])
def test_no_state_but_the_last_is_saved(kind):
    """What a forward pass saves: its inputs, and one state."""
    given, _ = inputs(kind, 300, 16, 16)
    saved = []
    keep = lambda x: saved.append(x) or x
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        both(kind)[0](*(x.requires_grad_() for x in given))
    assert sum(x.numel() for x in saved) <= sum(x.numel() for x in given) + given[4].numel()


# -------------------------------------------------------------------------------- types, devices


@pytest.mark.parametrize("kind", ["data", "bonus"])
def test_mixed_types(kind):
    """Products in the widest type, outputs in the type of v, gradients in the type of each."""
    given, u = inputs(kind, 20, 5, 3)
    given[0], given[2], given[3] = given[0].bfloat16(), given[2].half(), given[3].half()
    kernel, _ = both(kind)
    o, S, *gradients = everything(kernel, given, u)
    assert o.dtype == torch.float16 and S.dtype == torch.float32
    kinds = [x.dtype for x in (*given, u) if x is not None]
    assert [x.dtype for x in gradients] == kinds


@pytest.mark.parametrize("kind", ["data", "bonus"])
def test_gradients_at_any_strides(kind):
    """Channels that do not lie side by side, in everything that is read forward and back."""
    given, u = inputs(kind, 40, 5, 3)
    kernel, _ = both(kind)
    apart = lambda x: x.movedim(-1, 0).contiguous().movedim(0, -1)
    leaves = [[x.clone().requires_grad_() for x in given] for _ in range(2)]
    turned = [apart(x) for x in leaves[1]]
    assert turned[0].stride(-1) != 1
    found = []
    for n, x in enumerate((leaves[0], turned)):
        o, S = kernel(*x, **({} if u is None else {"u": u}))
        loss = (o * (apart(o.detach()) if n else o.detach())).sum() + S.sum()
        found.append(torch.autograd.grad(loss, leaves[n]))
    assert all(torch.equal(x, y) for x, y in zip(*found, strict=True))


def test_no_tokens_no_batch():
    for kind in ("fixed", "vector"):
        for B, T in ((0, 5), (2, 0)):
            given, _ = inputs(kind, T, 5, 3, B=B)
            o, S = both(kind)[0](*given)
            assert o.shape == (B, T, 2, 3) and torch.equal(S, given[4])
            assert both(kind)[0](*given[:4])[1].shape == (B, 2, 5, 3)


def test_only_the_gradients_that_are_wanted():
    for kind in ("data", "bonus"):
        given, u = inputs(kind, 20, 5, 3)
        more = {} if u is None else {"u": u}
        given[2].requires_grad_()
        o, _ = both(kind)[0](*given, **more)
        o.sum().backward()
        assert given[2].grad is not None and all(x.grad is None for x in (*given[:2], *given[3:]))


def test_a_second_derivative_is_refused():
    given, _ = inputs("fixed", 5, 3, 3)
    given[0].requires_grad_()
    o, _ = scalar_decay.chunked(*given)
    (first,) = torch.autograd.grad((o**2).sum(), given[0], create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        first.sum().backward()


def test_torch_compile_gives_the_same():
    """In a process of its own: what checks types under pytest is nothing to compile."""
    code = """
import torch, linviz as lv
given = [x.requires_grad_() for x in lv.gla.example(20)]
double = lambda *x: lv.gla.triton(*x)[0] * 2
compiled = torch.compile(double, backend="aot_eager")
for run in (double, compiled):
    o = run(*given)
    print(o.sum().item(), *(x.sum().item() for x in torch.autograd.grad(o.sum(), given)))
"""
    eager, compiled = run_python(code)[0].splitlines()
    assert eager == compiled


def test_what_is_refused_names_the_argument():
    given, _ = inputs("data", 5, 3, 3)
    with pytest.raises(launch.Unsupported, match=r"scalar_decay: g must be float32, .*float64"):
        scalar_decay.chunked(*given[:3], given[3].double())
    with pytest.raises(launch.Unsupported, match="q is on meta"):
        scalar_decay.chunked(given[0].to("meta"), *given[1:4])


def test_the_best_form_falls_back(monkeypatch):
    """On a GPU, what the kernels refuse is computed in chunks."""
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    called = []
    compute = type(lv.gla.chunked).compute

    def note(form, *args):
        called.append(form.name)
        return compute(form, *args)

    monkeypatch.setattr(type(lv.gla.chunked), "compute", note)
    for sizes, dtype, forms in (
        ({}, torch.float32, ["triton"]),
        ({}, torch.float64, ["triton", "chunked"]),
        ({"K": 300}, torch.float32, ["triton", "chunked"]),
    ):
        lv.gla(*lv.gla.example(5, dtype=dtype, **sizes))
        assert called == forms
        called.clear()


def run_python(code, **env):
    """Standard output and error of `code` in a fresh interpreter."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | env
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout, done.stderr


@interpreter_only
@pytest.mark.parametrize("first", ["", "import triton, triton.language; "])
def test_the_interpreter_is_said_once(first):
    """Also where Triton was imported before, with its own functions compiled already."""
    code = first + (
        "import os, linviz as lv; assert 'TRITON_INTERPRET' not in os.environ; "
        "x = lv.gla.example(5); lv.gla.triton(*x); lv.gla.triton(*x); "
        "lv.check(lv.retnet.triton(*x[:3]), lv.retnet(*x[:3]))"
    )
    out, err = run_python(code)
    assert err.count("Triton's interpreter") == 1 and out.startswith("equal: error")


@interpreter_only
def test_the_interpreter_can_be_ruled_out():
    code = """
import linviz as lv
try:
    lv.gla.triton(*lv.gla.example(5))
except ValueError as error:
    print(error)
"""
    out, err = run_python(code, TRITON_INTERPRET="0")
    assert "q is on cpu, and the kernels are compiled for CUDA here" in out and not err


# ------------------------------------------------------------------------------------ readability


@pytest.mark.parametrize("name", ["scalar_decay", "vector_decay"])
def test_comments_cite_equations_of_the_recurrence(name):
    """The numbers in a kernel are those of the recurrence of that name."""
    source = (ROOT / "kernels" / f"{name}.py").read_text(encoding="utf-8")
    known = (ROOT / "linviz" / "recurrences" / f"{name}.py").read_text(encoding="utf-8")
    cited = set(re.findall(r"# .*?\((\d)\)", source))
    assert {"3", "4"} <= cited <= set(re.findall(r"^ {4}\((\d)\)", known, re.M))
    assert max(map(len, source.splitlines())) <= 100
