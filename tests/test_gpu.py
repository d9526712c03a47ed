"""The kernels as a GPU compiles them: every configuration, against float64 on the same numbers.

Configurations are miscompiled one by one, so each is tested, not the fastest. Without a GPU all is
skipped; LINVIZ_GPU_TESTS_ON=cpu runs the same checks in Triton's interpreter, with fewer tokens.
"""

import os
from functools import partial

import pytest
import torch

import linviz as lv
from linviz import recurrences

DEVICE = os.environ.get("LINVIZ_GPU_TESTS_ON", "cuda")
ON_GPU = DEVICE == "cuda"
if ON_GPU and not torch.cuda.is_available():
    reason = "NO GPU: LINVIZ_GPU_TESTS_ON=cpu runs these tests in Triton's interpreter"
    pytest.skip(reason, allow_module_level=True)
pytest.importorskip("triton", reason="NO TRITON")

from linviz.kernels import (  # noqa: E402
    decode,
    delta_rule,
    diagonal_scan,
    launch,
    rwkv7,
    scalar_decay,
    vector_decay,
    wkv4,
)

needs_gpu = pytest.mark.skipif(not ON_GPU, reason="there is nothing of it in the interpreter")

T = 190 if ON_GPU else 75  # not a multiple of any chunk
SEGMENTS = [1, 3] if ON_GPU else [1, 2]
LONG = 32_768 if ON_GPU else 600
B, H = (2, 3) if ON_GPU else (1, 2)
HALVES = [torch.bfloat16, torch.float16] if ON_GPU else [torch.float16]
GATES = [0.0, -1e-4, -1.0, -20.0, -1e4, "mixed"]
LIMITS = {  # relative RMS error of outputs, of gradients, of gradients for gates
    torch.float32: (1e-5, 1e-5, 1e-5),
    torch.float16: (5e-3, 8e-3, 2e-2),
    torch.bfloat16: (5e-3, 8e-3, 2e-2),
}


# ---------------------------------------------------------------------------------- what is tested


def scalar(K, V, kind, *, gate="data", T=T, B=B, H=H):
    """Inputs of scalar_decay, by name; a gate of "none", one a head ("fixed") or "data"."""
    q, k, v = lv.retnet.example(T, B=B, H=H, K=K, V=V, dtype=torch.float64)
    g = {"none": None, "fixed": -torch.logspace(-3, -1, H, dtype=torch.float64)}.get(gate)
    if gate == "data":
        g = lv.gla.example(T, B=B, H=H, K=1, V=1, dtype=torch.float64)[3][..., 0]
    return inputs(kind, {"q": q, "k": k, "v": v}, {"g": g})


def vector(K, V, kind, *, bonus=False, T=T, B=B, H=H):
    """Inputs of vector_decay, by name."""
    q, k, v, g = lv.gla.example(T, B=B, H=H, K=K, V=V, dtype=torch.float64)
    u = lv.rwkv6.example(1, H=H, K=K, V=1, dtype=torch.float64)[4] if bonus else None
    return inputs(kind, {"q": q, "k": k, "v": v, "g": g}, {"u": u})


def delta(K, V, kind, *, gate="scalar", T=T, B=B, H=H):
    """Inputs of delta_rule, by name; a gate of "none", one a head ("scalar") or "vector"."""
    q, k, v, beta, g = lv.kda.example(T, B=B, H=H, K=K, V=V, dtype=torch.float64)
    narrow = {"q": q, "k": k, "v": v} | ({"g": g} if gate == "vector" else {})
    wide = {"scalar": {"g": g[..., 0]}, "none": {"g": None}}.get(gate, {})
    return inputs(kind, narrow, {"beta": 2 * beta} | wide)


def inputs(kind, narrow, wide):
    """Inputs on the device: some in `kind`, those that are always wide in float32; and a state."""
    q, v = narrow["q"], narrow["v"]
    rng = torch.Generator().manual_seed(1)
    wide["S"] = torch.randn(*q.shape[::2], q.shape[3], v.shape[3], generator=rng)
    narrow = {name: x.to(DEVICE, kind) for name, x in narrow.items()}
    return narrow | {n: x if x is None else x.to(DEVICE, torch.float32) for n, x in wide.items()}


