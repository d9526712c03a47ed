"""Every mechanism against a loop written from its paper's equations, in plain numpy and float64.

The loops know nothing of the library: one head (or channel) of one sequence at a time, each sum as
the paper prints it.
"""

import math
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType

import numpy as np
import pytest
import scipy.linalg
import scipy.signal
import torch
from torch.nn import functional

import linviz as lv
from linviz.mechanisms import s4 as s4_room

TOLERANCE = 1e-10  # of each number, and of 1
CHUNK = 16
SIZES = MappingProxyType({"b": 2, "h": 4, "k": 5, "v": 3, "n": 6, "p": 3, "g": 2, "d": 3})
GATES = (0.0, -1e-4, -20.0, -1e4, -np.inf)
GAMMA = np.array([1.0, 0.96875, 0.3, 0.0])  # of RetNet's heads


def same(ours, theirs, what=""):
    """Equal to TOLERANCE, with no NaN."""
    x, y = (a.detach().numpy() if isinstance(a, torch.Tensor) else a for a in (ours, theirs))
    np.testing.assert_allclose(x, y, TOLERANCE, TOLERANCE, equal_nan=False, err_msg=what)


# --- definitions: loops over time, and sums over the past ----------------------------------------


@dataclass(frozen=True)
class Definition:
    """A loop for one head or channel, and the axes of what goes in and comes out."""

    name: str
    one: object  # (inputs..., *state) -> (o, *state)
    over: str  # axes that the loop does not see
    inputs: dict
    output: str
    state: dict
    options: dict = field(default_factory=dict)

    @property
    def mechanism(self):
        return getattr(lv, self.name)

    def __call__(self, inputs, state=None):
        """All heads or channels of all sequences: the output, and the state as a tuple."""
        sizes = axis_sizes(self.inputs, inputs)
        parts, slots = [], list(np.ndindex(*(sizes[c] for c in self.over)))
        for slot in slots:
            at = dict(zip(self.over, slot, strict=True))
            if "g" in sizes:
                at["g"] = at["h"] * sizes["g"] // sizes["h"]  # neighbouring heads share a group
            xs = [pick(x, axes, at) for x, axes in zip(inputs, self.inputs.values(), strict=True)]
            if state is not None:
                xs += [
                    pick(x, axes, at) for x, axes in zip(state, self.state.values(), strict=True)
                ]
            per_head = {n: x[at["h"]] for n, x in self.options.items() if isinstance(x, np.ndarray)}
            parts.append(self.one(*xs, **self.options | per_head))
        shape = tuple(sizes[c] for c in self.over)
        wholes = [np.reshape(p, shape + np.shape(p[0])) for p in zip(*parts, strict=True)]
        axes = [self.output, *self.state.values()]
        wholes = [restore(x, self.over, a) for x, a in zip(wholes, axes, strict=True)]
        return wholes[0], tuple(wholes[1:])


def axis_sizes(spec, arrays):
    """The size of each letter."""
    pairs = zip(spec.values(), arrays, strict=True)
    return {c: n for axes, x in pairs for c, n in zip(axes, x.shape, strict=True)}


def pick(x, axes, at):
    """The part of x at an index of some of its axes."""
    return x[tuple(at.get(c, slice(None)) for c in axes)]


def restore(x, over, axes):
    """Axes "b h" + what is left, put in the order `axes`."""
    now = over + "".join(c for c in axes if c not in over)
    return np.einsum(f"{now}->{axes}", x)


DEFINITIONS = {}


def definition(name, text, over, case="", **options):
    """Register a loop: `text` reads "q:bthk k:bthk -> o:bthv S:bhkv"."""
    inputs, out = (dict(p.split(":") for p in part.split()) for part in text.split("->"))
    output = out.pop(next(iter(out)))

    def keep(one):
        DEFINITIONS[case or name] = Definition(name, one, over, inputs, output, out, options)
        return one

    return keep


def matrix(S, k, v):
    """The state that came in, or zero."""
    return np.zeros((k.shape[-1], v.shape[-1])) if S is None else S


