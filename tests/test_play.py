"""Explorers: what they measure, their first frame, and their widgets without a browser."""

import base64
import builtins
import dataclasses
import importlib.util
import json
import sys
import types

import IPython
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import torch
from nbclient import NotebookClient
from nbconvert import HTMLExporter
from nbformat.v4 import new_code_cell, new_notebook

import linviz as lv
from linviz.viz import Explorer, Picture, play, style
from linviz.viz import explorer as core
from linviz.viz.explorer import Choice, Slider, Typed
from linviz.viz.memory import steps
from linviz.viz.shapes import crowded

plt.switch_backend("Agg")  # before a test stands in for IPython, which pyplot would talk to

TEXT = "abracadabra"


# --- controls and explorer -----------------------------------------------------------------------


def drawn(calls=None, **known):
    """A draw function that notes what it was called with."""

    def draw(**values):
        if calls is not None:
            calls.append(values)
        if values["n"] == 3:
            raise ValueError("n: <3> is unlucky")
        return Picture(lambda: figure(values), alt=f"n is {values['n']}", caption="A dot.", **known)

    return draw


def figure(values):
    import matplotlib.pyplot as plt

    fig = plt.figure(figsize=(1, 1))
    fig.text(0, 0, str(values["n"]))
    return fig


CONTROLS = {"n": Slider("number", 0, 9), "kind": Choice("kind", ("x", "y"))}


def explorer(calls=None, **more):
    return Explorer(drawn(calls), CONTROLS, {"n": 1, "kind": "x"}, **more)


@pytest.mark.parametrize(
    ("control", "good", "bad"),
    [
        (Slider("s", 1, 4), (1, 4, np.int64(2)), (0, 5, 2.0, True, "2", None)),
        (Slider("s", -1.0, 1.0, 0.5), (-1, 0.25, 1.0), (1.1, float("nan"), True, "0")),
        (Choice("c", (16, 32)), (16, 32), (8, "16", None, [16])),
        (Typed("t", 3), ("a", "abc", " "), ("", "abcd", 3, None)),
    ],
)
def test_controls_refuse_what_they_cannot_show(control, good, bad):
    for value in good:
        assert control.check("name", value) == value
        assert control.widget(value).value == value
    for value in bad:
        with pytest.raises(ValueError, match=r"^name: wanted .*, got"):
            control.check("name", value)


def test_an_explorer_draws_the_values_asked_for():
    calls = []
    e = explorer(calls)
    assert e.at(n=5).alt == "n is 5"
    assert calls == [{"n": 5, "kind": "x"}] and e.values == {"n": 1, "kind": "x"}
    with pytest.raises(ValueError, match="m: there is n, kind"):
        e.at(m=1)
    with pytest.raises(ValueError, match="n: wanted a whole number from 0 to 9, got 10"):
        e.at(n=10)
    with pytest.raises(ValueError, match="start: wanted n, kind, got n"):
        Explorer(drawn(), CONTROLS, {"n": 1})
    with pytest.raises(ValueError, match="start: wanted one control or more"):
        Explorer(drawn(), {}, {})
    with pytest.raises(ValueError, match="kind: wanted one of x, y, got 'z'"):
        Explorer(drawn(), CONTROLS, {"n": 1, "kind": "z"})


def test_the_first_frame_is_a_picture_that_says_how_to_move_it(tmp_path):
    e = explorer()
    bundle = e._repr_mimebundle_()
    assert list(bundle) == ["text/html", "image/png", "text/plain"]
    assert (
        "A dot. Open this notebook in JupyterLab to move the sliders: number, kind."
        in (bundle["text/html"])
    )
    assert bundle["text/html"] == e.html() and 'alt="n is 1"' in e.html()
    assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG")
    assert repr(e) == "Explorer: n is 1"
    assert e.figure("dark").texts[0].get_text() == "1"
    assert "n is 1" in e.save(tmp_path / "e.html").read_text(encoding="utf-8")
    assert e.save(tmp_path / "e.png").stat().st_size > 100
    with pytest.raises(ValueError, match="path: wanted a name that ends in"):
        e.save(tmp_path / "e.txt")


