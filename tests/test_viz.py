"""The pictures: what is measured, by numbers; what is drawn, by artists, never by pixels."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

import linviz as lv
from linviz import viz
from linviz.viz.picture import render

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def closed():
    """Each test starts and ends without an open figure, and leaves the reader's settings alone."""
    before = dict(matplotlib.rcParams)
    yield
    plt.close("all")
    assert dict(matplotlib.rcParams) == before


# ------------------------------------------------------------------------------ measured parts


def test_limits_are_symmetric_for_signed_numbers():
    assert viz.limits(np.array([-3.0, 1.0])) == ("signed", -3.0, 3.0)
    assert viz.limits(np.array([0.0, 5.0])) == ("count", 0.0, 5.0)
    assert viz.limits(np.array([0.2, 0.4]), kind="gate") == ("gate", 0.0, 1.0)
    assert viz.limits(np.array([1.0, 2.0]), kind="signed", vmax=7) == ("signed", -7.0, 7.0)


def test_limits_look_at_finite_numbers_only():
    assert viz.limits(np.array([np.nan, np.inf, 2.0, -np.inf])) == ("count", 0.0, 2.0)
    assert viz.limits(np.zeros(3)) == ("count", 0.0, 1.0)
    assert viz.limits(np.array([np.nan])) == ("count", 0.0, 1.0)


