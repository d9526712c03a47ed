"""Measures of states on numbers that can be derived by hand, and the pictures' panels."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

import linviz as lv
from linviz.viz import memory, survival
from linviz.viz import states as viz
from linviz.viz.magnitudes import memory_limit

rng = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def closed():
    """No figure stays open."""
    yield
    assert not plt.get_fignums()


def traced(name, T=12, dtype=torch.float64, **sizes):
    """A trace of an example."""
    mechanism = lv.registry[name]
    return mechanism.trace(*mechanism.example(T, dtype=dtype, **sizes))


def orthogonal(n):
    """A random orthogonal matrix."""
    return np.linalg.qr(rng.normal(size=(n, n)))[0]


# ------------------------------------------------------------------------ the size of a state


def test_norm_is_the_length_of_all_numbers():
    S = np.zeros((3, 2, 2))
    S[1], S[2] = [[3, 0], [0, 4]], [[1, 1], [1, 1]]
    np.testing.assert_allclose(memory.state_norm(S), [0, 5, 2])
    np.testing.assert_allclose(memory.state_norm(torch.tensor([[3.0, 4.0]])), [5])
    np.testing.assert_allclose(memory.state_norm(np.array([[3j, 4.0]])), [5])


def test_norm_and_ranks_do_not_see_rotations():
    S = rng.normal(size=(4, 5, 3))
    turned = orthogonal(5) @ S @ orthogonal(3)
    for measure in (memory.state_norm, memory.effective_rank, memory.stable_rank):
        np.testing.assert_allclose(measure(turned), measure(S))
    np.testing.assert_allclose(memory.singular_spectrum(turned), memory.singular_spectrum(S))


def test_ranks_do_not_see_the_scale():
    S = rng.normal(size=(4, 5, 3))
    for measure in (memory.effective_rank, memory.stable_rank):
        np.testing.assert_allclose(measure(-1e-3 * S), measure(S))
    assert memory.stable_rank(1e200 * np.eye(3)[None]) == pytest.approx(3)


def test_ranks_of_states_with_known_singular_values():
    S = np.stack([np.zeros((3, 4)), np.eye(3, 4), np.outer([1, 2, 3], [1, 1, 1, 1]), np.eye(3, 4)])
    S[3] = 0
    S[3, 0, 0], S[3, 1, 1] = 3, 1  # shares 3/4 and 1/4
    np.testing.assert_allclose(memory.singular_spectrum(S)[3], [3, 1, 0])
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    np.testing.assert_allclose(memory.effective_rank(S), [0, 3, 1, np.exp(entropy)], atol=1e-9)
    np.testing.assert_allclose(memory.stable_rank(S), [0, 3, 1, 10 / 9], atol=1e-9)


def test_linear_attention_fills_one_direction_a_token():
    trace = traced("linear_attention", T=6, K=4, V=8)
    sigma = memory.singular_spectrum(trace, head=1)
    rank = (sigma > 1e-9).sum(1)
    np.testing.assert_array_equal(rank, [1, 2, 3, 4, 4, 4])
    assert memory.effective_rank(trace)[0] == pytest.approx(1)
    np.testing.assert_allclose(memory.state_norm(trace, head=1), trace.S[0, :, 1].norm(dim=(1, 2)))


def test_moments_are_of_each_row():
    S = np.array([[[1.0, 3.0], [5.0, 5.0]]])
    mean, variance = memory.state_moments(S)
    np.testing.assert_allclose(mean, [[2, 5]])
    np.testing.assert_allclose(variance, [[1, 0]])


def test_collapse_ratio_finds_the_channel_that_grows():
    S = rng.choice([-1.0, 1.0], size=(10, 4, 6))
    S[:, :, :3], S[:, :, 3:] = 1, -1  # every row has variance 1
    S[7:, 2] *= 5
    S[:, 3] *= 0.5
    np.testing.assert_allclose(memory.collapse_ratio(S, 5), [1, 1, 25, 0.25])
    np.testing.assert_allclose(memory.collapse_ratio(100 * S, 5), [1, 1, 25, 0.25])
    S[:5] = 0
    assert np.isinf(memory.collapse_ratio(S, 5)).all()
    with pytest.raises(ValueError, match="length: wanted 1 to 9 steps, got 10"):
        memory.collapse_ratio(S, 10)


# ------------------------------------------------------------------------ what a step does


EXACT = [m.name for m in lv.registry if m.name != "softmax"]


@pytest.mark.parametrize("name", EXACT)
def test_a_step_is_its_transition_and_what_it_writes(name):
    trace = traced(name, B=2) if "W" not in traced(name) else traced(name)
    batch, head = trace.sizes["B"] - 1, trace.sizes.get("H", 1) - 1
    S, steps = memory.carried(trace, head=head, batch=batch), memory.steps(trace, head, batch)
    A, W = memory.transition(trace, head=head, batch=batch), steps.written()
    assert W.shape == S.shape and np.abs(W).max() > 0
    old = np.concatenate([0 * S[:1], S[:-1]])
    if steps.mixes:
        assert A.shape == (12, S.shape[1], S.shape[1])
        kept = np.einsum("tij,tj...->ti...", A, old)
    else:  # one factor a row, or one a number
        row = A.shape == S.shape[:2]
        kept = A.reshape(*A.shape, *[1] * (S.ndim - 2)) * old if row else A.reshape(S.shape) * old
    np.testing.assert_allclose(kept + W, S, atol=1e-10)
    assert np.abs(kept[1:]).max() > 0


def test_steps_refuse_heads_and_sequences_that_are_not_there():
    with pytest.raises(ValueError, match="head: wanted -2 to 1, got 2"):
        memory.steps(traced("gla"), head=2)
    with pytest.raises(ValueError, match="head: wanted -1 to 0, got 1"):
        memory.steps(traced("mamba"), head=1)
    with pytest.raises(ValueError, match="batch: wanted -1 to 0, got 1"):
        memory.steps(traced("gla"), batch=1)


def test_the_spectrum_of_a_delta_rule():
    """Keys of length 1: along k a factor 1 - beta, elsewhere 1; times the gate of the head."""
    trace = traced("gated_deltanet", K=4)
    beta, a = trace.beta[0, :, 1].numpy(), trace.a[0, :, 1].numpy()
    found = memory.transition_spectrum(trace, head=1)
    wanted = a[:, None] * np.stack([beta**0, beta**0, beta**0, 1 - beta], 1)
    np.testing.assert_allclose(found, wanted, atol=1e-9)
    np.testing.assert_allclose(memory.transition_spectrum(trace, head=1, at=[3]), found[3:4])


def test_the_spectrum_of_a_turn_lies_on_the_circle():
    turn = np.array([[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]])
    found = memory.transition_spectrum(0.5 * turn[None])[0]
    np.testing.assert_allclose(sorted(found.imag), [-0.5 * np.sin(0.3), 0.5 * np.sin(0.3)])
    np.testing.assert_allclose(abs(found), 0.5)


def test_the_spectrum_of_gates_is_the_gates():
    np.testing.assert_allclose(memory.transition_spectrum([[0.2, 0.9]]), [[0.9, 0.2]])
    trace = traced("s4")
    a = trace.a.flatten().numpy()
    found = memory.transition_spectrum(trace)
    assert found.shape == (12, a.size)
    np.testing.assert_allclose(np.sort_complex(found[5]), np.sort_complex(a))


def test_retention_of_a_fixed_gate_is_its_powers():
    kept = memory.retention(np.full((5, 3), 0.5))
    lag = np.subtract.outer(np.arange(5), np.arange(5))
    np.testing.assert_array_equal(np.isnan(kept), lag < 0)
    np.testing.assert_allclose(kept[lag >= 0], 0.5 ** lag[lag >= 0])


def test_retention_weighs_channels_by_what_was_written():
    gates = np.array([[0.0, 0.0], [0.5, 0.0], [0.5, 1.0]])
    wrote = np.array([[3.0, 4.0], [0.0, 0.0], [1.0, 0.0]])
    kept = memory.retention(gates, written=wrote)
    np.testing.assert_allclose(kept[:, 0], [1, 0.3, 0.15])
    assert np.isnan(kept[:, 1]).all()  # nothing was written
    np.testing.assert_allclose(kept[:, 2], [np.nan, np.nan, 1])
    np.testing.assert_allclose(memory.retention(gates, written=wrote, at=[-1]), kept[:, 2:])


def test_retention_of_a_turn_is_one():
    kept = memory.retention(np.stack([orthogonal(3) for _ in range(6)]))
    np.testing.assert_allclose(kept[np.tril_indices(6)], 1)


@pytest.mark.parametrize("name", lv.registry.names)
def test_retention_is_the_product_of_transitions_on_a_write(name):
    trace = traced(name, T=5)
    steps, kept = memory.steps(trace), memory.retention(trace)
    A, W = steps.matrices(), steps.written()
    for j in range(5):
        X = W[j]
        for t in range(j, 5):
            if t > j and steps.mixes:
                X = np.tensordot(A[t], X, 1)
            elif t > j:
                row = A[t].shape == X.shape[:1]
                X = A[t].reshape(-1, *[1] * (X.ndim - 1)) * X if row else A[t].reshape(X.shape) * X
            assert kept[t, j] == pytest.approx(np.linalg.norm(X) / np.linalg.norm(W[j]), rel=1e-9)


def test_softmax_and_linear_attention_keep_everything():
    for name in ("softmax", "linear_attention"):
        kept = memory.retention(traced(name))
        np.testing.assert_allclose(kept[np.tril_indices(12)], 1)


def test_a_delta_rule_forgets_a_key_that_is_written_again():
    q, k, v, beta = lv.deltanet.example(3, dtype=torch.float64, K=4)
    k[:, 2], beta[:] = k[:, 0], 1.0
    k[:, 1] = torch.tensor([0.0, 0, 0, 1]) - k[:, 0] * k[:, 0, :, 3:]  # at right angles to k_0
    k[:, 1] /= k[:, 1].norm(dim=-1, keepdim=True)
    kept = memory.retention(lv.deltanet.trace(q, k, v, beta))
    np.testing.assert_allclose(kept[:, 0], [1, 1, 0], atol=1e-12)
    np.testing.assert_allclose(kept[1:, 1], [1, 1], atol=1e-12)


# ------------------------------------------------------------------------ gates and half-lives


def test_half_lives():
    found = memory.half_life([0.5, 0.25, 0.5**0.1, 1.0, 0.0])
    np.testing.assert_allclose(found, [1, 0.5, 10, np.inf, 0])
    np.testing.assert_allclose(memory.half_life(torch.tensor([0.5j, -0.25])), [1, 0.5])
    with pytest.raises(ValueError, match=r"a: wanted gates of magnitude 0 to 1, got 1\.5"):
        memory.half_life([0.5, 1.5])


def test_gates_of_every_head():
    fixed = memory.gates(traced("retnet", H=3))
    assert fixed.shape == (12, 3, 1)
    np.testing.assert_allclose(fixed[4, :, 0], 1 - 2.0 ** -np.arange(5, 8))
    assert memory.gates(traced("gla", H=3, K=5)).shape == (12, 3, 5)
    assert memory.gates(traced("mamba", D=6, N=4)).shape == (12, 6, 4)
    assert memory.gates(traced("s4", D=6, N=4)).shape == (1, 6, 4)
    assert (memory.gates(traced("deltanet")) == 1).all()
    with pytest.raises(ValueError, match="plain RNN"):
        memory.gates(traced("rnn"))


@pytest.mark.parametrize("name", [x for x in lv.registry.names if x != "rnn"])
def test_every_gate_has_a_half_life(name):
    assert (memory.half_life(memory.gates(traced(name))) >= 0).all()


# ------------------------------------------------------------------------ what is in use


def test_effective_state_size_of_linear_attention_is_what_it_can_hold():
    T, K = 12, 3
    plain = lv.linear_attention.having(feature_map="identity", normalize=False)
    A = plain.attention_map(*plain.example(T, K=K, dtype=torch.float64))[0, 0]
    rank, entropy = memory.effective_state_size(A)
    t = np.arange(T)
    np.testing.assert_array_equal(rank, np.minimum(np.minimum(t, T - t), K))
    assert (entropy[1:] >= 1 - 1e-9).all() and (entropy <= rank + 1e-9).all() and entropy[0] == 0


def test_effective_state_size_of_known_blocks():
    A = np.tril(np.ones((6, 6)))  # all blocks have rank one
    rank, entropy = memory.effective_state_size(A)
    np.testing.assert_array_equal(rank, [0, 1, 1, 1, 1, 1])
    np.testing.assert_allclose(entropy, [0, 1, 1, 1, 1, 1])
    copy = np.zeros((6, 6))
    copy[3:, :3] = np.eye(3)  # everything is repeated: at t = 3 all three are held
    rank, entropy = memory.effective_state_size(copy)
    np.testing.assert_array_equal(rank, [0, 1, 2, 3, 2, 1])
    np.testing.assert_allclose(entropy, [0, 1, 2, 3, 2, 1])
    none = memory.effective_state_size(np.eye(4))  # nothing passes from token to token
    np.testing.assert_array_equal(none, np.zeros((2, 4)))


def test_effective_state_size_by_tolerance():
    A = np.zeros((4, 4))
    A[2, 0], A[3, 1] = 1, 1e-3
    for tolerance, wanted in ((1e-2, 1), (1e-4, 2)):
        rank, _ = memory.effective_state_size(A, at=[2], tolerance=tolerance)
        np.testing.assert_array_equal(rank, [wanted])
    np.testing.assert_array_equal(
        memory.effective_state_size(1e-9 * A)[0], memory.effective_state_size(A)[0]
    )
    with pytest.raises(ValueError, match="tolerance"):
        memory.effective_state_size(A, tolerance=0)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: memory.state_norm(np.ones(3)), r"S: wanted axes \[t, k, v\] or \[t, d\].*\[3\]"),
        (lambda: memory.effective_rank(np.ones((3, 3))), r"S: wanted axes \[t, k, v\].*\[3, 3\]"),
        (lambda: memory.state_moments(np.ones((2, 0, 3))), r"S: .*\[2, 0, 3\]"),
        (lambda: memory.effective_rank(traced("rnn")), r"S: wanted axes \[t, k, v\].*\[12, 16\]"),
        (lambda: memory.retention(np.ones((4, 2, 3))), r"x: wanted \[t, n, n\] or \[t, n\].*2, 3"),
        (
            lambda: memory.retention(np.ones((4, 2)), written=np.ones((4, 3))),
            r"written: .*\[4, 3\]",
        ),
        (
            lambda: memory.retention(traced("gla"), written=np.ones((4, 3))),
            "written: wanted None",
        ),
        (lambda: memory.retention(np.ones((4, 2)), at=[4]), "at: wanted -4 to 3, got 4"),
        (lambda: memory.effective_state_size(np.ones((4, 2))), r"A: wanted \[t, s\].*\[4, 2\]"),
    ],
)
def test_measures_name_the_shapes_meant(call, words):
    with pytest.raises(ValueError, match=words):
        call()


# ------------------------------------------------------------------------ pictures


def panel(picture, title):
    """The panel of that title."""
    found = {p.title: p for p in picture.panels}
    assert title in found, f"{title} is not one of {list(found)}"
    return found[title]


def drawn(picture):
    """Draw in both themes and as HTML, and give the picture back."""
    for theme in ("light", "dark"):
        assert picture.figure(theme).axes
    assert "<canvas" in picture.html() or "<svg" in picture.html() or "<img" in picture.html()
    return picture


@pytest.mark.parametrize("name", lv.registry.names)
def test_state_of_every_mechanism(name):
    trace = traced(name, T=6)
    picture = drawn(viz.state(trace, tokens="abcdef"))
    titles = [p.title for p in picture.panels]
    assert picture.tokens == list("abcdef") and picture.steps == list(range(6))
    for spec in trace.mechanism.state:
        S = memory.state_path(trace, part=spec.name)
        if np.iscomplexobj(S):
            np.testing.assert_array_equal(panel(picture, f"real part of {spec.name}").x, S.real)
            np.testing.assert_array_equal(panel(picture, f"magnitude of {spec.name}").x, abs(S))
        else:
            np.testing.assert_array_equal(panel(picture, spec.name).x, S)
        norm = panel(picture, "norm").series
        np.testing.assert_allclose(norm.get(spec.name, norm.get("")), memory.state_norm(S))
    matrix = any(len(memory.path_shape(trace, x.name)[0]) == 3 for x in trace.mechanism.state)
    assert ("effective rank" in titles) == matrix
    assert trace.mechanism.title.lower() in picture.alt.lower()


def test_state_of_an_array_with_labels():
    S = rng.normal(size=(4, 2, 3))
    picture = viz.state(S, rows="ab", cols="xyz", start=1, vmax=9)
    frames = panel(picture, "S")
    np.testing.assert_array_equal(frames.x, S)
    assert list(frames.labels["rows"]) == ["a", "b"] and list(frames.labels["cols"]) == list("xyz")
    assert picture.start == 1 and frames.norm.vmax == 9 and picture.note == ""
    np.testing.assert_allclose(
        panel(picture, "effective rank").series[""], memory.effective_rank(S)
    )


def test_a_cache_shows_the_rows_that_are_there():
    q, k, v = lv.softmax.example(4)
    first = lv.softmax.trace(q, k, v)
    again = lv.softmax.trace(q, k, v, S=(first.k_cache, first.v_cache))
    for trace, past in ((first, 0), (again, 4)):
        frames = panel(viz.state(trace, head=1), "k_cache")
        seen = ~frames.empty[:, :, 0]
        np.testing.assert_array_equal(seen.sum(1), past + np.arange(1, 5))
        np.testing.assert_array_equal(frames.x[-1], trace.k_cache[0, :, 1])


def test_huge_states_are_thinned_and_it_is_said():
    S = torch.zeros(1, 1, 1).expand(100_000, 512, 512)
    picture = viz.state(S)
    frames = panel(picture, "S")
    assert frames.x.size <= 2**19 and frames.x.shape[1:] == (128, 128)
    assert picture.steps[-1] == 99_999 and len(picture.steps) == len(frames.x) >= 16
    assert f"{len(frames.x)} of 100000 steps shown." in picture.note
    assert "blocks of 4 of 512" in picture.note.lower()
    assert len(picture.html()) < 1_000_000


def test_long_traces_are_thinned_before_they_are_measured():
    trace = lv.gla.trace(*lv.gla.example(5000, K=2, V=2))
    for picture in (
        viz.state(trace),
        viz.linked(trace),
        viz.state_measures(trace),
        survival.eigenvalues(trace),
        survival.retention_curves(trace),
        viz.singular_values(trace),
        viz.state_collapse(trace, 1000),
    ):
        assert len(picture.steps) <= 256 and picture.steps[-1] == 4999
        assert f"{len(picture.steps)} of 5000 steps shown." in picture.note
    assert "No effective attention beyond 4096 steps." in viz.linked(trace).note
    tokens = [str(t) for t in range(5000)]
    picture = viz.state(trace, tokens=tokens, start=2500)
    assert picture.tokens == [str(t) for t in picture.steps]
    assert abs(picture.steps[picture.start] - 2500) < 20


def test_labelled_state():
    S = rng.normal(size=(2, 3))
    fig = drawn(viz.labelled_state(S, rows=["a", " "], cols="xyz", title="S")).figure()
    ax = fig.axes[0]
    np.testing.assert_array_equal(ax.images[0].get_array(), S)
    assert [x.get_text() for x in ax.get_yticklabels()] == ["a", "␣"]
    assert [x.get_text() for x in ax.get_xticklabels()] == list("xyz")
    trace = traced("mamba2", N=4, P=5)
    fig = viz.labelled_state(trace, t=3, head=1).figure()
    np.testing.assert_array_equal(fig.axes[0].images[0].get_array(), trace.S[0, 3, 1])
    assert fig.axes[0].get_title() == "t = 3" and "state channel n (4)" in fig.axes[0].get_ylabel()
    large = viz.labelled_state(np.ones((300, 5)), rows=[str(i) for i in range(300)])
    assert large.figure().axes[0].images[0].get_array().shape == (100, 5)
    assert "blocks of 3 of 300" in large.note.lower()


def test_state_difference_has_its_own_scale():
    a = rng.normal(size=(5, 2, 3))
    picture = drawn(viz.state_difference(a, 3 * a))
    three = picture.panels[:3]
    for shown, wanted in zip(three, (a, 3 * a, -2 * a), strict=True):
        np.testing.assert_allclose(shown.x, wanted)
    for shown, factor in zip(three, (3, 3, 2), strict=True):
        assert shown.norm.vmax == -shown.norm.vmin == pytest.approx(factor * abs(a).max())
    assert three[2].title == "a − b (own scale)"
    capped = viz.state_difference(a, 3 * a, vmax=7).panels
    assert [p.norm.vmax for p in capped[:2]] == [7, 7]
    assert capped[2].norm.vmax == pytest.approx(2 * abs(a).max())
    np.testing.assert_allclose(
        panel(picture, "norm of the difference").series[""], 2 * memory.state_norm(a)
    )


def test_state_difference_of_two_mechanisms():
    q, k, v, g = lv.gla.example(8, dtype=torch.float64)
    one, two = lv.gla.trace(q, k, v, g), lv.retnet.trace(q, k, v)
    picture = viz.state_difference(one, two, head=1)
    assert [p.title for p in picture.panels[:3]] == ["gla", "retnet", "gla − retnet (own scale)"]
    np.testing.assert_allclose(picture.panels[2].x, (one.S - two.S)[0, :, 1])
    with pytest.raises(
        ValueError, match=r"b: wanted the shape of a.*\[8, 16, 16\].*\[12, 16, 16\]"
    ):
        viz.state_difference(one, traced("gla"))
    with pytest.raises(ValueError, match="names: wanted 2, got 3"):
        viz.state_difference(one, two, names="abc")
    assert "Real parts" in viz.state_difference(traced("s4"), traced("s4")).note


def test_state_measures_of_several():
    traces = {
        "plain": traced("linear_attention"),
        "delta": traced("deltanet"),
        "rnn": traced("rnn"),
    }
    picture = drawn(viz.state_measures(traces))
    assert [p.title for p in picture.panels] == ["norm", "effective rank", "stable rank"]
    assert list(picture.panels[0].series) == ["plain", "delta", "rnn"]
    assert list(picture.panels[1].series) == ["plain", "delta"]
    np.testing.assert_allclose(
        picture.panels[2].series["delta"], memory.stable_rank(traces["delta"])
    )
    with pytest.raises(ValueError, match=r"x: wanted states of one length.*'b': 5"):
        viz.state_measures({"a": traced("gla"), "b": traced("gla", T=5)})
    with pytest.raises(ValueError, match="x: wanted one entry or more"):
        viz.state_measures({})


def test_singular_values_leave_out_what_is_nothing():
    S = np.zeros((3, 4, 4))
    S[1, 0, 0], S[2] = 5, np.diag([8.0, 4.0, 1.0, 1e-9])
    picture = drawn(viz.singular_values(S))
    points, lines = picture.panels
    wanted = [[np.nan] * 4, [5, np.nan, np.nan, np.nan], [8, 4, 1, np.nan]]
    np.testing.assert_allclose(points.y, wanted)
    np.testing.assert_allclose(lines.series["number 2"], [np.nan, np.nan, 4])
    assert "millionth" in picture.note
    drawn(viz.singular_values(np.zeros((2, 3, 3))))


def test_eigenvalues_in_the_circle():
    turn = 0.9 * np.array([[0.0, -1], [1, 0]])
    picture = drawn(survival.eigenvalues(np.stack([turn, turn @ turn])))
    points, lines = picture.panels
    assert points.circle
    np.testing.assert_allclose(points.x, [[0, 0], [-0.81, -0.81]], atol=1e-12)
    np.testing.assert_allclose(np.sort(points.y, 1), [[-0.9, 0.9], [0, 0]], atol=1e-12)
    np.testing.assert_allclose(lines.series["all"], [0.9, 0.81])  # equal: one curve
    shrink = survival.eigenvalues([[0.5, 1.0]] * 3).panels[1].series
    assert [y[0] for y in shrink.values()] == [1, 0.5] and list(shrink) == ["largest", "smallest"]
    assert "Jacobian" in survival.eigenvalues(traced("rnn")).note
    for name in ("s4", "gla"):
        assert ("conjugate" in survival.eigenvalues(traced(name)).caption) == (name == "s4")


@pytest.mark.parametrize("name", lv.registry.names)
def test_retention_and_eigenvalues_of_every_mechanism(name):
    trace = traced(name, T=6)
    matrix = survival.retention_curves(trace).panels[0]
    kept = memory.retention(trace)
    np.testing.assert_array_equal(matrix.empty, np.isnan(kept))
    np.testing.assert_allclose(matrix.x[~matrix.empty], kept[~np.isnan(kept)])
    found = memory.transition_spectrum(trace)
    points = survival.eigenvalues(trace).panels[0]
    np.testing.assert_allclose(points.x + 1j * points.y, found)


def test_a_caption_says_where_nothing_is_forgotten():
    assert "nothing is ever forgotten" in survival.retention_curves(np.ones((5, 2))).caption
    assert "nothing" not in survival.retention_curves(np.full((5, 2), 0.9)).caption


def test_retention_curves_of_chosen_tokens():
    gates = np.full((8, 2), 0.5)
    picture = drawn(survival.retention_curves(gates, at=[0, -2], tokens="abcdefgh"))
    curves = picture.panels[1].series
    assert list(curves) == ["s = 0 “a”", "s = 6 “g”"]
    np.testing.assert_allclose(curves["s = 0 “a”"], 0.5 ** np.arange(8))
    np.testing.assert_allclose(curves["s = 6 “g”"][6:], [1, 0.5])
    assert np.isnan(curves["s = 6 “g”"][:6]).all()
    assert picture.panels[0].kind == "gate"
    wrote = np.stack([1 + np.arange(8.0), np.zeros(8)], 1)
    uneven = survival.retention_curves([[1.0, 0.5]] * 8, written=wrote, at=[1])
    np.testing.assert_allclose(uneven.panels[1].series["s = 1"][1:], 1)
    many = survival.retention_curves(np.full((20, 1), 0.5), at=range(20))
    assert len(many.panels[1].series) == 12 and "Curves of 12 of 20 tokens." in many.note
    growing = survival.retention_curves(2 * np.eye(2)[None].repeat(4, 0))
    assert growing.panels[0].kind == "count" and growing.panels[0].norm.vmax == 8


def test_half_lives_are_drawn_at_their_place():
    gates = np.array([[[0.5, 1.0], [0.25, 0.5]], [[0.5, 1.0], [0.5**0.25, 0.5]]])
    picture = drawn(survival.half_lives(gates, names=["slow", "fast"]))
    top, bottom = picture.figure().axes
    slow, fast = (line.get_xdata() for line in top.lines[:2])
    np.testing.assert_allclose(slow[0], 1)
    np.testing.assert_allclose(fast, [(0.5 + 4) / 2, 1])
    (spans,) = [c for c in top.collections if len(c.get_segments())]
    np.testing.assert_allclose(spans.get_segments()[0][:, 0], [0.5, 4])
    assert "1 of 4 channels never fade (∞)" in top.get_title()
    assert slow[1] > fast.max() and "∞" in [x.get_text() for x in bottom.get_xticklabels()]
    assert sum(patch.get_height() for patch in bottom.patches) == 4
    assert [x.get_text() for x in top.get_yticklabels()] == ["slow", "fast"]
    assert "1 never fade" in picture.alt


@pytest.mark.parametrize("name", [x for x in lv.registry.names if x != "rnn"])
def test_half_lives_of_every_mechanism(name):
    trace = traced(name, T=6)
    top = survival.half_lives(trace).figure().axes[0]
    rows = trace.sizes.get("H", trace.sizes.get("D"))
    assert len(top.get_yticks()) == rows
    assert ("also erases" in survival.half_lives(trace).note) == (
        trace.mechanism.recurrence in ("delta_rule", "rank_one")
    )


def test_half_lives_of_very_many_channels_are_thinned():
    picture = survival.half_lives(np.full((3, 40, 1000), 0.5))
    top, bottom = picture.figure().axes
    assert len(top.get_yticks()) == 16 and len(top.lines[0].get_xdata()) == 256
    assert sum(patch.get_height() for patch in bottom.patches) == 40_000
    assert "16 of 40 rows of dots shown." in picture.note and "256 of 1000 channels" in picture.note
    drawn(survival.half_lives([0.5, 0.25]))
    drawn(survival.half_lives(np.zeros((2, 3))))  # everything forgotten at once


@pytest.mark.parametrize("name", [m.name for m in lv.registry if m.linear])
def test_state_size_used_by_every_linear_mechanism(name):
    trace = traced(name, T=16)
    picture = survival.state_size_used(trace, head=1)
    series = picture.panels[0].series
    assert (series["rank"] <= series["at most"]).all()
    assert (series["entropy"] <= series["rank"] + 0.5).all()
    if trace.mechanism.recurrence in ("scalar_decay", "vector_decay", "delta_rule", "rank_one"):
        assert series["at most"].max() == 8


def test_state_size_used_of_a_small_state():
    plain = lv.linear_attention.having(feature_map="identity", normalize=False)
    trace = plain.trace(*plain.example(12, K=3, dtype=torch.float64))
    picture = drawn(survival.state_size_used(trace))
    t = np.arange(12)
    wanted = np.minimum(np.minimum(t, 12 - t), 3)
    for line in ("rank", "at most"):
        np.testing.assert_array_equal(picture.panels[0].series[line], wanted)
    A = picture.panels[1]
    np.testing.assert_array_equal(A.empty, np.triu(np.ones((12, 12)), 1))
    np.testing.assert_allclose(A.x, trace.attention_map()[0, 0])


def test_the_size_that_a_state_allows():
    for name, sizes, most in (
        ("s4", {"N": 3}, 6),  # complex numbers count twice
        ("mamba", {"N": 3}, 3),
        ("rwkv4", {}, 1),
        ("gla", {"K": 5}, 5),
        ("mamba2", {"N": 4}, 4),
        ("softmax", {}, 10),
    ):
        picture = survival.state_size_used(traced(name, T=20, **sizes))
        assert picture.panels[0].series["at most"].max() == most


def test_steps_are_fewer_where_a_step_is_large():
    assert len(viz.chosen(10)) == 10
    assert len(viz.chosen(1000)) == 256
    assert len(viz.chosen(1000, (64, 64))) == 128
    assert len(viz.chosen(1000, (2**20, 2**4))) == 2  # held in memory while measuring


def test_state_collapse_names_the_channels():
    S = rng.choice([-1.0, 1.0], size=(10, 4, 6))
    S[:, :, :3], S[:, :, 3:] = 1, -1
    S[7:, 2] *= 5
    picture = drawn(viz.state_collapse(S, 5))
    series = picture.panels[-1].series
    assert list(series) == ["limit from t = 5", "k = 2", "median channel"]
    np.testing.assert_allclose(series["k = 2"], [1] * 7 + [25] * 3)
    np.testing.assert_allclose(series["limit from t = 5"], [np.nan] * 5 + [3] * 5)
    assert picture.caption.startswith("1 of 4 channels exceed 3 times")
    np.testing.assert_allclose(panel(picture, "variance of each row").x, S.var(2))
    with pytest.raises(ValueError, match="cache"):
        viz.state_collapse(traced("softmax"), 5)
    with pytest.raises(ValueError, match="factor"):
        viz.state_collapse(S, 5, factor=0)


@pytest.mark.parametrize("name", lv.registry.names)
def test_linked_panels_of_every_mechanism(name):
    trace = traced(name, T=6)
    picture = drawn(viz.linked(trace, tokens="abcdef"))
    titles = " | ".join(p.title for p in picture.panels)
    m = trace.mechanism
    assert len({len(p) for p in picture.panels}) == 1
    assert ("written" in titles) == (name != "softmax") and f"read out: {m.output.name}" in titles
    assert ("effective attention" in titles) == m.linear
    no_gate = ("softmax", "rnn", "linear_attention", "deltanet")
    assert ("gate" in titles) == (name not in no_gate)
    assert ("erasing" in titles) == (m.recurrence in ("delta_rule", "rank_one"))


def test_what_adds_up_is_on_one_scale():
    trace = traced("gated_deltanet", T=6)
    picture = viz.linked(trace, head=1)
    state, erased, wrote = (
        panel(picture, title) for title in ("state S", "change by erasing", "written")
    )
    scales = {(p.kind, p.norm.vmax) for p in (state, erased, wrote)}
    assert scales == {("signed", max(abs(p.x).max() for p in (state, erased, wrote)))}
    lost = panel(picture, "gate: forgotten, 1 − a").series[""]
    np.testing.assert_allclose(lost, 1 - trace.a[0, :, 1])
    old = np.concatenate([0 * state.x[:1], state.x[:-1]])
    total = (1 - lost)[:, None, None] * old + erased.x + wrote.x
    np.testing.assert_allclose(total, state.x, atol=1e-12)
    assert "gate × old state + change by erasing + written" in picture.caption
    assert "Head 1 of 2." in picture.caption
    assert "State = Jacobian × old state + written" in viz.linked(traced("rnn")).caption
    assert "State = old state + written" in viz.linked(traced("linear_attention")).caption


def test_a_cache_is_shown_once():
    trace = traced("softmax", T=6)
    picture = viz.linked(trace)
    titles = [p.title for p in picture.panels]
    assert titles == ["cache of k", "cache of v", "read out: o", "effective attention"]
    np.testing.assert_array_equal(picture.panels[1].x[-1], trace.v[0, :, 0])
    assert picture.panels[1].empty[2, 3:].all() and not picture.panels[1].empty[2, :3].any()


def test_a_skip_on_the_diagonal_does_not_hide_the_memory():
    A = np.tri(40) + 99 * np.eye(40)
    assert memory_limit(A, np.arange(40)) == 1
    assert memory_limit(A[10:], np.arange(10, 40)) == 1
    for plain in (np.tri(40), np.eye(40), np.tri(40) + 18 * np.eye(40)):
        assert memory_limit(plain, np.arange(40)) is None
    used = survival.state_size_used(A)
    assert used.panels[1].norm.vmax == 1 and "end at 1, " in used.caption and used.start == 20
    assert "end at" not in survival.state_size_used(np.tri(40)).caption


def test_linked_panels_add_up():
    """The state is what was kept of the old one, the change by erasing, and what was written."""
    trace = traced("kda", K=4, V=5)
    picture = viz.linked(trace, head=1)
    S, written = panel(picture, "state S").x, panel(picture, "written").x
    gate, erased = (
        1 - panel(picture, "gate: forgotten, 1 − a").x,
        panel(picture, "change by erasing").x,
    )
    old = np.concatenate([0 * S[:1], S[:-1]])
    np.testing.assert_allclose(gate[:, :, None] * old + erased + written, S, atol=1e-10)
    o = panel(picture, "read out: o").x
    np.testing.assert_allclose(o, trace.o[0, :, 1])
    A = panel(picture, "effective attention").x
    np.testing.assert_allclose(A @ trace.v[0, :, 1].numpy(), o, atol=1e-10)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: viz.state(np.ones(3)), r"S: wanted axes \[t, k, v\] or \[t, d\].*\[3\]"),
        (lambda: viz.state(torch.ones(1, 4, 2, 3, 3)), r"S: .*S\[0, :, 0\]"),
        (lambda: viz.state(traced("gla"), part="z"), "part: wanted one of .* got 'z'"),
        (lambda: viz.state(traced("gla"), head=2), "head: wanted -2 to 1, got 2"),
        (lambda: viz.state(traced("gla"), tokens="ab"), "tokens: wanted 12 labels"),
        (lambda: viz.state(traced("gla"), start=12), "start: wanted -12 to 11, got 12"),
        (lambda: viz.state(np.ones((3, 2, 2)), rows="abc"), "rows: wanted 2 labels, got 3"),
        (lambda: viz.labelled_state(np.ones((2, 2)), cols="a"), "cols: wanted 2 labels, got 1"),
        (lambda: viz.labelled_state(traced("rnn")), r"x: wanted axes \[k, v\].*\[16\]"),
        (lambda: viz.linked(np.ones((3, 2, 2))), "trace: wanted a Trace"),
        (lambda: survival.state_size_used(np.ones((3, 2))), r"A: wanted \[t, s\].*\[3, 2\]"),
        (lambda: survival.state_size_used(traced("rnn")), "not linear"),
        (lambda: survival.half_lives(np.ones((1, 2, 2)), names="abc"), "names: wanted 2 labels"),
        (lambda: survival.half_lives(2 * np.ones((2, 2))), "a: wanted gates of magnitude 0 to 1"),
        (lambda: survival.retention_curves(np.ones((4, 2)), at=[9]), "at: wanted -4 to 3, got 9"),
    ],
)
def test_pictures_name_the_shapes_meant(call, words):
    with pytest.raises(ValueError, match=words):
        call()


# ------------------------------------------------------------------------- hostile numbers


def test_a_nan_is_seen_and_breaks_nothing():
    S = np.random.default_rng(0).standard_normal((6, 4, 5))
    S[2, 1, 1] = np.nan
    for measure in (
        memory.singular_spectrum,
        memory.effective_rank,
        memory.stable_rank,
        memory.state_norm,
    ):
        found = measure(S)
        bad = np.isnan(found).reshape(6, -1)
        assert bad[2].all() and not np.delete(bad, 2, 0).any()
    viz.state(S).figure()
    viz.state_measures(S).figure()
    viz.singular_values(S).figure()
    steps = np.broadcast_to(np.eye(3), (4, 3, 3)).copy()
    steps[1, 0, 0] = np.inf
    found = memory.transition_spectrum(steps)
    assert np.isnan(found[1]).all() and (found[[0, 2, 3]] == 1).all()
    with pytest.raises(ValueError, match="A: wanted finite numbers"):
        memory.effective_state_size(np.full((3, 3), np.nan))


@pytest.mark.parametrize("name", ["rnn", "lstm", "gru", "deltanet", "gated_deltanet", "kda"])
def test_a_trace_that_began_from_a_state_continues_the_whole_one(name):
    m = lv.registry[name]
    inputs = m.example(T=8, dtype=torch.float64)
    first = [x[:, :4] if spec.timed else x for x, spec in zip(inputs, m.inputs, strict=True)]
    last = [x[:, 4:] if spec.timed else x for x, spec in zip(inputs, m.inputs, strict=True)]
    whole, piece = m.trace(*inputs), m.trace(*last, m.recurrent(*first)[1])
    a, b = memory.steps(whole), memory.steps(piece)
    at, late = np.arange(4), np.arange(4, 8)
    np.testing.assert_allclose(a.written()[late], b.written()[at], atol=1e-12)
    panels = {p.title: p for p in viz.linked(whole).panels}
    for panel in viz.linked(piece).panels:
        if "erasing" in panel.title or "erased" in panel.title:
            np.testing.assert_allclose(panel.x, panels[panel.title].x[4:], atol=1e-12)


def test_half_life_of_any_tensor():
    for kind in (torch.bfloat16, torch.float16, torch.complex64):
        assert memory.half_life(torch.tensor([0.5, 1.0], dtype=kind)).tolist() == [1.0, np.inf]