def without_ipywidgets(monkeypatch):
    """Ipywidgets cannot be found, nor imported."""
    found, load = importlib.util.find_spec, builtins.__import__
    monkeypatch.setattr(core, "find_spec", lambda n: None if n == "ipywidgets" else found(n))

    def refuse(name, *rest):
        if name.split(".")[0] == "ipywidgets":
            raise ImportError(name)
        return load(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)


def somebody_there(monkeypatch, allow_stdin=True):
    """A kernel whose page takes input, or not."""
    parent = {"content": {"allow_stdin": allow_stdin}}
    kernel = types.SimpleNamespace(get_parent=lambda channel: parent)
    shell = types.SimpleNamespace(kernel=kernel)
    monkeypatch.setattr(IPython, "get_ipython", lambda: shell)


def test_without_ipywidgets_it_is_a_still_picture_and_says_what_to_install(monkeypatch):
    without_ipywidgets(monkeypatch)
    somebody_there(monkeypatch)
    e = play.explore_chunks()
    assert list(e._repr_mimebundle_()) == ["text/html", "image/png", "text/plain"]
    assert "python -m pip install ipywidgets" in e.html()
    with pytest.raises(ImportError, match="python -m pip install ipywidgets"):
        e.widget()


def test_where_somebody_sits_the_widget_comes_first(monkeypatch):
    somebody_there(monkeypatch, allow_stdin=False)
    assert not core.live() and core.WIDGET not in explorer()._repr_mimebundle_()
    somebody_there(monkeypatch)
    assert core.live()
    e = explorer()
    bundle = e._repr_mimebundle_()
    assert list(bundle) == [core.WIDGET, "text/html", "image/png", "text/plain"]
    assert bundle[core.WIDGET]["model_id"] == e.widget().model_id
    assert e.widget() is e.widget()
    monkeypatch.setattr(IPython, "get_ipython", lambda: None)
    assert not core.live()
    monkeypatch.delitem(sys.modules, "IPython")
    assert not core.live()


def test_widgets_follow(monkeypatch):
    calls = []
    e = explorer(calls, idle=lambda values: ("kind",) if values["n"] == 4 else ())
    box = e.widget()
    row, fault, picture = box.children
    number, kind = row.children
    assert (number.value, kind.value) == (1, "x") and 'alt="n is 1"' in picture.value
    assert "JupyterLab" not in picture.value and "<script" not in picture.value
    number.value = 4
    assert 'alt="n is 4"' in picture.value and kind.disabled and not number.disabled
    number.value = 2
    assert not kind.disabled
    kind.value = "y"
    assert calls[-1] == e.values == {"n": 2, "kind": "y"}
    assert e.at().alt == "n is 2"
    number.value = 3  # draw refuses it
    assert "n: &lt;3&gt; is unlucky" in fault.value and 'alt="n is 2"' in picture.value
    number.value = 5
    assert fault.value == "" and 'alt="n is 5"' in picture.value


def test_a_moving_picture_stands_still_in_a_widget():
    from linviz.viz.scrubber import Frames, Scrubber

    def draw(n):
        return Scrubber([Frames(np.full((2, 2, 2), float(n)))], alt=f"n {n}", note="Thinned.")

    e = Explorer(draw, {"n": Slider("n", 1, 3)}, {"n": 1})
    assert "<script" not in e.html() and "Thinned. Open" in e.html()
    assert e.widget().children[2].value.count("<img") == 2  # light and dark


def pages(cells, tmp_path):
    """The outputs of a notebook as nbclient leaves them, and as the page that nbconvert makes."""
    nb = new_notebook(cells=[new_code_cell(cell) for cell in cells])
    NotebookClient(nb, kernel_name="python3", timeout=120).execute()
    (tmp_path / "nb.ipynb").write_text(nbformat.writes(nb), encoding="utf-8")
    body, _ = HTMLExporter(template_name="basic").from_notebook_node(nb)
    return [cell.outputs[0]["data"] for cell in nb.cells], body