@definition("softmax", "q:bthk k:bthk v:bthv -> o:bthv k_cache:bshk v_cache:bshv", "bh")
def softmax(q, k, v, k_cache=None, v_cache=None):
    seen = 0 if k_cache is None else len(k_cache)
    k = k if k_cache is None else np.concatenate([k_cache, k])
    v = v if v_cache is None else np.concatenate([v_cache, v])
    o = np.zeros((len(q), v.shape[1]))
    for i in range(len(q)):
        s = np.array([q[i] @ k[j] / np.sqrt(len(q[i])) for j in range(seen + i + 1)])
        weights = np.exp(s - s.max())
        o[i] = sum(w * v[j] for j, w in enumerate(weights)) / sum(weights)
    return o, k, v


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@definition("rnn", "x:btd W:de -> o:btd h:bd", "b")
def rnn(x, W, h=0.0):
    h, o = h + np.zeros(len(W)), []
    for x_t in x:
        h = np.tanh(x_t + h @ W)
        o.append(h)
    return np.array(o), h


@definition("lstm", "x:btf W:df -> o:btd h:bd c:bd", "b")
def lstm(x, W, h=0.0, c=0.0):
    h, o = h + np.zeros(len(W)), []
    for x_t in x:
        i, f, out, new = np.split(x_t + h @ W, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(new)
        h = sigmoid(out) * np.tanh(c)
        o.append(h)
    return np.array(o), h, c


@definition("gru", "x:btf W:df -> o:btd h:bd", "b")
def gru(x, W, h=0.0):
    h, o = h + np.zeros(len(W)), []
    W_r, W_z, W_n = np.split(W, 3, axis=1)
    for x_t in x:
        x_r, x_z, x_n = np.split(x_t, 3)
        r, z = sigmoid(x_r + h @ W_r), sigmoid(x_z + h @ W_z)
        h = z * h + (1 - z) * np.tanh(x_n + r * (h @ W_n))
        o.append(h)
    return np.array(o), h


def exponentials(x):
    return np.exp(x) / np.exp(x).sum()


FEATURES = {
    "elu": lambda x: np.array([c + 1 if c > 0 else np.exp(c) for c in x]),
    "relu": lambda x: np.array([max(c, 0.0) for c in x]),
    "identity": lambda x: x,
    "exp": np.exp,
    "hedgehog": lambda x: np.concatenate([exponentials(x), exponentials(-x)]),
    "taylor": lambda x: np.array(
        [1.0, *(x / len(x) ** 0.25), *(a * b / np.sqrt(2 * len(x)) for a in x for b in x)]
    ),
}


def linear_attention(q, k, v, S=None, z=None, *, feature_map, normalize=True, eps=0.0):
    phi_q, phi_k = (np.array([FEATURES[feature_map](x) for x in xs]) for xs in (q, k))
    S, z = (matrix(S, phi_k, v), np.zeros(phi_k.shape[1])) if S is None else (S, z)
    o = np.zeros(v.shape)
    for i in range(len(q)):
        weights = [phi_q[i] @ phi_k[j] for j in range(i + 1)]
        o[i] = sum(w * v[j] for j, w in enumerate(weights)) + phi_q[i] @ S
        if normalize:
            o[i] /= sum(weights) + phi_q[i] @ z + eps
    return o, S + sum(np.outer(x, y) for x, y in zip(phi_k, v, strict=True)), z + sum(phi_k)


for case, options in {
    **{name: {"feature_map": name} for name in FEATURES},
    "relu": {"feature_map": "relu", "eps": 1e-3},
    "identity": {"feature_map": "identity", "normalize": False},
    "sums": {"feature_map": "elu", "normalize": False},
    "eps": {"feature_map": "elu", "eps": 0.7},
}.items():
    text, case = "q:bthk k:bthk v:bthv -> o:bthv S:bhrv z:bhr", f"linear_attention-{case}"
    definition("linear_attention", text, "bh", case, **options)(linear_attention)


@definition("gla", "q:bthk k:bthk v:bthv g:bthk -> o:bthv S:bhkv", "bh")
def gla(q, k, v, g, S=None):
    S, o = matrix(S, k, v), []
    for q_t, k_t, v_t, g_t in zip(q, k, v, g, strict=True):
        S = np.diag(np.exp(g_t)) @ S + np.outer(k_t, v_t)
        o.append(S.T @ q_t)
    return np.array(o), S


def modes(dt, A, B, discretization):
    """A and B of a diagonal system, for steps of length dt."""
    if discretization == "bilinear":
        return (1 + dt / 2 * A) / (1 - dt / 2 * A), dt * B / (1 - dt / 2 * A)
    ratio = [np.expm1(dt * a) / a if a else dt for a in A]  # (e^x - 1) / x -> 1 for x -> 0
    return np.exp(dt * A), np.array(ratio) * B


def read(C, h):
    """The sum over modes; with conjugate pairs, over the half that is not kept as well."""
    return 2 * sum(C * h).real if np.iscomplexobj(h) else sum(C * h)


def s4(u, dt, A, B, C, D, h=None, *, discretization):
    A_bar, B_bar = modes(dt, A, B, discretization)
    h, y = np.zeros_like(A) if h is None else h, []
    for u_t in u:
        h = A_bar * h + B_bar * u_t
        y.append(read(C, h) + D * u_t)
    return np.array(y), h


def h3(q, k, v, c, dt, A, C, D, k_last=None, h=None, *, discretization):
    A_bar, B_bar = modes(dt, A, np.ones_like(A), discretization)
    h, y = np.zeros_like(A) if h is None else h, []
    keys = np.zeros(len(c)) if k_last is None else k_last  # newest first
    for q_t, k_t, v_t in zip(q, k, v, strict=True):
        keys = np.array([k_t, *keys[:-1]])
        x = sum(c * keys) * v_t
        h = A_bar * h + B_bar * x
        y.append(q_t * (read(C, h) + D * x))
    return np.array(y), keys, h


SYSTEM = "u:btd dt:d A:dn B:dn C:dn D:d -> y:btd h:bdn"
definition("s4", SYSTEM, "bd", "s4-complex-zoh", discretization="zoh")(s4)
definition("s4", SYSTEM, "bd", "s4-complex-bilinear", discretization="bilinear")(s4)
definition("s4", SYSTEM, "bd", "s4-real-zoh", discretization="zoh")(s4)
SYSTEM = "q:btd k:btd v:btd c:dn dt:d A:dn C:dn D:d -> y:btd k_last:bdn h:bdn"
definition("h3", SYSTEM, "bd", "h3-complex-zoh", discretization="zoh")(h3)
definition("h3", SYSTEM, "bd", "h3-real-bilinear", discretization="bilinear")(h3)


@definition("mamba", "x:btd dt:btd A:dn B:btn C:btn D:d -> y:btd h:bdn", "bd")
def mamba(x, dt, A, B, C, D, h=None):
    h, y = np.zeros(len(A)) if h is None else h.copy(), np.zeros(len(x))
    for t in range(len(x)):
        y[t] = D * x[t]
        for n in range(len(A)):
            h[n] = np.exp(dt[t] * A[n]) * h[n] + dt[t] * x[t] * B[t, n]
            y[t] += C[t, n] * h[n]
    return y, h


@definition("mamba2", "x:bthp dt:bth A:h B:btgn C:btgn D:h -> y:bthp S:bhnp", "bh")
def mamba2(x, dt, A, B, C, D, S=None):
    S, y = matrix(S, B, x), []
    for t in range(len(x)):
        S = np.exp(dt[t] * A) * S + np.outer(B[t], dt[t] * x[t])
        y.append(C[t] @ S + D * x[t])
    return np.array(y), S


@definition("rwkv4", "w:d u:d k:btd v:btd -> o:btd num:bd den:bd max:bd", "bd")
def rwkv4(w, u, k, v, num=0.0, den=0.0, max=0.0):
    def faded(steps):  # no step: not faded, even by w = -inf
        return steps * w if steps else 0.0

    o = np.zeros(len(k))
    for t in range(len(k)):
        logs = np.array([faded(t - 1 - i) + k[i] for i in range(t)] + [u + k[t], faded(t) + max])
        weights = np.exp(logs - logs[: t + 1 + (den > 0)].max())  # the same factor in both sums
        top = sum(weights[i] * v[i] for i in range(t + 1)) + weights[-1] * num
        o[t] = top / (sum(weights[: t + 1]) + weights[-1] * den)
    weights = [np.exp(faded(len(k) - 1 - i) + k[i]) for i in range(len(k))]
    rest = np.exp(faded(len(k)) + max)
    num, den = sum(weights * v) + rest * num, sum(weights) + rest * den
    return o, num / np.e, den / np.e, np.ones(())  # any exponent may be taken out: here 1


@definition("rwkv6", "r:bthk k:bthk v:bthv w:bthk u:hk -> o:bthv S:bhkv", "bh")
def rwkv6(r, k, v, w, u, S=None):
    S, o = matrix(S, k, v), []
    for t in range(len(r)):
        o.append(r[t] @ (S + np.diag(u) @ np.outer(k[t], v[t])))
        S = np.diag(np.exp(w[t])) @ S + np.outer(k[t], v[t])
    return np.array(o), S


@definition("rwkv5", "r:bthk k:bthk v:bthv w:hk u:hk -> o:bthv S:bhkv", "bh")
def rwkv5(r, k, v, w, u, S=None):
    """The sum over the past: the token i has faded t - 1 - i times when t reads."""
    T = len(r)
    faded = [np.prod(np.tile(np.exp(w), (n, 1)), axis=0) for n in range(T + 1)]  # n times
    start = matrix(S, k, v)
    o = np.zeros(v.shape)
    for t in range(T):
        past = sum(np.outer(faded[t - 1 - i] * k[i], v[i]) for i in range(t))
        now = np.diag(u) @ np.outer(k[t], v[t])
        o[t] = r[t] @ (past + now + np.diag(faded[t]) @ start)
    S = sum(np.outer(faded[T - 1 - i] * k[i], v[i]) for i in range(T))
    return o, S + np.diag(faded[T]) @ start


@definition("rwkv7", "r:bthk w:bthk k:bthk v:bthv a:bthk b:bthk -> o:bthv S:bhkv", "bh")
def rwkv7(r, w, k, v, a, b, S=None):
    S, o = matrix(S, k, v), []
    for t in range(len(r)):
        S = np.diag(np.exp(w[t])) @ S + np.outer(b[t], a[t] @ S) + np.outer(k[t], v[t])
        o.append(r[t] @ S)
    return np.array(o), S


def delta(q, k, v, beta, g, S):
    """Fade, erase, write: g has one number a token or one a key channel."""
    S, o, one = matrix(S, k, v), [], np.eye(k.shape[-1])
    for t in range(len(q)):
        S = (one - beta[t] * np.outer(k[t], k[t])) @ np.diag(np.exp(g[t]) * np.ones(len(one))) @ S
        S = S + beta[t] * np.outer(k[t], v[t])
        o.append(S.T @ q[t])
    return np.array(o), S


@definition("deltanet", "q:bthk k:bthk v:bthv beta:bth -> o:bthv S:bhkv", "bh")
def deltanet(q, k, v, beta, S=None):
    return delta(q, k, v, beta, np.zeros(len(q)), S)


@definition("gated_deltanet", "q:bthk k:bthk v:bthv beta:bth g:bth -> o:bthv S:bhkv", "bh")
@definition("kda", "q:bthk k:bthk v:bthv beta:bth g:bthk -> o:bthv S:bhkv", "bh")
def gated_delta(q, k, v, beta, g, S=None):
    return delta(q, k, v, beta, g, S)


@definition("retnet", "q:bthk k:bthk v:bthv -> o:bthv S:bhkv", "bh", gamma=GAMMA)
def retnet(q, k, v, S=None, *, gamma):
    S, o = matrix(S, k, v), []
    for t in range(len(q)):
        S = gamma * S + np.outer(k[t], v[t])
        o.append(q[t] @ S)
    return np.array(o), S


# --- numbers to try them on ----------------------------------------------------------------------


def gates(rng, shape, gate):
    """Log decays: all equal to `gate`, or "plain" ones of every strength, or a "mixed" bag."""
    plain = -rng.exponential(size=shape)
    if gate == "plain":
        return plain
    if gate == "mixed":
        return np.where(rng.random(shape) < 0.5, rng.choice(GATES, shape), plain)
    return np.full(shape, gate)


def draw(case, T, gate="plain", seed=0):
    """Inputs for a definition."""
    spec, rng = DEFINITIONS[case], np.random.default_rng(seed)
    wide = 3 if case == "gru" else 4
    sizes = SIZES | {"t": T, "e": SIZES["d"], "f": wide * SIZES["d"]}
    system = spec.name in ("s4", "h3")

    def values(name, axes):
        shape = tuple(sizes[c] for c in axes)
        x = rng.normal(size=shape)
        if name in ("g", "w"):
            return gates(rng, shape, gate)
        if name == "A":
            x = gates(rng, shape, gate)
            x = np.maximum(x, -1e4) if system else x
        if name == "beta":
            return rng.choice([0.0, 1.0, 2.0, 0.5, 0.9], shape)
        if name == "dt":  # a token without a time step changes nothing
            often = rng.choice([0.0, 1.0, 1.0], shape) if gate == "plain" else 1.0
            return rng.uniform(0.01, 1.0, shape) * often
        if (name == "k" and "delta" in case) or (name, case) in (("k", "kda"), ("a", "rwkv7")):
            return x / np.linalg.norm(x, axis=-1, keepdims=True)
        return x + 3j * rng.normal(size=shape) if "complex" in case and name in "ABC" else x

    drawn = {name: values(name, axes) for name, axes in spec.inputs.items()}
    if case == "rwkv7":  # what is erased lies along the key, at a rate in [0, 1] a channel
        drawn["b"] = -drawn["a"] * rng.uniform(size=drawn["a"].shape)
    return tuple(drawn.values())


@cache
def problem(case, T, gate="plain", resumed=False):
    """Inputs, the state to start from (left by seven other tokens) and what should come out."""
    spec, inputs = DEFINITIONS[case], draw(case, T, gate)
    state = spec(draw(case, 7, seed=1))[1] if resumed else None
    return inputs, state, spec(inputs, state)


def torches(arrays):
    return tuple(torch.from_numpy(np.array(x)) for x in arrays)


def run(mechanism, form, inputs, state, **options):
    """One form of the library, `step` in a loop and `trace` up to its last state."""
    xs = torches(inputs)
    S = None if state is None else torches(state)
    S = S[0] if S is not None and len(S) == 1 else S
    if form == "chunked":
        o, S = mechanism.chunked(*xs, S, chunk=CHUNK, **options)
    elif form == "step":
        timed, o = [x.timed for x in mechanism.inputs], []
        for t in range(xs[timed.index(True)].shape[1]):
            token = (x[:, t] if of_time else x for x, of_time in zip(xs, timed, strict=True))
            o_t, S = mechanism.step(*token, S, **options)
            o.append(o_t)
        o = torch.stack(o, 1)
    elif form == "trace":
        tr = mechanism.trace(*xs, S, **options)
        o, parts = tr[mechanism.output.name], [tr[x.name] for x in mechanism.state]
        S = tuple(
            x if "cache" in n.name else x[:, -1]
            for n, x in zip(mechanism.state, parts, strict=True)
        )
    else:
        o, S = getattr(mechanism, form)(*xs, S, **options)
    return o, (S,) if isinstance(S, torch.Tensor) else S


def unique(state):
    """RWKV-4 may take any exponent out of its sums: put it back."""
    if len(state) != 3:
        return state
    num, den, top = (np.asarray(x) for x in state)
    return num * np.exp(top), den * np.exp(top)


def library_options(spec):
    return {
        n: torch.from_numpy(x) if isinstance(x, np.ndarray) else x for n, x in spec.options.items()
    }


def same_run(case, form, inputs, state, expected):
    """Outputs and final state of one form are the definition's."""
    spec = DEFINITIONS[case]
    o, S = run(spec.mechanism, form, inputs, state, **library_options(spec))
    same(o, expected[0], f"{case} {form}: output")
    for x, y, name in zip(unique(S), unique(expected[1]), spec.state, strict=False):
        same(x, y, f"{case} {form}: state {name}")


# --- each mechanism, each form -------------------------------------------------------------------


def forms(case):
    own = DEFINITIONS[case].mechanism.forms
    return [*(form for form in own if form != "triton"), "step", "trace"]


def gated(case):
    """The extreme gates that make sense: a mode of a linear system is a finite number."""
    spec = DEFINITIONS[case]
    if not {"g", "w", "A"} & set(spec.inputs):
        return ()
    return (*(g for g in GATES if spec.name not in ("s4", "h3") or g > -np.inf), "mixed")


SLOW = {"step": 17, "trace": 17}  # tokens at most
EVERY = [(case, form) for case in DEFINITIONS for form in forms(case)]
LENGTHS = [(1, False), (1, True), (17, True), (40, False)]  # tokens, from a state or from zero
PLAIN = [(*e, *n) for e in EVERY for n in LENGTHS if n[0] <= SLOW.get(e[1], 40)]
EXTREME = [(*e, g) for e in EVERY for g in gated(e[0]) if e[1] not in SLOW or g == "mixed"]


def test_every_mechanism_is_defined_here():
    assert {spec.name for spec in DEFINITIONS.values()} == {m.name for m in lv.registry}


@pytest.mark.parametrize(("case", "form", "T", "resumed"), PLAIN)
def test_form_is_the_definition(case, form, T, resumed):
    same_run(case, form, *problem(case, T, "plain", resumed))


@pytest.mark.parametrize(("case", "form", "gate"), EXTREME)
def test_extreme_gates(case, form, gate):
    same_run(case, form, *problem(case, SLOW.get(form, 40), gate, True))


@pytest.mark.parametrize("case", DEFINITIONS)
def test_trace_has_every_state(case):
    spec, inputs = DEFINITIONS[case], draw(case, 5)
    tr = spec.mechanism.trace(*torches(inputs), **library_options(spec))
    for t in range(5):
        pairs = zip(inputs, spec.inputs.values(), strict=True)
        begun = [x[:, : t + 1] if "t" in axes else x for x, axes in pairs]
        for expected, (name, axes) in zip(spec(begun)[1], spec.state.items(), strict=True):
            if case != "rwkv4":
                same(tr[name][:, : t + 1] if "s" in axes else tr[name][:, t], expected, name)


@pytest.mark.parametrize("case", ["deltanet", "gated_deltanet", "kda"])
def test_trace_has_the_error_of_the_lookup(case):
    """e = v - k^T a S_{t-1}, u = beta e, and k u^T is what the state gains."""
    tr = {name: x.numpy() for name, x in getattr(lv, case).trace(*torches(draw(case, 9))).items()}
    a = tr.get("a", np.ones_like(tr["k"]))  # DeltaNet has no gate
    a = a if a.ndim == 4 else a[..., None]
    faded = np.broadcast_to(a, tr["k"].shape)[:, 1:, ..., None] * tr["S"][:, :-1]
    e = tr["v"][:, 1:] - np.einsum("bthk,bthkv->bthv", tr["k"][:, 1:], faded)
    same(tr["e"][:, 1:], e)
    same(tr["u"], tr["beta"][..., None] * tr["e"])
    same(np.einsum("bthk,bthv->bthkv", tr["k"], tr["u"])[:, 1:], tr["S"][:, 1:] - faded)


@pytest.mark.parametrize("case", [c for c in DEFINITIONS if DEFINITIONS[c].mechanism.linear])
def test_attention_map_is_the_definition(case):
    spec, inputs = DEFINITIONS[case], draw(case, 20)
    A = spec.mechanism.attention_map(*torches(inputs), **library_options(spec)).numpy()
    value = inputs[list(spec.inputs).index(spec.mechanism.value)]
    heads = "bhij,bjhv->bihv" if value.ndim == 4 else "bdij,bjd->bid"
    same(np.einsum(heads, A, value), spec(inputs)[0])
    same(np.triu(A, 1), np.zeros_like(A))


# --- numbers that break careless code ------------------------------------------------------------


@pytest.mark.parametrize("form", forms("softmax"))
def test_softmax_of_great_scores(form):
    q, k, v = draw("softmax", 40)
    same_run("softmax", form, (100 * q, k, v), None, DEFINITIONS["softmax"]((100 * q, k, v)))


@pytest.mark.parametrize("form", forms("linear_attention-elu"))
def test_taylor_weighs_by_the_start_of_the_exponential(form):
    q, k, v = draw("linear_attention-taylor", 20)
    s = np.einsum("bihk,bjhk->bhij", q, k) / np.sqrt(q.shape[-1])
    weights = np.tril(1 + s + s**2 / 2)
    expected = np.einsum("bhij,bjhv->bihv", weights / weights.sum(-1, keepdims=True), v)
    same(run(lv.linear_attention, form, (q, k, v), None, feature_map="taylor")[0], expected)


@pytest.mark.parametrize("form", forms("rwkv4"))
def test_rwkv4_of_great_keys(form):
    w, u, k, v = draw("rwkv4", 40)
    inputs = w, u, 500 * k, v
    with np.errstate(over="ignore", invalid="ignore"):  # of the loop's state, which is not compared
        expected = DEFINITIONS["rwkv4"](inputs)[0]
    same(run(lv.rwkv4, form, inputs, None)[0], expected)


@pytest.mark.parametrize("feature_map", ["elu", "exp", "hedgehog", "taylor"])
@pytest.mark.parametrize("form", forms("linear_attention-elu"))
def test_linear_attention_of_small_features(form, feature_map):
    q, k, v = draw("linear_attention-elu", 40)
    inputs, case = (8 * q - 20, 8 * k - 20, v), f"linear_attention-{feature_map}"
    o, _ = run(lv.linear_attention, form, inputs, None, feature_map=feature_map)
    same(o, DEFINITIONS[case](inputs)[0])


@pytest.mark.parametrize("form", forms("linear_attention-elu"))
def test_linear_attention_where_nothing_is_shared(form):
    """Relu features without a common channel: 0 / 0 is 0 by the room's word."""
    q, k, v = draw("linear_attention-relu", 17)
    o, _ = run(lv.linear_attention, form, (np.abs(q), -np.abs(k), v), None, feature_map="relu")
    same(o, np.zeros_like(v))


@pytest.mark.parametrize("case", ["lstm", "gru", "rnn"])
def test_saturated_cells(case):
    x, W = draw(case, 40)
    expected = DEFINITIONS[case]((100 * x, W))
    same_run(case, "recurrent", (100 * x, W), None, expected)


# --- options -------------------------------------------------------------------------------------


def test_retnet_gamma_by_default():
    inputs = draw("retnet", 17)
    gamma = torch.tensor([1 - 2.0 ** (-5 - h) for h in range(SIZES["h"])], dtype=torch.float64)
    for x, y in zip(
        lv.retnet(*torches(inputs)), lv.retnet(*torches(inputs), gamma=gamma), strict=True
    ):
        same(x, y.numpy())


@pytest.mark.parametrize("form", ["recurrent", "parallel", "chunked"])
def test_retnet_is_the_matrix_D(form):
    """O = (Q K^T * D) V with D_nm = gamma^(n - m) for n >= m."""
    q, k, v = draw("retnet", 40)
    n = np.arange(40)
    for h in range(SIZES["h"]):
        D = np.where(n[:, None] >= n, (1 - 2.0 ** (-5 - h)) ** np.maximum(n[:, None] - n, 0), 0.0)
        o, _ = run(lv.retnet, form, (q, k, v), None)
        same(o[1, :, h], (q[1, :, h] @ k[1, :, h].T * D) @ v[1, :, h])


@pytest.mark.parametrize("case", [c for c in DEFINITIONS if DEFINITIONS[c].options])
def test_having_is_the_option(case):
    spec = DEFINITIONS[case]
    inputs, _, expected = problem(case, 17)
    same(
        run(spec.mechanism.having(**library_options(spec)), "chunked", inputs, None)[0], expected[0]
    )


@pytest.mark.parametrize("form", ["recurrent", "parallel", "chunked", "step"])
def test_feature_map_of_my_own(form):
    """Any function of the last axis, here to more features than channels."""
    q, k, v = draw("linear_attention-elu", 20)

    def phi(x):
        return torch.cat([x**2, (x + 1) ** 2], -1)

    o, (S, z) = run(lv.linear_attention.having(feature_map=phi), form, (q, k, v), None)
    fq, fk = (np.concatenate([x**2, (x + 1) ** 2], -1) for x in (q, k))
    weights = np.tril(np.einsum("bihr,bjhr->bhij", fq, fk))
    weights /= weights.sum(-1, keepdims=True)
    same(o, np.einsum("bhij,bjhv->bihv", weights, v))
    same(S, np.einsum("bthr,bthv->bhrv", fk, v))
    same(z, fk.sum(1))


# --- against other people's code -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "cell", "gates_of"),
    [("rnn", torch.nn.RNN, 1), ("lstm", torch.nn.LSTM, 4), ("gru", torch.nn.GRU, 3)],
)
def test_cells_are_those_of_torch(case, cell, gates_of):
    """torch keeps the gates as i f g o and r z n; ours are i f o c and r z n."""
    d, T, rng = 6, 17, np.random.default_rng(0)
    net = cell(5, d, batch_first=True, dtype=torch.float64)
    order = [0, 1, 3, 2] if case == "lstm" else range(gates_of)
    rows = torch.cat([torch.arange(d) + d * i for i in order])
    if case == "gru":  # its bias inside the reset gate has no place in ours
        net.bias_hh_l0.data.zero_()
    u, *start = torches([rng.normal(size=(2, T, 5)), *rng.normal(size=(2, 1, 2, d))])
    x = (u @ net.weight_ih_l0.T + net.bias_ih_l0 + net.bias_hh_l0)[..., rows].detach()
    expected, last = net(u, tuple(start) if case == "lstm" else start[0])
    S = tuple(s[0] for s in start) if case == "lstm" else start[0][0]
    o, S = getattr(lv, case).recurrent(x, net.weight_hh_l0.T[:, rows].detach(), S)
    same(o, expected.detach().numpy())
    pairs = zip(S, last, strict=True) if case == "lstm" else [(S, last)]
    for ours, theirs in pairs:
        same(ours, theirs.detach().numpy().reshape(2, d))


