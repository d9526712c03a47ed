"""lv.trace: what is kept of each kind of layer, how much of it, and that every picture takes it."""

import functools
import inspect

import matplotlib

matplotlib.use("Agg")
import numpy as np
import pytest
import torch

import linviz as lv
from linviz import layers, models, tracing, viz
from linviz.layers import Layer

B, T = 2, 13
KINDS = pytest.mark.parametrize("kind", layers.KINDS)
OPTIONS = {"mamba2": {"P": 16, "N": 6}, "mamba": {"N": 4}, "s4": {"N": 6}, "h3": {"N": 6}}
OPTIONS |= {name: {"heads": 4} for name in ("rwkv5", "rwkv6", "rwkv7")}


def model(kind, **options):
    """Two blocks in float64, and ids."""
    torch.manual_seed(0)
    lm = models.small(kind, width=32, options=OPTIONS.get(str(kind)), **options).double()
    return lm, torch.randint(0, 256, (B, T))


@functools.cache
def traced(kind, **options):
    lm, ids = model(kind)
    return lv.trace(lm, ids, progress=False, **options)


def close(a, b):
    assert a.shape == b.shape
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def sums(tr, name):
    """A part of a state so that it is unique: RWKV-4's sums with their exponent put back."""
    return tr[name] * tr["max"].exp() if name in ("num", "den") else tr[name]


# ----------------------------------------------------------------------------- what is kept


@KINDS
def test_states_at_steps_are_those_of_the_whole_trace(kind):
    tr = traced(kind, at=4)
    for layer in tr:
        whole = tr.trace(layer.index)
        assert layer.at == [3, 6, 9, 12]
        for name in layer.states.keys() - {"max"}:
            seen = sums(whole, name)
            seen = seen if layer.mechanism.cache else seen[:, layer.at].transpose(0, 1)
            close(sums(layer.states, name), seen)


@KINDS
def test_the_output_is_computed_again(kind, monkeypatch):
    mix, ran = Layer.mix, []

    def mixed(layer, *inputs, **options):
        o, S = mix(layer, *inputs, **options)
        ran.append(o)
        return o, S

    monkeypatch.setattr(Layer, "mix", mixed)
    lm, ids = model(kind)
    tr = lv.trace(lm, ids, progress=False)
    shared = {}
    for layer, block, o in zip(tr, lm.blocks, list(ran), strict=True):
        close(layer.trace()[layer.mechanism.output.name], o)
        noted = layer.activations
        close(noted["x"] + noted["mixed"] + noted["mlp"], block(noted["x"], None, shared)[0])
    close(tr.output, lm(ids)[0])


@KINDS
def test_a_head_a_sequence_some_steps(kind):
    layer = traced(kind, at=(4, -1))[1]
    assert layer.at == [4, T - 1]
    whole, m = layer.trace(), layer.mechanism
    if m.cache or m.linear:
        thin = layer.trace(head=-1, batch=1)
        letters = {name: whole.letters(name).split() for name in thin}
        assert thin.sizes["B"] == thin.sizes[layer.letter] == 1
        for name, axes in letters.items():
            if name != "max":
                x, wanted = sums(thin, name), sums(whole, name)
                for axis, letter in enumerate(axes):
                    if letter in (layer.letter.lower(), "b", "g"):
                        at = 1 if letter == "b" else wanted.shape[axis] - 1
                        wanted = wanted.narrow(axis, at, 1)
                close(x, wanted)
    for begin, end in ((0, 3), (5, 9), (7, T)):  # before, at and after a state that is kept
        piece = layer.trace(steps=slice(begin, end))
        close(piece[m.output.name], whole[m.output.name][:, begin:end])


