"""The contract, over the registry: a new mechanism is tested by existing.

Tolerances stand here, once: 1e-10 in float64 and 1e-5 in float32, of the greatest number compared.
For a kernel, in float32 only, that is the greatest of all gradients of a call: the gradient of a
gate that has shut everything out is 0, but a sum of terms that cancel, each with its rounding.
"""

import importlib.util
import math
import pickle
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import linviz as lv
from linviz.mechanism import read_equations
from linviz.recurrences import diagonal_scan

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
SIZES = {"B": 2, "H": 2, "K": 5, "V": 3, "N": 4, "P": 3, "D": 4}
LENGTHS = [1, 15, 16, 17, 33, 64, 130]
CHUNKS = [1, 7, 16, 64]
GATES = [0.0, -1e-4, -1.0, -20.0, -1e4, -math.inf, "mixed"]
ROOT = Path(__file__).parents[1]

every = pytest.mark.parametrize("m", lv.registry, ids=lambda m: m.name)
parallel_ones = [m for m in lv.registry if "parallel" in m.forms]
with_forms = pytest.mark.parametrize("m", parallel_ones, ids=lambda m: m.name)
with_kernel = pytest.mark.parametrize(
    "m", [m for m in lv.registry if m.kernel], ids=lambda m: m.name
)
OPTIONS = [
    lv.linear_attention.having(feature_map=name, normalize=normalize)
    for name in ("relu", "exp", "hedgehog", "taylor", "identity")
    for normalize in (name != "identity",)
]
OPTIONS += [lv.s4.having(discretization="bilinear"), lv.retnet.having(gamma=0.5)]


def sizes(m, **more):
    """Those of SIZES that the mechanism knows."""
    letters = {letter for x in m.inputs for _, letter in x.letters}
    wanted = {**SIZES, **more} | ({"H": 4, "G": 2} if "G" in letters else {})
    return {letter: n for letter, n in wanted.items() if letter in letters}


def example(m, T, seed=0, dtype=torch.float64, gate=None):
    """Inputs and a state that is not empty; log gates replaced by `gate` if given."""
    inputs = list(m.example(T, seed, dtype=dtype, **sizes(m)))
    if gate is not None:
        for n, spec in enumerate(m.inputs):
            if spec.high == 0.0:
                inputs[n] = gates(inputs[n], gate, m)
    _, S = m.recurrent(*m.example(5, seed + 1, dtype=dtype, **sizes(m)))
    return inputs, S


def gates(x, gate, m):
    """Gates like x, all the same or mixed. A mode of S4 that is -inf has no frequency: left out."""
    levels = torch.tensor([g for g in GATES if g != "mixed"], dtype=x.real.dtype)
    chosen = levels[torch.randint(len(levels), x.shape, generator=torch.Generator().manual_seed(9))]
    new = chosen if gate == "mixed" else torch.full_like(x.real, gate)
    if x.is_complex():
        return torch.complex(new.clamp(min=-1e4), x.imag)
    return new


def forms(m):
    """All forms but the definition, chunked at several sizes."""
    return {"parallel": m.parallel} | {
        f"chunked {c}": lambda *a, c=c, **o: m.chunked(*a, chunk=c, **o) for c in CHUNKS
    }


def narrow(*tensors):
    """Float32, or the complex numbers of two: what a kernel takes."""
    return [x.to(torch.complex64 if x.is_complex() else torch.float32) for x in tensors]


def narrow_state(S):
    """A state in float32, whole or in parts."""
    return narrow(S)[0] if isinstance(S, torch.Tensor) else tuple(narrow(*S))


def kernel(m):
    """The triton form where it runs: on the GPU if there is one; results come back here."""
    if not torch.cuda.is_available():
        return m.triton
    each = lambda x, place: tuple(y.to(place) for y in x) if isinstance(x, tuple) else x.to(place)

    def run(*inputs, S=None):
        o, S = m.triton(*each(inputs, "cuda"), S=S if S is None else each(S, "cuda"))
        return o.cpu(), each(S, "cpu")

    return run


def numbers(m, o, S):
    """Everything that must agree; RWKV-4's state is only unique once its exponent is put back."""
    parts = [S] if isinstance(S, torch.Tensor) else list(S)
    if m.name == "rwkv4":
        num, den, top = parts
        parts = [num * top.exp(), den * top.exp()]
    return [o, *parts]


