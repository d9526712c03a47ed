"""Activations: the measures on cases worked by hand, the pictures by their artists and panels."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

import linviz as lv
from linviz import viz as act
from linviz.viz import INK, Lines, Rows

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def closed():
    """No test leaves a figure open or the reader's settings changed."""
    before = dict(matplotlib.rcParams)
    yield
    left = plt.get_fignums()
    plt.close("all")
    assert not left
    assert dict(matplotlib.rcParams) == before


# ---------------------------------------------------------------------------------- measured parts


def test_token_norms():
    np.testing.assert_allclose(act.token_norms([[3.0, 4.0], [0.0, 0.0]]), [5, 0])
    x = torch.tensor([[1.0, 1.0]], dtype=torch.bfloat16, requires_grad=True)
    np.testing.assert_allclose(act.token_norms(x), [2**0.5])


def test_clip_limit_is_the_percentile_of_the_finite_magnitudes():
    x = np.arange(-100.0, 1.0)[:, None]  # magnitudes 0 .. 100
    assert act.clip_limit(x, 95) == pytest.approx(95)
    assert act.clip_limit(x, 100) == 100
    assert act.clip_limit([[1.0, np.nan, -np.inf]], 100) == 1
    assert act.clip_limit(np.zeros((2, 2))) == act.clip_limit([[np.nan]]) == 1
    assert act.clip_limit([[0.0] * 999 + [7.0]], 99) == 7  # mostly zeros
    with pytest.raises(ValueError, match="percentile"):
        act.clip_limit(x, 0)


def test_channel_stats_of_a_ramp():
    x = np.stack([np.arange(101.0), -2 * np.arange(101.0)], axis=1)
    stats = act.channel_stats(x)
    np.testing.assert_allclose(stats["median"], [50, 100])
    np.testing.assert_allclose(stats["p99"], [99, 198])
    np.testing.assert_allclose(stats["max"], [100, 200])


def test_channel_stats_leave_out_what_is_not_finite():
    x = np.array([[1.0, np.nan], [np.inf, np.nan], [3.0, np.nan]])
    stats = act.channel_stats(x)
    assert stats["median"][0] == 2 and stats["max"][0] == 3
    assert all(np.isnan(row[1]) for row in stats.values())


def test_outlier_channels_at_the_edge_of_each_criterion():
    x = np.zeros((100, 4))
    x[:6, 0] = 6.0  # 6 %
    x[:5, 1] = 60.0  # 5 %
    x[:, 2] = 5.99
    x[-6:, 3] = -6.0
    np.testing.assert_array_equal(act.outlier_channels(x), [0, 3])
    np.testing.assert_array_equal(act.outlier_channels(x, magnitude=5.99), [0, 2, 3])
    np.testing.assert_array_equal(act.outlier_channels(x, positions=0.05), [0, 1, 3])


def test_outlier_channels_count_layers_and_all_positions_together():
    layers = {str(i): np.zeros((100, 3)) for i in range(8)}
    layers["0"][:, 0] = 7  # 1 of 8 layers, 12.5 % of all positions
    layers["0"][:, 1] = layers["5"][:1, 1] = 7  # 2 of 8 layers, 12.6 %
    for x in layers.values():
        x[:5, 2] = 7  # all layers, 5 %
    np.testing.assert_array_equal(act.outlier_channels(layers), [1])
    np.testing.assert_array_equal(act.outlier_channels(layers, layers=1 / 8), [0, 1])
    np.testing.assert_array_equal(act.outlier_channels(layers, positions=0.05), [1, 2])
    assert not act.outlier_channels(np.zeros((3, 2)), layers=0, positions=0).size


def test_outlier_channels_follow_a_permutation_and_ignore_signs():
    x = RNG.standard_normal((50, 10)) * np.geomspace(0.1, 30, 10)
    order = RNG.permutation(10)
    found = act.outlier_channels(x)
    assert 0 < found.size < 10
    np.testing.assert_array_equal(np.sort(order[act.outlier_channels(-x[::-1, order])]), found)