@KINDS
def test_attention_times_values_is_the_output(kind):
    layer = traced(kind)[1]
    m, v = layer.mechanism, layer.inputs[layer.mechanism.value]
    if not m.linear:
        with pytest.raises(ValueError, match="not linear"):
            layer.attention_map()
        return
    A, o = layer.attention_map(), layer.trace()[m.output.name]
    equation = "bhts,bsh...->bth..." if layer.letter == "H" else "bdts,bsd->btd"
    close(torch.einsum(equation, A, v), o)
    close(layer.attention_map(head=-1, batch=1, rows=[T - 1]), A[1:, -1:, -1:])


@KINDS
def test_from_a_state(kind):
    lm, ids = model(kind)
    with torch.no_grad():
        _, state = lm(ids[:, :5])
    whole, late = (
        lv.trace(lm, x, state=S, progress=False, at=3)[1]
        for x, S in ((ids, None), (ids[:, 5:], state))
    )
    name = whole.mechanism.output.name
    close(late.trace()[name], whole.trace()[name][:, 5:])
    close(late.trace(batch=1, steps=slice(4, 8))[name], whole.trace(batch=1)[name][:, 9:])
    for part in late.states.keys() - {"max"}:
        a, b = (sums(x.states, part) for x in (late, whole))
        close(a if late.mechanism.cache else a[-1], b if late.mechanism.cache else b[-1])
    if late.mechanism.linear and len(late.mechanism.state) > 1:
        with pytest.raises(ValueError, match="began from a state"):
            late.attention_map()


def test_the_model_stays_as_it_was():
    lm, ids = model("gla")
    lm.train()
    lm.blocks[0].eval()
    before = [module.training for module in lm.modules()]
    tr = lv.trace(lm, ids, progress=False)
    assert [module.training for module in lm.modules()] == before
    kept = [*tr[0].inputs.values(), *tr[0].activations.values(), *tr[0].states.values(), tr.output]
    assert not any(x.requires_grad for x in kept)
    kept += traced("mamba")[0].inputs.values()  # views of one projection
    assert all(x.untyped_storage().nbytes() == x.nbytes for x in kept), "a view keeps more"
    assert tr.nbytes == sum(layer.nbytes for layer in tr) + sum(
        x.nbytes for x in (tr.activations["x"], tr.output)
    )
    assert (
        repr(tr) == f"ModelTrace(2 gla; B=2 T=13; states at 13 steps; {tr.nbytes / 1024:.0f} KiB)"
    )
    assert repr(tr[1]) == (
        "LayerTrace(1, blocks.1.mixer: gla B=2 T=13 H=4 K=4 V=8, 13 states, gate, normed, x, "
        "mixed, mlp)"
    )


def test_layers_alone_and_in_other_modules():
    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = layers.GLA(16), layers.Softmax(16)

        def forward(self, x):
            return self.second(self.first(x)[0])[0]

    x = torch.randn(1, 5, 16)
    tr = lv.trace(Two(), x, progress=False)
    assert [layer.name for layer in tr] == ["first", "second"] and tr.tokens is None
    assert list(tr[0].activations) == ["gate", "normed"] and tr.output.shape == x.shape
    layer = layers.RetNet(16)
    alone = lv.trace(layer, x, progress=False)
    assert len(alone) == 1 and alone[0].name == "" and "gate" in alone[0].activations
    close(alone.output, layer(x)[0].detach())
    with pytest.raises(ValueError, match="layers of linviz"):
        lv.trace(torch.nn.Linear(16, 16), x)


def test_a_layer_must_run_once():
    class Twice(torch.nn.Module):
        def __init__(self, times):
            super().__init__()
            self.layer, self.times = layers.GLA(16), times

        def forward(self, x):
            for _ in range(self.times):
                x = self.layer(x)[0]
            return x

    with pytest.raises(ValueError, match="ran twice"):
        lv.trace(Twice(2), torch.randn(1, 5, 16))
    with pytest.raises(ValueError, match="did not run its layers 0"):
        lv.trace(Twice(0), torch.randn(1, 5, 16))


