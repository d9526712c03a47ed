"""Moves: in their order they compute each mechanism's numbers, in another order they do not."""

import dataclasses
import re

import pytest
import torch

import linviz as lv
from linviz.moves import KINDS, PLAY, Exp, Made, Move, Named, product, replay, stations, unscaled

SIZES = {"B": 2, "H": 3, "K": 5, "V": 4, "N": 6, "P": 7, "D": 8}
ALL = pytest.mark.parametrize("m", lv.registry, ids=lambda m: m.name)


def sizes(m):
    """Sizes that tell the letters apart."""
    letters = {letter for x in m.inputs for _, letter in x.letters}
    return {letter: n for letter, n in SIZES.items() if letter in letters}


def traced(m, T=12, seed=0, **options):
    """A trace of random inputs in float64."""
    return m.trace(*m.example(T, seed, dtype=torch.float64, **sizes(m)), **options)


def far(x, y):
    """The greatest difference, as a share of the greatest number."""
    return ((x - y).abs().max() / y.abs().max()).item()


def wrong(trace, **options):
    """The greatest difference between a replay and its trace, over output and state."""
    played, m = replay(trace, **options), trace.mechanism
    parts = unscaled({x.name: Named(trace[x.name], "") for x in m.state})
    found = [far(played.belts[name].x, part.x) for name, part in parts.items()]
    return max([*found, far(played.output.x, trace[m.output.name])])


def belts(m):
    """The parts of the state that moves act on: all but a scale."""
    return [x.name for x in m.state if x.name != "max"]


def same(label):
    """LaTeX without its white space."""
    return re.sub(r"\s", "", label)


# ------------------------------------------------------------------------------ the order is true


@ALL
def test_moves_compute_output_and_state(m):
    trace = traced(m)
    assert wrong(trace) < 1e-10
    played = replay(trace)
    assert played.output.x.shape == trace[m.output.name].shape
    assert all(played.belts[name].x.shape == trace[name].shape for name in belts(m))


@ALL
def test_moves_go_on_from_a_state(m):
    inputs = m.example(12, 1, dtype=torch.float64, **sizes(m))
    halves = [
        [x[:, part] if spec.timed else x for x, spec in zip(inputs, m.inputs, strict=True)]
        for part in (slice(0, 5), slice(5, 12))
    ]
    _, S = m.recurrent(*halves[0])
    played = replay(m.trace(*halves[1], S), S)
    assert far(played.output.x, m.recurrent(*inputs)[0][:, 5:]) < 1e-10


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("linear_attention", {"normalize": False, "feature_map": "identity"}),
        ("linear_attention", {"feature_map": "taylor", "eps": 0.5}),
        ("retnet", {"gamma": 0.7}),
        ("s4", {"discretization": "bilinear"}),
    ],
)
def test_moves_obey_the_options(name, options):
    assert wrong(traced(lv.registry[name], **options)) < 1e-10


def swapped(m, first, second):
    """The moves with the first of one kind and the first of another in each other's place."""
    moves = list(m.moves)
    i, j = (next(n for n, x in enumerate(moves) if x.kind == kind) for kind in (first, second))
    moves[i], moves[j] = moves[j], moves[i]
    return moves


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        *[(name, "decay", "write") for name in ("retnet", "gla", "s4", "h3", "mamba", "mamba2")],
        *[(name, "decay", "write") for name in ("lstm", "gru", "rwkv4", "rwkv5", "rwkv6", "kda")],
        *[(name, "write", "read") for name in ("linear_attention", "gla", "mamba", "deltanet")],
        *[(name, "read", "decay") for name in ("rwkv5", "rwkv6", "rwkv7", "rwkv4")],
        ("rwkv7", "decay", "write"),
    ],
)
def test_another_order_gives_other_numbers(name, first, second):
    m = lv.registry[name]
    try:
        assert wrong(traced(m), moves=swapped(m, first, second)) > 1e-3
    except ValueError as error:  # it takes what is not there yet
        assert "no earlier move gave it" in str(error)


def test_where_the_order_does_not_count():
    """A gate for the whole state commutes with an erase; a gate a channel does not."""
    for m, commutes in ((lv.gated_deltanet, True), (lv.kda, False)):
        fade, look, erase, *rest = m.moves
        error = wrong(traced(m), moves=(look, erase, fade, *rest))
        assert error < 1e-10 if commutes else error > 1e-3


@pytest.mark.parametrize("name", ["deltanet", "gated_deltanet", "kda"])
def test_a_delta_rule_looks_up_before_it_writes(name):
    m = lv.registry[name]
    *before, look, erase, write, read = m.moves
    assert look.kind == "read" and erase.kind == "erase"
    assert wrong(traced(m), moves=(*before, look, write, erase, read)) < 1e-10
    assert wrong(traced(m), moves=(*before, write, look, erase, read)) > 1e-3


def test_rwkv_4_without_its_scale():
    """num e^max and den e^max by hand: the sums of e^k v and e^k that fade by e^w."""
    w, u, k, v = lv.rwkv4.example(3, dtype=torch.float64, D=2)
    trace = lv.rwkv4.trace(w, u, k, v)
    num = (
        (k[0, 0] + 2 * w).exp() * v[0, 0] + (k[0, 1] + w).exp() * v[0, 1] + k[0, 2].exp() * v[0, 2]
    )
    played = replay(trace)
    assert set(played.belts) == {"num", "den"}
    torch.testing.assert_close(played.belts["num"].x[0, 2], num)
    state = {name: Named(trace[name], "btd") for name in ("num", "den", "max")}
    torch.testing.assert_close(unscaled(state)["num"].x[0, 2], num)
    gla = {"S": Named(trace["num"], "btd")}
    assert unscaled(gla) == gla