def gradients(m, run, inputs, S, seed=0):
    """Outputs, states and the gradient of a random mixture of them for every input and state."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    states = [x.clone().requires_grad_() for x in ([S] if isinstance(S, torch.Tensor) else S)]
    if m.name == "rwkv4":
        states[2].requires_grad_(False)
    o, S = run(*leaves, S=states[0] if len(states) == 1 else tuple(states))
    results = numbers(m, o, S)
    rng = torch.Generator().manual_seed(seed)
    mix = [torch.randn(x.shape, generator=rng, dtype=torch.float64).to(x.dtype) for x in results]
    total = sum((x * w).real.sum() for x, w in zip(results, mix, strict=True))
    wanted = [x for x in leaves + states if x.requires_grad]
    return results + list(
        torch.autograd.grad(total, wanted, allow_unused=True, materialize_grads=True)
    )


def agree(ours, theirs, tolerance, least=1.0):
    """Equal to `tolerance` of the greatest number, or of `least`, and finite."""
    for n, (x, y) in enumerate(zip(ours, theirs, strict=True)):
        assert x.shape == y.shape
        assert torch.isfinite(x).all(), f"number {n} is not finite"
        if x.numel():
            error = (x - y.to(x.dtype)).abs().max() / max(y.abs().max().item(), least)
            assert error < tolerance, f"number {n}: error {error:.1e}"


# ------------------------------------------------------------------------- forms and gradients


@with_forms
@pytest.mark.parametrize("T", LENGTHS)
def test_forms_agree_with_the_recurrence(m, T):
    inputs, S = example(m, T)
    truth = gradients(m, m.recurrent, inputs, S)
    for form in forms(m).values():
        agree(gradients(m, form, inputs, S), truth, TOLERANCE[torch.float64])


@with_forms
def test_forms_agree_from_an_empty_state(m):
    inputs, _ = example(m, 33)
    truth = numbers(m, *m.recurrent(*inputs))
    for form in (*forms(m).values(), m):
        agree(numbers(m, *form(*inputs)), truth, TOLERANCE[torch.float64])


@with_forms
@pytest.mark.parametrize("gate", GATES)
def test_extreme_gates_stay_right(m, gate):
    inputs, S = example(m, 70, gate=gate)
    truth = gradients(m, m.recurrent, inputs, S)
    if m.name in ("mamba", "mamba2") and gate in (-math.inf, "mixed"):
        truth = numbers(m, *m.recurrent(*inputs, S=S))  # d/d dt of e^(dt A) is -inf * 0 there
    for form in forms(m).values():
        found = gradients(m, form, inputs, S)
        agree(found[: len(truth)], truth, TOLERANCE[torch.float64])


@with_forms
@pytest.mark.parametrize("gate", [None, *GATES])
def test_float32_stays_right(m, gate):
    inputs, S = example(m, 130, gate=gate)
    truth = numbers(m, *m.recurrent(*inputs, S=S))
    for form in (m.recurrent, *forms(m).values()):
        o, after = form(*narrow(*inputs), S=narrow_state(S))
        assert o.dtype == torch.float32
        agree(numbers(m, o, after), truth, TOLERANCE[torch.float32])


@pytest.mark.parametrize("m", OPTIONS, ids=repr)
def test_options_agree_too(m):
    inputs, S = example(m, 33)
    truth = gradients(m, m.recurrent, inputs, S)
    for form in forms(m).values():
        agree(gradients(m, form, inputs, S), truth, TOLERANCE[torch.float64])
    if m.kernel:
        found = gradients(m, kernel(m), narrow(*inputs), narrow_state(S))
        agree(found, truth, TOLERANCE[torch.float32])


@with_kernel
@pytest.mark.parametrize("T", [1, 15, 16, 17, 33, 70])
def test_triton_agrees_with_the_recurrence(m, T):
    """Outputs, states and all gradients, in Triton's interpreter where there is no GPU."""
    inputs, S = example(m, T)
    truth = gradients(m, m.recurrent, inputs, S)
    found = gradients(m, kernel(m), narrow(*inputs), narrow_state(S))
    agree(found, truth, TOLERANCE[torch.float32])


@with_kernel
@pytest.mark.parametrize("gate", GATES)
def test_triton_stays_right_at_extreme_gates(m, gate):
    inputs, S = example(m, 50, gate=gate)
    truth = gradients(m, m.recurrent, inputs, S)
    if m.name in ("mamba", "mamba2") and gate in (-math.inf, "mixed"):
        truth = numbers(m, *m.recurrent(*inputs, S=S))  # d/d dt of e^(dt A) is -inf * 0 there
    found = gradients(m, kernel(m), narrow(*inputs), narrow_state(S))[: len(truth)]
    greatest = max(x.abs().max().item() for x in truth)
    agree(found, truth, TOLERANCE[torch.float32], least=greatest)


@settings(max_examples=5, deadline=None, derandomize=True)
@given(data=st.data())
@with_kernel
def test_triton_at_any_shape_and_split(m, data):
    """Any sizes; a sequence in two pieces, the second of which may be one step."""
    draw = lambda name, low, high: data.draw(st.integers(low, high), label=name)
    letters = {x: draw(x, 1, 40) for x in sizes(m) if x in "KVNP"} | {"B": draw("B", 1, 2)}
    T, seed = draw("T", 2, 40), draw("seed", 0, 99)
    inputs = m.example(T, seed, **{**sizes(m), **letters})
    wide = [x.to(torch.promote_types(x.dtype, torch.float64)) for x in inputs]
    truth = numbers(m, *m.recurrent(*wide))
    t = draw("split", 1, T - 1)
    cut = lambda a, b: [x[:, a:b] if s.timed else x for x, s in zip(inputs, m.inputs, strict=True)]
    first, S = kernel(m)(*cut(0, t))
    then, after = kernel(m)(*cut(t, T), S=S)
    agree(numbers(m, torch.cat([first, then], 1), after), truth, TOLERANCE[torch.float32])
    token = [x[:, t] if s.timed else x for x, s in zip(inputs, m.inputs, strict=True)]
    agree([m.step(*token, S)[0]], [truth[0][:, t]], TOLERANCE[torch.float32])