def test_tokens_are_labelled():
    lm, _ = model("gla")
    tr = lv.trace(lm, "a b\nü")
    assert tr.tokens == [["a", " ", "b", "↵", "<195>", "<188>"]]
    lm, ids = model("gla", tokenizer="")
    assert lv.trace(lm, ids, progress=False).tokens == [
        [str(i) for i in row] for row in ids.tolist()
    ]
    with pytest.raises(ValueError, match="encode"):
        lv.trace(layers.GLA(16), "text")


# ----------------------------------------------------------------------------- how much is kept


def test_keep_takes_names_and_patterns():
    everything = ["gate", "normed", "x", "mixed", "mlp"]
    for keep, first, second, rest in (
        (None, everything, everything, ["x", "output"]),
        ((), [], [], []),
        ("gate", ["gate"], ["gate"], []),
        ("blocks.1.*", [], everything, []),
        (("mixer.n*", "output"), ["normed"], ["normed"], ["output"]),
        ("x", ["x"], ["x"], ["x"]),
        ("blocks.?.x", ["x"], ["x"], []),
    ):
        tr = traced("gla", keep=keep)
        assert [list(layer.activations) for layer in tr] == [first, second], keep
        found = [*tr.activations, *["output"] * (tr.output is not None)]
        assert found == rest and list(tr[0].inputs) == ["q", "k", "v", "g"]
    with pytest.raises(ValueError, match=r"keep: wanted some of blocks\.0\.mixer\.gate.*got 'gat'"):
        traced("gla", keep=("x", "gat"))


def test_layers_keep_their_numbers():
    tr = traced("gla", layers=-1)
    assert len(tr) == 1 and tr[1] is tr[-1] is next(iter(tr)) and tr[1].name == "blocks.1.mixer"
    with pytest.raises(ValueError, match=r"layer: wanted one that was traced \(1\), got 0"):
        tr[0]
    with pytest.raises(ValueError, match="layer: wanted -2 to 1, got 2"):
        tr[2]
    assert [layer.index for layer in traced("gla", layers=(1, 0))] == [0, 1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"at": (T,)}, "at: wanted -13 to 12, got 13"),
        ({"at": -1}, "at: wanted a number"),
        ({"layers": 2}, "layers: wanted -2 to 1, got 2"),
        ({"layers": ()}, "layers: wanted one or more"),
    ],
)
def test_bad_arguments(options, said):
    with pytest.raises(ValueError, match=said):
        traced("gla", **options)
    layer = traced("gla")[0]
    for which, said in (
        ({"head": 4}, "head: wanted -4 to 3, got 4"),
        ({"batch": 2}, "batch: wanted -2 to 1, got 2"),
        ({"steps": slice(3, 3)}, "steps: wanted a slice of 13 steps"),
    ):
        with pytest.raises(ValueError, match=said):
            layer.trace(**which)
    with pytest.raises(ValueError, match="head: wanted None, for of lstm none can be alone"):
        traced("lstm")[0].trace(head=0)


def test_too_much_is_refused_before_it_is_taken(monkeypatch):
    lm, ids = model("gla")
    small, large = lv.trace(lm, ids, at=1, progress=False), lv.trace(lm, ids, progress=False)
    softmax = traced("softmax", keep=())[0]
    monkeypatch.setattr(tracing, "TRACE_BYTES", small.nbytes)
    assert lv.trace(lm, ids, at=1, progress=False).nbytes == small.nbytes < large.nbytes
    ran = []
    monkeypatch.setattr(tracing, "TRACE_BYTES", large[0].nbytes + 1)
    lm.blocks[1].mlp.register_forward_hook(lambda *_: ran.append(1))
    with pytest.raises(ValueError, match=r"layer 1 this takes .* keep=, .* layers=, .* at="):
        lv.trace(lm, ids, progress=False)
    assert not ran
    monkeypatch.setattr(tracing, "TRACE_BYTES", 13 * 4 * 4 * 8 * 8)  # one sequence's states
    with pytest.raises(ValueError, match=r"take less by head=, batch= or steps="):
        large[0].trace()
    large[0].trace(batch=0)
    monkeypatch.setattr(tracing, "TRACE_BYTES", 13 * 13 * 2 * 8 - 1)  # scores and weights
    with pytest.raises(ValueError, match="all states of layer 0"):
        softmax.trace(head=0, batch=0)
    softmax.trace(head=0, batch=0, steps=slice(0, 12))


