"""The moving figure: its sprite sheets, its limits, its still pictures, its files."""

import io
import json
import re
import zlib

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from linviz import viz
from linviz.viz import Frames, Lines, Points, Rows, Scrubber, sprites
from linviz.viz.picture import render
from linviz.viz.sprites import LEVELS
from linviz.viz.svg import Scale

T = 12
RNG = np.random.default_rng(0)
S = RNG.normal(size=(T, 4, 5))
A = np.tril(RNG.normal(size=(T, T)))
ABOVE = np.triu(np.ones((T, T), bool), 1)


def every_panel(**options):
    """A scrubber with one panel of each kind."""
    panels = [
        Frames(S, "S", rows="abcd"),
        Rows(A, "A", mask=ABOVE, col_name="source s"),
        Lines({"norm": np.linalg.norm(S, axis=(1, 2)), "one": np.ones(T)}, "norm", ylabel="norm"),
        Points(np.arange(4), np.linalg.svd(S, compute_uv=False), "spectrum", line=True),
    ]
    return Scrubber(panels, alt="Four panels", **options)


def data_of(html):
    """What the moving part reads."""
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', html)[1])


# ------------------------------------------------------------------------------- sprite sheets


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 255))
def test_a_sprite_sheet_is_a_png_whatever_its_size(height, width, seed):
    levels = np.random.default_rng(seed).integers(0, LEVELS + 2, (height, width))
    head, tail = sprites.sprite_sheet(levels)
    assert len(head) % 3 == 0 and len(sprites.palette("signed", "dark")) % 3 == 0
    image = Image.open(io.BytesIO(head + sprites.palette("level", "light") + tail))
    image.load()
    assert image.size == (width, height) and image.mode == "P"
    np.testing.assert_array_equal(np.asarray(image.convert("RGBA"))[..., 0], levels)
    np.testing.assert_array_equal(np.asarray(image.convert("RGBA"))[..., 3] == 0, levels == 255)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("kind", ["signed", "count", "gate"])
def test_a_palette_holds_the_colours_of_the_map_and_a_loud_nan(kind, theme):
    chunk = sprites.palette(kind, theme)
    assert int.from_bytes(chunk[-4:]) == zlib.crc32(chunk[4:-4])
    colors = np.frombuffer(chunk[8:-4], np.uint8).reshape(256, 3)
    with viz.style(theme):
        cmap = matplotlib.colormaps[viz.MAPS[kind]]
        nan = matplotlib.colors.to_rgb(viz.INK["nan"])
    np.testing.assert_array_equal(colors[0], cmap(0.0, bytes=True)[:3])
    np.testing.assert_array_equal(colors[LEVELS - 1], cmap(1.0, bytes=True)[:3])
    np.testing.assert_array_equal(colors[LEVELS], np.array(nan) * 255)


def test_levels_are_the_numbers_to_half_a_level():
    x = np.array([[[-2.0, 0.0, 2.0, 5.0, -9.0, np.nan, 1.0]]])
    mask = np.zeros((1, 7), bool)
    mask[0, 6] = True
    panel = Frames(x, vmax=2, mask=mask)
    level = panel.levels()[0, 0]
    assert level[[0, 2, 3, 4, 5, 6]].tolist() == [0, 253, 253, 0, 254, 255]
    assert abs(level[1] - 126.5) <= 0.5
    assert panel.over and panel.under
    panel = Frames(S)
    half = 2 * panel.norm.vmax / (LEVELS - 1) / 2
    value = panel.norm.vmin + panel.levels() / (LEVELS - 1) * 2 * panel.norm.vmax
    assert np.abs(value - S).max() <= half * (1 + 1e-9)


def test_a_logarithmic_scale_says_each_levels_value():
    panel = Frames(np.array([[[0.0, 1.0, 10.0, 1000.0]]]), log=True)
    table = np.array(panel.table())
    assert table[0] == 0 and table[-1] == pytest.approx(1000) and (np.diff(table) > 0).all()
    found = table[panel.levels()[0, 0]]
    np.testing.assert_allclose(found, [0, 1, 10, 1000], rtol=0.03, atol=0.01)
    assert Frames(S).table() is None