@with_kernel
def test_triton_reads_any_strides(m):
    """Heads first, time last, parts of a wider tensor: the same numbers, and nothing is changed."""
    inputs = m.example(20, **sizes(m))
    o, _ = kernel(m)(*inputs)
    turned = [x.movedim(-1, 0).contiguous().movedim(0, -1) for x in inputs]
    wider = [torch.cat([x, x], -1)[..., : x.shape[-1]] for x in inputs]
    for other in (turned, wider):
        before = [x.clone() for x in other]
        assert torch.equal(kernel(m)(*other)[0], o)
        assert all(torch.equal(x, y) for x, y in zip(other, before, strict=True))


@with_kernel
def test_triton_says_what_it_cannot(m):
    with pytest.raises(
        ValueError, match=r"must be float32, float16 or bfloat16, got torch.float64"
    ):
        m.triton(*m.example(5, dtype=torch.float64, **sizes(m)))
    if m is lv.rwkv4:
        return  # no channel of it shares a program's state with another: any number will do
    wide = {"N": 300} if "N" in sizes(m) else {"K": 300}
    with pytest.raises(ValueError, match="holds 256 key and 256 value channels, got 300"):
        m.triton(*m.example(5, **sizes(m, **wide)))


@every
def test_gradients_are_those_of_finite_differences(m):
    inputs = [x.requires_grad_() for x in m.example(3, dtype=torch.float64, **sizes(m, B=1, D=2))]
    assert torch.autograd.gradcheck(lambda *x: m.recurrent(*x)[0], inputs, atol=1e-6)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
@with_forms
def test_any_shape_chunk_and_split(m, data):
    """Any sizes, any chunk; and a sequence fed in two pieces gives what one pass gives."""
    draw = lambda name, low, high: data.draw(st.integers(low, high), label=name)
    letters = sizes(m)
    letters |= {x: draw(x, 1, 6) for x in letters if x not in "HG"} | {"B": draw("B", 1, 3)}
    T, chunk, seed = draw("T", 1, 40), draw("chunk", 1, 50), draw("seed", 0, 99)
    inputs = m.example(T, seed, dtype=torch.float64, **letters)
    truth = numbers(m, *m.recurrent(*inputs))
    agree(numbers(m, *m.chunked(*inputs, chunk=chunk)), truth, TOLERANCE[torch.float64])
    t = draw("split", 0, T)
    parts = [[x[:, a:b] if s.timed else x for x, s in zip(inputs, m.inputs, strict=True)]
             for a, b in ((0, t), (t, T))]  # fmt: skip
    for form in (m.recurrent, m.parallel, m.chunked):
        first, S = form(*parts[0])
        then, S = form(*parts[1], S=S)
        agree(numbers(m, torch.cat([first, then], 1), S), truth, TOLERANCE[torch.float64])


@every
def test_steps_and_fold_are_the_recurrence(m):
    inputs, S = example(m, 17)
    truth = numbers(m, *m.recurrent(*inputs, S=S))
    state, o = S, []
    for t in range(17):
        token = [x[:, t] if s.timed else x for x, s in zip(inputs, m.inputs, strict=True)]
        o_t, state = m.step(*token, state)
        o.append(o_t)
    agree(numbers(m, torch.stack(o, 1), state), truth, TOLERANCE[torch.float64])
    for chunk in (1, 5, 17, 40):
        for name in ("recurrent", "parallel"):
            if name in m.forms:
                folded = lv.fold(getattr(m, name), chunk)(*inputs, S=S)
                agree(numbers(m, *folded), truth, TOLERANCE[torch.float64])


@every
def test_trace_holds_every_state(m):
    inputs, S = example(m, 9)
    o, after = m.recurrent(*inputs, S=S)
    tr = m.trace(*inputs, S=S)
    agree([tr[m.output.name]], [o], 1e-12)
    assert set(tr) >= {x.name for x in (*m.inputs, *m.state, m.output)}
    parts = [after] if isinstance(after, torch.Tensor) else after
    for spec, part in zip(m.state, parts, strict=True):
        seen = tr[spec.name]
        agree([seen if m.cache else seen[:, -1]], [part], 1e-12)
        assert m.cache or seen.shape[1] == 9
    assert all(f"{name} {list(x.shape)}" in repr(tr) for name, x in tr.items())
    with pytest.raises(AttributeError, match="this trace has"):
        tr.nothing  # noqa: B018


@every
def test_a_trace_knows_what_it_came_from(m):
    inputs, S = example(m, 9)
    tr = pickle.loads(pickle.dumps(m.trace(*inputs)))
    assert tr.mechanism is m and tr.start is None and tr.sizes["T"] == 9
    for x, came in zip(tr.inputs, inputs, strict=True):
        assert torch.equal(x, came)
    for name, x in tr.items():
        letters = tr.letters(name).split()
        timed = {"t", "s"} if m.cache else {"t"}
        assert len(letters) == x.ndim and bool(timed & {*letters}) == (9 in x.shape), name
    begun = m.trace(*inputs, S=S)
    for kept, part in zip(begun.start, [S] if isinstance(S, torch.Tensor) else S, strict=True):
        assert torch.equal(kept, part)
    if not m.linear:
        return
    assert torch.equal(tr.attention_map(), m.attention_map(*inputs))
    if len(m.state) == 1:
        assert torch.equal(begun.attention_map(), m.attention_map(*inputs))
    else:
        with pytest.raises(ValueError, match="began from a state"):
            begun.attention_map()


