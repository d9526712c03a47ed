"""The explanatory diagrams: counts derived by hand, areas to scale, and every word legible."""

from dataclasses import replace
from itertools import pairwise

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

import linviz as lv
from linviz.viz import ink
from linviz.viz.decoding import cache_or_state, numbers_held
from linviz.viz.diagrams import (
    chunk_sizes,
    chunk_tiling,
    chunk_work,
    count_text,
    order_crossover,
    order_flops,
    product_order,
)
from linviz.viz.family import arranged, family_tree, generations, lettered, wrap
from linviz.viz.layered import apart, tracks
from linviz.viz.shapes import crowded
from linviz.viz.triangular import (
    block_ranks,
    decay_mask,
    relative_rows,
    semiseparable,
    triangle,
    triangles,
)

THEMES = ("light", "dark")


@pytest.fixture(autouse=True)
def closed():
    """Each test starts and ends without an open figure, and leaves the reader's settings alone."""
    before = dict(matplotlib.rcParams)
    yield
    assert not plt.get_fignums()
    assert dict(matplotlib.rcParams) == before


def gates(T, seed=0):
    return torch.rand(T, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def named(fig, start):
    """The patches of a figure whose name begins so."""
    patches = [p for ax in fig.axes for p in ax.patches]
    return [p for p in patches if (p.get_gid() or "").startswith(start)]


def words(fig):
    return [t.get_text() for ax in fig.axes for t in ax.texts]


def area(patch):
    return patch.get_width() * patch.get_height()


# --------------------------------------------------------------------------- order of products


def test_flops_of_both_orders():
    assert order_flops(2, 3) == (2 * (2 * 2 * 3) * 2, 2 * (3 * 2 * 3) * 2) == (48, 72)
    assert order_flops(2, 3, causal=True) == (4 * 3 * 3, 72)  # three weights instead of four
    assert order_flops(1024, 64) == (2**28, 2**24)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("d", [1, 7, 64])
def test_both_orders_cost_the_same_at_the_crossover(d, causal):
    L = order_crossover(d, causal=causal)
    weights, state = order_flops(L, d, causal=causal)
    assert weights == state
    weights, state = order_flops(L + 1, d, causal=causal)
    assert weights > state


@pytest.mark.parametrize("bad", [{"L": 0}, {"d": 0}, {"d": -1}])
def test_product_order_refuses(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        product_order(**({"L": 4, "d": 2} | bad))


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("size", [(1024, 64), (64, 64), (4, 64), (100_000, 128)])
def test_products_are_drawn_to_scale(size, theme):
    L, d = size
    fig = product_order(L, d).figure(theme)
    assert crowded(fig) == []
    weights, *rest = named(fig, "A ")
    states = named(fig, "S ")
    assert not rest and len(states) == 2
    for state in states:
        assert area(weights) / area(state) == pytest.approx(L * L / (d * d))
    for letter in "QKVO":
        assert len(named(fig, letter)) == 2
        for patch in named(fig, letter):
            assert area(patch) / area(weights) == pytest.approx(d / L)
    bars = named(fig, "operations")
    assert bars[0].get_width() / bars[1].get_width() == pytest.approx(L / d)
    written = " ".join(words(fig))
    assert count_text(4 * L * L * d) in words(fig) and count_text(4 * L * d * d) in words(fig)
    assert f"{L:,} × {L:,}" in written and f"{d:,} × {d:,}" in written
    assert f"L = {d:,}" in written


def test_the_causal_count_is_drawn():
    fig = product_order(64, 64, causal=True).figure()
    assert any("L = 127" in text for text in words(fig))
    bars = named(fig, "operations")
    assert bars[0].get_width() / bars[1].get_width() == pytest.approx(65 / 128)


def test_counts_in_three_digits():
    assert [count_text(n) for n in (0, 999, 1000, 1536, 999_600, 2**24)] == [
        "0", "999", "1 k", "1.54 k", "1 M", "16.8 M"
    ]  # fmt: skip


# --------------------------------------------------------------------------------------- chunks


def test_work_of_chunks_by_hand():
    # 7 tokens in chunks of 3, 3 and 1: 6 + 6 + 1 weights, 4 tokens read, 7 written; d = 2
    assert chunk_sizes(7, 3).tolist() == [3, 3, 1]
    assert chunk_work(7, 3, 2) == {"within": 4 * 2 * 13, "read": 2 * 4 * 4, "write": 2 * 4 * 7}


def test_a_chunk_of_one_is_the_recurrence_and_of_all_one_matrix():
    assert chunk_work(5, 1, 3) == {"within": 4 * 3 * 5, "read": 2 * 9 * 4, "write": 2 * 9 * 5}
    one = {"within": 4 * 3 * 15, "read": 0, "write": 2 * 9 * 5}
    assert chunk_work(5, 5, 3) == chunk_work(5, 99, 3) == one
    assert one["within"] == order_flops(5, 3, causal=True)[0]


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("size", [(32, 8), (30, 4), (8, 8), (16, 1), (19, 8), (4096, 64), (9, 99)])
def test_chunk_tiling(size, theme):
    T, chunk = size
    fig = chunk_tiling(T, chunk).figure(theme)
    assert crowded(fig) == []
    sizes = chunk_sizes(T, chunk)
    within, read = named(fig, "within "), named(fig, "read ")
    within = [p for p in within if hasattr(p, "get_xy") and not hasattr(p, "get_width")]
    read = [
        p for p in read if p.get_facecolor() != matplotlib.colors.to_rgba(ink_of("query", theme))
    ]
    assert len(within) == len(sizes) and len(read) == len(sizes) - 1
    side = 248.0
    for patch, start, n in zip(read, np.cumsum(sizes)[:-1], sizes[1:], strict=True):
        assert area(patch) == pytest.approx(side**2 * start * n / T**2)
    for patch, n in zip(within, sizes, strict=True):
        x, y = patch.get_xy().T
        shoelace = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
        assert shoelace == pytest.approx(side**2 * n * (n + 1) / 2 / T**2)


def ink_of(name, theme):
    with ink.style(theme):
        return ink.INK[name]


def test_the_work_of_chunks_is_drawn_to_scale():
    fig = chunk_tiling(32, 8, d=16).figure()
    for n in (1, 8, 32):
        for part, count in chunk_work(32, n, 16).items():
            (bar,) = (
                p
                for p in named(fig, f"{part} {n}")
                if p.get_gid() == f"{part} {n}" and hasattr(p, "get_width") and p.get_height() == 10
            )
            most = sum(chunk_work(32, 32, 16).values())
            assert bar.get_width() == pytest.approx(118 * count / most)
    written = words(fig)
    for expected in (
        "32 steps that wait for each other",
        "4 steps that wait for each other",
        "1 step",
        "A v",
        r"$q\,S_{[1]}$",
        "$S_{[4]}$",
        "to the next\nchunk",
    ):
        assert expected in written


@pytest.mark.parametrize("bad", [{"T": 0}, {"chunk": 0}, {"d": 0}])
def test_chunk_tiling_refuses(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        chunk_tiling(**bad)


# ------------------------------------------------------------------------------ cache or state


def test_numbers_held_by_hand():
    # one head of 3 key and 5 value channels: 8 numbers a token, or 3 x 5 (and 3 to normalise)
    np.testing.assert_array_equal(numbers_held(lv.softmax, 4, H=1, K=3, V=5), [8, 16, 24, 32])
    np.testing.assert_array_equal(numbers_held(lv.retnet, 4, H=1, K=3, V=5), [15] * 4)
    np.testing.assert_array_equal(numbers_held(lv.linear_attention, 2, H=2, K=3, V=5), [36] * 2)
    np.testing.assert_array_equal(numbers_held(lv.lstm, 2, H=1, D=7), [14] * 2)  # it has no heads


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("T", [4, 24, 300])
def test_cache_or_state(T, theme):
    picture = cache_or_state([lv.softmax, lv.retnet, lv.mamba2], T=T)
    fig = picture.figure(theme)
    assert crowded(fig) == []
    cache, state, growth = picture.panels
    if T <= 64:  # one cell is one number
        filled = (~cache.empty).sum((1, 2))
        np.testing.assert_array_equal(filled, numbers_held(lv.softmax, T, H=1))
    assert (~state.empty).sum((1, 2)).tolist() == [256] * len(cache.times)
    assert (state.norm.vmin, state.norm.vmax) == (cache.norm.vmin, cache.norm.vmax)
    for pixels in (1, 0):  # a number is as wide and as high in both
        sizes = {panel.place(True)[pixels] / panel.sizes[pixels] for panel in (cache, state)}
        assert max(sizes) == pytest.approx(min(sizes))
    limits = [ax.get_xlim()[1] + 0.5 for ax in fig.axes if ax.images][:2]
    assert limits[0] == pytest.approx(max(T, 16) / -(-T // 128))
    assert growth.cross == (8 if T > 8 else None)  # 32 (t + 1) > 16 x 16
    assert ("from t = 8 on" in picture.alt) == (T > 8)
    assert bool(picture.note) == (T > 64)
    np.testing.assert_array_equal(
        growth.series["Softmax attention"], 32 * (np.array(growth.times) + 1.0)
    )
    np.testing.assert_array_equal(growth.series["Retention"], 256)


def test_the_outlines_grow_with_the_cache():
    fig = cache_or_state([lv.softmax, lv.retnet], T=6, K=4, V=4).figure()
    caches, states = named(fig, "key"), named(fig, "state")
    assert [area(p) for p in caches] == pytest.approx([8 * n for n in range(1, 7)])
    assert [area(p) for p in states] == pytest.approx([16] * 6)


def test_memory_in_bytes_starts_at_the_crossover():
    picture = cache_or_state([lv.softmax, lv.retnet], T=12, number_bytes=2)
    assert picture.start == 8 and picture.panels[2].series["Retention"][0] == 512
    assert "bytes held" in picture.html()


@pytest.mark.parametrize("name", [m.name for m in lv.registry if not m.cache])
def test_each_state_has_its_cells(name):
    kept = lv.registry[name]
    picture = cache_or_state([lv.softmax, kept], T=3)
    cells = (~picture.panels[1].empty[0]).sum()
    assert cells == numbers_held(kept, 1, H=1)[0]


def test_cache_or_state_refuses():
    with pytest.raises(ValueError, match="one with a cache and one with a state, got gla"):
        cache_or_state([lv.gla])
    with pytest.raises(ValueError, match="got softmax"):
        cache_or_state([lv.softmax])
    with pytest.raises(ValueError, match="sizes: wanted letters of these mechanisms, got N"):
        cache_or_state([lv.softmax, lv.gla], N=4)
    with pytest.raises(ValueError, match="T: "):
        cache_or_state([lv.softmax, lv.gla], T=0)


# ----------------------------------------------------------------------------------- triangles


def test_relative_rows():
    x = relative_rows([[2.0, 0.0], [-8.0, 4.0]])
    np.testing.assert_array_equal(x, [[1, 0], [-1, 0.5]])
    np.testing.assert_array_equal(relative_rows(np.zeros((2, 2))), np.zeros((2, 2)))
    A = torch.randn(5, 5, dtype=torch.float64)
    np.testing.assert_allclose(relative_rows(A * torch.rand(5, 1)), relative_rows(A))


def test_decay_mask_multiplies_the_gates_between():
    L = decay_mask([9.0, 2.0, 3.0, 5.0])
    np.testing.assert_array_equal(L, [[1, 0, 0, 0], [2, 1, 0, 0], [6, 3, 1, 0], [30, 15, 5, 1]])
    np.testing.assert_array_equal(decay_mask([1.0] * 3), np.tri(3))
    np.testing.assert_array_equal(decay_mask([0.5, 0.0, 1.0]), [[1, 0, 0], [0, 1, 0], [0, 1, 1]])


def test_decay_mask_is_the_attention_of_retention():
    T, gamma = 6, torch.tensor([0.7], dtype=torch.float64)
    one = torch.ones(1, T, 1, 1, dtype=torch.float64)
    A = lv.retnet.attention_map(one, one, one, gamma=gamma)[0, 0]
    np.testing.assert_allclose(decay_mask([0.7] * T), A)


@pytest.mark.parametrize("chunk", [1, 3, 4, 12])
def test_blocks_of_the_mask_have_rank_one(chunk):
    ranks = block_ranks(decay_mask(gates(12) * 0.5 + 0.5), chunk)
    n = len(ranks)
    assert n == 12 // chunk
    np.testing.assert_array_equal(ranks, np.tri(n, k=-1) + chunk * np.eye(n))


def test_ragged_blocks_and_closed_gates():
    ranks = block_ranks(decay_mask(gates(7) + 0.1), 3)
    np.testing.assert_array_equal(ranks, [[3, 0, 0], [1, 3, 0], [1, 1, 1]])
    a = np.ones(6)
    a[3] = 0  # nothing passes from the first half to the second
    np.testing.assert_array_equal(block_ranks(decay_mask(a), 3), [[3, 0], [0, 3]])
    np.testing.assert_array_equal(block_ranks(decay_mask(np.full(400, 1e-2)), 200)[1, 0], 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_blocks_of_the_whole_mechanism_have_as_many_ranks_as_keys(dtype):
    q, k = torch.randn(2, 24, 3, generator=torch.Generator().manual_seed(1), dtype=dtype)
    L = torch.tensor(decay_mask(gates(24) * 0.2 + 0.8), dtype=dtype)
    ranks = block_ranks(L * (q @ k.T), 6)
    below = ranks[np.tri(4, k=-1, dtype=bool)]
    assert (below == 3).all() and (ranks.diagonal() == 6).all()


def test_softmax_blocks_are_full():
    A = lv.softmax.attention_map(*lv.softmax.example(16, dtype=torch.float64))[0, 0]
    assert block_ranks(A, 4)[np.tri(4, dtype=bool)].tolist() == [4] * 10


def test_block_ranks_refuse():
    with pytest.raises(ValueError, match="square"):
        block_ranks(np.ones((2, 3)), 1)
    with pytest.raises(ValueError, match="chunk: wanted a number from 1 to 3, got 4"):
        block_ranks(np.eye(3), 4)
    with pytest.raises(ValueError, match="finite"):
        block_ranks([[np.nan]], 1)


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("chunk", [2, 4, 5, None])
def test_semiseparable_writes_the_ranks(chunk, theme):
    a = gates(24) * 0.4 + 0.6
    q, k = torch.randn(2, 24, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fig = semiseparable(a, q=q, k=k, chunk=chunk).figure(theme)
    assert crowded(fig) == []
    one, both = fig.axes[:2]
    L = decay_mask(a)
    np.testing.assert_allclose(one.images[0].get_array(), L)
    np.testing.assert_allclose(both.images[0].get_array(), L * (q @ k.T).numpy())
    n = -(-24 // (chunk or 6))
    for ax in (one, both):
        assert (ax.images[0].get_alpha() == np.tri(24)).all() and ax.patch.get_hatch()
        blocks = [p for p in ax.patches if (p.get_gid() or "").startswith("block")]
        assert len(blocks) == n * (n + 1) // 2
        assert sum(area(p) for p in blocks) >= 24 * 25 / 2
    if chunk == 4:
        ranks = [t.get_text().removeprefix("rank ") for t in one.texts]
        assert sorted(ranks) == ["1"] * 15 + ["4"] * 6
        assert sorted(t.get_text()[-1] for t in both.texts) == ["3"] * 15 + ["4"] * 6


def test_semiseparable_of_a_trace():
    tr = lv.mamba2.trace(*lv.mamba2.example(12))
    picture = semiseparable(tr, head=1, chunk=3)
    L = decay_mask(tr.a[0, :, 1])
    np.testing.assert_allclose(picture.figure().axes[0].images[0].get_array(), L)
    assert crowded(picture.figure()) == []


def test_semiseparable_refuses():
    with pytest.raises(ValueError, match="both or neither"):
        semiseparable(np.ones(4), q=np.ones((4, 2)))
    with pytest.raises(ValueError, match=r"q: wanted \[t, k\] = \[4, 2\], got \[3, 2\]"):
        semiseparable(np.ones(4), q=np.ones((3, 2)), k=np.ones((4, 2)))
    with pytest.raises(ValueError, match="chunk"):
        semiseparable(np.ones(4), chunk=5)
    with pytest.raises(ValueError, match=r"a: wanted axes \[t\]"):
        semiseparable(np.ones((4, 4)))
    with pytest.raises(ValueError, match="finite"):
        semiseparable([1.0, np.inf])


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("options", [{}, {"T": 8, "columns": 4}, {"T": 100, "columns": 7}])
def test_all_mechanisms_back_in_the_triangle(options, theme):
    picture = triangles(lv.registry, **options)
    fig = picture.figure(theme)
    assert crowded(fig) == []
    panels = {ax.get_gid(): ax for ax in fig.axes if ax.get_gid()}
    assert list(panels) == [m.title for m in lv.registry]
    T = options.get("T", 24)
    for m in lv.registry:
        ax = panels[m.title]
        assert ax.patch.get_hatch()
        if not m.linear:
            assert not ax.images
            assert [t.get_text() for t in ax.texts] == ["no matrix:\nnot linear in x"]
            continue
        A = m.attention_map(*m.example(T))[0, 0].double().numpy()
        (image,) = ax.images
        assert (image.norm.vmin, image.norm.vmax) == (-1, 1)
        if T <= 64:
            np.testing.assert_allclose(image.get_array(), relative_rows(A))
            np.testing.assert_array_equal(image.get_alpha(), np.tri(T))
        assert ax.get_xlabel() == f"max |A| = {np.abs(A).max():.3g}"
    assert bool(picture.note) == (T > 64)


def test_triangles_of_matrices():
    picture = triangles({"one": np.tri(3), "none": None})
    axes = picture.figure().axes
    assert axes[1].texts[0].get_text() == "no matrix"
    assert crowded(picture.figure()) == []
    with pytest.raises(ValueError, match="all of one size"):
        triangles({"a": np.tri(3), "b": np.tri(4)})
    with pytest.raises(ValueError, match="wanted one matrix or more"):
        triangles({"a": None})
    with pytest.raises(ValueError, match=r"mechanisms\['up'\]: wanted a lower-triangular"):
        triangles({"up": np.ones((3, 3))})
    with pytest.raises(ValueError, match="head: wanted -2 to 1, got 2"):
        triangles([lv.gla], head=2)
    with pytest.raises(ValueError, match="columns"):
        triangles([lv.gla], columns=8)


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("T", [5, 30, 60])
def test_triangle_of_a_trace(T, theme):
    tr = lv.gla.trace(*lv.gla.example(T))
    picture = triangle(tr, head=1, tokens=[f"word{i}" for i in range(T)])
    fig = picture.figure(theme)
    assert crowded(fig) == []
    ax = fig.axes[0]
    A = lv.gla.attention_map(*lv.gla.example(T))[0, 1]
    np.testing.assert_allclose(ax.images[0].get_array(), A, atol=1e-6)
    np.testing.assert_array_equal(ax.images[0].get_alpha(), np.tri(T))
    assert ax.get_title() == lv.gla.title and ax.patch.get_hatch()
    assert ax.get_ylabel() == f"time t ({T})"
    assert ax.get_xlabel() == f"token s ({T})"
    assert ax.get_xticklabels()[0].get_text() == "word0"


def test_triangle_of_a_channel_and_of_many_times():
    tr = lv.s4.trace(*lv.s4.example(6))
    A = lv.s4.attention_map(*lv.s4.example(6))[0, 3]
    image = triangle(tr, head=3).figure().axes[0].images[0]
    np.testing.assert_allclose(image.get_array(), A, atol=1e-6)
    picture = triangle(np.tri(1000), tokens=["x"] * 1000)
    image = picture.figure().axes[0].images[0]
    assert picture.note and max(image.get_array().shape) <= 256
    assert (image.get_array()[image.get_alpha() > 0] == 1).all()
    assert crowded(picture.figure()) == []


def test_triangle_refuses():
    with pytest.raises(ValueError, match="A: wanted a square matrix"):
        triangle(np.ones((2, 3)))
    with pytest.raises(ValueError, match="lower-triangular matrix, got 1 at t=0<s=1"):
        triangle(np.ones((2, 2)))
    with pytest.raises(ValueError, match="tokens: wanted 2 labels, got 1"):
        triangle(np.tri(2), tokens=["a"])
    with pytest.raises(ValueError, match="head: wanted -2 to 1, got 5"):
        triangle(lv.gla.trace(*lv.gla.example(4)), head=5)
    with pytest.raises(ValueError, match="not linear"):
        triangle(lv.gru.trace(*lv.gru.example(4)))


# ---------------------------------------------------------------------------------- family tree


def made(name, *older, year=2000):
    edges = tuple(lv.Edge(to, f"x = {to}", lambda T, seed: None) for to in older)
    return replace(lv.gla, name=name, title=f"The {name}", year=year, edges=edges)


def test_generations_by_hand():
    some = [made("c", "b", "a"), made("b", "a"), made("a"), made("d", "elsewhere", year=1990)]
    assert generations(some) == [["d", "a"], ["b"], ["c"]]
    assert generations(some, 1) == [["d"], ["a"], ["b"], ["c"]]  # one edge a row


def test_generations_keep_the_older_above():
    rows = generations(lv.registry)
    at = {name: i for i, row in enumerate(rows) for name in row}
    assert sorted(at) == sorted(lv.registry.names)
    for m in lv.registry:
        assert all(at[edge.to] < at[m.name] for edge in m.edges)
    assert rows[0][0] == "rnn" and rows[1] == ["gru", "linear_attention", "h3", "mamba"]
    for most in (2, 3, 6):
        for row in generations(lv.registry, most):
            need = sum(max(1, len(lv.registry[name].edges)) for name in row)
            assert need <= most or len(row) == 1


def test_generations_refuse():
    with pytest.raises(ValueError, match="mechanisms: wanted one or more"):
        generations([])
    with pytest.raises(ValueError, match="circle of edges, got one among a, b"):
        generations([made("a", "b"), made("b", "a")])


def test_a_wide_family_gets_more_rows_and_stays_legible():
    roots = [made(f"root{i}") for i in range(9)]
    leaves = [made(f"leaf{i}", f"root{i}", f"root{i + 1}", "root8") for i in range(3)]
    tree = arranged([*roots, *leaves])
    assert all(
        0 <= card.x - card.width / 2 and card.x + card.width / 2 <= 518
        for card in tree.cards.values()
    )
    assert crowded(family_tree([*roots, *leaves]).figure()) == []


def test_apart_is_the_least_squares_placing():
    np.testing.assert_allclose(apart([100, 300], [20, 20]), [100, 300])
    np.testing.assert_allclose(apart([200, 200], [20, 20]), [186, 214])  # 20 wide and 8 apart
    np.testing.assert_allclose(apart([-50], [20]), [16])
    np.testing.assert_allclose(apart([900, 901], [20, 40]), [518 - 6 - 40 - 8 - 10, 518 - 6 - 20])


def test_tracks_avoid_crossings():
    # from 100 up to 0, and from 120 up to 50: no line crosses if the second turns higher up
    assert tracks([(0.0, [100.0]), (50.0, [120.0])]) == [1, 0]
    assert tracks([(50.0, [120.0]), (0.0, [100.0])]) == [0, 1]
    # what leaves at x = 50 must turn below what arrives at x = 50
    assert tracks([(90.0, [50.0]), (50.0, [10.0])]) == [1, 0]


def test_wrap_keeps_equations_whole():
    assert wrap("g = 0", 1.0) == ["g\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}0"]
    assert wrap("aaa bbb ccc", 1.0) == ["aaa", "bbb", "ccc"]
    assert wrap("aaa bbb ccc", 1000.0) == ["aaa bbb ccc"]


SOME = [
    list(lv.registry),
    [lv.softmax, lv.linear_attention, lv.retnet, lv.gla, lv.deltanet, lv.kda],
    [lv.mamba, lv.lstm, lv.s4],
    [lv.kda],
]


@pytest.mark.parametrize("some", SOME, ids=["all", "six", "three", "one"])
def test_edges_lead_from_card_to_card_and_through_none(some):
    tree = arranged(some)
    names = {m.name for m in some}
    assert list(tree.cards) and set(tree.cards) == names
    edges = {(m.name, edge.to) for m in some for edge in m.edges if edge.to in names}
    assert set(tree.routes) == edges
    for (new, old), points in tree.routes.items():
        (x, y), (to_x, to_y) = points[0], points[-1]
        below, above = tree.cards[new], tree.cards[old]
        assert y == pytest.approx(below.top) and abs(x - below.x) < below.width / 2
        assert to_y == pytest.approx(above.bottom) and abs(to_x - above.x) < above.width / 2
        assert min(abs(x - port) for port in below.ports) < 1e-6
        for (x0, y0), (x1, y1) in pairwise(points):
            assert x0 == pytest.approx(x1) or y0 == pytest.approx(y1)
            for card in tree.cards.values():
                aside = (
                    max(x0, x1) < card.x - card.width / 2 or min(x0, x1) > card.x + card.width / 2
                )
                assert aside or max(y0, y1) <= card.bottom + 1e-6 or min(y0, y1) >= card.top - 1e-6
    cards = list(tree.cards.values())
    for i, a in enumerate(cards):
        assert a.width / 2 <= a.x <= 518 - a.width / 2 and 0 < a.bottom < a.top < tree.height
        for b in cards[:i]:
            beside = abs(a.x - b.x) >= (a.width + b.width) / 2 - 1e-6
            assert beside or a.bottom > b.top or b.bottom > a.top


def test_edges_to_different_mechanisms_share_no_line():
    tree = arranged(lv.registry)
    upright = [
        (old, x0, min(y0, y1), max(y0, y1))
        for (_, old), points in tree.routes.items()
        for (x0, y0), (x1, y1) in pairwise(points)
        if abs(x0 - x1) < 1e-6
    ]
    for i, (old, x, low, high) in enumerate(upright):
        for other, x2, low2, high2 in upright[:i]:
            if other != old and abs(x - x2) < 2:
                assert min(high, high2) - max(low, low2) < 1e-6, (old, other)


def test_letters_of_what_is_fixed():
    assert lettered("g = log gamma_h, beta = 1") == r"g = log $\gamma_h$, $\beta$ = 1"
    assert lettered("a = -e^w k, dt and gammas") == r"a = -$e^w$ k, $\Delta$ and gammas"


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("some", SOME, ids=["all", "six", "three", "one"])
def test_family_tree_writes_all_once(some, theme):
    picture = family_tree(some)
    fig = picture.figure(theme)
    assert crowded(fig) == []
    written = [text.replace("\n", " ").replace("\N{NO-BREAK SPACE}", " ") for text in words(fig)]
    names = {m.name for m in some}
    for m in some:
        assert written.count(m.title) == 1
        for edge in m.edges:
            assert written.count(lettered(edge.when)) == (edge.to in names)
    assert sum(text.isdecimal() for text in written) == len(some)
    arrows = [p for p in fig.axes[0].patches if type(p).__name__ == "FancyArrowPatch"]
    assert len(arrows) == sum(edge.to in names for m in some for edge in m.edges)
    assert bool(picture.note) == any(edge.to not in names for m in some for edge in m.edges)


def test_arrows_have_the_ink_of_the_newer_one():
    picture = family_tree([lv.linear_attention, lv.softmax, lv.retnet, lv.deltanet])
    colors = {
        theme: {
            p.get_edgecolor()
            for p in picture.figure(theme).axes[0].patches
            if type(p).__name__ == "FancyArrowPatch"
        }
        for theme in THEMES
    }
    assert all(len(found) == 2 for found in colors.values())  # scalar decay, delta rule
    assert not colors["light"] & colors["dark"]


@pytest.mark.parametrize(
    "picture",
    [
        lambda: product_order(),
        lambda: chunk_tiling(),
        lambda: family_tree(lv.registry),
        lambda: semiseparable(gates(8)),
        lambda: triangles([lv.gla, lv.rnn]),
        lambda: triangle(np.tri(4)),
    ],
)
def test_pictures_have_words_and_can_be_saved(picture, tmp_path):
    made = picture()
    assert len(made.alt) > 30 and made.caption
    text = made.save(tmp_path / "x.svg", theme="dark").read_text(encoding="utf-8")
    assert text.count("<svg") == 1
    assert made.figure().get_figwidth() <= 7.2