def test_options_that_depend_on_the_head_stay_with_it():
    layer = traced("retnet")[0]
    whole = layer.trace()
    for head in range(4):
        close(layer.trace(head=head)["g"], whole["g"][:, :, head : head + 1])
    assert whole["g"][0, 0, 0] != whole["g"][0, 0, 3]


# ----------------------------------------------------------------------------- pictures take it

FUNCTIONS = {name: getattr(viz, name) for name in viz.__all__}
FUNCTIONS = {name: f for name, f in FUNCTIONS.items() if inspect.isfunction(f)}
TAKERS = [n for n, f in FUNCTIONS.items() if "layer" in inspect.signature(f).parameters]
MORE = {"state_collapse": {"length": 6}, "collapse_ratio": {"length": 6}}
MORE |= {"read": {"name": "S", "letters": "t k v"}, "selection": {"keep": np.tri(T)}}


def called(name, x, **options):
    """A function of viz, with what it needs; or why it refuses."""
    function = getattr(viz, name)
    takes = inspect.signature(function).parameters
    two = ("a", "b") if name in ("compare", "state_difference") else (next(iter(takes)),)
    two = ("attention",) if name == "selection" else two
    if "head" not in takes and "which" not in takes:
        options.pop("head", None)
    if "batch" not in takes and "which" not in takes:
        options.pop("batch", None)
    try:
        return function(**dict.fromkeys(two, x), **MORE.get(name, {}), **options)
    except ValueError as error:
        return str(error)


def same(a, b):
    """Two results of a function are the same; of a model's layer the caption says which."""
    if hasattr(a, "caption"):
        assert (a.caption, a.alt) == (f"Layer 1. {b.caption}", f"Layer 1. {b.alt}")
    elif isinstance(a, tuple):
        for x, y in zip(a, b, strict=True):
            same(x, y)
    elif isinstance(a, np.ndarray):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)
    else:
        assert a == b


def test_all_that_take_a_trace_take_layer():
    for name, function in FUNCTIONS.items():
        meant = f"{function.__doc__} {list(inspect.signature(function).parameters.values())}"
        assert ("Trace" in meant) == (name in TAKERS), name
        assert ("    layer: where" in function.__doc__) == (name in TAKERS), name
    assert len(TAKERS) > 35


@pytest.mark.parametrize("name", TAKERS)
def test_a_layer_is_drawn_as_its_trace(name):
    """Without what a layer noted, all are the same as of the Trace; head and sequence too."""
    for kind, head in (("gla", 2), ("mamba", 0)):
        tr = traced(kind, keep=())
        which = {"head": head, "batch": 1}
        if name == "half_lives" or "batch" not in inspect.signature(getattr(viz, name)).parameters:
            which["batch"] = 0
        got, wanted = called(name, tr, layer=1, **which), called(name, tr.trace(1), **which)
        if "tokens" in inspect.signature(getattr(viz, name)).parameters:
            assert not hasattr(got, "tokens") or got.tokens == tr.tokens[which["batch"]]
            wanted = called(name, tr.trace(1), tokens=tr.tokens[which["batch"]], **which)
        same(got, wanted)


@KINDS
def test_every_kind_is_drawn(kind):
    tr = traced(kind, keep=())
    whole, head = tr.trace(1), 2 if tr[1].letter == "H" else 0
    for name in ("state", "linked", "eigenvalues", "attention", "gate_histogram", "half_lives"):
        tokens = {} if name in ("gate_histogram", "half_lives") else {"tokens": tr.tokens[1]}
        which = {"batch": 1, "head": head} | tokens
        picture, wanted = called(name, tr, layer=1, **which), called(name, whole, **which)
        same(picture, wanted)
        refused = (
            "not linear" in str(wanted) or "a plain RNN" in str(wanted) or "part:" in str(wanted)
        )
        assert isinstance(picture, str) == refused