@every
def test_no_tokens_change_nothing(m):
    inputs, S = example(m, 0)
    inputs = [x.requires_grad_() for x in inputs]
    run = [getattr(m, name) for name in m.forms]
    for form in (*run, lv.fold(m.recurrent, 3)):
        o, after = form(*inputs, S=S)
        assert o.shape == m.output.shape({**m.all_sizes(sizes(m), "t"), "T": 0})
        agree(numbers(m, o, after), [o, *numbers(m, o, S)[1:]], 1e-15)
        o.sum().backward()
    assert m.trace(*inputs)[m.output.name].shape == o.shape
    assert len(m.recurrent(*inputs)) == 2


@every
def test_causal(m):
    """No output depends on a later input: exactly, and to 1e-14 where an FFT computes it."""
    wide, S_wide = example(m, 200)
    for name in m.forms:
        narrowed = name == "triton"
        inputs, S = (narrow(*wide), narrow_state(S_wide)) if narrowed else (wide, S_wide)
        inputs = [x.detach().requires_grad_() for x in inputs]
        o, _ = getattr(m, name)(*inputs, S=S)
        timed = [x for x, s in zip(inputs, m.inputs, strict=True) if s.timed]
        found = torch.autograd.grad(
            o[:, :13].sum(), timed, allow_unused=True, materialize_grads=True
        )
        limit = 1e-13 if m.name in ("s4", "h3") and name == "parallel" else 0.0
        assert all(x[:, 13:].abs().max() <= limit for x in found)
        assert any(x[:, :13].abs().max() > 0 for x in found)


# --------------------------------------------------------------------------------- number types


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_types_compute_wide(m, dtype):
    """The output has the values' type, the state is float32, and only the rounding differs."""
    inputs = [x if x.is_complex() else x.to(dtype) for x in m.example(20, **sizes(m))]
    wide = [x if x.is_complex() else x.float() for x in inputs]
    for name in m.forms:
        o, S = getattr(m, name)(*inputs)
        parts = [S] if isinstance(S, torch.Tensor) else S
        assert o.dtype == dtype
        assert all(x.dtype == (dtype if m.cache else m_type(x)) for x in parts)
        exact = getattr(m, name)(*wide)[0]
        if name == "triton":  # it multiplies in the narrow type and adds up in float32
            error = (o.float() - exact).norm() / exact.norm()
            assert error < {torch.float16: 1e-3, torch.bfloat16: 5e-3}[dtype]
        else:
            assert torch.equal(o, exact.to(dtype))


def m_type(x):
    """Float32, or complex numbers of two."""
    return torch.complex64 if x.is_complex() else torch.float32