def test_a_page_made_without_a_reader_shows_the_first_frame(monkeypatch, tmp_path):
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")
    cell = "from linviz.viz.play import explore_chunks\nexplore_chunks(12, chunk=3)"
    (data,), body = pages([cell], tmp_path)
    assert sorted(data) == ["image/png", "text/html", "text/plain"]
    assert "Open this notebook in JupyterLab to move the sliders" in body
    assert body.count('class="lv-light') == 1 and "12 x 12 triangle" in body
    assert "widget-view" not in body and "cdn" not in body.lower()


def test_a_notebook_saved_from_jupyterlab_shows_the_first_frame(monkeypatch):
    somebody_there(monkeypatch)
    data = explorer()._repr_mimebundle_()
    assert core.WIDGET in data
    output = nbformat.v4.new_output("display_data", json.loads(json.dumps(data)))
    nb = new_notebook(cells=[new_code_cell("x", outputs=[output])])
    body, _ = HTMLExporter(template_name="basic").from_notebook_node(nb)
    assert "A dot. Open this notebook" in body and "widget-view" not in body


# --- one state over a text -----------------------------------------------------------------------


def test_a_letter_is_the_same_token_wherever_it_stands():
    for m in lv.registry:
        inputs = play.text_inputs(m, TEXT, seed=3)
        alone = play.text_inputs(m, "b", seed=3)
        other = play.text_inputs(m, "b", seed=4)
        changed = False
        for spec, x, y, z in zip(m.inputs, inputs, alone, other, strict=True):
            if spec.timed:
                assert x.shape[:2] == (1, len(TEXT))
                assert torch.equal(x[:, 0], x[:, 7]) and torch.equal(x[:, 1], x[:, 8])
                assert torch.equal(x[:, 1], y[:, 0])
                assert not torch.equal(x[:, 0], x[:, 1])
                changed |= not torch.equal(y, z)
            else:
                assert torch.equal(x, y)
        assert changed
        m.recurrent(*inputs)  # they are valid


GATED = {
    "retnet": "gamma", "gla": "g", "gated_deltanet": "g", "kda": "g", "rwkv4": "w", "rwkv5": "w",
    "rwkv6": "w", "rwkv7": "w", "mamba": "A", "mamba2": "A", "s4": "A", "h3": "A",
}  # fmt: skip


def test_what_is_a_gate():
    assert {m.name: play.gate_of(m) for m in lv.registry if play.gate_of(m)} == GATED


def gates(m, power):
    """The gates of a run, whatever the mechanism calls them."""
    inputs, options = play.scale_gate(m, play.text_inputs(m, TEXT), power)
    return steps(m.trace(*inputs, **options)).fade


@pytest.mark.parametrize("name", GATED)
@pytest.mark.parametrize("power", [-2, 1.5])
def test_the_slider_is_a_power_of_the_gate(name, power):
    m = lv.registry[name]
    was, now = gates(m, 0), gates(m, power)
    np.testing.assert_allclose(np.abs(now), np.abs(was) ** 2.0**power, rtol=2e-5)
    if np.iscomplexobj(was):  # it turns as before
        np.testing.assert_allclose(np.angle(now), np.angle(was), atol=1e-5)


def test_without_a_gate_nothing_is_scaled():
    for name in ("softmax", "linear_attention", "deltanet", "lstm", "rnn", "gru"):
        inputs = play.text_inputs(lv.registry[name], TEXT)
        scaled, options = play.scale_gate(lv.registry[name], inputs, 3.0)
        assert options == {}
        assert all(torch.equal(x, y) for x, y in zip(inputs, scaled, strict=True))


@pytest.mark.parametrize(
    ("T", "chunk", "ends"),
    [(8, 3, [2, 5, 7]), (6, 3, [2, 5]), (4, 9, [3]), (3, 1, [0, 1, 2]), (1, 1, [0])],
)
def test_states_are_handed_on_after_each_chunk(T, chunk, ends):
    assert play.chunk_ends(T, chunk) == ends