@pytest.mark.parametrize("bad", [{"kind": "rainbow"}, {"vmax": 0}, {"vmax": -1.0}])
def test_limits_refuse(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        viz.limits(np.ones(2), **bad)


def test_frames_keep_both_ends_and_are_thinned():
    assert viz.frames(5) == [0, 1, 2, 3, 4]
    assert viz.frames(1) == [0]
    steps = viz.frames(1000, most=6)
    assert len(steps) == 6 and steps[0] == 0 and steps[-1] == 999
    assert viz.frames(10, at=[-1, 3, 3]) == [3, 9]
    assert viz.frames(100, at=range(100), most=3)[::2] == [0, 99]


@pytest.mark.parametrize("bad", [{"at": [10]}, {"at": [-11]}, {"most": 0}])
def test_frames_refuse(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        viz.frames(10, **bad)


def test_ticks_show_white_space_and_are_thinned():
    assert viz.ticks("a b\n") == ([0, 1, 2, 3], ["a", "␣", "b", "↵"])
    at, labels = viz.ticks(["x"] * 100, most=10)
    assert len(at) == len(labels) == 10 and at[:2] == [0, 10]


def test_moving_mean():
    mean = viz.moving_mean(torch.tensor([True, False, True, True]), 2)
    np.testing.assert_allclose(mean, [np.nan, 0.5, 0.5, 1.0])
    np.testing.assert_allclose(viz.moving_mean([3.0, 5.0], 1), [3.0, 5.0])
    assert np.isnan(viz.moving_mean([1.0, 2.0], 3)).all()
    np.testing.assert_allclose(
        viz.moving_mean([1.0, np.nan, 2.0, 3.0], 2), [np.nan, np.nan, np.nan, 2.5]
    )
    with pytest.raises(ValueError, match="window"):
        viz.moving_mean([1.0], 0)


def test_crossing_on_logarithmic_axes():
    x = torch.tensor([1.0, 10.0, 100.0, 1000.0])
    assert viz.crossing(x, x, torch.full((4,), 50.0)) == pytest.approx(50)
    assert viz.crossing(x, x**2, 30 * x) == pytest.approx(30)
    assert np.isnan(viz.crossing(x, x, 1e6 * x))


# --------------------------------------------------------------------------------- drawn parts


def test_heat_draws_the_numbers():
    x = torch.randn(3, 5, dtype=torch.bfloat16, requires_grad=True)
    ax = viz.heat(x, row_name="key channel k", col_name="value channel v")
    image = ax.images[0]
    np.testing.assert_array_equal(image.get_array(), x.detach().double().numpy())
    assert image.norm.vmin == -image.norm.vmax == -x.abs().max()
    assert image.get_cmap().name == "RdBu_r" and image.get_interpolation() == "nearest"
    assert ax.get_ylabel() == "key channel k (3)" and ax.get_xlabel() == "value channel v (5)"


def test_heat_draws_into_the_axes_it_is_given():
    fig, axes = plt.subplots(1, 2)
    assert viz.heat(np.eye(3), ax=axes[1], bar=False) is axes[1]
    assert not axes[0].images and len(fig.axes) == 2
    viz.heat(np.eye(3), ax=axes[0])
    assert len(fig.axes) == 3  # and a bar


def test_heat_labels_cells():
    ax = viz.heat(np.ones((2, 3)), rows="a ", cols=["x", "y", "z"])
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a", "␣"]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["x", "y", "z"]


def test_masked_cells_are_hatched_and_outside_the_scale():
    x = np.array([[1.0, 1e9], [2.0, 3.0]])
    mask = np.array([[False, True], [False, False]])
    ax = viz.heat(x, mask=mask)
    assert ax.images[0].norm.vmax == 3
    np.testing.assert_array_equal(ax.images[0].get_alpha(), [[1, 0], [1, 1]])
    assert ax.images[0].colorbar.extend == "neither"
    assert ax.patch.get_hatch()
    assert not viz.heat(x).patch.get_hatch()


def test_a_nan_is_loud():
    ax = viz.heat(np.array([[np.nan, 1.0]]))
    color = ax.images[0].to_rgba(ax.images[0].get_array())[0, 0]
    assert matplotlib.colors.to_hex(color).upper() == viz.INK["nan"]


def test_the_bar_shows_both_ends_and_says_when_numbers_are_cut():
    ax = viz.heat(np.array([[-4.0, 4.0, 9.0]]), vmax=5)
    bar = ax.figure.axes[-1]
    assert [t.get_text() for t in bar.get_yticklabels()] == ["-5", "0", "5"]
    assert ax.images[0].colorbar.extend == "max"
    assert viz.heat(np.ones((2, 2))).images[0].colorbar.extend == "neither"


@pytest.mark.parametrize("top", [0.004, 1.0, 8.0, 463.0, 2e7])
def test_a_logarithmic_bar_has_few_increasing_ticks(top):
    ax = viz.heat(np.array([[0.0, top / 2, top]]), log=True)
    bar = ax.images[0].colorbar
    ticks = list(bar.get_ticks())
    assert ticks == sorted(set(ticks)) and ticks[0] == 0 and ticks[-1] == pytest.approx(top)
    assert len(ticks) < 12
    signed = viz.heat(np.array([[-top, top]]), log=True).images[0]
    assert signed.norm(0.0) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: viz.heat(np.ones(3)), r"x: wanted axes \[i, j\].*\[3\]"),
        (lambda: viz.heat(torch.ones(1, 2, 3, 3)), r"S\[0, 0\]"),
        (lambda: viz.heat(np.ones((0, 3))), "empty"),
        (lambda: viz.heat(np.ones((2, 2)) * 1j), "complex"),
        (lambda: viz.heat(np.ones((2, 2)), mask=np.ones((2, 3))), "mask"),
        (lambda: viz.heat(np.ones((2, 2)), rows="abc"), "rows: wanted 2 labels, got 3"),
        (lambda: viz.film_strip(np.ones((2, 2))), r"S: wanted axes \[t, k, v\].*\[2, 2\]"),
        (lambda: viz.panels({}), "states"),
        (lambda: viz.panels({"a": np.eye(3)}, mask=np.eye(2)), "mask"),
        (lambda: viz.panels({"a": np.eye(3)}, cols="ab"), "cols"),
        (lambda: viz.panels({"a": np.ones(3)}), "'a'"),
        (lambda: viz.lines({}), "series"),
        (lambda: viz.lines({"a": [1, 2], "b": [1]}), "one length.*'a': 2.*'b': 1"),
        (lambda: viz.lines({"a": [1, 2]}, x=[1]), "'x': 1"),
        (lambda: viz.line_panels({}), "groups"),
        (lambda: viz.line_panels({"a": {"b": [1, 2]}}, log="z").figure(), "log: wanted"),
        (lambda: viz.panels({"a": np.eye(2)}, columns=0), "columns"),
        (lambda: viz.heat(np.eye(2), log=-1), "log: wanted"),
        (lambda: viz.heat(np.eye(2), vmax=np.inf), "vmax"),
    ],
)
def test_wrong_shapes_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
    assert not plt.get_fignums()