def test_frames_lie_side_by_side():
    levels = np.arange(5 * 2 * 3).reshape(5, 2, 3)
    sheet = sprites.tile(levels, 2)
    assert sheet.shape == (6, 6)
    for t in range(5):
        y, x = t // 2 * 2, t % 2 * 3
        np.testing.assert_array_equal(sheet[y : y + 2, x : x + 3], levels[t])
    assert (sheet[4:, 3:] == LEVELS + 1).all()


def test_an_axis_has_its_numbers_in_place():
    scale = Scale(np.array([0.0, 10.0, np.nan, np.inf]), False, 100, 0)
    np.testing.assert_allclose(scale(np.array([0.0, 5.0, 10.0])), [100, 50, 0])
    assert np.isnan(scale(np.array([np.nan]))).all()
    log = Scale(np.array([1.0, 100.0, 0.0, -3.0]), True, 0, 100)
    np.testing.assert_allclose(log(np.array([1.0, 10.0, 100.0])), [0, 50, 100])
    assert np.isnan(log(np.array([0.0, -1.0]))).all()
    for flat in (Scale(np.full(3, 7.0), on, 0, 10) for on in (False, True)):
        assert flat.ticks and np.isfinite(flat(np.array([7.0]))).all()


# --------------------------------------------------------------------------------------- limits


def test_a_long_sequence_is_thinned_and_says_so():
    long = 100_000
    made = Scrubber(
        [Frames(np.ones((long, 2, 2))), Lines({"t": np.arange(long)})], alt="long", start=50_000
    )
    assert len(made.steps) == 256 and made.steps[0] == 0 and made.steps[-1] == long - 1
    assert "256 of 100000 steps shown" in made.note and made.note in made.html()
    assert abs(made.steps[made.start] - 50_000) < long / 256
    np.testing.assert_array_equal(made.panels[1].series["t"], made.steps)


def test_a_large_matrix_is_shown_in_blocks_that_keep_its_outliers():
    x = np.zeros((3, 1000, 600))
    x[1, 777, 555] = -50.0
    made = Scrubber([Frames(x, "wide", rows=[str(i) for i in range(1000)])], alt="large")
    (panel,) = made.panels
    assert max(panel.x.shape[1:]) <= 128 and panel.x[1].min() == -50
    assert len(panel.labels["rows"]) == panel.x.shape[1]
    assert "blocks of 8 of 1000" in made.note.lower() and "wide" in made.note
    assert len(made.html()) < 300_000 and "(1000)" in made.html()


def test_a_block_is_masked_where_all_of_it_is():
    x, mask = np.ones((2, 400)), np.zeros((2, 400), bool)
    mask[:, 200:] = True
    x[:, 200:] = 99
    (panel,) = Scrubber([Rows(x, mask=mask)], alt="masked").panels
    assert panel.x.shape == (2, 100) and panel.empty[:, 50:].all() and not panel.empty[:, :50].any()
    assert panel.x[~panel.empty].max() == 1


def test_huge_states_cannot_fill_a_page():
    x = np.broadcast_to(RNG.normal(size=(1, 128, 128)), (200, 128, 128))
    made = Scrubber([Frames(x)], alt="heavy")
    assert len(made.steps) == 32 and len(made.html()) < 1_100_000


def test_sixty_four_states_of_64_by_64_are_small():
    html = Scrubber([Frames(RNG.normal(size=(64, 64, 64)))], alt="states").html()
    assert len(html) < 320 * 1024


# ------------------------------------------------------------------------------------- the HTML


