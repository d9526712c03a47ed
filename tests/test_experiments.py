"""Experiments: their files are whole, their measures are right, and they can be gone on with."""

import json
from pathlib import Path

import pytest
import torch

from linviz import checkpoints, experiments, models
from linviz.experiments import (
    EXPERIMENTS,
    SEEDS,
    filled,
    numbers_held,
    recorded,
    records,
    run,
    token_time,
)
from linviz.layers import State
from linviz.tasks import Text

FOLDER = Path(__file__).parents[1] / "book" / "results" / "experiments"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_each_case_is_in_its_file(name):
    file = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    assert file["experiment"] == name and {"device", "date", "torch", "threads"} <= set(file)
    for key, _ in EXPERIMENTS[name](SEEDS):
        rows = [row for row in file["rows"] if key.items() <= row.items()]
        assert len(rows) == 1, key


def test_results_that_come_with_the_library(monkeypatch, tmp_path):
    file = json.loads((FOLDER / "hybrid.json").read_text(encoding="utf-8"))
    assert recorded("hybrid") == file and recorded("cpu")["milliseconds"]
    installed = tmp_path / "results" / "experiments"
    installed.mkdir(parents=True)
    (installed / "hybrid.json").write_text('{"rows": []}')
    (installed / "gpu.json").write_text('{"dry_run": true}')
    monkeypatch.setattr("linviz.experiments.RESULTS", (tmp_path / "no", tmp_path / "results"))
    assert recorded("hybrid") == {"rows": []} and [*records()] == ["hybrid"]
    with pytest.raises(ValueError, match="name must be one of hybrid, got 'recal'"):
        recorded("recal")


def test_recall_of_shipped_models_is_that_of_their_records():
    file = json.loads((FOLDER / "recall.json").read_text(encoding="utf-8"))
    rows = [row for row in file["rows"] if row["K"] == 64]
    assert len(rows) >= 18
    for row in rows:
        record = checkpoints.record(f"mqar-{row['mechanism']}-{row['seed']}")
        assert row["accuracy"] == round(record["accuracy"], 4) and row["steps"] == record["steps"]


def test_numbers_held_leaves_the_short_convolutions_out():
    state = State({"0": State(mixer=State(S=torch.ones(1, 3, 4), q_conv=torch.ones(1, 3, 9)))})
    assert numbers_held(state) == 12


@pytest.mark.parametrize("kind", ["softmax", "gla"])
def test_a_filled_state_is_as_large_as_one_that_was_read(kind):
    model = models.small(kind, width=32)
    _, state = model(torch.zeros(1, 200, dtype=torch.long))
    assert filled(model, 200).nbytes == state.nbytes
    assert token_time(model, state, turns=3) > 0


def test_bits_by_position_start_and_end_where_they_should(monkeypatch):
    monkeypatch.setattr(experiments, "WINDOW", 128)
    monkeypatch.setattr(experiments, "BINS", (0, 1, 128))
    row = experiments.bits_by_position("byte-gla")
    model = models.load("byte-gla")
    text = torch.cat([Text.bytes("validation"), Text.bytes("test")]).long()
    starts = range(0, len(text) - 128, 128)
    with torch.no_grad():
        logits = model(torch.stack([text[i : i + 1] for i in starts]))[0][:, 0]
    bits = -logits.log_softmax(-1)[range(len(starts)), [text[i + 1] for i in starts]] / 0.693147
    assert row["bits"][0] == pytest.approx(bits.mean().item(), abs=1e-3)
    assert row["bits"][1] < row["bits"][0]


def test_a_stopped_run_goes_on(tmp_path, monkeypatch):
    done = []

    def three(seeds):
        for n in range(3):
            yield {"n": n}, lambda n=n: done.append(n) or {"square": n * n}

    monkeypatch.setitem(EXPERIMENTS, "recall", three)
    file = tmp_path / "a.json"
    rows = run("recall", file)
    assert [row["square"] for row in rows] == [0, 1, 4] and done == [0, 1, 2]
    saved = json.loads(file.read_text())
    saved["rows"].pop(1)
    file.write_text(json.dumps(saved))
    again = run("recall", file)
    assert done == [0, 1, 2, 1] and sorted(row["n"] for row in again) == [0, 1, 2]
    assert sorted(row["n"] for row in json.loads(file.read_text())["rows"]) == [0, 1, 2]


def test_the_command(tmp_path, monkeypatch):
    monkeypatch.setitem(EXPERIMENTS, "hybrid", lambda seeds: iter([({"seeds": list(seeds)}, dict)]))
    file = tmp_path / "b.json"
    arguments = ["hybrid", "--seeds", "4", "5", "--output", str(file)]
    assert experiments.main(arguments) == 0
    assert json.loads(file.read_text())["rows"] == [{"seeds": [4, 5]}]