def test_film_strip_has_one_scale_one_bar_and_is_closed():
    S = torch.zeros(20, 3, 4)
    S[:, 1, 2] = torch.arange(20)
    fig = viz.film_strip(S, at=(0, 10, -1)).figure()
    assert not plt.get_fignums()
    frames = [ax for ax in fig.axes if ax.images]
    assert [ax.get_title() for ax in frames] == ["t = 0", "t = 10", "t = 19"]
    assert {(ax.images[0].norm.vmin, ax.images[0].norm.vmax) for ax in frames} == {(0, 19)}
    assert len(fig.axes) == len(frames) + 1
    assert [ax.images[0].get_array()[1, 2] for ax in frames] == [0, 10, 19]
    assert len([ax for ax in viz.film_strip(S, most=5).figure().axes if ax.images]) == 5


def test_panels_share_a_scale_or_not():
    states = {"small": np.eye(2), "large": -10 * np.eye(2), "third": np.eye(2)}
    shared = [ax for ax in viz.panels(states, columns=2).figure().axes if ax.images]
    assert {ax.images[0].norm.vmax for ax in shared} == {10}
    assert {ax.images[0].get_cmap().name for ax in shared} == {"RdBu_r"}
    own = [ax for ax in viz.panels(states, share=False).figure().axes if ax.images]
    assert [ax.images[0].norm.vmax for ax in own] == [1, 10, 1]


def test_a_shared_bar_says_when_any_panel_is_cut():
    fig = viz.panels({"in": np.eye(2), "out": 9 * np.eye(2)}, vmax=5).figure()
    bars = [ax.images[0].colorbar for ax in fig.axes if ax.images and ax.images[0].colorbar]
    assert [bar.extend for bar in bars] == ["max"]


def test_panels_share_a_logarithmic_scale():
    fig = viz.panels({"counts": [[1, 200.0]], "shares": [[0.5, 0.25]]}, log=True).figure()
    norms = [ax.images[0].norm for ax in fig.axes if ax.images]
    assert norms[0].linthresh == norms[1].linthresh == 2 and norms[1].vmax == 200
    fig = viz.panels({"counts": [[1, 200.0]], "more": [[3, 4]]}, log=True).figure()
    assert {ax.images[0].norm.linthresh for ax in fig.axes if ax.images} == {1}


def test_a_shared_scale_leaves_masked_cells_out():
    fig = viz.panels(
        {"a": [[1.0, 99.0]], "b": [[2.0, 99.0]]}, mask=torch.tensor([[0.0, 1.0]])
    ).figure()
    assert {ax.images[0].norm.vmax for ax in fig.axes if ax.images} == {2}


def test_lines_draw_the_numbers_in_fixed_inks():
    ax = viz.lines({"a": [1, 2, 3], "b": [3, np.nan, 1]}, events=[1.5], ylabel="score")
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [1, 2, 3])
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), [0, 1, 2])
    assert [line.get_color() for line in ax.lines[:2]] == list(viz.LINES[:2])
    assert [line.get_label() for line in ax.lines[:2]] == ["a", "b"]
    assert len(ax.lines) == 3 and ax.get_ylabel() == "score" and ax.get_xlabel() == "time t"
    assert len({(n.get_color(), n.get_linestyle()) for n in more_lines_than_inks()}) == 20


def more_lines_than_inks():
    """Twenty lines: the inks come again, with another dash."""
    return viz.lines({str(i): [0, 1] for i in range(20)}).lines