def test_the_state_is_that_of_the_tokens():
    m = lv.gla
    _, k, v, g = (x[0, :, 0].double().numpy() for x in play.text_inputs(m, "abca"))
    found = play.state_of_text(m, "abca", gate=1.0, chunk=2)
    S = np.zeros((8, 8))
    for t in range(4):
        S = np.exp(2 * g[t])[:, None] * S + np.outer(k[t], v[t])
        np.testing.assert_allclose(found.states[t], S, atol=1e-5)
    np.testing.assert_allclose(found.norm, [np.linalg.norm(x) for x in found.states])
    fade = np.exp(2 * (g[1] + g[2] + g[3]))
    np.testing.assert_allclose(
        found.left[0], np.linalg.norm(fade * k[0]) / np.linalg.norm(k[0]), rtol=1e-5
    )
    assert found.left[3] == 1 and found.ends == [1, 3]


@pytest.mark.parametrize("name", lv.registry.names)
def test_each_mechanism_has_its_picture(name):
    m = lv.registry[name]
    found = play.state_of_text(m, TEXT, chunk=4)
    assert len(found.states) == len(found.norm) == len(found.left) == len(TEXT)
    assert max(found.gaps) < 1e-4
    e = play.explore_state(name, text=TEXT)
    fig = e.figure()
    marks = [line for ax in fig.axes for line in ax.lines if line.get_marker() == "o"]
    np.testing.assert_allclose(marks[0].get_xdata(), [3, 7, 10])
    np.testing.assert_allclose(marks[0].get_ydata(), found.norm[[3, 7, 10]])
    heats = [ax.images[0].get_array() for ax in fig.axes if ax.images]
    if found.states.ndim == 3:
        for x, t in zip(heats, (3, 7, 10), strict=True):
            np.testing.assert_allclose(x, found.states[t].real)
    else:
        np.testing.assert_allclose(heats[0], found.states.T)
    assert e.idle(e.values) == (() if play.gate_of(m) else ("gate",))


def test_a_wrong_chunk_would_be_seen(monkeypatch):
    """The printed difference is measured: break the chunked form, and it is large."""
    broken = dict(lv.gla.functions)
    chunked = broken["chunked"]
    broken["chunked"] = lambda *x, S, chunk: (chunked(*x, S=S, chunk=chunk)[0] + 1, S)
    wrong = dataclasses.replace(lv.gla, functions=broken)
    o, S = play.state_of_text(wrong, TEXT, chunk=3).gaps
    assert o == pytest.approx(1, abs=1e-4) and S > 0.1


def texts(fig):
    """All words of a figure."""
    return " ".join(x.get_text() for x in fig.findobj(lambda a: hasattr(a, "get_text")))


def numbers(fig):
    """The measured numbers that a figure shows: matrices, curves and shapes."""
    found = []
    for ax in fig.axes:
        found += [np.asarray(image.get_array(), float).ravel() for image in ax.images]
        found += [np.ravel(line.get_xydata()).astype(float) for line in ax.lines]
        found += [np.ravel(patch.get_path().vertices) for patch in ax.patches]
        found += [patch.get_bbox().bounds for patch in ax.patches if hasattr(patch, "get_bbox")]
    return np.concatenate(found)


@pytest.mark.parametrize(
    ("explore", "changes"),
    [
        (
            lambda: play.explore_state(text=TEXT),
            {"gate": 2.0, "chunk": 3, "seed": 1, "text": "abba", "name": "deltanet"},
        ),
        (play.explore_forms, {"name": "retnet", "t": 5, "chunk": 3, "seed": 1}),
        (play.explore_cost, {"length": 65536, "d": 128, "features": "taylor"}),
        (play.explore_chunks, {"T": 20, "chunk": 5, "d": 64}),
    ],
)
def test_every_control_changes_the_numbers(explore, changes):
    e = explore()
    assert set(changes) == set(e.controls)
    old = e.figure()
    _, fault, picture = e.widget().children
    for name, value in changes.items():
        before = picture.value
        e._board.controls[name].value = value
        assert picture.value != before and fault.value == "" and e.values[name] == value
        new = e.figure()
        x, y = numbers(old), numbers(new)
        assert x.shape != y.shape or not np.allclose(x, y, equal_nan=True), name
        assert texts(old) != texts(new), name
        old = new