def test_massive_positions_need_both_thresholds():
    x = np.full((10, 10), 0.1)
    x[2, 3], x[7, 0], x[5, 5], x[1, 1] = -200, 100.0, 101, 99
    at, values = act.massive_positions(x)
    np.testing.assert_array_equal(at, [[2, 3], [5, 5]])
    np.testing.assert_array_equal(values, [-200, 101])
    x[x == 0.1] = 0.2  # now 1000 medians are 200
    at, values = act.massive_positions(x)
    np.testing.assert_array_equal(at, [[2, 3]])
    assert act.massive_positions(10 * x)[0].shape == (1, 2)  # the ratio does not change
    assert act.massive_positions(0.4 * x)[0].shape == (0, 2)  # but 100 does


def test_top_magnitudes():
    top, median = act.top_magnitudes([[1.0, -9.0, 3.0], [np.nan, 2.0, 0.0]])
    np.testing.assert_array_equal(top, [9, 3, 2])
    assert median == 2
    assert len(act.top_magnitudes([[1.0, 2.0]])[0]) == 2
    top, median = act.top_magnitudes([[np.nan]])
    assert not top.size and np.isnan(median)


def test_kurtosis_of_known_distributions():
    assert act.kurtosis([[-1.0, 1.0]]) == pytest.approx(1)
    assert act.kurtosis(np.linspace(-1, 1, 100001)[:, None]) == pytest.approx(9 / 5, abs=1e-3)
    one = np.zeros((10, 10))
    one[3, 4] = 1  # a single one with share p: (1 - 3 p (1 - p)) / (p (1 - p))
    assert act.kurtosis(one) == pytest.approx((1 - 3 * 0.0099) / 0.0099)
    x = RNG.standard_normal((400, 100))
    assert act.kurtosis(x) == pytest.approx(3, abs=0.1)
    assert act.kurtosis(1e200 * x + 1e200) == pytest.approx(act.kurtosis(x))
    assert np.isnan(act.kurtosis(np.ones((3, 3)))) and np.isnan(act.kurtosis([[np.nan]]))


def test_value_quantiles():
    x = np.append(np.arange(101.0), np.nan)[:, None]
    np.testing.assert_allclose(act.value_quantiles(x), [0, 1, 25, 50, 75, 99, 100])
    np.testing.assert_allclose(act.value_quantiles(x, [0.1]), [10])
    assert np.isnan(act.value_quantiles([[np.inf]])).all()


def test_two_sided_is_odd_about_one_half():
    a = np.array([0.0, 1e-6, 0.05, 0.5, 0.95, 1.0])
    log2 = np.log10(2)
    np.testing.assert_allclose(
        act.two_sided(a), [-np.inf, log2 - 6, log2 - np.log10(20), 0, np.log10(20) - log2, np.inf]
    )
    a = RNG.random(100)
    np.testing.assert_allclose(act.two_sided(1 - a), -act.two_sided(a), atol=1e-12)
    assert (np.diff(act.two_sided(np.sort(a))) > 0).all()


def test_log_gates_tell_apart_what_rounds_to_one():
    g = np.array([-np.inf, -800.0, np.log(0.25), -1e-30, 0.0])
    log2 = np.log10(2)
    np.testing.assert_allclose(
        act.two_sided(g, log=True),
        [-np.inf, -800 / np.log(10) + log2, log2 - np.log10(4), 30 - log2, np.inf],
    )
    a = RNG.random(50)
    np.testing.assert_allclose(act.two_sided(np.log(a), log=True), act.two_sided(a), atol=1e-9)


def test_gate_shares_keep_exact_ends_apart():
    a = np.array([[0.0, 1.0], [1e-20, 1.0], [0.3, 0.7], [1.0, 0.999]])
    edges, shares = act.gate_shares(a, bins=4, depth=4)
    np.testing.assert_allclose(edges, np.linspace(-1, 1, 9) * (4 - np.log10(2)))
    assert shares.shape == (2, 10)
    np.testing.assert_allclose(shares.sum(1), 1)
    #   0   <---------- small     large ---------->   1
    np.testing.assert_allclose(
        4 * shares, [[1, 1, 0, 0, 1, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 1, 0, 1, 0, 2]]
    )
    mirrored = act.gate_shares(1 - RNG.random((50, 1)), bins=4)[1]
    assert mirrored[:, [0, -1]].sum() == 0


def test_gate_extremes():
    a = np.array([[0.0], [0.001], [0.5], [0.999], [1.0]])
    np.testing.assert_allclose(act.gate_extremes(a), [[0.2, 0.4, 0.4, 0.2]])
    np.testing.assert_allclose(act.gate_extremes(a, extreme=1e-4), [[0.2, 0.2, 0.2, 0.2]])
    with np.errstate(divide="ignore"):
        log = np.log(a)
    np.testing.assert_allclose(act.gate_extremes(log, log=True), act.gate_extremes(a))
    np.testing.assert_allclose(act.gate_extremes([[-1e-30]], log=True), [[0, 0, 1, 0]])


