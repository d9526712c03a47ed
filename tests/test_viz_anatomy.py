"""The cells: every word on them comes from the registry, all can be read, no two are alike."""

import dataclasses
import re

import matplotlib

matplotlib.use("Agg")
import pytest
from matplotlib.collections import Collection
from matplotlib.colors import to_hex
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch
from matplotlib.transforms import Bbox

import linviz as lv
from linviz.moves import Move
from linviz.viz.anatomy import BETWEEN, belt_name, cell, cells, given, typeset
from linviz.viz.ink import INK, style
from linviz.viz.legend import ITEMS
from linviz.viz.picture import Picture
from linviz.viz.shapes import arrow, box, crowded, disc, extent, sheet, word

ALL = pytest.mark.parametrize("m", lv.registry, ids=lambda m: m.name)
THEMES = pytest.mark.parametrize("theme", ["light", "dark"])


def words(fig):
    """Every text of a drawing, without its legend."""
    return [t.get_text() for t in fig.axes[0].texts]


def same(text):
    """LaTeX without its white space."""
    return re.sub(r"\s", "", text)


def foreign_edges(fig):
    """Texts that the edge of a box or disc crosses."""
    fig.draw_without_rendering()
    patches = [x for ax in fig.axes for x in ax.patches]
    edges = [x for x in patches if isinstance(x, FancyBboxPatch | Circle)]
    boxes = [Bbox(x.get_window_extent().get_points() * 72 / fig.dpi) for x in edges]
    found = []
    for text in (x for ax in fig.axes for x in ax.texts):
        core = extent(text).padded(-1)
        for bounds in boxes:
            inside = bounds.containsx(core.x0) and bounds.containsx(core.x1)
            inside = inside and bounds.containsy(core.y0) and bounds.containsy(core.y1)
            if bounds.overlaps(core) and not inside:
                found.append(text.get_text())
    return found


# ------------------------------------------------------------------------------------- the cells


@THEMES
@ALL
def test_a_cell_can_be_read(m, theme):
    fig = cell(m).figure(theme)
    assert crowded(fig) == []
    assert foreign_edges(fig) == []
    assert fig.get_figwidth() <= 7.2 / 2
    assert to_hex(fig.get_facecolor()) == {"light": "#ffffff", "dark": "#16181b"}[theme]


@ALL
def test_words_are_those_of_the_registry(m):
    seen = words(cell(m).figure())
    labels = {typeset(move.label) for move in m.moves if move.label}
    inputs = {given(m, x.name).text for x in (*m.inputs, m.output)}
    names = {x.name for x in m.state} - {"max"}  # the scale of RWKV-4 is no belt
    belts = {belt_name(name, after) for name in names for after in (False, True)}
    between = {x for x in BETWEEN.values() if x in seen}
    assert set(seen) <= labels | inputs | belts | between | {m.title}
    assert labels | inputs | {belt_name(x, False) for x in names} <= set(seen)
    equations = same("".join(x.latex for x in m.equations))
    for label in (*(move.label for move in m.moves), *(x.strip("$") for x in between)):
        assert same(label) in equations


def test_what_is_handed_on_is_named_where_a_label_speaks_of_it():
    named = {m.name: set(BETWEEN.values()) & set(words(cell(m).figure())) for m in lv.registry}
    assert {name for name, found in named.items() if found} == {"h3", "rwkv5", "rwkv6"}
    assert named["h3"] == {"$s_t$", r"$\bar k_t$"}


@ALL
def test_signs_stand_on_their_belts_in_order(m):
    """From left to right: the moves that change a belt, by their inks."""
    with style():
        inks = {to_hex(INK[name]): name for name in ("decay", "value", "key")}
    fig = cell(m).figure()
    found = []
    for patch in fig.axes[0].patches:
        if patch.get_zorder() == 4 and isinstance(patch, FancyBboxPatch | Circle):
            ink = inks.get(to_hex(patch.get_edgecolor()))
            bounds = patch.get_extents()
            if ink and bounds.width / fig.dpi * 72 > 8:  # not a dot
                found.append((round(bounds.y0 + bounds.y1), bounds.x0, ink))
    changes = [x.kind for x in m.moves if x.kind in ("decay", "erase", "write", "append", "push")]
    assert len(found) == len(changes)
    if len(m.state) == 1:
        first = {"decay": "decay", "erase": "key", "write": "value"}
        if m.name == "rwkv7":  # takes away by adding: a is minus a key
            changes[1] = "erase"
        assert [ink for _, _, ink in sorted(found)] == [first[kind] for kind in changes]