def test_the_html_is_self_contained_and_says_what_it_shows():
    made = every_panel(caption="A <caption>.", tokens=[*"state space", "</script>"], start=3)
    html = made.html()
    assert not re.search(r"https?://|src=(?!\")|<link|@import|url\((?!data:)", html)
    assert 'aria-label="Four panels"' in html and "A &lt;caption&gt;." in html
    assert html.count("<canvas") == 2 and html.count('role="img"') == 2
    data = data_of(html)
    assert data["start"] == 3 and len(data["words"]) == T and data["words"][5] == "t = 5 “␣”"
    assert data["words"][-1] == "t = 11 “</script>”"
    assert [p["kind"] for p in data["panels"]] == ["frames", "rows", "lines", "points"]
    assert data["panels"][0]["rows"] == list("abcd")
    assert data["panels"][1]["rows"][5] == " "
    assert data["panels"][2]["values"][1] == [1] * T
    assert len(data["panels"][3]["x"]) == T
    assert set(data["palettes"]) == {"signed-light", "signed-dark", "level"}


def test_a_notebook_gets_html_an_image_and_words():
    bundle = every_panel()._repr_mimebundle_()
    assert set(bundle) == {"text/html", "image/png", "text/plain"}
    assert bundle["text/plain"] == "Scrubber: Four panels"
    assert bundle["text/html"] == every_panel().html()


def test_steps_name_the_time():
    made = Scrubber([Lines({"a": [1.0, 2.0, 3.0]})], alt="a", steps=[0, 10, 20])
    assert [made.words(i) for i in range(3)] == ["t = 0", "t = 10", "t = 20"]


def test_steps_may_be_settings_and_no_times():
    lines = Lines({"share": np.arange(12.0)}, ylabel="share")
    angles = [f"{15 * i}°" for i in range(12)]
    shown = Scrubber([lines], alt="A rise.", tokens=angles, clock="angle", start=5)
    assert shown.words(2) == "angle = 30°" and "time t" not in shown.html()
    still = shown.figure().axes[0]
    assert still.get_xlabel() == "angle (12)"
    assert [tick.get_text() for tick in still.get_xticklabels()] == ["0°", "90°", "165°"]
    assert ">90°</text>" in shown.html()
    with pytest.raises(ValueError, match="tokens: wanted one a step, the settings of clock='x'"):
        Scrubber([lines], alt="A rise.", clock="x")


def test_the_still_shows_the_step_it_starts_with():
    states = Frames(RNG.random((30, 3, 3)), "state")
    for start in (0, 1, 13, 28, 29):
        still = Scrubber([states], alt="States.", start=start).figure()
        titles = [ax.get_title() for ax in still.axes if ax.get_title()]
        assert f"t = {start}" in titles and len(titles) == len({*titles}) == 6


def test_gaps_in_a_line_stay_gaps():
    html = Scrubber([Lines({"a": [1.0, np.nan, 2.0, 3.0]})], alt="a").html()
    path = re.search(r'<path class="lv-line"[^>]*d="([^"]*)"', html)[1]
    assert path.count("M") == 2 and path.count("L") == 1
    assert data_of(html)["panels"][0]["values"][0][1] is None


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Frames(S[0]), r"x: wanted axes \[t, i, j\]"),
        (lambda: Rows(S), r"x: wanted axes \[t, j\]"),
        (lambda: Frames(S, rows="abc"), "rows: wanted 4 labels, got 3"),
        (lambda: Frames(S, mask=np.ones((5, 4))), r"mask: wanted the shape of x \[12, 4, 5\]"),
        (lambda: Frames(S, kind="pretty"), "kind"),
        (lambda: Lines({}), "series"),
        (lambda: Points(np.ones(3), S[:, 0]), r"x: wanted the shape of y \[12, 5\] or \[5\]"),
        (lambda: Scrubber([], alt="none"), "panels"),
        (lambda: Scrubber([Frames(S, "S"), Lines({"a": [1]}, "b")], alt="x"), "'S': 12, 'b': 1"),
        (lambda: every_panel(tokens="ab"), "tokens: wanted 12, one a step, got 2"),
        (lambda: every_panel(start=12), "start: wanted a step from -12 to 11, got 12"),
        (lambda: every_panel().save("x.mp4"), r"path: .*\.gif, got x\.mp4"),
        (lambda: every_panel().save("/no/such/folder/x.png"), "no folder"),
        (lambda: every_panel().figure("sepia"), "theme"),
    ],
)
def test_wrong_arguments_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