@every
def test_autocast_is_kept_out(m):
    inputs = m.example(20, **sizes(m))
    plain = m(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        agree(numbers(m, *m(*inputs)), numbers(m, *plain), 1e-15)


# -------------------------------------------------------------------------------------- the cost


class CountOps(TorchDispatchMode):
    """Counts the torch operations that are dispatched."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


def ops(form, m, T, **options):
    """How many operations a form dispatches for T tokens."""
    inputs = m.example(T, **sizes(m))
    with CountOps() as counted, torch.no_grad():
        form(*inputs, **options)
    return counted.count


@with_forms
def test_parallel_form_has_no_loop_over_time(m):
    """The number of operations does not grow with T, or with log T where there are levels."""
    small, large = ops(m.parallel, m, 64), ops(m.parallel, m, 256)
    levels = {"vector_decay", "rank_one", "diagonal_scan"} & {m.recurrence}
    levels = levels or m.name in ("kda", "rwkv4", "s4", "h3")
    # a level of the scan with the largest element, RWKV-4's, is some 90 operations
    assert large <= small + (2 * 90 if levels else 0)
    assert large < ops(m.recurrent, m, 256) or m.name == "rwkv4"


@with_forms
def test_chunked_form_loops_over_chunks_only(m):
    counts = [ops(m.chunked, m, T, chunk=32) for T in (256, 512, 1024)]
    growth = counts[2] - counts[1], counts[1] - counts[0]
    if m.name == "softmax":  # each chunk of queries sees all chunks of keys before it
        assert 3 < growth[0] / growth[1] < 4.5
    else:
        assert growth[0] == 2 * growth[1]  # so much for a chunk, and no more
        assert growth[1] <= 8 * 24  # the most, to hand on the three parts of RWKV-4


class CountAll(FlopCounterMode):
    """Torch's counter, taught that sums, products and exponentials are work too."""

    def __init__(self):
        aten = torch.ops.aten
        costs = {"mul": (1, 6), "add": (1, 2), "sub": (1, 2), "div": (1, 6), "rsub": (1, 2)}
        costs |= {"exp": (1, 1), "sigmoid": (1, 1), "tanh": (1, 1), "maximum": (1, 1)}
        costs |= {"addcmul": (2, 8), "_softmax": (5, 5)}
        mapping = {getattr(aten, name): by_results(*cost) for name, cost in costs.items()}
        super().__init__(display=False, custom_mapping=mapping | {aten.bmm: product})


def by_results(real, complex):
    """So many operations for each number that comes out."""

    def count(*args, out_val, **kwargs):
        return out_val.numel() * (complex if out_val.is_complex() else real)

    count._get_raw = True
    return count


def product(x, y, *args, out_val, **kwargs):
    """A product of matrices: a multiplication and an addition for each pair."""
    return out_val.numel() * x.shape[-1] * (8 if out_val.is_complex() else 2)


product._get_raw = True


@every
def test_table_counts_what_torch_counts(m):
    """FLOPs of one more token of the recurrent form, to 5 % of torch's FlopCounterMode."""
    large = {"T": 64, "H": 2, "K": 64, "V": 64, "N": 16, "P": 64, "G": 1, "D": 64}
    letters = {letter for x in m.inputs for _, letter in x.letters}
    large = {x: n for x, n in large.items() if x in letters}
    inputs, counted = m.example(**large), []
    for T in (64, 63):
        with CountAll() as counter, torch.no_grad():
            m.recurrent(
                *(x[:, :T] if s.timed else x for x, s in zip(inputs, m.inputs, strict=True))
            )
        counted.append(counter.get_total_flops())
    one_more = counted[0] - counted[1]
    assert one_more == pytest.approx(m.flops(m.all_sizes(large, "test")), rel=0.05)


@every
def test_state_size_is_that_of_the_state(m):
    inputs = m.example(7, **sizes(m))
    _, S = m.recurrent(*inputs)
    parts = [S] if isinstance(S, torch.Tensor) else S
    counted = sum(x.numel() * (2 if x.is_complex() else 1) for x in parts) // SIZES["B"]
    assert m.state_size(**{**sizes(m), "T": 7}) == counted


def test_table():
    text, html = repr(lv.table()), lv.table()._repr_html_()
    for m in lv.registry:
        assert m.name in text and f"<td>{m.name}</td>" in html
    assert [row["year"] for row in lv.table().rows] == [m.year for m in lv.registry]
    short = lv.table(T=8, H=1, K=2, V=3).rows
    one = {row["mechanism"]: row["bytes a token"] for row in short}
    # float32: the state read and written, then q, k, v, o and what gates there are
    assert one["retnet"] == 4 * (2 * 6 + 2 + 2 + 3 + 3) and one["gla"] == one["retnet"] + 4 * 2
    assert one["softmax"] == 4 * (8 * (2 + 3) + (2 + 3) + 2 + 2 + 3 + 3)
    assert lv.table(T=0).rows[0]["numbers in the state"] == 0
    assert next(r for r in short if r["mechanism"] == "gla")["numbers in the state"] == 6
    with pytest.raises(ValueError, match="'Q'"):
        lv.table(Q=3)


# ------------------------------------------------------------------------------- the family tree


EDGES = [(m, edge) for m in lv.registry for edge in m.edges]


@pytest.mark.parametrize(
    ("m", "edge"), EDGES, ids=lambda x: getattr(x, "name", getattr(x, "to", ""))
)
def test_reduces_to(m, edge):
    for T, seed in ((1, 0), (12, 1)):
        ours, theirs = edge.outputs(T, seed)
        assert theirs.abs().max() > 1e-3
        agree([ours], [theirs], TOLERANCE[torch.float64])
    assert edge.to in lv.registry.names


def test_tree_is_connected_and_has_no_cycle():
    linked, grown = {"softmax"}, 0
    edges = [(m.name, e.to) for m, e in EDGES]
    while len(linked) > grown:
        grown = len(linked)
        linked |= {x for pair in edges if set(pair) & linked for x in pair}
    assert linked == set(lv.registry.names)
    order = lv.registry.names
    seen = {(a, b) for a, b in edges}
    assert not any((b, a) in seen for a, b in seen)
    assert len(order) == len(set(order)) == 18


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_without_w_a_gated_cell_is_a_diagonal_scan(name):
    """Cut h out of the gates, and the cell of an LSTM or GRU is computed for all times at once."""
    m = lv.registry[name]
    x, W = m.example(50, dtype=torch.float64, B=2, D=6)
    if name == "lstm":
        i, f, _, new = x.chunk(4, -1)
        keep, write = f.sigmoid(), i.sigmoid() * new.tanh()
        cell = m.trace(x, torch.zeros_like(W))["c"]
    else:
        _, z, n = x.chunk(3, -1)
        keep, write = z.sigmoid(), (1 - z.sigmoid()) * n.tanh()
        cell = m.trace(x, torch.zeros_like(W))["h"]
    one = torch.ones(2, 50, 1, dtype=x.dtype)
    rate = -torch.ones(6, 1, dtype=x.dtype)
    for form in (diagonal_scan.recurrent, diagonal_scan.parallel, diagonal_scan.chunked):
        y, _ = form(write, -keep.log(), rate, one, one)
        agree([y], [cell], TOLERANCE[torch.float64])
    other = m.trace(x, W)["c" if name == "lstm" else "h"]
    assert (other - cell).abs().max() > 0.1  # with W it is something else


# --------------------------------------------------------------------------- effective attention


@pytest.mark.parametrize("m", [m for m in lv.registry if m.linear], ids=lambda m: m.name)
def test_attention_map_is_exact(m):
    inputs = m.example(18, dtype=torch.float64, **sizes(m))
    A = m.attention_map(*inputs)
    v = inputs[m.value_index]
    o = m.recurrent(*inputs)[0]
    apply = "bhij,bjhv->bihv" if v.ndim == 4 else "bdij,bjd->bid"
    agree([torch.einsum(apply, A, v)], [o], TOLERANCE[torch.float64])
    assert (A.triu(1).abs() <= (1e-13 if m.name in ("s4", "h3") else 0)).all()
    letter = "heads" if v.ndim == 4 else "channels"
    thin = m.attention_map(*inputs, rows=[3, 17], **{letter: [1]})
    agree([thin], [A[:, [1]][:, :, [3, 17]]], 1e-12)


def test_attention_map_of_softmax_is_softmax():
    q, k, v = lv.softmax.example(12)
    s = torch.einsum("bihk,bjhk->bhij", q, k) / 4
    s = s.masked_fill(torch.ones(12, 12).triu(1).bool(), -torch.inf)
    agree([lv.softmax.attention_map(q, k, v)], [s.softmax(-1)], TOLERANCE[torch.float32])


def test_attention_map_refuses_what_it_cannot_do(monkeypatch):
    with pytest.raises(ValueError, match="not linear in x"):
        lv.lstm.attention_map(*lv.lstm.example(4))
    inputs = lv.gla.example(8)
    with pytest.raises(ValueError, match=r"heads must be whole numbers in \[0, 2\), got \[2\]"):
        lv.gla.attention_map(*inputs, heads=[2])
    with pytest.raises(ValueError, match="one matrix for each of its heads"):
        lv.gla.attention_map(*inputs, channels=[0])
    monkeypatch.setattr("linviz.mechanism.ATTENTION_BYTES", 100)
    with pytest.raises(ValueError, match="keep fewer by rows=, heads="):
        lv.gla.attention_map(*inputs)
    assert lv.gla.attention_map(*inputs, rows=[1], heads=[0]).shape == (1, 1, 1, 8)


@pytest.mark.parametrize("rows", [[True, False], [0.5], "12", 3, slice(0, 2), [8], [-1], [[0]]])
def test_attention_map_keeps_whole_numbers_only(rows):
    inputs = lv.gla.example(8)
    with pytest.raises(ValueError, match=r"rows must be whole numbers in \[0, 8\), got"):
        lv.gla.attention_map(*inputs, rows=rows)
    for good in (range(2), torch.tensor([0, 1]), (0, 1)):
        assert lv.gla.attention_map(*inputs, rows=good).shape[2] == 2


def test_attention_map_starts_from_an_empty_state():
    inputs = lv.gla.example(8)
    with pytest.raises(ValueError, match="S must be left out"):
        lv.gla.attention_map(*inputs, S=lv.gla(*inputs)[1])


def test_attention_map_of_a_map_that_differs_by_head():
    scale = torch.tensor([1.0, 5.0])[:, None]
    options = {"feature_map": lambda x: (x * scale).sigmoid()}
    inputs = lv.linear_attention.example(8)
    whole = lv.linear_attention.attention_map(*inputs, **options)
    thin = lv.linear_attention.attention_map(*inputs, heads=[1, 0], **options)
    agree([thin], [whole[:, [1, 0]]], 1e-12)


def test_feature_map_may_be_learnt():
    inputs = lv.linear_attention.example(40, dtype=torch.float64)
    layer = torch.nn.Sequential(torch.nn.Linear(16, 5), torch.nn.Sigmoid()).double()
    o, (S, z) = lv.linear_attention(*inputs, feature_map=layer)
    assert S.shape[2] == z.shape[2] == 5
    agree([o], [lv.linear_attention.recurrent(*inputs, feature_map=layer)[0]], 1e-10)


def test_attention_map_in_many_batches(monkeypatch):
    for m in (lv.retnet, lv.mamba):
        inputs = m.example(20)
        whole = m.attention_map(*inputs)
        monkeypatch.setattr("linviz.mechanism.WORKING_BYTES", 3000)
        agree([m.attention_map(*inputs)], [whole], TOLERANCE[torch.float32])
        monkeypatch.undo()


# ------------------------------------------------------------------------------------- bad input


@every
def test_bad_inputs_are_named(m):
    good = list(m.example(6, **sizes(m)))
    for n, spec in enumerate(m.inputs):
        x = good[n]
        bad = {
            "axes instead of": x[None],
            "tensor": x.tolist(),
            "got torch.int64": torch.zeros(x.shape, dtype=torch.int64),
        }
        for message, value in bad.items():
            inputs = [*good[:n], value, *good[n + 1 :]]
            for name in m.forms:
                with pytest.raises(
                    ValueError, match=rf"lv\.{m.name}\.{name}: {spec.name} must.*{message}"
                ):
                    getattr(m, name)(*inputs)
    for n, spec in enumerate(m.inputs[1:], 1):  # one size off in the last axis
        wider = torch.cat([good[n], good[n][..., :1]], -1)
        letter = spec.letters[-1][1]
        shared = sum(letter == x for s in (*m.inputs, *m.state) for _, x in set(s.letters)) > 1
        if shared and not (spec.name == m.value and letter in "VP"):
            with pytest.raises(ValueError, match="must be"):
                m.recurrent(*[*good[:n], wider, *good[n + 1 :]])
    with pytest.raises(TypeError, match="missing a required argument"):
        m.recurrent(*good[:-1])
    with pytest.raises(TypeError, match="unexpected keyword argument 'nonsense'"):
        m.recurrent(*good, nonsense=1)
    with pytest.raises(TypeError, match="packed sequences are not there yet"):
        m.recurrent(*good, cu_seqlens=torch.tensor([0, 3, 6]))


@with_forms
@pytest.mark.parametrize("chunk", [0, -1, 2.5, True, None])
def test_bad_chunk(m, chunk):
    inputs = m.example(6, **sizes(m))
    with pytest.raises(ValueError, match="chunk must be a whole number of at least 1"):
        m.chunked(*inputs, chunk=chunk)
    with pytest.raises(ValueError, match="chunk must be a whole number of at least 1"):
        lv.fold(m.parallel, chunk)


@every
def test_bad_state_is_named(m):
    inputs, S = example(m, 6)
    parts = [S] if isinstance(S, torch.Tensor) else list(S)
    name = m.state[0].name
    with pytest.raises(ValueError, match=rf"S: {name} must be a tensor"):
        m.recurrent(*inputs, S=(parts[0][None], *parts[1:]))
    with pytest.raises(ValueError, match=rf"S: {name} must be a tensor.*B=1 here"):
        m.recurrent(*inputs, S=(parts[0][:1], *parts[1:]))
    with pytest.raises(ValueError, match="S must be"):
        m.recurrent(*inputs, S=(*parts, parts[0]))


@every
def test_values_out_of_range(m):
    for n, spec in enumerate(m.inputs):
        for bound, wrong in ((spec.low, -1.0), (spec.high, 1.0)):
            if bound is None:
                continue
            inputs = list(m.example(6, **sizes(m)))
            inputs[n] = inputs[n] + (bound + wrong - inputs[n].real.min())
            for name in m.forms:
                with pytest.raises(ValueError, match=rf"{name}: {spec.name} must lie in"):
                    getattr(m, name)(*inputs)
            with pytest.raises(ValueError, match="must lie in"):
                m.recurrent(*inputs, validate=True)
            m.recurrent(*inputs, validate=False)


@every
def test_nan_passes_the_check_of_values(m):
    inputs = list(m.example(40, **sizes(m)))
    x = inputs[m.value_index] = inputs[m.value_index].clone()
    x[:, 37] = torch.nan
    for name in m.forms:
        o, _ = getattr(m, name)(*inputs, **({"chunk": 8} if name == "chunked" else {}))
        assert o[:, 37].isnan().all()
        if name != "parallel":
            assert torch.isfinite(o[:, :32]).all()


def test_bad_options():
    inputs = lv.retnet.example(6)
    for gamma in (1.5, -0.1, [0.5, 2.0]):
        with pytest.raises(ValueError, match=r"gamma must lie in \[0, 1\]"):
            lv.retnet.recurrent(*inputs, gamma=gamma)
    lv.retnet.recurrent(*inputs, gamma=1.5, validate=False)
    fine = [x.double() for x in inputs]  # a number keeps its digits
    exact = torch.tensor(0.8, dtype=torch.float64)
    assert torch.equal(lv.retnet(*fine, gamma=0.8)[0], lv.retnet(*fine, gamma=exact)[0])
    for gamma in ("a", 0.5j, [0.5, 0.5, 0.5]):
        with pytest.raises(ValueError, match=r"gamma must be a number or \[H\] = \[2\], got"):
            lv.retnet.recurrent(*inputs, gamma=gamma)
    with pytest.raises(ValueError, match="normalize must be True or False"):
        lv.linear_attention.recurrent(*inputs, normalize="no")
    with pytest.raises(ValueError, match="dtype must be floating-point"):
        lv.gla.example(dtype=torch.int64)
    with pytest.raises(ValueError, match="feature_map must be one of elu, relu"):
        lv.linear_attention.recurrent(*inputs, feature_map="cube")
    for eps in (-1.0, "a", None):
        with pytest.raises(ValueError, match="eps must be a number >= 0"):
            lv.linear_attention.recurrent(*inputs, eps=eps)
    with pytest.raises(ValueError, match="'feature_mat' is not one of feature_map, normalize, eps"):
        lv.linear_attention.having(feature_mat="elu")
    with pytest.raises(ValueError, match="discretization must be 'zoh' or 'bilinear'"):
        lv.s4.recurrent(*lv.s4.example(6), discretization="euler")
    with pytest.raises(ValueError, match="G=2 must divide the heads H=3"):
        lv.mamba2.example(6, H=3, G=2)
    with pytest.raises(ValueError, match="'Q' is not one of"):
        lv.gla.example(6, Q=3)
    with pytest.raises(KeyError, match="'glb' is not one of"):
        lv.registry["glb"]


def test_what_is_missing_says_so(monkeypatch):
    for name in ("parallel", "chunked", "triton"):
        with pytest.raises(AttributeError, match=f"lstm has no {name} form: the old state stands"):
            getattr(lv.lstm, name)
    assert not hasattr(lv.rnn, "parallel")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ImportError, match=r"pip install .*triton.*lv\.gla\.chunked computes the same"
    ):
        lv.gla.triton(*lv.gla.example(6))
    monkeypatch.undo()
    if importlib.util.find_spec("triton"):
        with pytest.raises(ValueError, match=r"no Triton kernel yet; lv\.softmax\.chunked comp"):
            lv.softmax.triton(*lv.softmax.example(6))


