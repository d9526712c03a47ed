"""Sparsity: measures on rows whose values are known in closed form, pictures by their panels."""

import math

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

import linviz as lv
from linviz import viz as sp
from linviz.viz import sparsity
from linviz.viz.maps import clipped_vmax

BY_TOKEN = (sp.entropy, sp.effective_tokens, sp.gini, sp.hoyer, sp.top_k_mass, sp.negative_share)
BY_PLACE = (sp.sink_share, sp.mean_distance, sp.effective_context, sp.reach)
ALL = BY_TOKEN + BY_PLACE


@pytest.fixture(autouse=True)
def closed():
    """No test leaves an open figure or a changed setting."""
    before = dict(matplotlib.rcParams)
    yield
    assert not plt.get_fignums()
    assert dict(matplotlib.rcParams) == before


def random_map(T=12, seed=0):
    return np.random.default_rng(seed).standard_normal((T, T))


def even(T):
    """Softmax of equal scores: 1/(t+1) on each token up to t."""
    scores = torch.zeros(T, T).masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf)
    return scores.softmax(-1)


def geometric(T, gamma):
    """RetNet's map for a constant q.k of 1: gamma ** (t - s)."""
    k = torch.ones(1, T, 1, 1, dtype=torch.float64)
    return lv.retnet.attention_map(k, k, k, gamma=torch.tensor(gamma, dtype=k.dtype))[0, 0]


# --------------------------------------------------------------------------------- closed forms


def test_even_rows():
    T = 16
    n = np.arange(1, T + 1)
    A = even(T)
    np.testing.assert_allclose(sp.entropy(A), np.log(n), atol=1e-6)
    np.testing.assert_allclose(sp.effective_tokens(A), n, rtol=1e-6)
    np.testing.assert_allclose(sp.gini(A), 0, atol=1e-6)
    np.testing.assert_allclose(sp.hoyer(A)[1:], 0, atol=1e-6)
    np.testing.assert_allclose(sp.top_k_mass(A), np.minimum(n / n[:, None], 1), rtol=1e-6)
    np.testing.assert_allclose(sp.sink_share(A), 1 / n, rtol=1e-6)
    np.testing.assert_allclose(sp.sink_share(A, first=4), np.minimum(4 / n, 1), rtol=1e-6)
    np.testing.assert_allclose(sp.mean_distance(A), (n - 1) / 2, atol=1e-5)
    np.testing.assert_array_equal(sp.effective_context(A, share=0.5), np.ceil(n / 2))
    np.testing.assert_array_equal(sp.effective_context(A, share=1), n)
    np.testing.assert_array_equal(sp.reach(A), n)
    np.testing.assert_array_equal(sp.negative_share(A), 0)


def test_one_token_has_all():
    T, at = 9, 2
    A = np.zeros((T, T))
    A[:, at] = -3.0
    n = np.arange(at + 1, T + 1)  # later rows; the first two are zero up to the diagonal
    for measure in ALL:
        assert np.isnan(measure(A)[:at]).all() and measure(A)[at:].shape[0] == len(n)
    assert (sp.entropy(A)[at:] == 0).all() and (sp.effective_tokens(A)[at:] == 1).all()
    np.testing.assert_allclose(sp.gini(A)[at:], (n - 1) / n)
    np.testing.assert_allclose(sp.hoyer(A)[at:], 1)
    assert (sp.top_k_mass(A, [1, 5])[at:] == 1).all()
    assert (sp.negative_share(A)[at:] == 1).all() and (sp.sink_share(A)[at:] == 0).all()
    assert (sp.sink_share(A, first=at + 1)[at:] == 1).all()
    np.testing.assert_array_equal(sp.mean_distance(A)[at:], n - 1 - at)
    for measure in (sp.effective_context, sp.reach):
        np.testing.assert_array_equal(measure(A)[at:], n - at)