def test_odd_letters_are_shown_without_a_warning():
    assert play.seen("a \n\t日") == ["a", "\N{OPEN BOX}", "↵", "□", "□"]
    picture = play.explore_state("deltanet", text="$a_^日\t🙂\\%").at()
    picture.html()
    picture.figure("dark")
    one = play.explore_state("rnn", text="a", chunk=32).at()
    one.html()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: play.explore_state("glas"), "name: wanted one of softmax, .*, got 'glas'"),
        (lambda: play.explore_state(text=""), "text: wanted a text of 1 to 48 letters, got 0"),
        (lambda: play.explore_state(text="a" * 49), "text: .* got 49 letters"),
        (lambda: play.explore_state(gate=5), "gate: wanted a number from -4.0 to 4.0, got 5"),
        (lambda: play.explore_state(chunk=0), "chunk: wanted a whole number from 1 to 32, got 0"),
        (lambda: play.explore_forms("lstm"), "name: wanted one of softmax, .*, got 'lstm'"),
        (lambda: play.explore_forms(T=40), "T: wanted a whole number from 2 to 32, got 40"),
        (lambda: play.explore_forms(T=8, t=8), "t: wanted a whole number from 0 to 7, got 8"),
        (lambda: play.explore_forms(T=8, t=2, chunk=9), "chunk: wanted .* from 1 to 8, got 9"),
        (lambda: play.explore_cost(1000), "length: wanted one of 2, 4, .*, got 1000"),
        (lambda: play.explore_cost(d=7), "d: wanted one of 16, 32, .*, got 7"),
        (lambda: play.explore_cost(features="cos"), "features: wanted one of elu, .*, got 'cos'"),
        (lambda: play.explore_chunks(1), "T: wanted a whole number from 2 to 128, got 1"),
        (lambda: play.three_forms(lv.rnn), "m: wanted a mechanism with three forms .*, got rnn"),
    ],
)
def test_errors_name_the_argument(call, words):
    with pytest.raises(ValueError, match=words):
        call()


# --- three forms, costs --------------------------------------------------------------------------


@pytest.mark.parametrize("name", play.three_formed())
def test_three_forms_compute_the_same_numbers(name):
    m = lv.registry[name]
    found = play.three_forms(m, T=13, chunk=4, seed=2)
    o = found.outputs
    top = np.abs(o["recurrent"]).max()
    assert set(o) == {"recurrent", "parallel", "chunked"} and 0 <= found.gap < 1e-4 * max(top, 1)
    assert found.gap == max(
        np.abs(o["recurrent"] - o["parallel"]).max(),
        np.abs(o["recurrent"] - o["chunked"]).max(),
        np.abs(o["parallel"] - o["chunked"]).max(),
    )
    np.testing.assert_allclose(found.block + found.past, o["recurrent"], atol=1e-4 * max(top, 1))
    assert not found.past[:4].any() and found.past[4:].any()
    assert found.weights.shape == (13, 13) and not np.triu(found.weights, 1).any()
    for t in (0, 12):
        play.explore_forms(name, T=13, t=t, chunk=5).figure("dark")


def test_the_three_are_every_mechanism_that_is_linear_in_its_values():
    assert set(lv.registry.names) - set(play.three_formed()) == {"rnn", "lstm", "gru"}