def rank_one(K, V, kind, *, T=T):
    """Inputs of rank_one, by name."""
    names = lv.rwkv7.example(T, B=B, H=H, K=K, V=V, dtype=torch.float64)
    named = dict(zip("qwkvab", names, strict=True))
    return inputs(kind, named, {"w": named.pop("w")})


def averages(w, u, k, v, S, run=wkv4.chunked, **how):
    """RWKV-4 with a state in one piece; its exponent is chosen, not computed."""
    o, S = run(w, u, k, v, S=tuple(S), **how)
    return o, torch.stack(S[:2])


def whole_mamba(u, dt, A, B, C, S, D, z, chunk):
    """Mamba's scan with its softplus, skip and gate."""
    dt = torch.nn.functional.softplus(dt)
    o, S = recurrences.diagonal_scan.chunked(dt * u, dt, A, B, C, S, chunk=chunk)
    return (o + D * u) * torch.nn.functional.silu(z), S


ROOMS = {
    "rank_one": (rwkv7.chunked, recurrences.rank_one.chunked),
    "rwkv4": (averages, partial(averages, run=lv.rwkv4.chunked)),
    "scalar_decay": (scalar_decay.chunked, recurrences.scalar_decay.chunked),
    "vector_decay": (vector_decay.chunked, recurrences.vector_decay.chunked),
    "delta_rule": (delta_rule.chunked, recurrences.delta_rule.chunked),
    "diagonal_scan": (diagonal_scan.chunked, recurrences.diagonal_scan.chunked),
    "convolution": (diagonal_scan.fixed, recurrences.convolution.chunked),
    "mamba": (partial(diagonal_scan.chunked, softplus=True), whole_mamba),
}


def both_passes(run, given):
    """Outputs o and S, and the gradient of each input, by name, for random gradients of o and S."""
    leaves = {n: x.detach().requires_grad_() for n, x in given.items() if x is not None}
    o, S = run(**{**given, **leaves})
    rng = torch.Generator().manual_seed(2)
    do, dS = (torch.randn(x.shape, generator=rng) for x in (o, S))
    kind = given["v" if "v" in given else "u"].dtype
    do = do.to(kind if o.dtype != torch.float64 else torch.float32)
    pair = [x.to(o.device, y.dtype) for x, y in ((do, o), (dS, S))]
    gradients = torch.autograd.grad([o, S], list(leaves.values()), pair)
    return {"o": o, "S": S} | {f"d{n}": x for n, x in zip(leaves, gradients, strict=True)}


def poison(monkeypatch):
    """Have everything that is allocated without a value hold NaN."""
    for owner, name in ((torch.Tensor, "new_empty"), (torch, "empty_like"), (torch, "empty")):
        original = getattr(owner, name)
        filled = lambda *a, original=original, **k: original(*a, **k).fill_(torch.nan)
        monkeypatch.setattr(owner, name, filled)


def rms(x):
    """The root of the mean square."""
    return x.square().mean().sqrt().item()


def compare(found, wanted, given, kind):
    """Each result against float64, within LIMITS, as a part of its RMS.

    The gradient of a gate adds up k dk over time, and where nothing gets through the gate the terms
    cancel: it cannot be more exact than they are. What is too small for float16 may be lost.
    """
    for name, x in found.items():
        y = wanted[name]
        if x.is_complex():
            x, y = torch.view_as_real(x), torch.view_as_real(y)
        assert x.shape == y.shape and x.isfinite().all() and y.isfinite().all(), name
        scale = max(rms(y), torch.finfo(kind).tiny)
        if name == "dg" or (name == "dw" and "a" in given):  # the gates of rank_one
            terms = given["k"].double() * wanted["dk"]
            scale = max(scale, rms(terms if y.shape == terms.shape else terms.sum(-1)))
        difference = rms(x.double() - y)
        error = difference / scale if difference else 0.0
        print(f"{name} {error:.1e}", end="  ")
        assert error <= LIMITS[kind][0 if name in "oS" else 2 if name in ("dg", "dw") else 1], name


def doubled(x):
    """Float64, or the complex numbers of two."""
    return torch.promote_types(x.dtype, torch.float64)