def test_a_row_by_hand():
    A = np.array([[1.0, -3.0, 0.0, 4.0]])
    at = {"readers": [3]}
    p = np.array([1, 3, 4]) / 8
    assert sp.entropy(A, **at)[0] == pytest.approx(-(p * np.log(p)).sum())
    # sorted 0 1 3 4: sum of rank * p = (2*1 + 3*3 + 4*4) / 8 = 27/8; 2/4 * 27/8 - 5/4 = 7/16
    assert sp.gini(A, **at)[0] == pytest.approx(7 / 16)
    assert sp.hoyer(A, **at)[0] == pytest.approx((2 - 8 / math.sqrt(26)) / (2 - 1))
    np.testing.assert_allclose(sp.top_k_mass(A, **at)[0], [0.5, 7 / 8, 1, 1])
    np.testing.assert_allclose(sp.top_k_mass(A, [3, 1, 9], **at)[0], [1, 0.5, 1])
    assert sp.negative_share(A, **at)[0] == pytest.approx(3 / 8)
    assert sp.sink_share(A, **at)[0] == pytest.approx(1 / 8)
    assert sp.mean_distance(A, **at)[0] == pytest.approx((3 * 1 + 2 * 3) / 8)
    spans = [sp.effective_context(A, share=x, **at)[0] for x in (0.5, 0.51, 7 / 8, 0.88, 1)]
    assert spans == [1, 3, 3, 4, 4]
    assert [sp.reach(A, tolerance=x, **at)[0] for x in (0, 0.24, 0.25, 0.74, 0.75)] == [
        4,
        4,
        3,
        3,
        1,
    ]


@pytest.mark.parametrize("gamma", [0.5, 0.9, 31 / 32])
def test_geometric_rows(gamma):
    T = 64
    A, n = geometric(T, gamma), np.arange(1, T + 1)
    lost = 1 - 0.9 * (1 - gamma**n)  # of an endless row, what lies further back than the context
    np.testing.assert_array_equal(sp.effective_context(A), np.ceil(np.log(lost) / np.log(gamma)))
    steps = math.ceil(math.log(0.01) / math.log(gamma))  # gamma ** d > 0.01 for d < steps
    np.testing.assert_array_equal(sp.reach(A), np.minimum(steps, n))
    np.testing.assert_allclose(sp.sink_share(A), gamma ** (n - 1) * (1 - gamma) / (1 - gamma**n))
    d = np.arange(T)
    mean = (d * gamma**d).cumsum() / (gamma**d).cumsum()
    np.testing.assert_allclose(sp.mean_distance(A), mean, atol=1e-9)
    entropy = np.log((gamma**d).cumsum()) - math.log(gamma) * mean
    np.testing.assert_allclose(sp.entropy(A), entropy, rtol=1e-9, atol=1e-9)
    k = np.array([1, 3, 10])
    mass = np.minimum((1 - gamma**k) / (1 - gamma ** n[:, None]), 1)
    np.testing.assert_allclose(sp.top_k_mass(A, k), mass)


def test_the_first_reader():
    A = np.array([[-2.0]])
    assert [measure(A).item() for measure in (sp.entropy, sp.gini, sp.mean_distance)] == [0, 0, 0]
    assert [measure(A).item() for measure in (sp.effective_context, sp.reach)] == [1, 1]
    assert np.isnan(sp.hoyer(A)).all()


# ---------------------------------------------------------------------------------- invariances


@pytest.mark.parametrize("measure", ALL)
def test_the_scale_of_a_row_does_not_matter(measure):
    A = random_map()
    scale = np.logspace(-290, 290, len(A))[:, None]
    np.testing.assert_allclose(measure(A * scale), measure(A), rtol=1e-9)


@pytest.mark.parametrize("measure", [m for m in ALL if m is not sp.negative_share])
def test_the_sign_does_not_matter(measure):
    A = random_map()
    np.testing.assert_array_equal(measure(A), measure(np.abs(A)))
    np.testing.assert_allclose(sp.negative_share(A) + sp.negative_share(-A), 1)