@every
def test_nothing_in_the_batch(m):
    inputs = m.example(6, **sizes(m, B=0))
    for form in (*(getattr(m, name) for name in m.forms), m):
        o, S = form(*inputs)
        assert o.shape == m.output.shape({**m.all_sizes(sizes(m), "t"), "T": 6, "B": 0})
        assert all(x.shape[0] == 0 for x in ([S] if isinstance(S, torch.Tensor) else S))
    if m.linear:
        assert m.attention_map(*inputs).numel() == 0


@every
def test_shapes_without_numbers(m):
    """On the meta device nothing is computed, but everything has its shape."""
    inputs = [x.to("meta") for x in m.example(6, **sizes(m))]
    o, _ = m(*inputs)
    assert o.is_meta and o.shape == m(*m.example(6, **sizes(m)))[0].shape


@every
def test_pickled_and_back(m):
    assert pickle.loads(pickle.dumps(m)) is m
    form = pickle.loads(pickle.dumps(m.recurrent))
    assert repr(form) == repr(m.recurrent)


def test_options_survive_pickling():
    taylor = lv.linear_attention.having(feature_map="taylor")
    assert pickle.loads(pickle.dumps(taylor)).options == taylor.options


def test_fold_wants_a_state():
    for form in (lambda x: x, lv.gla.step, lv.gla.trace, lv.fold(lv.gla.parallel, 2)):
        with pytest.raises(ValueError, match=r"lv\.fold: form must be a function"):
            lv.fold(form, 2)