@pytest.mark.parametrize("form", forms("softmax"))
def test_softmax_is_that_of_torch(form):
    q, k, v = draw("softmax", 40)
    heads = (x.transpose(1, 2) for x in torches((q, k, v)))
    expected = functional.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2)
    same(run(lv.softmax, form, (q, k, v), None)[0], expected.numpy())


@pytest.mark.parametrize("way", ["zoh", "bilinear"])
@pytest.mark.parametrize("form", ["recurrent", "parallel", "chunked"])
def test_s4_is_the_dense_system_of_scipy(form, way):
    """A complex mode and its conjugate are a rotating block of two real states."""
    case = f"s4-complex-{way}"
    u, dt, A, B, C, D = draw(case, 40)
    y, (h,) = run(lv.s4, form, (u, dt, A, B, C, D), None, discretization=way)
    for d in range(SIZES["d"]):
        blocks = [np.array([[a.real, -a.imag], [a.imag, a.real]]) for a in A[d]]
        into = np.ravel([[b.real, b.imag] for b in B[d]])[:, None]
        out = np.ravel([[2 * c.real, -2 * c.imag] for c in C[d]])
        system = scipy.linalg.block_diag(*blocks), into, out[None], D[d : d + 1, None]
        A_bar, B_bar, *_ = scipy.signal.cont2discrete(system, dt[d], method=way)
        state = np.zeros(2 * SIZES["n"])
        for t in range(40):
            state = A_bar @ state + B_bar[:, 0] * u[1, t, d]
            same(y[1, t, d], out @ state + D[d] * u[1, t, d])
        same(h[1, d], state[::2] + 1j * state[1::2])