def agree(room, given, kind, monkeypatch=None, **options):
    """Run the kernel, twice where memory is poisoned, and compare with float64."""
    kernel, exact = ROOMS[room]
    wide = {n: x if x is None else x.to(doubled(x)) for n, x in given.items()}
    wanted = both_passes(partial(exact, chunk=16), wide)
    run = partial(kernel, **options)
    if "segments" in options:
        for module in (launch, scalar_decay, vector_decay):
            monkeypatch.setattr(module, "KEEP", 64)  # a segment is no shorter
    if monkeypatch:
        with monkeypatch.context() as m:
            poison(m)
            found, again = both_passes(run, given), both_passes(run, given)
        for name, x in found.items():
            assert torch.equal(x, again[name]), f"{name} is not the same twice"
    else:
        found = both_passes(run, given)
    compare(found, wanted, given, kind)


# ---------------------------------------------------------------------------- every configuration


def each(table):
    """Every configuration of a table with every type that it is for."""
    kinds = {16: HALVES, 32: [torch.float32]}
    return [
        pytest.param(n, c, kind, id=f"{n}-{str(kind).removeprefix('torch.')}")
        for n, c in enumerate(table)
        for kind in kinds[c.bits]
    ]


def only(monkeypatch, module, table, config):
    """Leave one configuration in a table, for any width."""
    if launch.target(torch.device(DEVICE)) not in config.targets:
        pytest.skip(f"not for this GPU but for {config.targets}")
    monkeypatch.setattr(module, table, (config._replace(most=launch.CHANNELS),))


WIDTHS = pytest.mark.parametrize("whole", [True, False], ids=["whole", "ragged"])


def widths(config, whole):
    """Channels of the axis that is not cut, and of the one that is: full, or no powers of two."""
    most = min(config.most, launch.CHANNELS if ON_GPU else 64)
    return (most, config.tile) if whole else (most - 7, config.tile + 5)


@WIDTHS
@pytest.mark.parametrize("gate", ["none", "fixed", "data"])
@pytest.mark.parametrize("segments", SEGMENTS)
@pytest.mark.parametrize("n, config, kind", each(scalar_decay.CONFIGS))
def test_configurations_of_scalar_decay(monkeypatch, n, config, kind, segments, gate, whole):
    only(monkeypatch, scalar_decay, "CONFIGS", config)
    K, V = widths(config, whole)
    # the backward pass cuts K and holds V
    V = min(V, config.most)
    agree("scalar_decay", scalar(K, V, kind, gate=gate), kind, monkeypatch, segments=segments)


@WIDTHS
@pytest.mark.parametrize("bonus", [False, True], ids=["gla", "rwkv6"])
@pytest.mark.parametrize("segments", SEGMENTS)
@pytest.mark.parametrize("n, config, kind", each(vector_decay.SCORES))
def test_configurations_of_gated_scores(monkeypatch, n, config, kind, segments, bonus, whole):
    only(monkeypatch, vector_decay, "SCORES", config)
    K, V = widths(config, whole)
    agree("vector_decay", vector(K, V, kind, bonus=bonus), kind, monkeypatch, segments=segments)


@WIDTHS
@pytest.mark.parametrize("bonus", [False, True], ids=["gla", "rwkv6"])
@pytest.mark.parametrize("segments", SEGMENTS)
@pytest.mark.parametrize("n, config, kind", each(vector_decay.VALUES))
def test_configurations_of_gated_values(monkeypatch, n, config, kind, segments, bonus, whole):
    only(monkeypatch, vector_decay, "VALUES", config)
    V, K = widths(config, whole)
    agree("vector_decay", vector(K, V, kind, bonus=bonus), kind, monkeypatch, segments=segments)


@WIDTHS
@pytest.mark.parametrize(
    "table, config",
    [(table, config) for table in ("SWEEPS", "CHUNKS") for config in getattr(rwkv7, table)],
    ids=str,
)
def test_configurations_of_rank_one(monkeypatch, table, config, whole):
    kind = HALVES[0] if config.bits == 16 else torch.float32
    only(monkeypatch, rwkv7, table, config)
    K, V = widths(config, whole)
    agree("rank_one", rank_one(K, V, kind), kind, monkeypatch)


@pytest.mark.parametrize("segments", SEGMENTS)
@pytest.mark.parametrize("n, config, kind", each(wkv4.CONFIGS))
def test_configurations_of_rwkv4(monkeypatch, n, config, kind, segments):
    only(monkeypatch, wkv4, "CONFIGS", config)
    w, u, k, v = (x.to(DEVICE) for x in lv.rwkv4.example(T, B=B, D=config.tile + 5))
    S = torch.rand(3, *k.shape[::2], generator=torch.Generator()).to(DEVICE) + 0.5
    given = {"w": w, "u": u, "k": k.to(kind), "v": v.to(kind), "S": S}
    agree("rwkv4", given, kind, monkeypatch, segments=segments)