def test_early_outputs_do_not_see_late_inputs():
    """In chunks S4 is exactly causal, also in its rounding."""
    u, *system = lv.s4.example(64)
    late = u.clone()
    late[:, 40:] *= 1e8
    for form in (lv.s4.recurrent, lv.s4.chunked):
        assert torch.equal(form(late, *system)[0][:, :40], form(u, *system)[0][:, :40])


def test_real_modes_have_real_parts_only():
    u, dt, A, B, C, D = lv.s4.example(6)
    for form in (lv.s4.recurrent, lv.s4.parallel, lv.s4.chunked):
        with pytest.raises(ValueError, match="with real A, B, C and S must be real"):
            form(u, dt, A.real, B.real, C, D)


# --------------------------------------------------------------------------- examples and words


@every
def test_example_is_valid_and_repeatable(m):
    first, again, other = m.example(9), m.example(9), m.example(9, seed=1)
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
    assert not all(torch.equal(x, y) for x, y in zip(first, other, strict=True))
    assert isinstance(first, tuple) and len(first) == len(m.inputs)
    o, _ = m.recurrent(*m.example(400), validate=True)
    assert o.isfinite().all() and o.abs().max() < 1e3


@every
def test_glossary_has_every_letter_with_its_shape(m):
    rows = {row.letter: row for row in m.glossary}
    for spec in (*m.inputs, *m.state, m.output):
        if not (m.name in ("rnn", "lstm", "gru") and spec.name == "o"):  # h is the output there
            assert rows[spec.name].shape == spec.shape_text
    assert set(rows) >= set(m.options) - {"feature_map", "normalize", "discretization"}


