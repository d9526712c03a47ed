"""The trained models that come with the library, and what their records say."""

import math

import pytest
import torch

import linviz as lv
from linviz import checkpoints
from linviz.checkpoints import make
from linviz.tasks import MQAR, Text, backoff_bits, evaluate
from linviz.tasks.training import Record

BYTES = [name for name in make.NAMES if name.startswith("byte-")]
RECALL = [name for name in make.NAMES if name.startswith("mqar-")]


def test_all_are_there_and_small():
    assert checkpoints.names() == sorted(make.NAMES)
    sizes = [checkpoints.path(name).stat().st_size for name in checkpoints.names()]
    assert max(sizes) < 1e6 and sum(sizes) < 8e6
    for kind in make.ONE_HEAD:
        assert {f"mqar-{kind}-{seed}" for seed in (0, 1, 2)} <= set(RECALL)


@pytest.mark.parametrize("name", make.NAMES)
def test_a_record_fits_its_model(name):
    model, record = lv.load(name), checkpoints.record(name)
    assert model.record == record and not model.training
    assert record["parameters"] == model.parameters_count == record["settings"]["parameters"]
    assert record["steps"] == record["evaluations"][-1]["step"] <= record["settings"]["steps"]
    assert len(record["losses"]) == math.ceil(record["steps"] / 10)
    grows = model.config.layers[0] == "softmax"
    held = sum(x.numel() for x in model.first_state().tensors())
    assert record["state"] == (None if grows else held)
    assert f"| {name} | {record['parameters']:,} |" in checkpoints.table()


@pytest.mark.parametrize("name", BYTES)
def test_byte_models_beat_the_trigram(name):
    record = checkpoints.record(name)
    assert record["bits"] < record["trigram_bits"] and record["validation_bits"] < 2.7
    assert record["settings"]["task"]["name"] == "Text"
    assert len(record["settings"]["task"]["sha256"]) == 64


def test_a_byte_model_on_this_machine():
    """The text differs between releases of Python; on the one of the record so do no figures."""
    test = Text(T=256, held_out="test")
    bits = evaluate(lv.load("byte-gla"), test)["bits"]
    record = checkpoints.record("byte-gla")
    if record["settings"]["task"]["sha256"] == test.sha256:
        assert abs(bits - record["bits"]) < 1e-3
    assert bits < backoff_bits(Text.bytes("train"), Text.bytes("test"))


@pytest.mark.parametrize("name", [name for name in RECALL if name.endswith("0")])
def test_recall_is_what_the_record_says(name):
    found = evaluate(lv.load(name), MQAR(pairs=16, T=64), seed=0)["accuracy"]
    assert abs(found - checkpoints.record(name)["accuracy"]) < 2e-3


def test_unknown_names():
    with pytest.raises(ValueError, match=r"wanted one of byte-gated_deltanet, .*got 'byte-glad'"):
        checkpoints.path("byte-glad")


@pytest.mark.parametrize("name", ["byte-gla", "mqar-gla-1"])
def test_making_one(name, tmp_path, monkeypatch, capsys):
    def short(model, task, *, steps, seed, evaluate_every, progress, **recipe):
        assert not progress
        settings = {"seed": seed, "steps": steps, "task": task.describe()}
        return Record(settings, [3.0] * 25, [{"step": 25}], 0.5)

    monkeypatch.setattr(make, "train", short)
    monkeypatch.setattr(make, "FOLDER", tmp_path)
    assert make.main([name, "--no-progress"]) == 0
    model = lv.load(tmp_path / f"{name}.safetensors")
    assert all(torch.equal(p, p.half().float()) for p in model.parameters())
    assert model.record["losses"] == [3.0] * 3 and model.record["seed"] == int(name[-1] == "1")
    reached = evaluate(model, MQAR(pairs=16, T=64), seed=1) if "mqar" in name else None
    if reached:
        assert model.record["accuracy"] == model.record["by_pairs"]["16"] == reached["accuracy"]
    assert name in capsys.readouterr().out