@pytest.mark.parametrize("a", [0.0, -1e-9, -1e-2, -2.0])
def test_gradient_of_zoh(a):
    """One step of one mode: d/da (e^(a dt) - 1) / a = dt^2 (1/2 + a dt/3 + (a dt)^2/8 + ...)."""
    x, dt, one = (
        torch.ones(1, 1, 1).double(),
        torch.tensor([0.5]).double(),
        torch.ones(1, 1).double(),
    )
    A = torch.tensor([[a]], dtype=torch.float64, requires_grad=True)
    lv.s4.recurrent(x, dt, A, one, one, torch.zeros(1).double())[0].sum().backward()
    series = sum((a / 2) ** n / (math.factorial(n) * (n + 2)) for n in range(30)) / 4
    assert A.grad.item() == pytest.approx(series, rel=1e-8)


# --- S4's initialisers and its kernel ------------------------------------------------------------


def legs(N):
    """HiPPO-LegS entry by entry."""
    A = np.zeros((N, N))
    for n in range(N):
        for k in range(n):
            A[n, k] = -np.sqrt((2 * n + 1) * (2 * k + 1))
        A[n, n] = -(n + 1)
    return A, np.sqrt(2 * np.arange(N) + 1)


@pytest.mark.parametrize("N", [1, 2, 8, 32, 64])
def test_hippo_legs(N):
    for ours, theirs in zip(s4_room.hippo_legs(N), legs(N), strict=True):
        same(ours, theirs)