@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_rotate_sees_only_distances(layout):
    q, k = RNG.standard_normal((2, 8))
    Q, K = (act.rotate(np.tile(x, (20, 1)), layout=layout) for x in (q, k))
    products = Q @ K.T  # [m, n]
    for distance in (0, 3, 7):
        line = np.diagonal(products, -distance)
        np.testing.assert_allclose(line, line[0])
    assert not np.allclose(products[3, 0], products[0, 0])
    np.testing.assert_allclose(products[0, 0], q @ k)


@pytest.mark.parametrize(
    ("layout", "pairs"), [("half", [(0, 2), (1, 3)]), ("interleaved", [(0, 1), (2, 3)])]
)
def test_rotate_turns_the_pairs_it_says(layout, pairs):
    x = RNG.standard_normal((5, 4))
    y = act.rotate(x, base=100.0, layout=layout)
    np.testing.assert_array_equal(y[0], x[0])
    np.testing.assert_allclose(act.token_norms(y), act.token_norms(x))
    for (i, j), speed in zip(pairs, (1.0, 0.1), strict=True):
        turned = (x[:, i] + 1j * x[:, j]) * np.exp(1j * speed * np.arange(5))
        np.testing.assert_allclose(y[:, i] + 1j * y[:, j], turned)
    np.testing.assert_allclose(act.rotate(x[2:], base=100.0, layout=layout, start=2), y[2:])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: act.token_norms(np.ones(3)), r"x: wanted axes \[t, d\].*\[3\]"),
        (lambda: act.outlier_channels({}), "x: wanted one entry or more"),
        (
            lambda: act.outlier_channels({"a": np.ones((2, 3)), "b": np.ones((2, 4))}),
            "one d.*'b': 4",
        ),
        (lambda: act.outlier_channels(np.ones((2, 2)), positions=6), "positions.*6"),
        (lambda: act.top_magnitudes(np.ones((2, 2)), most=0), "most"),
        (lambda: act.two_sided([0.5, 1.5]), r"gates in \[0, 1\], got 1.5"),
        (lambda: act.two_sided([0.5, np.nan]), "got nan"),
        (lambda: act.two_sided([-1.0, -2.0]), "log=True"),
        (lambda: act.two_sided([0.1], log=True), "at most 0, got 0.1"),
        (lambda: act.gate_shares([[0.5]], bins=0), "bins"),
        (lambda: act.gate_extremes([[0.5]], extreme=0.5), "extreme"),
        (lambda: act.rotate(np.ones((2, 3))), r"even.*\[2, 3\]"),
        (lambda: act.rotate(np.ones((2, 4)), layout="neox"), "layout.*'neox'"),
        (lambda: act.rotate(np.ones((2, 4)), base=0), "base"),
    ],
)
def test_measures_refuse(call, words):
    with pytest.raises(ValueError, match=words):
        call()


# ------------------------------------------------------------------------------------ drawn parts


def heavy(T=40, d=30):
    """Numbers of magnitude 1, one of -5000 at (7, 3)."""
    x = np.where(RNG.random((T, d)) < 0.5, -1.0, 1.0)
    x[7, 3] = -5000
    return x


def trace(name="gla", T=12):
    mechanism = lv.registry[name]
    return mechanism.trace(*mechanism.example(T=T))


def panels_of(scrubber):
    return {panel.title: panel for panel in scrubber.panels}


def smallest_text(fig):
    sizes = [t.get_fontsize() for t in fig.findobj(matplotlib.text.Text) if t.get_text().strip()]
    return min(sizes)


def test_activation_map_draws_the_numbers_of_a_trace():
    tr = trace()
    drawn = act.activation_map(tr, part="v", head=1, tokens="hello, world")
    rows, norms = drawn.panels
    np.testing.assert_array_equal(rows.x, tr["v"][0, :, 1].double())
    assert rows.names == ("time t", "value channel v") and rows.title == "v"
    np.testing.assert_allclose(norms.series["v"], tr["v"][0, :, 1].double().norm(dim=-1))
    assert drawn.tokens == list("hello, world") and not drawn.note
    assert act.activation_map(tr).panels[0].x.shape == tr["o"][0, :, 0].shape