def test_an_exp_adds_its_inputs():
    move = Move("skip", "", "", (Exp("u", "k"),), 1)
    assert move.sources == ("u", "k") and repr(move.takes[0]) == "Exp('u', 'k')"


@ALL
def test_each_move_counts(m):
    trace = traced(m)
    for i in range(len(m.moves)):
        try:
            error = wrong(trace, moves=m.moves[:i] + m.moves[i + 1 :])
            assert not error < 1e-6, m.moves[i]
        except (ValueError, RuntimeError) as missed:  # what it gave, or a row of the other cache
            assert re.search(r"no (earlier )?move gave|The size of tensor", str(missed))


# ---------------------------------------------------------------------------- the data are right


@ALL
def test_labels_stand_in_the_equations(m):
    equations = {x.number: same(x.latex) for x in m.equations}
    for move in m.moves:
        assert same(move.label) in equations[move.equation], move
        assert move.kind in KINDS and set(KINDS) == set(PLAY)


@ALL
def test_every_input_and_part_of_the_state_is_moved(m):
    sources = {name for move in m.moves for name in move.sources}
    assert {x.name for x in m.inputs} <= sources
    touched = {name for move in m.moves for name in (move.belt, *move.gives)}
    assert set(belts(m)) <= touched and "max" not in touched
    assert m.output.name in touched


@ALL
def test_titles_tell_the_moves_apart(m):
    assert len({move.title for move in m.moves}) == len(m.moves)
    assert all("$" not in move.words and move.words for move in m.moves)


@ALL
def test_made_entries_depend_on_the_inputs_they_name(m):
    """Change one input at a time: an entry changes just if the input is named."""
    made = {x.name: x for move in m.moves for x in move.takes if isinstance(x, Made)}
    inputs = m.example(6, 2, dtype=torch.float64, **sizes(m))
    before = m.trace(*inputs)
    for i, spec in enumerate(m.inputs):
        changed = [*inputs]
        changed[i] = 0.9 * inputs[i]
        after = m.trace(*changed)
        for name, entry in made.items():
            assert (spec.name in entry.of) == (not torch.equal(before[name], after[name]))


@ALL
def test_made_entries_have_the_axes_they_name(m):
    trace = traced(m)
    known = {"T": 12, **trace.sizes}
    for move in m.moves:
        for x in move.takes:
            if isinstance(x, Made):
                assert trace[x.name].shape == tuple(known[c.upper()] for c in x.axes.split())


# -------------------------------------------------------------------------------------- stations


def test_stations_of_gla_by_hand():
    tr = lv.gla.trace(*lv.gla.example(5, B=2, H=2, K=3, V=4, dtype=torch.float64))
    decayed, written, read = stations(tr, head=1, batch=1).values()
    S = tr["S"][1, :, 1]
    before = torch.cat([torch.zeros_like(S[:1]), S[:-1]])
    torch.testing.assert_close(decayed, tr["g"][1, :, 1].exp()[..., None] * before)
    torch.testing.assert_close(written, tr["k"][1, :, 1][..., None] * tr["v"][1, :, 1][:, None, :])
    torch.testing.assert_close(decayed + written, S)
    torch.testing.assert_close(read, tr["o"][1, :, 1])


def test_stations_of_a_delta_rule():
    """After an erase with beta = 1 nothing is found under the key."""
    q, k, v, beta = lv.deltanet.example(6, H=1, K=3, V=4, dtype=torch.float64)
    tr = lv.deltanet.trace(q, k, v, torch.ones_like(beta))
    erased = stations(tr)[lv.deltanet.moves[1].title]
    found = (k[0, :, 0, :, None] * erased).sum(1)
    assert found.abs().max() < 1e-12 < erased.abs().max()


def test_stations_of_softmax_leave_the_future_open():
    tr = lv.softmax.trace(*lv.softmax.example(4, H=2, K=3, V=5, dtype=torch.float64))
    weights = stations(tr, head=1)[lv.softmax.moves[3].title]
    assert weights.shape == (4, 4)
    assert torch.isnan(weights).equal(torch.ones(4, 4).triu(1).bool())
    torch.testing.assert_close(weights.nan_to_num(0), tr["A"][0, 1])


@pytest.mark.parametrize(("bad", "words"), [({"head": 2}, "head"), ({"batch": 1}, "batch")])
def test_stations_refuse(bad, words):
    with pytest.raises(ValueError, match=words):
        stations(lv.gla.trace(*lv.gla.example(3)), **bad)


def test_a_mechanism_without_moves_is_refused():
    trace = lv.gla.trace(*lv.gla.example(3))
    trace.mechanism = dataclasses.replace(lv.gla, moves=())
    with pytest.raises(ValueError, match="moves"):
        replay(trace)


def test_a_name_that_nothing_gives_is_refused():
    move = Move("decay", "", "S", ("nothing",), 1)
    with pytest.raises(ValueError, match="'nothing'"):
        replay(lv.gla.trace(*lv.gla.example(3)), moves=[move])


def test_products_match_letters():
    a, b = torch.randn(2, 3), torch.randn(3, 4)
    x = product([Named(a, "ij"), Named(b, "jk")], over="j")
    assert x.letters == "ik"
    torch.testing.assert_close(x.x, a @ b)