@pytest.mark.parametrize("N", [1, 2, 8, 32, 64])
def test_normal_plus_low_rank_is_hippo_legs(N):
    Lambda, P, B, basis = (x.numpy() for x in s4_room.nplr(N))
    A, into = legs(N)
    same(basis @ (np.diag(Lambda) - np.outer(P, P.conj())) @ basis.conj().T, A + 0j)
    same(basis @ B, into + 0j)
    same(basis.conj().T @ basis, np.eye(N) + 0j)
    same(Lambda.real, np.full(N, -0.5))


@pytest.mark.parametrize("dt", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("T", [1, 17, 64])
@pytest.mark.parametrize("N", [8, 32])
def test_kernel_is_that_of_the_dense_recurrence(N, T, dt):
    A, B = legs(N)
    C = np.random.default_rng(0).normal(size=N)
    Lambda, P, B_eigen, basis = s4_room.nplr(N)
    ours = s4_room.dplr_kernel(Lambda, P, B_eigen, torch.from_numpy(C + 0j) @ basis, dt, T)
    left = np.linalg.inv(np.eye(N) - dt / 2 * A)
    h, kappa = left @ (dt * B), []
    for _ in range(T):
        kappa.append(C @ h)
        h = left @ (np.eye(N) + dt / 2 * A) @ h
    assert ours.shape == (T,)
    same(ours.real, np.array(kappa))


@pytest.mark.parametrize("N", [1, 4, 16])
def test_diagonal_modes(N):
    n = np.arange(N)
    M = 2 * N  # states; N of them are kept, one of each conjugate pair
    same(s4_room.s4d_lin(N), -0.5 + 1j * np.pi * n)
    same(s4_room.s4d_inv(N), -0.5 + 1j * M / np.pi * (M / (2 * n + 1) - 1))
    same(s4_room.s4d_real(N), -(n + 1.0))