def test_a_heavy_tail_is_clipped_and_said():
    drawn = act.activation_map(heavy())
    assert drawn.panels[0].norm.vmax == 1 and drawn.panels[0].norm.vmin == -1
    assert "percentile 99.5" in drawn.caption and "up to 5000" in drawn.caption
    bars = [i.colorbar.extend for ax in drawn.figure().axes for i in ax.images if i.colorbar]
    assert bars == ["min"]
    assert drawn.panels[1].log


def test_a_heavy_tail_on_a_logarithmic_or_a_linear_scale():
    drawn = act.activation_map(heavy(), scale="symlog")
    assert drawn.panels[0].norm.vmax == 5000 and drawn.panels[0].linear == 1
    assert "logarithmic" in drawn.caption
    drawn = act.activation_map(heavy(), scale="linear")
    assert drawn.panels[0].norm.vmax == 5000 and not drawn.panels[0].linear
    light = act.activation_map(np.clip(heavy(), -2, 2))
    assert light.panels[0].norm.vmax == 2 and "linear" in light.caption
    assert act.activation_map(np.zeros((3, 2))).panels[0].norm.vmax == 1
    assert act.activation_map([[np.nan]]).note == "1 number that is not finite is left out."


def test_layers_share_a_scale_and_are_thinned():
    layers = {f"layer {i}": np.full((5, 3), float(i)) for i in range(9)}
    drawn = act.activation_map(layers)
    rows = [p for p in drawn.panels if isinstance(p, Rows)]
    assert len(rows) == 6 and "6 of 9 layers" in drawn.note
    assert [rows[0].title, rows[-1].title] == ["layer 0", "layer 8"]
    assert {p.norm.vmax for p in rows} == {8}
    assert isinstance(drawn.panels[-1], Lines)


@pytest.mark.parametrize("shape", [(100_000, 2), (4, 8192)])
def test_huge_activations_are_thinned_with_a_note(shape):
    x = np.zeros(shape)
    x[-1, -1] = 9
    drawn = act.activation_map(x)
    assert max(drawn.panels[0].x.shape) <= 256 and drawn.panels[0].x[-1, -1] == 9
    assert str(max(shape)) in drawn.note
    assert len(drawn.html()) < 300_000


def test_channel_magnitude_marks_outliers():
    x = np.ones((50, 5))
    x[:, 3], x[:, 1] = 20, -7
    (ax,) = act.channel_magnitude(x, order="channel").figure().axes
    lines = {line.get_label(): line for line in ax.lines}
    np.testing.assert_array_equal(lines["maximum"].get_ydata(), [1, 7, 1, 20, 1])
    np.testing.assert_array_equal(lines["outlier channel (2)"].get_xdata(), [1, 3])
    np.testing.assert_array_equal(lines["outlier channel (2)"].get_ydata(), [7, 20])
    assert ax.get_xlabel() == "channel d (5)" and ax.get_ylabel() == "magnitude over time t (50)"
    drawn = act.channel_magnitude(x)
    (ax,) = drawn.figure().axes
    lines = {line.get_label(): line for line in ax.lines}
    np.testing.assert_array_equal(lines["median"].get_ydata(), [20, 7, 1, 1, 1])
    np.testing.assert_array_equal(lines["outlier channel (2)"].get_xdata(), [1, 2])
    assert ax.get_xlabel() == "channels d (5), by falling maximum"
    assert "Outlier channels: 1, 3." in drawn.caption
    assert "One outlier channel: channel 1." in act.channel_magnitude(x[:, 2:]).caption
    assert "none." in act.channel_magnitude(np.zeros((3, 2))).caption


def test_channel_magnitude_of_layers_is_a_map():
    layers = {name: np.ones((20, 2000)) for name in "abc"}
    layers["b"][:, 1001] = layers["b"][:, 7] = -9
    drawn = act.channel_magnitude(layers)
    ax = drawn.figure().axes[0]
    shown = ax.images[0].get_array()
    assert shown.shape == (3, 500) and shown[1, 250] == shown[1, 1] == 9 and shown.sum() == 1516
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), [1, 250])
    assert ax.get_xlabel() == "channel d (2000)" and ax.get_ylabel() == "layer (3)"
    assert "7, 1001." in drawn.caption and "2000" in drawn.note