DELTA = [
    pytest.param(table, gate, *each_config.values, id=f"{table}-{gate}-{each_config.id}")
    for table in ("SWEEPS", "VALUES", "GATED_SWEEPS", "GATED_VALUES")
    for gate in (["vector"] if "GATED" in table else ["none", "scalar"])
    for each_config in each(getattr(delta_rule, table))
]


@WIDTHS
@pytest.mark.parametrize("table, gate, n, config, kind", DELTA)
def test_configurations_of_delta_rule(monkeypatch, table, gate, n, config, kind, whole):
    only(monkeypatch, delta_rule, table, config)
    most, tile = widths(config, whole)
    K, V = (tile, most) if "VALUES" in table else (most, tile)
    agree("delta_rule", delta(K, V, kind, gate=gate), kind, monkeypatch)


def diagonal(room, numbers, kind):
    """Inputs of a scan by name; so many numbers a channel, or half as many complex modes."""
    rng = torch.Generator()
    sizes = {"B": B, "D": 41, "dtype": torch.float64}
    if room == "convolution":
        u, dt, A, b, C, _ = lv.s4.example(T, N=numbers // 2, **sizes)
        named = {"u": u, "a": (dt[:, None] * A).exp(), "b": dt[:, None] * b, "C": C}
        named["S"] = torch.randn(B, *A.shape, dtype=A.dtype, generator=rng)
    else:
        *inputs, D = lv.mamba.example(T, N=numbers, **sizes)
        named = dict(zip(["u", "dt", "A", "B", "C"], inputs, strict=True))
        named["S"] = torch.randn(B, *named["A"].shape, generator=rng)
        if room == "mamba":  # dt comes before its softplus
            z = torch.randn(named["u"].shape, generator=rng)
            named |= {"dt": named["dt"].expm1().log(), "D": D, "z": z}
    narrow = lambda n: kind if n in ("u", "B", "C", "z") else torch.float32
    its = lambda n, x: torch.complex64 if x.is_complex() else narrow(n)
    return {n: x.to(DEVICE, its(n, x)) for n, x in named.items()}


@pytest.mark.parametrize("room", ["diagonal_scan", "mamba", "convolution"])
@pytest.mark.parametrize("segments", SEGMENTS)
@pytest.mark.parametrize("kind", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("config", diagonal_scan.CONFIGS, ids=str)
def test_configurations_of_diagonal_scan(monkeypatch, config, kind, segments, room):
    """States that fill the configuration, and two fewer."""
    monkeypatch.setattr(diagonal_scan, "CONFIGS", (config,))
    for numbers in (config.most, config.most - 2):
        agree(room, diagonal(room, numbers, kind), kind, monkeypatch, segments=segments)


# ------------------------------------------------------------------------- what is chosen by itself


@pytest.mark.parametrize("kind", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("K, V", [(16, 16), (1, 40), (100, 3), (128, 256) if ON_GPU else (65, 70)])
def test_the_configuration_that_is_chosen(K, V, kind):
    agree("scalar_decay", scalar(K, V, kind), kind)
    agree("vector_decay", vector(K, V, kind), kind)


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 64, 65])
def test_short_sequences(length):
    agree("scalar_decay", scalar(16, 16, torch.float32, T=length), torch.float32)
    for bonus in (False, True):
        given = vector(16, 16, torch.float32, T=length, bonus=bonus)
        agree("vector_decay", given, torch.float32)


@pytest.mark.parametrize("room, make", [("scalar_decay", scalar), ("vector_decay", vector)])
def test_any_strides(room, make):
    given = make(20, 24, torch.float32)
    packed = torch.cat([given[x] for x in "qkv"], -1)  # one projection that is split
    q, k, v = packed.split([20, 20, 24], -1)
    assert not q.is_contiguous()
    agree(room, given | {"q": q, "k": k, "v": v}, torch.float32)
    heads_first = [given[x].transpose(1, 2).contiguous().transpose(1, 2) for x in "qkv"]
    agree(room, given | dict(zip("qkv", heads_first, strict=True)), torch.float32)
    channels_first = [given[x].mT.contiguous().mT for x in "qkv"]
    agree(room, given | dict(zip("qkv", channels_first, strict=True)), torch.float32)
    g = given["g"][:, :1].expand(given["g"].shape)  # one gate for all tokens, held once
    agree(room, given | {"g": g}, torch.float32)
    one = given["k"][:, :, :1].expand(given["k"].shape)  # a key for all heads
    agree(room, given | {"k": one}, torch.float32)


# ------------------------------------------------------------------------------------- gate stress


def stressed(given, gate):
    """The inputs with all gates at a level, or one level in ten tokens, heads and channels each."""
    g = given["g"]
    if gate != "mixed":
        return given | {"g": torch.full_like(g, gate)}
    levels = torch.tensor([0.0, -1e-4, -1.0, -20.0, -1e4]).to(g)
    which = torch.randint(len(levels), g.shape, generator=torch.Generator().manual_seed(3))
    return given | {"g": levels[which.to(g.device)]}


STRESS = [
    pytest.param("scalar_decay", scalar, id="scalar"),
    pytest.param("vector_decay", vector, id="vector"),
    pytest.param("vector_decay", partial(vector, bonus=True), id="bonus"),
]


@pytest.mark.parametrize("kind", [torch.float32, HALVES[0]], ids=str)
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("room, make", STRESS)
def test_gates_of_all_sizes(room, make, gate, kind):
    agree(room, stressed(make(16, 16, kind), gate), kind, segments=SEGMENTS[1])


@pytest.mark.parametrize("kind", [torch.float32, HALVES[0]], ids=str)
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("its", ["scalar", "vector"])
def test_gates_of_all_sizes_in_delta_rule(its, gate, kind):
    agree("delta_rule", stressed(delta(16, 16, kind, gate=its), gate), kind)


@pytest.mark.parametrize("its", ["none", "scalar", "vector"])
def test_a_long_sequence_in_delta_rule(its):
    given = delta(32, 32, HALVES[0], gate=its, T=LONG, B=1, H=1)
    agree("delta_rule", given, HALVES[0])


@pytest.mark.parametrize("gate", [-1e-4, "mixed"])
@pytest.mark.parametrize("room, make", STRESS)
def test_a_long_sequence(room, make, gate):
    given = stressed(make(32, 32, HALVES[0], T=LONG, B=1, H=1), gate)
    agree(room, given, HALVES[0])


# --------------------------------------------------------------------------- as people will call it

KERNELS = [m for m in lv.registry if m.kernel]
with_kernels = pytest.mark.parametrize("m", KERNELS, ids=lambda m: m.name)


def example(m, T, **more):
    """Inputs on the device."""
    return m.example(T, device=DEVICE, **more)


@with_kernels
def test_prefill_by_the_kernel_then_steps(m):
    inputs = example(m, 40)
    timed = [x.timed for x in m.inputs]
    at = lambda part: [x[:, part] if t else x for x, t in zip(inputs, timed, strict=True)]
    _, S = m.triton(*at(slice(0, 37)))
    o = []
    for t in range(37, 40):
        o_t, S = m.step(*at(t), S=S)
        o.append(o_t)
    once, S_once = m.triton(*inputs)
    lv.check(torch.stack(o, 1), once[:, 37:])
    lv.check(S, S_once)


@with_kernels
@pytest.mark.filterwarnings("ignore")  # of the compiler
def test_compiled(m):
    call = m if ON_GPU else m.triton

    def layer(*inputs):
        o, _ = call(*(2 * x for x in inputs))
        return o.tanh()

    inputs = example(m, 40)
    compiled = torch.compile(layer, backend="inductor" if ON_GPU else "eager")
    lv.check(compiled(*inputs), layer(*inputs))


REFUSED = [(m, reason) for m in KERNELS for reason in ("float64", "K=300")]
REFUSED.remove((lv.rwkv4, "K=300"))  # no number of channels is too much


@pytest.mark.parametrize("m, reason", REFUSED, ids=lambda x: getattr(x, "name", x))
def test_what_the_kernel_refuses_goes_to_chunks(m, reason):
    letters = {letter for x in m.inputs for _, letter in x.letters}
    wide = {"N" if "N" in letters else "K": 300}
    more = {"dtype": torch.float64} if reason == "float64" else wide
    inputs = example(m, 20, **more)
    with pytest.raises(launch.Unsupported, match=r"float32|256"):
        m.triton(*inputs)
    for x, y in zip(m(*inputs), m.chunked(*inputs), strict=True):
        lv.check(x, y, tolerance=0.0)


@needs_gpu
@with_kernels
def test_the_best_form_on_a_gpu_is_the_kernel(m):
    inputs = example(m, 40)
    lv.check(m(*inputs), m.triton(*inputs), tolerance=0.0)


@needs_gpu
@with_kernels
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_cuda_graph(m, backward):
    inputs = [x.requires_grad_(backward) for x in example(m, 300)]

    def run():
        o, _ = m.triton(*inputs)
        return (o, *torch.autograd.grad(o.sum(), inputs)) if backward else (o,)

    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        run()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        held = run()
    fresh = m.example(300, seed=5, device=DEVICE)
    with torch.no_grad():
        for x, y in zip(inputs, fresh, strict=True):
            x.copy_(y)
    graph.replay()
    for x, y in zip(held, run(), strict=True):
        assert torch.equal(x, y)


@needs_gpu
def test_a_capture_without_a_warm_up_chooses_nothing(monkeypatch):
    monkeypatch.setattr(launch, "CHOSEN", {})
    q, k, v, g = lv.gla.example(64, K=128, V=128, device=DEVICE, dtype=torch.bfloat16)
    vector_decay.chunked(q, k, v, g)  # compiled, and chosen
    launch.CHOSEN.clear()
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        vector_decay.chunked(q, k, v, g)
    assert launch.CHOSEN == {}


# ---------------------------------------------------------------------------------------- decoding

DECODERS = pytest.mark.parametrize("m", [m for m in lv.registry if m.decode], ids=lambda m: m.name)


@DECODERS
@pytest.mark.parametrize("kind", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("n", [16, 64, 100, 128, 256] if ON_GPU else [20])
def test_every_width_of_a_step(m, n, kind):
    letters = {letter for x in m.inputs for _, letter in x.letters}
    V = min(n + 5, 250)
    wanted = {"B": 2, "H": 3, "K": n, "V": V, "N": n, "P": V, "D": 300, "G": 1}
    sizes = {x: size for x, size in wanted.items() if x in letters}
    given = example(m, 5, dtype=kind, **sizes)
    _, S = m.recurrent(*given)
    options = m.settled(dict(m.options), m.sizes(given, S, m.options, ""), given, False)
    o, after = m.function("decode")(*given, S=S, **options)
    truth, S_truth = m.recurrent(*(x.double() for x in given), S=S)
    states = [(after, S_truth)] if isinstance(S, torch.Tensor) else zip(after, S_truth, strict=True)
    for x, y in ((o, truth), *states):
        assert rms(x.double() - y) <= LIMITS[kind][0] * rms(y)


@needs_gpu
@DECODERS
def test_a_step_on_a_gpu_is_the_kernel(m, monkeypatch):
    given = example(m, 1)
    token = [x[:, 0] if spec.timed else x for x, spec in zip(given, m.inputs, strict=True)]
    wanted = m.recurrent(*given)
    monkeypatch.setitem(m.functions, "recurrent", None)
    o, S = m.step(*token)
    lv.check(o, wanted[0][:, 0])
    lv.check(S, wanted[1])


@needs_gpu
def test_steps_in_a_cuda_graph():
    """Captured once, in place; tokens and slots change between replays."""
    q, k, v, g = lv.gla.example(1, B=3, K=128, V=128, device=DEVICE)
    pool, o = torch.randn(5, *q.shape[2:], 128, device=DEVICE), torch.empty_like(v)
    slots = torch.tensor([3, -1, 0], device=DEVICE)
    run = lambda pool, out: decode.vector_decay(q, k, v, g, pool, slots=slots, out=(out, None))
    run(pool.clone(), o)  # compiled
    graph, captured = torch.cuda.CUDAGraph(), pool.clone()
    with torch.cuda.graph(graph):
        run(captured, o)
    captured.copy_(pool)
    for t in range(3):
        for x, y in zip((q, k, v, g), lv.gla.example(1, t, B=3, K=128, V=128), strict=True):
            x.copy_(y)
        slots.copy_(torch.tensor([[3, -1, 0], [1, 0, 3], [-1, -1, 4]][t]))
        graph.replay()
        wanted, _ = run(pool, None)
        assert torch.equal(o, wanted) and torch.equal(captured, pool)