def structure(fig):
    """What is drawn from left to right, without its words and its widths."""
    drawn = []
    for patch in fig.axes[0].patches:
        if isinstance(patch, FancyArrowPatch):
            continue
        color = to_hex(patch.get_facecolor()), to_hex(patch.get_edgecolor())
        drawn.append((patch.get_extents().x0, type(patch).__name__, *color, patch.get_linestyle()))
    return [x[1:] for x in sorted(drawn, key=str)], len(fig.axes[0].patches)


def test_no_two_cells_are_alike():
    seen = [structure(cell(m).figure()) for m in lv.registry]
    counts = [sorted(map(str, shapes)) for shapes, _ in seen]
    for i in range(len(counts)):
        for j in range(i):
            assert counts[i] != counts[j], (lv.registry[i].name, lv.registry[j].name)


def test_letters_alone_do_not_make_a_cell():
    """A copy in other letters has the same structure: what is compared is more than names."""
    moves = [dataclasses.replace(move, label=move.label.replace("v", "w")) for move in lv.gla.moves]
    copy = dataclasses.replace(lv.gla, title="A copy", moves=tuple(moves))
    assert structure(cell(copy).figure()) == structure(cell(lv.gla).figure())


def dashed_boxes(m):
    """How many boxes have dashed edges."""
    patches = cell(m).figure().axes[0].patches
    boxes = [x for x in patches if isinstance(x, FancyBboxPatch)]
    return sum(x.get_linestyle() != "solid" for x in boxes)


def test_a_fixed_gate_looks_unlike_one_from_the_data():
    assert dashed_boxes(lv.gla) == 0
    assert dashed_boxes(lv.retnet) == 2  # its sign and its label; nothing comes from below
    assert dashed_boxes(lv.rwkv5) == 4  # w, u, and the sign and the label of e^w
    assert dashed_boxes(lv.rwkv6) == 1  # u


def dots(m):
    """How many small discs there are: numbers in gates, and taps."""
    patches = cell(m).figure().axes[0].patches
    return sum(isinstance(x, Circle) and x.radius < 2 for x in patches)


def test_a_gate_has_a_dot_for_each_of_its_lanes():
    assert dots(lv.mamba2) == dots(lv.gated_deltanet) == dots(lv.retnet) == 0
    assert dots(lv.gla) == dots(lv.kda) == dots(lv.rwkv7) == 4
    assert dots(lv.mamba) == 12
    assert dots(lv.s4) == dots(lv.h3) == 0  # a spiral


def legend(m):
    """The words of a cell's legend."""
    return [t.get_text() for t in cell(m).figure().axes[1].texts]


@ALL
def test_the_legend_names_what_is_there_and_nothing_else(m):
    kinds, found = {move.kind for move in m.moves}, legend(m)
    assert ("erases" in found) == ("erase" in kinds)
    assert ("divides" in found) == ("divide" in kinds)
    assert ("shifts in" in found) == ("push" in kinds)
    assert ("erases (a is minus a key)" in found) == (m.name == "rwkv7")
    assert ("turns and shrinks, number by number" in found) == (m.name in ("s4", "h3"))
    assert ("the same for all tokens" in found) == bool(dashed_boxes(m))
    assert "from this token" in found and "reads" in found and "output" in found
    assert ("decay" in found) == ("decay" in kinds)
    assert m.name != "retnet" or "a number a head" in found  # its gamma_h, an option


def test_the_legend_of_all_cells_is_drawn_once():
    fig = cells(lv.registry).figure()
    found = [t.get_text() for t in fig.axes[1].texts]
    assert len(fig.axes) == 2 and len(found) == len(set(found)) == len(ITEMS)
    assert set(found) == set().union(*map(legend, lv.registry))


def test_captions_say_what_is_special():
    captions = [cell(m).caption for m in lv.registry]
    assert len(set(captions)) == len(captions)
    assert captions[0] == m_doc_start(lv.softmax)
    assert "In its cell: a is minus the key that is removed" in cell(lv.rwkv7).caption
    assert "gamma_h is one number a head" in cell(lv.retnet).caption
    assert "computed from this token" in cells(lv.registry).caption


def m_doc_start(m):
    """The first sentence of a room."""
    return m.doc.split("\n")[0]


def test_a_delta_rule_reads_before_it_erases():
    """The error needs what is stored under the key: two taps, one of them with the key's ink."""
    for m in (lv.deltanet, lv.gated_deltanet, lv.kda, lv.rwkv7):
        patches = cell(m).figure().axes[0].patches
        assert sum(isinstance(x, Circle) and x.radius == 2.6 for x in patches) == 2