def test_the_head_keeps_its_number():
    tr = traced("gla")
    assert "Head 3 of 4." in viz.linked(tr, layer=1, head=3).caption
    assert "head 3 over 13 steps" in viz.state(tr, layer=1, head=3).alt
    with pytest.raises(ValueError, match="head: wanted -4 to 3, got 4"):
        viz.state(tr, layer=1, head=4)


def test_layers_side_by_side():
    tr = traced("gla")
    x = {f"layer {i}": tr[i].activations["x"][0] for i in range(2)}
    for name in ("activation_map", "massive_activations", "channel_magnitude", "distributions"):
        assert called(name, tr).alt == called(name, x).alt
    traces = {f"layer {i}": tr.trace(i) for i in range(2)}
    for name in ("sparsity_measures", "top_mass", "state_measures"):
        assert called(name, tr, head=1).alt == called(name, traces, head=1).alt
    both = viz.head_summary(tr, batch=1)
    assert both.alt == viz.head_summary(traces, batch=1, row_name="layer").alt
    assert both.figure().axes[0].get_ylabel() == "layer (2)"
    reverse = viz.attention(tr, layer=[1, 0])
    assert [panel.title for panel in reverse.panels][:2] == ["layer 1", "layer 0"]
    mixed, ids = model(["gla", "softmax"])
    mixed = lv.trace(mixed, ids, progress=False)
    assert "0 gla" in viz.sparsity_measures(mixed).alt
    models_ = {"ours": tr, "mixed": mixed}
    assert "ours" in viz.state_measures(models_, layer=0).alt


def test_parts_that_a_layer_noted():
    tr = traced("gla")
    gate = tr[1].activations["gate"][1]
    assert viz.activation_map(tr, layer=1, part="gate", batch=1).panels[0].title == "gate"
    np.testing.assert_allclose(
        viz.state_norm(tr, layer=1, part="gate", batch=1), gate.norm(dim=1).numpy()
    )
    apart = viz.compare(tr, tr, layer=(0, 1), part="mlp")
    assert apart.caption.startswith("Layers 0 and 1. Largest difference")
    assert apart.caption.endswith(viz.compare(*(x.activations["mlp"][0] for x in tr)).caption)
    q = viz.activation_map(tr, layer=0, part="q", head=1)
    assert q.alt.endswith(viz.activation_map(tr.trace(0), part="q", head=1).alt)
    open_ = models.small("softmax", width=32, options={"gate": True})
    tr = lv.trace(open_, "a few words", progress=False)
    assert viz.gate_histogram(tr, layer=0, part="gate").alt.startswith("Layer 0. Histogram of gate")
    with pytest.raises(ValueError, match=r"part: wanted one of q, k, .*, gate, x, mixed, mlp, got"):
        viz.activation_map(tr, layer=0, part="nothing")


def test_which_layer_must_be_said():
    tr = traced("gla")
    with pytest.raises(ValueError, match="layer: wanted one of 0 gla, 1 gla, got None"):
        viz.state(tr)
    with pytest.raises(ValueError, match=r"layer: wanted one layer, got \[0, 1\]"):
        viz.state(tr, layer=[0, 1])
    with pytest.raises(ValueError, match="layer: wanted None without a model's trace"):
        viz.state(tr.trace(0), layer=0)
    for name, x in (
        ("compare", (tr, tr.trace(0))),
        ("state_measures", [{"a": tr, "b": tr.trace(0)}]),
    ):
        with pytest.raises(ValueError, match="batch: wanted 0 beside a mechanism's trace, got 1"):
            getattr(viz, name)(*x, layer=0, batch=1)
    assert viz.state(traced("gla", layers=1)).caption.startswith("Layer 1. ")