def test_massive_activations_of_one_layer():
    x = np.full((30, 20), 0.1)
    x[0, 5], x[4, 4] = -300, 120
    drawn = act.massive_activations(x)
    (ax,) = drawn.figure().axes
    lines = {line.get_label(): line for line in ax.lines}
    assert lines["magnitudes, sorted"].get_ydata()[0] == 300
    np.testing.assert_array_equal(lines["massive (2)"].get_ydata(), [300, 120])
    assert lines["100"].get_ydata()[0] == 100
    assert lines["1000 x median"].get_ydata()[0] == pytest.approx(100)
    assert lines["1000 x median"].get_color() != lines["100"].get_color()
    assert "(0, 5): -300, (4, 4): 120" in drawn.caption
    assert "none" in act.massive_activations(np.ones((3, 3))).caption


def test_massive_activations_of_layers():
    layers = {"0": np.full((10, 10), 1.0), "1": np.full((10, 10), 1.0)}
    layers["1"][0, :2] = 4000, 2000
    drawn = act.massive_activations(layers)
    (ax,) = drawn.figure().axes
    lines = {line.get_label(): line for line in ax.lines}
    np.testing.assert_array_equal(lines["largest"].get_ydata(), [1, 4000])
    np.testing.assert_array_equal(lines["third"].get_ydata(), [1, 1])
    np.testing.assert_array_equal(lines["median"].get_ydata(), [1, 1])
    np.testing.assert_array_equal(lines["massive above"].get_ydata(), [1000, 1000])
    assert "1 (0, 0): 4000" in drawn.caption


def test_distributions_draw_quantiles_and_kurtosis():
    ramp = np.arange(-50.0, 51)[:, None]
    top, low = act.distributions({"one": ramp, "two": 2 * ramp}).figure().axes
    first, second = top.patches[:2]
    assert (first.get_y(), first.get_height()) == pytest.approx((-49, 98))
    assert (second.get_y(), second.get_height()) == pytest.approx((-25, 50))
    np.testing.assert_allclose(low.lines[0].get_ydata(), [act.kurtosis(ramp)] * 2)
    assert top.get_yscale() == "linear" and low.get_xlabel() == "layer (2)"
    assert "Heaviest" not in act.distributions({"one": ramp, "two": 2 * ramp}).caption
    spiked = act.distributions({"one": ramp, "two": ramp**15})
    assert "Heaviest tails: two with" in spiked.caption
    heavy_top = act.distributions(heavy()).figure().axes[0]
    assert heavy_top.get_yscale() == "symlog"


def test_distributions_of_a_trace_take_its_inputs_and_output():
    axes = act.distributions(trace("gated_deltanet")).figure().axes
    names = [t.get_text() for t in axes[1].get_xticklabels()]
    assert names == ["q", "k", "v", "beta", "g", "o"] and axes[1].get_xlabel() == "part (6)"
    inks = [matplotlib.colors.to_hex(bar.get_facecolor()) for bar in axes[0].patches[::2]]
    assert inks[:3] == [INK[name].lower() for name in ("query", "key", "value")]
    tr = trace()
    one = act.distributions(tr, parts=["a"], head=1).figure().axes[0]
    assert one.lines[0].get_ydata()[1] == pytest.approx(tr["a"][0, :, 1].max().item())


def bars(picture):
    """Heights of the bars in percent, and the map under them."""
    axes = picture.figure().axes
    heights = [bar.get_height() for bar in axes[0].patches]
    return np.array(heights), axes[1].images[0].get_array() if len(axes) > 1 else None


def test_gate_histogram_shows_both_ends_and_exact_gates():
    a = np.full((1000, 3), 0.5)
    a[:10, 0], a[:1, 1], a[:, 2] = 0, 1, 1 - 1e-5
    drawn = act.gate_histogram(a)
    heights, rows = bars(drawn)
    assert heights.sum() == pytest.approx(100) and len(heights) == 34
    assert heights[0] == pytest.approx(1 / 3) and heights[-1] == pytest.approx(0.1 / 3)
    assert rows.shape == (3, 34) and rows[2].max() == 100 and rows[2].argmax() > 27
    assert "0.33% exactly 0" in drawn.caption and "33.37% above 0.99" in drawn.caption
    assert "0.03% exactly 1" in drawn.caption
    logs = act.gate_histogram(np.log(a[:, 2:]), part="w", log=True)
    assert logs.figure().axes[-1].get_xlabel() == "gate e^w"