def test_cells_share_one_sheet():
    picture = cells(lv.registry)
    assert isinstance(picture, Picture) and picture.vector and picture.caption
    fig = picture.figure("dark")
    assert crowded(fig) == [] and foreign_edges(fig) == []
    assert fig.get_figwidth() == pytest.approx(7.2, abs=0.01)
    assert {m.title for m in lv.registry} <= set(words(fig))
    assert len(words(cells([lv.gla]).figure())) == len(words(cell(lv.gla).figure()))


@ALL
def test_alt_text_names_inputs_and_state(m):
    alt = cell(m).alt
    assert alt.startswith(f"One token in {m.title}: ") and "$" not in alt and "{" not in alt
    for x in (*m.inputs, *m.state, m.output):
        if x.name == "max":
            continue
        assert re.search(rf"\b{x.name}\b", alt), x.name


def test_alt_text_in_full():
    assert cell(lv.gla).alt == (
        "One token in Gated linear attention: "
        "S fades by g; S takes in k and v; S, read with q, gives o."
    )


def test_what_has_no_moves_is_refused():
    bare = dataclasses.replace(lv.gla, moves=())
    for call in (lambda: cell(bare), lambda: cells([lv.gla, bare])):
        with pytest.raises(ValueError, match=r"lv\.gla has no moves"):
            call()
    with pytest.raises(ValueError, match="mechanisms"):
        cells([])


def test_a_cell_is_drawn_from_its_moves():
    """Another order of moves is another drawing."""
    a, b, c = lv.gla.moves
    other = dataclasses.replace(lv.gla, moves=(c, a, b))
    assert structure(cell(other).figure())[0] != structure(cell(lv.gla).figure())[0]
    more = dataclasses.replace(lv.gla, moves=(a, Move("erase", "v_t", "S", ("k",), 1), b, c))
    assert len(words(cell(more).figure())) == len(words(cell(lv.gla).figure())) + 2


# ------------------------------------------------------------------------------------- the shapes


def test_a_point_of_a_sheet_is_a_point():
    fig, ax = sheet(4, 2)
    assert tuple(fig.get_size_inches()) == (4, 2)
    assert ax.get_xlim() == (0, 288) and ax.get_ylim() == (0, 144)
    patch = box(ax, 100, 50, 40, 20)
    bounds = patch.get_window_extent().get_points() * 72 / fig.dpi
    assert bounds.ravel() == pytest.approx([80, 40, 120, 60], abs=1)


def test_text_shrinks_into_its_box_and_no_further():
    _, ax = sheet()
    wide = word(ax, 0, 0, "a long text", size=10)
    width = extent(wide).width
    box(ax, 200, 100, width * 0.85 + 3, 20, "a long text", size=10)
    assert 7 <= ax.texts[-1].get_fontsize() < 10
    for shape in (lambda: box(ax, 9, 9, 12, 12, "a long text"), lambda: disc(ax, 9, 9, 5, "long")):
        with pytest.raises(ValueError, match=r"takes .* at 7 points"):
            shape()
    with pytest.raises(ValueError, match="size"):
        word(ax, 0, 0, "small", size=6)
    with pytest.raises(ValueError, match="points"):
        arrow(ax, [(0, 0)])


def test_crowded_finds_what_cannot_be_read():
    def faults(draw):
        fig, ax = sheet(3, 1)
        word(ax, 100, 36, "here")
        draw(ax)
        return crowded(fig)

    assert faults(lambda ax: word(ax, 150, 36, "there")) == []
    assert faults(lambda ax: word(ax, 105, 36, "there")) == ["'here' and 'there' overlap"]
    assert faults(lambda ax: word(ax, 214, 36, "there")) == ["'there' is cut by the edge"]
    assert faults(lambda ax: ax.text(20, 20, "tiny", fontsize=6)) == [
        "'tiny' is smaller than 7 points"
    ]
    assert faults(lambda ax: arrow(ax, [(0, 36), (200, 36)])) == ["an arrow crosses 'here'"]
    assert faults(lambda ax: arrow(ax, [(0, 36), (50, 36), (50, 60), (200, 60)])) == []


def test_shapes_follow_the_theme():
    for theme, ink in (("light", "#d55e00"), ("dark", "#ff8a47")):
        with style(theme):
            _, ax = sheet()
            patch = box(ax, 50, 50, 20, 20, ink="state")
            assert to_hex(patch.get_edgecolor()) == ink == to_hex(INK["state"])
            soft = to_hex(patch.get_facecolor())
        assert (sum(bytes.fromhex(soft[1:])) > 380) == (theme == "light")
    assert not any(isinstance(x, Collection) for x in ax.get_children())