def test_whole_numbers_have_whole_ticks():
    for x, whole in ((None, True), ([1, 2, 3, 4], True), ([0.5, 1.0, 1.5, 2.0], False)):
        ax = viz.lines({"a": [1, 2, 3, 4]}, x=x)
        assert all(t == round(t) for t in ax.get_xticks()) == whole, x


def test_a_name_has_one_ink_in_all_panels():
    fig = viz.line_panels({"left": {"a": [1, 2], "b": [2, 1]}, "right": {"c": [1, 1], "a": [0, 1]}})
    left, right = fig.figure().axes
    inks = {line.get_label(): line.get_color() for ax in (left, right) for line in ax.lines}
    assert len(inks) == len({*inks.values()}) == 3
    assert left.lines[0].get_color() == right.lines[1].get_color()


def test_line_panels_have_one_legend_and_are_closed():
    fig = viz.line_panels(
        {"left": {"a": [1, 2], "b": [2, 3]}, "right": {"a": [5, 6]}},
        x=[1, 10],
        log="x",
        each=[{"ylabel": "l"}, {"ylabel": "r"}],
        share=False,
    ).figure()
    assert not plt.get_fignums()
    assert [ax.get_title() for ax in fig.axes] == ["left", "right"]
    assert [ax.get_ylabel() for ax in fig.axes] == ["l", "r"]
    assert {ax.get_xscale() for ax in fig.axes} == {"log"}
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["a", "b"]


# ----------------------------------------------------------------------------------------- inks