def test_gate_histogram_rows_are_heads_or_channels():
    tr = trace("gla")
    axes = act.gate_histogram(tr).figure().axes
    assert axes[1].get_ylabel() == "head h (2)" and axes[1].get_xlabel() == "gate a"
    axes = act.gate_histogram(tr, head=1).figure().axes
    assert axes[1].get_ylabel() == "key channel k (16)"
    assert act.gate_histogram(trace("mamba")).figure().axes[1].get_ylabel() == "channel d (16)"
    assert act.gate_histogram(trace("retnet")).figure().axes[1].get_ylabel() == "head h (2)"
    for part in ("i", "f", "o_gate"):
        drawn = act.gate_histogram(trace("lstm"), part=part)
        assert drawn.figure().axes[1].get_xlabel() == f"gate {part}"
    assert len(act.gate_histogram(tr["a"][0, :, 0, 0]).figure().axes) == 1
    with_heads = act.gate_histogram(tr["a"][0])
    np.testing.assert_array_equal(bars(with_heads)[1], bars(act.gate_histogram(tr))[1])


def test_log_gates_are_the_same_gates():
    tr = trace("gla")
    np.testing.assert_allclose(
        bars(act.gate_histogram(tr, part="g", log=True, depth=4))[0],
        bars(act.gate_histogram(tr, depth=4))[0],
        atol=0.5,
    )
    heights, _ = bars(act.gate_histogram(np.full((4, 1), -1e-20), log=True))
    assert heights[-2] == 100  # near 1, not exactly 1


def test_many_gates_are_pooled_in_rows():
    a = np.full((4, 8192), 0.5)
    a[:, :128] = a[:, 128:160] = 0
    drawn = act.gate_histogram(a)
    rows = bars(drawn)[1]
    assert rows.shape[0] == 64 and rows[0, 0] == 100 and rows[1, 0] == 25 and not rows[2:, 0].any()
    assert "128 of 8192" in drawn.note


def test_qkv_stripes_are_linked_and_rotated():
    tr = trace("gla")
    drawn = act.qkv_stripes(tr, head=1, base=100.0)
    panels = list(drawn.panels)
    assert [p.title[0] for p in panels] == list("qqvkk")
    q, k = (tr[x][0, :, 1].double().numpy() for x in "qk")
    np.testing.assert_array_equal(panels[0].x, q)
    np.testing.assert_allclose(panels[4].x, act.rotate(k, base=100.0))
    np.testing.assert_allclose(panels[1].x, act.rotate(q, base=100.0))
    np.testing.assert_array_equal(panels[3].x, k)
    assert len({panels[i].norm.vmax for i in (0, 1, 3, 4)}) == 1
    assert "i and i + K/2" in drawn.caption
    drawn = act.qkv_stripes(q, k, k[:, :3], rotary="interleaved")
    np.testing.assert_allclose(drawn.panels[1].x, act.rotate(q, layout="interleaved"))
    assert "2i and 2i + 1" in drawn.caption
    assert len(act.qkv_stripes(q, k, k, rotary=None).panels) == 3
    assert panels[2].names[1] == "value channel v"


def test_compare_has_one_scale():
    a, b = RNG.standard_normal((2, 10, 4))
    b[0, 0] = 9
    drawn = act.compare(a, b, names=("left", "right"), scale="linear")
    panels = panels_of(drawn)
    apart = panels["left − right (own scale)"]
    np.testing.assert_allclose(apart.x, a - b)
    assert {panels[n].norm.vmax for n in ("left", "right")} == {np.abs(np.stack([a, b])).max()}
    assert apart.norm.vmax == np.abs(a - b).max() != panels["left"].norm.vmax
    assert {panels[n].kind for n in ("left", "right")} == {"signed"}
    np.testing.assert_allclose(
        drawn.panels[-1].series["left − right"], np.linalg.norm(a - b, axis=1)
    )
    relative = np.linalg.norm(a - b) / np.linalg.norm(b)
    assert f"norm of right {relative:.3g}" in drawn.caption
    same = act.compare(trace("gla"), trace("gla"), part="q")
    assert "Largest difference 0," in same.caption
    assert same.panels[0].names[1] == "key channel k"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_picture_draws_in_both_themes_and_can_be_read(theme):
    layers = {f"{i}": heavy() * (i + 1) for i in range(3)}
    tr = trace()
    pictures = [
        act.activation_map(layers, scale="symlog"),
        act.channel_magnitude(heavy()),
        act.channel_magnitude(layers),
        act.massive_activations(heavy()),
        act.massive_activations(layers),
        act.distributions(layers),
        act.gate_histogram(tr),
        act.qkv_stripes(tr),
        act.compare(tr, tr),
    ]
    for picture in pictures:
        fig = picture.figure(theme)
        assert smallest_text(fig) >= 7
        assert fig.get_figwidth() <= 7.21
        assert picture.alt and picture.caption