@every
def test_paper_is_named(m):
    words = " ".join(m.doc.split())
    assert m.paper in words and str(m.year) in words
    assert (f"arXiv:{m.arxiv}" in words) if m.arxiv else "arXiv" not in words
    assert "We differ from the paper in" in words
    assert m.equations and [e.number for e in m.equations] == list(range(1, len(m.equations) + 1))
    assert all(e.source and e.latex.count("{") == e.latex.count("}") for e in m.equations)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "linviz").glob("[mr]*s/*.py")), ids=lambda path: path.stem
)
def test_every_number_cited_is_an_equation(path):
    """A "(3)" in a comment or docstring of a room is an equation of that room."""
    text = path.read_text()
    known = {str(e.number) for e in read_equations(text.split('"""')[1])}
    cited = set(re.findall(r"(?<![\w^\]|}])\((\d)\)", text))
    assert cited <= known


def test_registry_and_repr():
    assert lv.registry["gla"] is lv.gla is lv.registry[lv.registry.names.index("gla")]
    assert repr(lv.retnet) == (
        "lv.retnet(q, k, v, gamma=None) with state S [B, H, K, V]: "
        "recurrent parallel chunked triton"
    )
    assert repr(lv.gla.chunked) == "lv.gla.chunked(q, k, v, g, S=None, *, chunk=64, validate=None)"
    assert "$$S_t" in lv.retnet._repr_markdown_()
    assert lv.gla.recurrent.__doc__.startswith("Gated linear attention. A loop over time")


def test_check(capsys):
    x = torch.arange(6.0).reshape(2, 3)
    lv.check(x, x + 1e-7, "forms")
    assert capsys.readouterr().out == "forms: error 2e-08 (at most 1e-05)\n"
    lv.check((x, (x, x)), [x, [x, x]])
    with pytest.raises(AssertionError, match=r"at \[1, 0\]: 3 and 4"):
        lv.check(x, torch.tensor([[0.0, 1, 2], [4, 4, 5]]))
    with pytest.raises(AssertionError, match="shapes differ"):
        lv.check(x, x[0])
    with pytest.raises(AssertionError):
        lv.check(x, x * torch.nan)
    with pytest.raises(AssertionError):
        lv.check(x.double(), x.double() + 1e-6)
    inf = torch.tensor([1.0, torch.inf])
    lv.check(inf, inf)
    for wrong in (torch.tensor([5.0, torch.inf]), torch.tensor([1.0, -torch.inf]), x[0, :2]):
        with pytest.raises(AssertionError):
            lv.check(wrong, inf)
    with pytest.raises(AssertionError, match="error"):
        lv.check(torch.ones(1), torch.tensor([1 + 5j]), tolerance=0.5)
    with pytest.raises(AssertionError):  # each pair by its own type
        lv.check((x.bfloat16(), x * 1.02), (x.bfloat16(), x))