def test_the_parts_of_an_output_by_hand():
    found = play.three_forms(lv.retnet, T=6, chunk=4, seed=1)
    q, k, v = (x[0, :, 0].double().numpy() for x in lv.retnet.example(6, 1, B=1, H=1, K=8, V=8))
    gamma = 1 - 2.0**-5
    A = np.array([[gamma ** (i - j) * (q[i] @ k[j]) for j in range(6)] for i in range(6)])
    np.testing.assert_allclose(found.weights, np.tril(A), atol=1e-5)
    np.testing.assert_allclose(found.past[5], A[5, :4] @ v[:4], atol=1e-5)
    np.testing.assert_allclose(found.block[5], A[5, 4:] @ v[4:], atol=1e-5)


def test_the_row_and_the_block_of_the_step_are_outlined():
    fig = play.explore_forms(t=9, chunk=4).figure()
    boxes = {
        (patch.get_gid(), tuple(patch.get_bbox().bounds))
        for ax in fig.axes
        for patch in ax.patches
        if patch.get_gid() in ("output", "state")
    }
    assert boxes == {
        ("output", (-0.5, 8.5, 10, 1)),
        ("output", (7.5, 8.5, 2, 1)),
        ("state", (-0.5, 8.5, 8, 1)),
    }


def test_costs_by_hand():
    softmax, linear = play.rivals("elu")
    assert play.numbers_kept(softmax, 100, 64) == 2 * 100 * 64
    assert play.numbers_kept(linear, 100, 64) == 64 * 64 + 64
    assert play.flops_of_token(softmax, 100, 64) == 100 * (4 * 64 + 5)
    assert play.flops_of_token(linear, 100, 64) == 5 * 64 * 65 + 2 * 64
    assert play.numbers_kept(play.rivals("taylor")[1], 5, 16) == (1 + 16 + 256) * 17
    assert play.first_dearer(play.numbers_kept, softmax, linear, 64) == 33  # 2 T 64 > 65 * 64
    assert play.first_dearer(play.flops_of_token, softmax, linear, 64) == 81  # 261 T > 20928


def test_the_cost_says_what_it_measured():
    picture = play.explore_cost(1024, d=64).at()
    assert "more from 33 tokens" in picture.caption
    for words in ("softmax 131 k", "linear 4.16 k", "softmax 267 k"):
        assert words in picture.caption and words in texts(picture.figure())


def test_both_maps_are_of_the_same_q_and_k():
    maps = play.both_maps(16, "exp", T=9)
    q, k, _ = (x[0, :, 0].double().numpy() for x in lv.softmax.example(9, 0, H=1, K=16, V=1))
    for name, score in (
        ("softmax", np.exp(q @ k.T / 4)),
        ("linear", np.exp(q) @ np.exp(k).T),
    ):
        weights = np.tril(score)
        np.testing.assert_allclose(maps[name], weights / weights.sum(1, keepdims=True), atol=1e-5)


@pytest.mark.parametrize(
    "call",
    [
        lambda: play.explore_state("kda", text=TEXT),
        lambda: play.explore_state("lstm", text="W" * 48, chunk=1),
        lambda: play.explore_state("softmax", text="W" * 48, chunk=1),
        lambda: play.explore_state("rnn", text="W" * 30, chunk=1),
        lambda: play.explore_state("h3", text="a", chunk=32, gate=3.5),
        lambda: play.explore_forms(),
        lambda: play.explore_forms("linear_attention", T=32, t=31),
        lambda: play.explore_forms("rwkv4", T=2, t=1, chunk=1),
        lambda: play.explore_cost(),
        lambda: play.explore_cost(2, d=256, features="taylor"),
        lambda: play.explore_cost(2**20, d=16, features="relu"),
    ],
)
def test_all_words_are_legible(call):
    with style("light"):
        assert crowded(call().figure()) == []


@pytest.mark.parametrize("name", play.three_formed())
def test_forms_say_when_the_state_is_read(name):
    when = "before" if name in ("rwkv4", "rwkv5", "rwkv6") else "after"
    picture = play.draw_forms(name, t=3, chunk=2, seed=0, T=6)
    assert f"read {when} each token is written" in picture.caption