@pytest.mark.parametrize("bad", [np.zeros((3, 2)), np.full((3, 2), np.nan), [[np.inf, -1.0]]])
def test_pictures_survive_numbers_that_say_nothing(bad):
    for draw in (
        act.activation_map,
        act.channel_magnitude,
        act.massive_activations,
        act.distributions,
        lambda x: act.channel_magnitude({"a": x, "b": x}),
        lambda x: act.massive_activations({"a": x, "b": x}),
        lambda x: act.compare(x, x),
        lambda x: act.qkv_stripes(x, x, x),
    ):
        drawn = draw(bad)
        drawn.figure()
        assert ("finite" in drawn.note) == (not np.isfinite(bad).all())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: act.activation_map(np.ones((2, 3, 4))), r"x: wanted axes \[t, d\].*\[2, 3, 4\]"),
        (lambda: act.activation_map({"a": np.ones((2, 2)), "b": np.ones((3, 2))}), "one t.*'b': 3"),
        (lambda: act.activation_map(np.ones((2, 2)), scale="log"), "scale.*'log'"),
        (lambda: act.activation_map(trace(), part="z"), "part.*'z'"),
        (lambda: act.activation_map(trace(), part="S"), r"\[t, k, v\]"),
        (lambda: act.activation_map(trace(), head=2), "head"),
        (lambda: act.channel_magnitude(np.ones((2, 2)), order="random"), "order"),
        (lambda: act.channel_magnitude({}), "x: wanted one entry or more"),
        (lambda: act.massive_activations(np.ones(3)), "x: wanted"),
        (lambda: act.distributions({}), "layers: wanted one"),
        (lambda: act.distributions(trace(), parts=["z"]), "parts.*'z'"),
        (lambda: act.distributions(trace("mamba"), parts=["A"]), "depend on time, got 'A'"),
        (lambda: act.gate_histogram(np.ones((2, 2, 2, 2))), r"a: wanted axes"),
        (lambda: act.gate_histogram(np.full((2, 2), 2.0)), "got 2"),
        (lambda: act.gate_histogram(trace("softmax")), "one of A, got 'a'"),
        (lambda: act.gate_histogram(trace("lstm")), "one of i, f, o_gate, got 'a'"),
        (lambda: act.gate_histogram(trace("gru")), "one of z, got 'a'"),
        (lambda: act.gate_histogram(trace("rwkv7")), r"part: wanted gates in \[0, 1\].*got 'a'"),
        (lambda: act.gate_histogram(trace("s4")), "that depend on time, of which s4 has none"),
        (lambda: act.gate_histogram(trace("gla"), head=5), "head: wanted -2 to 1, got 5"),
        (lambda: act.qkv_stripes(np.ones((2, 2))), "k, v: wanted"),
        (lambda: act.qkv_stripes(np.ones((2, 2)), np.ones((3, 2)), np.ones((2, 2))), "one t"),
        (lambda: act.qkv_stripes(trace("mamba")), "'q'"),
        (lambda: act.qkv_stripes(*np.ones((3, 2, 3))), "even"),
        (lambda: act.compare(np.ones((2, 2)), np.ones((2, 3))), r"\[2, 2\] and \[2, 3\]"),
        (lambda: act.compare(np.ones((2, 2)), np.ones((2, 2)), names=("x", "x")), "names"),
    ],
)
def test_pictures_refuse(call, words):
    with pytest.raises(ValueError, match=words):
        call()


FITS = [m.name for m in lv.registry]


@pytest.mark.parametrize("name", FITS)
def test_every_mechanism_has_its_activations(name):
    tr = trace(name, T=5)
    for drawn in (act.activation_map(tr), act.channel_magnitude(tr), act.distributions(tr)):
        drawn.figure()