# ------------------------------------------------------------------------------ still and saved


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_still_shows_a_few_steps_and_whole_curves(theme):
    fig = every_panel().figure(theme)
    parts = fig.subfigs
    states, attention, norm, spectrum = ([*part.axes] for part in parts)
    shown = [ax for ax in states if ax.images]
    assert [ax.get_title() for ax in shown] == [f"t = {t}" for t in viz.frames(T, most=6)]
    for ax, t in zip(shown, viz.frames(T, most=6), strict=True):
        np.testing.assert_array_equal(ax.images[0].get_array(), S[t])
    assert attention[0].images[0].get_alpha()[0, 1] == 0
    assert [line.get_label() for line in norm[0].lines] == ["norm", "one"]
    assert len(spectrum) == 3 and len(spectrum[0].lines[0].get_xdata()) == 4
    with viz.style(theme):
        assert matplotlib.colors.to_hex(fig.get_facecolor()).upper() == viz.INK["paper"]


@pytest.mark.parametrize("ending", ["html", "png", "svg", "pdf", "gif"])
def test_it_is_saved(tmp_path, ending):
    path = every_panel().save(tmp_path / f"x.{ending}")
    data = path.read_bytes()
    starts = {
        "html": b"<!doctype html>",
        "png": b"\x89PNG",
        "svg": b"<?xml",
        "pdf": b"%PDF",
        "gif": b"GIF8",
    }
    assert data.startswith(starts[ending])
    if ending == "gif":
        with Image.open(path) as movie:
            assert movie.n_frames == T
    else:
        keep = [np.empty(100) for _ in range(100)]  # so that nothing lies where it lay before
        assert every_panel().save(tmp_path / f"y.{ending}").read_bytes() == data and keep


def test_a_panel_can_be_used_twice():
    panel = Rows(RNG.normal(size=(1000, 5)), rows=[str(i) for i in range(1000)])
    first, second = (Scrubber([panel], alt=name) for name in "ab")
    assert first.steps == second.steps and second.steps[-1] == 999 and len(panel) == 1000


def test_a_still_of_blocks_has_the_true_sizes():
    made = Scrubber([Frames(RNG.normal(size=(2, 512, 300)))], alt="large")
    ax = made.figure().subfigs[0].axes[0]
    assert ax.get_ylabel() == "key channel k (512)"
    ax.figure.canvas.draw()
    assert int(ax.get_yticklabels()[-2].get_text()) > 300


def test_dollars_are_letters():
    odd = [r"$\frac{$", "$$", "a$b", *"123456789"]
    made = Scrubber(
        [Frames(S, odd[0], rows=odd[:4]), Rows(A, odd[1], cols=odd), Lines({odd[0]: np.ones(T)})],
        alt="dollars",
        tokens=odd,
    )
    words = [text.get_text() for text in made.figure().findobj(matplotlib.text.Text)]
    assert odd[0] in words and odd[1] in words and render(made.figure(), "png")


@pytest.mark.parametrize(
    "settings",
    [
        {"image.origin": "lower", "axes.grid": True, "font.size": 20, "axes.labelsize": 20},
        {"figure.constrained_layout.use": True, "savefig.bbox": "tight", "text.color": "red"},
    ],
)
def test_the_readers_settings_do_not_change_a_picture(settings):
    before = every_panel()._repr_mimebundle_()["image/png"]
    with matplotlib.rc_context(settings):
        assert every_panel()._repr_mimebundle_()["image/png"] == before


def test_a_drawing_that_fails_leaves_no_figure_open(tmp_path):
    made = every_panel()
    made.panels[1].labels["cols"] = ["too", "few"]
    for ending in ("png", "gif"):
        with pytest.raises(ValueError):
            made.save(tmp_path / f"x.{ending}")
    assert not plt.get_fignums()


def test_a_torch_tensor_with_gradient_will_do():
    x = torch.randn(3, 2, 2, requires_grad=True, dtype=torch.bfloat16)
    made = Scrubber([Frames(x, mask=torch.eye(2))], alt="torch")
    np.testing.assert_array_equal(made.panels[0].x, x.detach().double().numpy())