def contrast(one, other):
    """WCAG's contrast of two colours, 1 to 21."""
    rgb = np.array([matplotlib.colors.to_rgb(c) for c in (one, other)])
    linear = np.where(rgb <= 0.03928, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    light = linear @ [0.2126, 0.7152, 0.0722]
    return (light.max() + 0.05) / (light.min() + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_each_ink_is_one_colour(theme):
    with viz.style(theme):
        inks = (*(viz.INK[name] for name in viz.INK), *viz.LINES)
        names = ("state", "decay", "query", "key", "value", "output")
        assert len({viz.INK[name] for name in names}) == len(names)
        assert contrast(viz.INK["text"], viz.INK["paper"]) > 10
        assert all(contrast(viz.INK[name], viz.INK["paper"]) > 1.9 for name in names)
        maps = [viz.MAPS[kind] for kind in viz.MAPS]
    assert all(matplotlib.colors.is_color_like(ink) for ink in inks)
    assert all(name in matplotlib.colormaps for name in maps)


def test_style_is_for_the_block_only():
    before = matplotlib.rcParams["font.size"]
    with viz.style():
        assert matplotlib.rcParams["axes.spines.top"] is False
    assert matplotlib.rcParams["font.size"] == before


def test_importing_viz_sets_nothing():
    code = (
        "import matplotlib; before = dict(matplotlib.rcParams)\n"
        "import linviz.viz, matplotlib.pyplot\n"
        "after = dict(matplotlib.rcParams); [d.pop('backend') for d in (before, after)]\n"
        "assert before == after"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def card(path, **options):
    """A saved heat map without a bar."""
    fig, ax = plt.subplots()
    viz.heat(np.arange(12.0).reshape(3, 4), ax=ax, bar=False, **options)
    return fig, viz.save_card(fig, path)


def test_a_saved_card_is_opaque_repeatable_and_holds_shapes(tmp_path):
    fig, path = card(tmp_path / "a.svg")
    text = path.read_text()
    assert card(tmp_path / "b.svg")[1].read_text() == text
    assert "<image" not in text and "fill: #ffffff" in text and "<dc:date>" not in text
    assert fig.axes[0].images[0].get_visible() and not fig.axes[0].patches
    png = plt.imread(card(tmp_path / "a.png")[1])
    assert (png[..., 3:] == 1).all()


def test_masked_cells_of_a_card_stay_open(tmp_path):
    mask = np.zeros((3, 4))
    mask[0, 3] = 1
    text = card(tmp_path / "a.svg", mask=mask)[1].read_text()
    assert "<image" not in text and "<pattern" in text
    assert text.count("fill: #440154") == 1  # the one cell of 0, and no ground over the hatch


def test_the_picture_of_the_readme(tmp_path):
    path = ROOT / "book" / "images" / "letter_table.py"
    spec = importlib.util.spec_from_file_location("letter_table", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    drawn = module.main(tmp_path / "letter_table.svg")
    for svg in (drawn, path.with_suffix(".svg")):
        text = svg.read_text()
        assert len(text) < 120_000 and "<image" not in text and "fill: #ffffff" in text


def test_panels_show_a_huge_matrix_in_blocks():
    x = np.zeros((3000, 2100))
    x[2999, 7] = -4
    picture = viz.panels({"huge": x})
    ax = picture.figure().axes[0]
    assert max(ax.images[0].get_array().shape) <= 1024 and ax.images[0].get_array().min() == -4
    assert "3000" in ax.get_ylabel() and "2100" in ax.get_xlabel()
    assert "blocks of 3" in picture.note.lower() and "3000 x 2100" in picture.alt


def test_a_list_of_tensors_with_gradients_will_do():
    x = [torch.ones(2, requires_grad=True, dtype=torch.bfloat16), torch.zeros(2)]
    np.testing.assert_array_equal(viz.panels({"a": x}).figure().axes[0].images[0].get_array()[0], 1)


@pytest.mark.parametrize(
    "call",
    [
        lambda: viz.cell("gla"),
        lambda: viz.cells("gla"),
        lambda: viz.family_tree(["gla"]),
        lambda: viz.triangles(["gla"]),
        lambda: viz.triangles(lv.gla),
        lambda: viz.cache_or_state(["softmax", "gla"]),
    ],
)
def test_names_are_not_mechanisms(call):
    with pytest.raises(ValueError, match=r"mechanisms: wanted .*lv.registry"):
        call()


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="128 chunks or fewer"):
        viz.chunk_tiling(100_000, 1)
    with pytest.raises(ValueError, match="T: wanted a number from 1 to 4096"):
        viz.cache_or_state([lv.softmax, lv.gla], T=100_000)


@pytest.mark.parametrize("name", ["$$", r"$\frac{$", "a$b", "$5 and $6"])
def test_names_may_hold_dollars(name):
    x = np.tril(np.random.default_rng(0).standard_normal((5, 5)))
    for picture in (
        viz.distributions({name: x, "b": x}),
        viz.triangle(x, title=name, tokens=[name, *"abcd"]),
        viz.top_mass({name: x}),
        viz.line_panels({name: {name: [1, 2], "b": [2, 1]}}),
    ):
        assert render(picture.figure(), "png")
        assert name in picture.html() or name in picture.alt


def test_a_curve_without_a_number_above_zero_has_no_logarithm():
    with pytest.raises(ValueError, match="log: wanted a number above 0"):
        viz.line_panels({"a": {"b": [-1.0, -2.0]}}, log="y").figure()
    with pytest.raises(ValueError, match="above 0"):
        viz.crossing([1.0, 2.0], [0.0, 1.0], [1.0, 1.0])
    with pytest.raises(ValueError, match="at: wanted one step or more"):
        viz.frames(5, at=[])


def test_lines_of_a_formula_are_set_one_by_one(caplog):
    def draw():
        fig = plt.figure(figsize=(2, 2))
        fig.text(0.1, 0.5, "the first line\n$S_t$ in the second\nand $5 in the third")
        return fig

    assert render(viz.Picture(draw, alt="words").figure(), "svg")
    assert "glyph" not in caplog.text


def test_the_book_asks_for_an_svg(monkeypatch):
    picture = viz.panels({"a": np.eye(3)})
    assert "image/svg+xml" not in picture._repr_mimebundle_()
    monkeypatch.setenv("LINVIZ_SVG", "1")
    svg = ElementTree.fromstring(picture._repr_mimebundle_()["image/svg+xml"])
    assert svg.tag.endswith("svg") and len(list(svg.iter())) > 20