@pytest.mark.parametrize("measure", BY_TOKEN)
def test_the_order_of_visible_tokens_does_not_matter(measure):
    A = random_map()
    mixed = A.copy()
    for t in range(len(A)):
        mixed[t, : t + 1] = np.random.default_rng(t).permutation(A[t, : t + 1])
    np.testing.assert_allclose(measure(mixed), measure(A), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("measure", BY_PLACE)
def test_the_order_matters_where_places_are_measured(measure):
    s = np.arange(12.0)
    near, first = 0.5 ** (s[:, None] - s), np.tile(0.5**s, (12, 1))  # the same shares, mirrored
    np.testing.assert_allclose(sp.gini(near), sp.gini(first))
    assert (measure(near)[7:] != measure(first)[7:]).all()


@pytest.mark.parametrize("measure", ALL)
def test_what_stands_above_the_diagonal_is_not_looked_at(measure):
    A = random_map()
    future = np.triu(np.ones_like(A), 1) > 0
    for noise in (1e9, np.nan, np.inf):
        np.testing.assert_array_equal(measure(np.where(future, noise, A)), measure(A))


@pytest.mark.parametrize("measure", ALL)
def test_rows_without_shares_are_nan(measure):
    A = random_map()
    before = measure(A)
    A[3], A[4, 2], A[5, 0] = 0, np.nan, -np.inf
    after = measure(A)
    assert np.isnan(after[3:6]).all()
    np.testing.assert_array_equal(np.delete(after, [3, 4, 5], 0), np.delete(before, [3, 4, 5], 0))


@pytest.mark.parametrize("measure", ALL)
def test_heads_readers_and_blocks(measure, monkeypatch):
    A = np.stack([random_map(seed=i) for i in range(6)]).reshape(2, 3, 12, 12)
    one = measure(A[1, 2])
    np.testing.assert_array_equal(measure(A)[1, 2], one)
    np.testing.assert_array_equal(measure(torch.tensor(A))[1, 2], one)
    rows = [1, 4, 11]
    np.testing.assert_allclose(measure(A[..., rows, :], readers=rows)[1, 2], one[rows], rtol=1e-12)
    monkeypatch.setattr(sparsity, "BLOCK", 5 * 12)
    np.testing.assert_allclose(measure(A)[1, 2], one, rtol=1e-12)


def test_number_types():
    A = even(8)
    for x in (A.bfloat16(), A.half(), A.tolist(), A.requires_grad_()):
        np.testing.assert_allclose(sp.entropy(x), np.log(np.arange(1, 9)), atol=0.01)


def test_twenty_thousand_tokens():
    T, wide = 20_000, 100
    readers = np.arange(0, T, 200)
    A = np.zeros((len(readers), T), np.float32)
    for row, t in zip(A, readers, strict=True):
        row[max(0, t - wide + 1) : t + 1] = 1
    n = np.minimum(readers + 1, wide)
    np.testing.assert_allclose(sp.effective_tokens(A, readers=readers), n)
    np.testing.assert_array_equal(sp.reach(A, readers=readers), n)
    np.testing.assert_array_equal(sp.effective_context(A, share=0.5, readers=readers), (n + 1) // 2)
    np.testing.assert_allclose(sp.gini(A, readers=readers), 1 - n / (readers + 1), atol=1e-12)


# ----------------------------------------------------------------------------------- selections


def test_pages_are_spelled_out():
    keep = sp.page_mask([[0], [0], [0], [1], [0, 1], [-1, 1]], page_size=3, length=6)
    wanted = ["100000", "110000", "111000", "000100", "111110", "000111"]
    np.testing.assert_array_equal(keep, [[c == "1" for c in row] for row in wanted])
    same = sp.page_mask(torch.tensor([[0, -1], [0, 1]]), page_size=3, length=6, readers=[2, 4])
    np.testing.assert_array_equal(same, keep[[2, 4]])


def test_what_a_selection_keeps():
    T, window = 10, 3
    t, s = np.mgrid[:T, :T]
    keep = (s <= t) & (s > t - window)
    n = np.arange(1, T + 1)
    np.testing.assert_allclose(sp.kept_share(keep), np.minimum(window, n) / n)
    np.testing.assert_allclose(sp.mass_recall(even(T), keep), np.minimum(window, n) / n, rtol=1e-6)
    gamma = 0.5
    recall = sp.mass_recall(geometric(T, gamma), keep)
    np.testing.assert_allclose(recall, np.minimum((1 - gamma**window) / (1 - gamma**n), 1))
    np.testing.assert_allclose(sp.mass_recall(-random_map(T), s <= t), 1)
    assert np.isnan(sp.mass_recall(np.zeros((T, T)), keep)).all()
    rows = [4, 9]
    np.testing.assert_allclose(sp.kept_share(keep[rows], readers=rows), [3 / 5, 3 / 10])
    np.testing.assert_allclose(
        sp.mass_recall(geometric(T, gamma)[rows], keep[rows], readers=rows), recall[rows]
    )


# -------------------------------------------------------------------------------------- refusals

SQUARE = np.eye(4)
REFUSED = {
    "one axis": (lambda: sp.entropy(np.ones(3)), r"A: wanted a map \[.., t, s\].*\[3\]"),
    "empty": (lambda: sp.gini(np.ones((0, 3))), r"A: .*empty.*\[0, 3\]"),
    "complex": (lambda: sp.gini(SQUARE * 1j), "complex"),
    "no readers": (
        lambda: sp.entropy(SQUARE[:2]),
        "readers: wanted the times of 2 rows",
    ),
    "few readers": (lambda: sp.entropy(SQUARE[:2], readers=[1]), "readers: wanted 2"),
    "late readers": (lambda: sp.entropy(SQUARE[:2], readers=[1, 4]), "readers: .*0 to 3"),
    "half readers": (lambda: sp.entropy(SQUARE[:2], readers=[1, 1.5]), "readers"),
    "falling readers": (lambda: sp.entropy(SQUARE[:2], readers=[2, 1]), "increasing"),
    "share": (lambda: sp.effective_context(SQUARE, share=0), "share"),
    "share above 1": (lambda: sp.effective_context(SQUARE, share=1.1), "share"),
    "tolerance": (lambda: sp.reach(SQUARE, tolerance=1), "tolerance"),
    "k": (lambda: sp.top_k_mass(SQUARE, [0]), "k: "),
    "first": (lambda: sp.sink_share(SQUARE, first=0), "first"),
    "early key": (
        lambda: sp.kept_share([[1, 1], [1, 1]]),
        "keep: .*at time 0, got key 1",
    ),
    "numbers": (lambda: sp.kept_share(2 * SQUARE), "keep: .*page_size"),
    "shapes": (lambda: sp.mass_recall(np.eye(3), SQUARE), r"A: .*\[4, 4\], got \[3, 3\]"),
    "page size": (lambda: sp.page_mask([[0]], page_size=0, length=1), "page_size"),
    "length": (lambda: sp.page_mask([[0]], page_size=1, length=0), "length"),
    "flat pages": (lambda: sp.page_mask([0, 1], page_size=2, length=2), r"pages: .*\[t, p\]"),
    "early page": (lambda: sp.page_mask([[0], [1]], page_size=2, length=2), "pages: .*step 1"),
    "half page": (lambda: sp.page_mask([[0.5]], page_size=1, length=1), "pages: .*step 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name):
    call, words = REFUSED[name]
    with pytest.raises(ValueError, match=words):
        call()


# -------------------------------------------------------------------------------------- pictures


def trace(name, T=12, **sizes):
    mechanism = lv.registry[name]
    return mechanism.trace(*mechanism.example(T=T, **sizes))


def panel(picture, title):
    """The panel of that title."""
    return next(p for p in picture.panels if p.title == title)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_attention_of_a_trace_has_signs_a_hatched_half_and_its_row(theme):
    tr = trace("gated_deltanet", B=2)
    picture = sp.attention(tr, head=1, batch=1, tokens="the cat sits")
    A = tr.attention_map()[1, 1].double().numpy()
    seen = np.tri(12, dtype=bool)
    rows, points = picture.panels[:2]
    np.testing.assert_allclose(rows.x[seen], A[seen], atol=1e-6)
    np.testing.assert_array_equal(rows.empty, ~seen)
    assert rows.kind == "signed" and rows.norm.vmin == -rows.norm.vmax
    assert rows.labels["rows"] == rows.labels["cols"] == list("the cat sits")
    np.testing.assert_allclose(points.y[5, :6], A[5, :6], atol=1e-6)
    assert np.isnan(points.y[5, 6:]).all()
    tokens = panel(picture, "how many tokens matter").series
    within = tokens["90 % lies within the last … tokens"]
    np.testing.assert_allclose(within, sp.effective_context(A))
    mass = panel(picture, "where the mass lies").series
    np.testing.assert_allclose(mass["below 0"], sp.negative_share(A), atol=1e-6)
    share = f"{100 * sp.negative_share(A).mean():.3g} %"
    assert share in picture.caption and share in picture.alt
    assert picture.tokens == list("the cat sits") and picture.steps == list(range(12))
    ax = next(ax for ax in picture.figure(theme).axes if ax.images)
    assert ax.patch.get_hatch() and ax.get_xlabel() == "token s (12)"


def test_weights_without_a_negative_one_have_no_negative_half():
    picture = sp.attention(even(6))
    assert picture.panels[0].kind == "count" and "Below 0 lies 0 %" in picture.caption


def test_several_maps_share_a_scale():
    picture = sp.attention({"small": np.eye(4), "large": -4 * np.eye(4)})
    assert [p.title for p in picture.panels[:2]] == ["small", "large"]
    assert {(p.kind, p.norm.vmax) for p in picture.panels[:2]} == {("signed", 4)}
    assert panel(picture, "mass below 0").series["large"].tolist() == [1, 1, 1, 1]
    even_ones = sp.attention({"small": np.eye(4), "large": -4 * np.eye(4)}, normalize=True)
    assert {p.norm.vmax for p in even_ones.panels[:2]} == {1}
    stack = sp.attention(np.stack([np.eye(4)] * 2))
    assert [p.title for p in stack.panels[:2]] == ["head 0", "head 1"]


def test_a_normalized_row_without_shares_is_nan():
    A = np.tril(np.ones((4, 4)))
    A[2] = 0
    x = sp.attention(A, normalize=True).panels[0].x
    assert np.isnan(x[2, :3]).all() and x[2, 3] == 0
    np.testing.assert_allclose(x[3], 0.25)


def test_colours_end_at_a_percentile_only_for_heavy_tails():
    x = np.arange(1, 1001) / 1000
    assert clipped_vmax(x, 90) == 1
    assert clipped_vmax(np.append(x, [np.nan, np.inf])) == 1
    heavy = np.append(-x, [0] * 5000 + [50])
    assert clipped_vmax(heavy) == pytest.approx(0.996, abs=1e-3)
    assert clipped_vmax(heavy, 100) == 50 and clipped_vmax(np.zeros(3)) == 1
    A = np.tri(64)
    A[40, 3] = 99
    picture = sp.attention(A)
    assert picture.panels[0].norm.vmax == 1 and picture.panels[0].over
    assert "colours end at 1, percentile 99.5" in picture.caption
    assert "colours end" not in sp.attention(np.tri(64)).caption


def test_a_skip_on_the_diagonal_ends_the_colours_below_it():
    picture = sp.attention(np.tri(64) + 99 * np.eye(64))
    assert picture.panels[0].norm.vmax == 1 and picture.panels[0].over
    assert "colours end at 1, so that the memory is seen" in picture.caption
    assert "up to 100" in picture.caption
    beside = sp.attention({"skip": np.tri(64) + 99 * np.eye(64), "plain": 50 * np.tri(64)})
    assert "memory" not in beside.caption


def test_long_maps_are_thinned_and_say_so():
    T = 4096
    A = np.zeros((T, T), np.float32)
    A[np.arange(T), np.arange(T)] = 1
    A[:, 777] = -5  # one column
    picture = sp.attention(A)
    rows = picture.panels[0]
    assert rows.x.shape == (128, 128) and "128 of 4096 readers" in picture.note
    assert "32 of 4096" in picture.note
    assert (rows.x[40:, 777 // 32] == -5).all()  # a thin stripe survives
    assert picture.steps[-1] == T - 1 and rows.labels["rows"][-1] == str(T - 1)
    assert rows.labels["cols"][:3] == ["0", "32", "64"]
    assert picture.panels[1].x[0, 1] == 32 and np.nanmin(picture.panels[1].y[-1]) == -5
    assert picture.panels[2].series["90 % lies within the last … tokens"][-1] == T - 777
    assert len(picture.html()) < 600_000


def test_rows_of_a_map_need_their_times():
    A, readers = even(200)[[3, 50, 199]], [3, 50, 199]
    picture = sp.attention(A, readers=readers)
    assert picture.steps == readers and picture.panels[0].labels["rows"] == ["3", "50", "199"]
    np.testing.assert_allclose(
        picture.panels[2].series["effective tokens"], [4, 51, 200], rtol=1e-6
    )
    with pytest.raises(ValueError, match=r"readers: wanted .* 3 rows \(200 tokens\)"):
        sp.attention(A)
    tr = trace("gla", T=300)
    few = sp.sparsity_measures(tr, readers=[10, 299], measures=["reach"])
    wanted = sp.reach(tr.attention_map(heads=[0])[0, 0])[[10, 299]]
    np.testing.assert_array_equal(few.panels[0].series["this map"], wanted)


def test_channels_of_mamba_are_heads():
    tr = trace("mamba", T=6)
    picture = sp.attention(tr, head=2)
    A = tr.attention_map(channels=[2])[0, 0].double().numpy()
    np.testing.assert_allclose(picture.panels[0].x, A, atol=1e-6)


def test_measures_over_time_beside_even_weights():
    maps = {"softmax": even(10), "retnet": geometric(10, 0.5)}
    picture = sp.sparsity_measures(maps)
    titles = ["entropy", "Gini index", "Hoyer sparseness", "context of 90 % of the mass"]
    assert [p.title for p in picture.panels] == titles
    entropy = picture.panels[0].series
    assert list(entropy) == ["softmax", "retnet", "even weights"]
    np.testing.assert_allclose(entropy["softmax"], entropy["even weights"], atol=1e-6)
    np.testing.assert_allclose(entropy["retnet"], sp.entropy(maps["retnet"]))
    assert f"retnet {sp.entropy(maps['retnet']).mean():.3g}" in picture.alt
    assert picture.figure("dark").axes


def test_the_curve_of_the_largest_weights():
    maps = {"even": even(16), "one": np.eye(16)}
    ax = sp.top_mass(maps, k=[1, 2, 4, 16], after=15).figure().axes[0]
    drawn = {line.get_label(): line for line in ax.lines}
    np.testing.assert_allclose(drawn["even"].get_ydata(), np.array([1, 2, 4, 16]) / 16, rtol=1e-6)
    np.testing.assert_allclose(drawn["even weights"].get_ydata(), np.array([1, 2, 4, 16]) / 16)
    np.testing.assert_array_equal(drawn["one"].get_ydata(), 1)
    assert ax.get_xscale() == "log"
    picture = sp.top_mass(even(16), after=14)
    assert picture.caption.startswith("Average over 2 readers, from time 14 on.")
    mean = np.mean([8 / 15, 8 / 16])
    line = picture.figure("dark").axes[0].lines[0]
    assert np.interp(8, line.get_xdata(), line.get_ydata()) == pytest.approx(mean, rel=1e-6)


def test_a_summary_of_heads_and_layers():
    one, every = np.eye(8), np.tri(8)
    layers = {"first": np.stack([one, every, -one]), "last": np.stack([every, one])}
    picture = sp.head_summary(layers, measures=["effective tokens", "negative"])
    axes = [ax for ax in picture.figure().axes if ax.images]
    assert [ax.get_title() for ax in axes] == ["effective tokens", "mass below 0"]
    mean = (1 + 8) / 2
    np.testing.assert_allclose(axes[0].images[0].get_array()[:, :2], [[1, mean], [mean, 1]])
    assert axes[1].images[0].get_array()[0, 2] == 1
    np.testing.assert_array_equal(axes[0].images[0].get_alpha(), [[1, 1, 1], [1, 1, 0]])
    written = [text.get_text() for text in axes[0].texts]
    assert written == ["1", "4.5", "1", "4.5", "1"]
    tr = trace("gla", T=8)
    ax = sp.head_summary({"a": tr, "b": tr}).figure().axes[0]
    wanted = sp.effective_context(tr.attention_map()[0]).mean(-1)
    np.testing.assert_allclose(ax.images[0].get_array(), [wanted, wanted])
    assert ax.get_ylabel() == "mechanism (2)" and ax.images[0].colorbar.ax.get_ylabel()
    assert axes[0].get_ylabel() == "map (2)"
    assert axes[1].images[0].colorbar.ax.get_ylabel() == "share of |A|"
    named = sp.head_summary(layers, row_name="block").figure().axes[0]
    assert named.get_ylabel() == "block (2)"
    wide = sp.head_summary(np.ones((2, 3, 4, 4)), measures=["sink"]).figure().axes[0]
    assert wide.images[0].get_array().shape == (2, 3) and wide.get_ylabel() == "layer (2)"


def test_the_summary_thins_readers_and_says_so():
    picture = sp.head_summary(np.tri(1030)[None], measures=["effective tokens"])
    assert picture.note == "Averages over 512 of 1030 readers."
    ax = picture.figure().axes[0]
    assert ax.images[0].get_array()[0, 0] == pytest.approx(1031 / 2, rel=1e-3)


def test_the_boundary_is_drawn_where_it_is_measured():
    A = geometric(40, 0.5)
    picture = sp.context_length(A)
    left, right = [ax for ax in picture.figure().axes if ax.get_xlabel()]
    edges = [line.get_xdata()[::2] for line in left.lines]
    t = np.arange(40)
    # 90 % of a long row lies in 4 tokens, 1 % is passed after 7: the edges left of those tokens
    np.testing.assert_array_equal(edges[0][8:], t[8:] - 3 - 0.5)
    np.testing.assert_array_equal(edges[1][8:], t[8:] - 6 - 0.5)
    np.testing.assert_array_equal(right.lines[0].get_ydata(), sp.effective_context(A))
    np.testing.assert_array_equal(right.lines[2].get_ydata(), t + 1)
    assert "within the last 4 tokens" in picture.alt and "the last 7 tokens" in picture.alt
    assert [text.get_text() for text in right.get_legend().get_texts()] == [
        "90 % lies within the last …",
        "above 1 % of the largest: the last …",
        "all tokens",
    ]


def test_the_boundary_of_a_thinned_map():
    T = 1024
    A = np.tri(T) - np.tri(T, k=-64)  # a band of 64 tokens
    picture = sp.context_length(A, share=1, tolerance=0)
    left = picture.figure("dark").axes[0]
    edge = left.lines[0].get_xdata()
    assert edge[-1] == (T - 64) // 8 - 0.5 and "128 of 1024 readers" in picture.note
    name = left.xaxis.get_major_formatter()
    assert (name(100), name(127.0), name(500)) == ("800", "1016", "")


def test_selection_of_pages():
    pages = [[t // 4] for t in range(16)]  # only the page being written
    A = even(16)
    picture = sp.selection(pages, page_size=4, attention=A, tokens="abcdefghijklmnop")
    keep, whole, held = picture.panels
    wanted = sp.page_mask(pages, page_size=4, length=16)
    np.testing.assert_array_equal(keep.x, wanted)
    np.testing.assert_array_equal(keep.empty, ~np.tri(16, dtype=bool))
    np.testing.assert_allclose(whole.x, A, rtol=1e-6)
    n = np.arange(1, 17)
    share = (np.arange(16) % 4 + 1) / n
    for name in ("keys kept", "mass recalled", "best for as many keys"):
        np.testing.assert_allclose(held.series[name], share, rtol=1e-6)
    assert "Pages of 4 keys" in picture.caption and f"{100 * share.mean():.3g} %" in picture.alt
    assert picture.figure("light").axes and picture.figure("dark").axes


def test_selection_of_keys():
    keep = np.eye(8, dtype=bool)
    A = np.tri(8)
    A[:, 0] = -8
    held = sp.selection(torch.tensor(keep), attention=A).panels[-1].series
    np.testing.assert_allclose(held["mass recalled"][1:], 1 / (8 + np.arange(1, 8)))
    np.testing.assert_allclose(held["best for as many keys"], 8 / (8 + np.arange(8)))
    assert "hold more at 1 of 8 steps" in sp.selection(keep, attention=A).caption
    plain = sp.selection(keep)
    assert [p.title for p in plain.panels] == ["kept keys", "what the selection holds"]
    tr = trace("softmax", T=8)
    recall = sp.selection(keep, attention=tr, head=1).panels[-1].series["mass recalled"]
    np.testing.assert_allclose(recall, tr.attention_map()[0, 1].diagonal(), rtol=1e-6)
    rows = sp.selection(keep[[2, 5]], readers=[2, 5], attention=tr, head=1)
    np.testing.assert_allclose(rows.panels[-1].series["mass recalled"], recall[[2, 5]], rtol=1e-6)
    assert rows.steps == [2, 5]


def test_a_long_selection_is_thinned_and_says_so():
    T = 1000
    picture = sp.selection(np.eye(T, dtype=bool), attention=np.eye(T))
    assert "128 of 1000 steps shown" in picture.note and picture.steps[-1] == T - 1
    assert picture.panels[0].x[-1, -1] == 1  # one key of a block is enough to be seen
    assert picture.panels[-1].series["keys kept"][-1] == 1 / T
    assert (picture.panels[-1].series["mass recalled"] == 1).all()


REFUSED_PICTURES = {
    "four axes": (lambda: sp.attention(np.ones((2, 2, 2, 2))), r"x: wanted a map \[t, s\]"),
    "nothing": (lambda: sp.attention({}), "x: wanted one entry or more"),
    "two sizes": (lambda: sp.attention({"a": np.eye(2), "b": np.eye(3)}), "one size.*'b'"),
    "in a mapping": (lambda: sp.top_mass({"a": np.ones(3)}), r"x\['a'\]: .*\[3\]"),
    "tokens": (lambda: sp.attention(np.eye(3), tokens="ab"), "tokens: wanted 3"),
    "tokens of measures": (lambda: sp.sparsity_measures(np.eye(3), tokens="ab"), "tokens"),
    "percentile": (lambda: sp.attention(np.eye(3), percentile=0), "percentile"),
    "head": (lambda: sp.attention(trace("gla"), head=2), "head: wanted -2 to 1, got 2"),
    "batch": (lambda: sp.attention(trace("gla"), batch=9), "batch"),
    "batch of a summary": (lambda: sp.head_summary(trace("gla"), batch=9), "batch"),
    "measure": (lambda: sp.sparsity_measures(np.eye(3), measures=["kurtosis"]), "measures: .*gini"),
    "no measure": (lambda: sp.sparsity_measures(np.eye(3), measures=[]), "measures"),
    "no measure of heads": (lambda: sp.head_summary(np.ones((1, 2, 2)), measures=[]), "measures"),
    "layer": (lambda: sp.head_summary({"a": np.eye(2)}), r"x\['a'\]: wanted a stack \[h, t, s\]"),
    "no layer": (lambda: sp.head_summary({}), "x: wanted one entry or more"),
    "after": (lambda: sp.top_mass(np.eye(3), after=3), "after"),
    "attention": (lambda: sp.selection(np.eye(3), attention=np.eye(4)), r"attention: .*\[3, 3\]"),
    "pages": (lambda: sp.selection([[0], [0], [1]], page_size=4), "pages: .*step 2"),
}


@pytest.mark.parametrize("name", REFUSED_PICTURES)
def test_pictures_refuse(name):
    call, words = REFUSED_PICTURES[name]
    with pytest.raises(ValueError, match=words):
        call()


def test_the_words_of_top_mass_say_what_was_measured():
    B = np.tril(np.random.default_rng(0).standard_normal((60, 60)))
    picture = sp.top_mass(B, k=[3, 50])
    held = sp.top_k_mass(B, [3, 50]).mean(0)
    assert f"{held[0]:.2f} in 3, {held[1]:.2f} in 50" in picture.alt


def test_many_maps_are_shown_in_part():
    stack = np.stack([np.tril(np.ones((5, 5)))] * 20)
    picture = sp.context_length(stack)
    assert len(picture.figure().axes) <= 3 * 8 and "8 of 20 maps shown" in picture.note


def test_the_borders_of_the_context_move_with_the_map():
    A = np.tril(np.ones((6, 6)))
    made = sp.context_length(A, share=0.5)
    rows, curves = made.panels
    back = sp.effective_context(A, share=0.5)
    np.testing.assert_array_equal(next(iter(rows.edges.values())), np.arange(1, 7) - back)
    np.testing.assert_array_equal(next(iter(curves.series.values())), back)
    assert made.html().count('class="lv-edge"') == 2 and len(made.steps) == 6
