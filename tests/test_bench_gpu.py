"""The benchmark for a GPU, gone through without one; and how linviz comes to a GPU machine."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import pytest
import torch

import linviz as lv
from linviz import bench, bench_gpu, gpu
from linviz.bench_gpu import CASES, PEERS, SHAPES, Peer, bytes_moved, floor

ROOT = Path(__file__).parents[1]


@pytest.fixture
def dry(tmp_path, capsys, monkeypatch):
    """Run `bench gpu --dry-run`: the exit code, what was printed, the JSON."""
    monkeypatch.setenv("FLA_DISABLE_BACKEND_DISPATCH", "")  # so that it is as before afterwards

    def run(*options):
        path = tmp_path / "results.json"
        code = bench.main(["gpu", "--dry-run", "--output", str(path), *options])
        return code, capsys.readouterr().out, json.loads(path.read_text())

    return run


def test_all_cases(dry):
    code, out, found = dry("--shapes", "S1", "M1", "M2a", "R1", "R4", "D1")
    assert code == 0, out
    assert found["dry_run"] is True
    assert {"date", "device", "torch", "triton", "cuda", "python", "dtype"} <= set(found)
    assert found["copy_bytes_per_second"] > 0 and "configurations" in found
    rows = {bench_gpu.key(row): row for row in found["rows"]}
    shapes = {
        name: next(x for x in case.shapes if x in ("S1", "M1", "M2a", "R1", "R4", "D1"))
        for name, case in CASES.items()
    }
    assert set(rows) == {(x, shapes[x], part) for x in CASES for part in CASES[x].passes}
    for (name, shape, part), row in rows.items():
        case, ours = CASES[name], row["runs"]["linviz"]
        assert "raised" not in ours and ours["eager_ms"] > 0 and row["floor_ms"] > 0
        assert row["sizes"].keys() == SHAPES[shape].keys() and row["sizes"]["T"] <= 20
        gradients = {f"d{x.name}" for x in case.inputs if bench_gpu.checked(x)}
        wanted = {case.output.name} | (gradients if part == "backward" else set())
        assert set(ours["errors"]) == wanted and len(wanted) >= (part == "backward") + 1
        assert max(ours["errors"].values()) < 5e-3
        assert f"{name:22}{shape:8}{part}" in out
    for row in (rows["mamba2", "M2a", "backward"], rows["mamba", "M1", "backward"]):
        assert row["runs"]["linviz"]["errors"].keys() == {"y", "dx", "ddt"}


def test_pieces_are_put_together(dry):
    options = ("--shapes", "S1", "S6", "--no-peers", "--append", "--passes")
    _, _, first = dry("--only", "retnet", *options, "forward")
    assert [row["shape"] for row in first["rows"]] == ["S1", "S6"]
    assert all(list(row["runs"]) == ["linviz"] for row in first["rows"])
    _, _, both = dry("--only", "linear_attention_core", *options, "forward")
    assert [bench_gpu.key(row)[:2] for row in both["rows"]] == [
        (case, shape) for case in ("retnet", "linear_attention_core") for shape in ("S1", "S6")
    ]
    _, _, again = dry("--only", "retnet", "--shapes", "S6", "--append", "--passes", "forward")
    assert len(again["rows"]) == 4  # measured again, not added
    _, _, alone = dry("--only", "retnet", "--shapes", "S6", "--passes", "forward")
    assert len(alone["rows"]) == 1


def test_numbers_of_another_device_are_not_mixed(dry, tmp_path, capsys):
    options = ("--only", "retnet", "--shapes", "S6", "--passes", "forward", "--append")
    *_, found = dry(*options)
    path = tmp_path / "results.json"
    for change in ({"device": "another"}, {"dry_run": None}):
        path.write_text(json.dumps(found | change))
        assert bench_gpu.main(["--dry-run", "--output", str(path), *options]) == 1
        assert "of another device or a dry run" in capsys.readouterr().err
        assert json.loads(path.read_text()) == found | change


def test_peers_are_compared_checked_and_may_raise(dry, monkeypatch):
    def fails(function, *inputs):
        raise RuntimeError("not on this GPU\nat all")

    here = "torch.nn.functional"
    slow = lambda f, q, k, v: lv.retnet.recurrent(q, k, v)
    wrong = lambda f, q, k, v: lv.retnet.chunked(q, k, 2 * v)
    peers = (
        Peer("fla relu", here, slow),
        Peer("torch relu", here, fails),
        Peer("torch gelu", here, wrong),
        Peer("torch no_such_name", here, slow),
        Peer("missing thing", "a_package_that_is_not_there", slow),
        Peer("torch silu", here, slow, prepare=lambda q, k, v: (q, k, v.clone())),
    )
    monkeypatch.setitem(PEERS, "retnet", peers)
    code, out, found = dry("--only", "retnet", "--shapes", "S1")
    assert code == 0  # peers that fail are no failure of ours
    for row in found["rows"]:
        runs = row["runs"]
        assert set(runs) == {"linviz", *(x.name for x in peers)} - {"missing thing"}
        assert runs["torch relu"] == {"raised": "RuntimeError: not on this GPU\nat all"}
        assert runs["torch no_such_name"]["raised"].startswith("AttributeError")
        assert runs["torch gelu"]["errors"]["o"] == pytest.approx(1, rel=0.1)
        assert set(bench_gpu.rivals(runs)) == {"fla relu", "torch silu"}
        assert runs["fla relu"]["errors"].keys() == runs["linviz"]["errors"].keys()
    assert "torch relu: RuntimeError: not on this GPU" in out
    _, out, found = dry("--only", "retnet", "--shapes", "S1", "--no-peers")
    assert all(list(row["runs"]) == ["linviz"] for row in found["rows"])


def test_softmax_is_a_line_and_no_peer(dry):
    *_, found = dry("--only", "linear_attention_core", "--shapes", "S6")
    for row in found["rows"]:
        softmax = row["runs"]["torch scaled_dot_product_attention"]
        assert softmax["errors"] == {} and softmax["eager_ms"] > 0
        assert not bench_gpu.rivals({"torch": softmax})


@pytest.mark.parametrize("fault", ["numbers", "raised"])
def test_our_own_failure_is_told(dry, monkeypatch, fault):
    def ours(q, k, v):
        if fault == "raised":
            raise RuntimeError("out of registers")
        o, S = lv.retnet.chunked(q, k, v)
        return 1.01 * o, S

    monkeypatch.setitem(CASES, "retnet", CASES["retnet"]._replace(ours=ours))
    code, out, _ = dry("--only", "retnet", "--shapes", "S1", "--passes", "forward")
    assert code == 1 and "WRONG: retnet S1 forward" in out
    assert ("linviz: RuntimeError: out of registers" in out) == (fault == "raised")
    assert " !" in out


def test_the_table_shows_ratios_and_the_floor():
    run = lambda eager, graph, error: {
        "errors": {"o": error}, "eager_ms": eager, "graph_ms": graph, "peak_mib": 1.0
    }  # fmt: skip
    row = {"case": "retnet", "shape": "S1", "pass": "forward", "floor_ms": 0.2}
    row["runs"] = {
        "linviz": run(0.5, 0.4, 1e-3),
        "fla a": run(1.0, 1.2, 2e-3),
        "other b": run(0.75, 0.6, 2e-3),
        "other wrong": run(0.01, 0.01, 0.9),
    }
    cells = bench_gpu.line(row).split()
    assert cells == (
        "retnet S1 forward 0.500 0.400 0.200 50% other b 1.50x 1.50x 2.00x 3.00x 1.0e-03".split()
    )


def test_floors_are_those_of_the_byte_model():
    """Milliseconds at 4.3e12 bytes a second, worked out by hand elsewhere."""
    case, forward, backward = CASES["linear_attention_core"], [], []
    for name in ("S1", "S2", "S3", "S4", "S5", "S6"):
        forward.append(floor(case, SHAPES[name]))
        backward.append(floor(case, SHAPES[name], backward=True) - forward[-1])
    assert [round(x, 3) for x in forward] == [0.187, 0.125, 0.031, 0.250, 0.250, 0.008]
    assert [round(x, 3) for x in backward] == [0.328, 0.218, 0.055, 0.437, 0.437, 0.014]
    assert round(floor(CASES["gla"], SHAPES["S1"]), 3) == 0.234
    assert round(floor(CASES["rwkv6"], SHAPES["R1"]), 3) == 0.312
    assert round(floor(CASES["gla_step"], SHAPES["D64"]), 3) == 0.063  # .062 for the states
    sizes = [floor(CASES["mamba2"], SHAPES[x]) for x in ("M2a", "M2a-8k", "M2b")]
    assert [round(x, 3) for x in sizes] == [0.081, 0.325, 0.515]
    tiny = {"B": 1, "T": 1, "H": 1, "K": 2, "V": 3}
    assert bytes_moved(case, tiny, backward=False) == 2 * (2 + 2 + 3 + 3)


def test_the_copy_that_is_the_floor():
    timing = bench_gpu.Timing(torch.device("cpu"))
    assert timing.bandwidth() > 1e6 and timing.graph(lambda: None) is None


def test_the_configurations_that_were_chosen(monkeypatch):
    from linviz.kernels import launch, vector_decay

    config, key = vector_decay.SCORES[0], (vector_decay.gated_scores, 64, 32, True, False)
    monkeypatch.setitem(launch.CHOSEN, (key, torch.bfloat16, torch.device("cpu")), config)
    chosen = bench_gpu.configurations()["gated_scores 64, 32, True, False, bfloat16"]
    assert (chosen["chunk"], chosen["why"]) == (config.chunk, config.why)
    assert json.dumps(chosen)


def test_a_file_is_named_after_the_device():
    assert bench_gpu.file_name("NVIDIA H200") == "nvidia-h200.json"
    assert bench_gpu.file_name("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3.json"


def test_mistakes_on_the_command_line(capsys):
    for argv, said in (
        (["--dry-run"], "--dry-run needs --output"),
        (["--only", "gated"], "invalid choice: 'gated'"),
        (["--shapes", "S9"], "invalid choice: 'S9'"),
    ):
        with pytest.raises(SystemExit):
            bench_gpu.main(argv)
        assert said in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu(capsys):
    assert bench.main(["gpu"]) == 1
    assert gpu.main(["--only", "bench", "--", "--shapes", "S1"]) == 1
    assert capsys.readouterr().err.count("PyTorch sees no GPU here") == 2


# -------------------------------------------------------------------------- the page of the book


def test_the_page_draws_what_was_measured(dry, tmp_path, monkeypatch):
    """With numbers of a dry run in the place of a GPU's: the page itself never shows them."""
    display = pytest.importorskip("IPython.display")
    fails = Peer("fla fails", "a_module", lambda *_: None)
    monkeypatch.setitem(PEERS, "retnet", (fails,))
    monkeypatch.setattr(bench_gpu, "find_spec", lambda name: name == "a_module")
    *_, found = dry("--only", "retnet", "linear_attention_core", "--shapes", "S1", "S6")
    results = tmp_path / "results"
    results.mkdir()
    (results / "cpu.json").write_text((ROOT / "book" / "results" / "cpu.json").read_text())
    (results / "dry.json").write_text(json.dumps(found))
    found.pop("dry_run")
    (results / "gpu.json").write_text(json.dumps(found))
    monkeypatch.setattr("linviz.experiments.RESULTS", (results,))
    shown, names = [], {}
    monkeypatch.setattr(display, "display", shown.append)
    page = (ROOT / "book" / "benchmarks.md").read_text(encoding="utf-8")
    for cell in re.findall(r"```\{code-cell\} python3\n(.*?)```", page, re.DOTALL):
        exec(re.sub(r"\A(---\n.*?\n---\n|:tags:[^\n]*\n)", "", cell, flags=re.DOTALL), names)
    assert set(names["RESULTS"]) == {"cpu", "gpu"} and set(names["GPUS"]) == {"gpu"}
    titles = [x.caption.split()[0] for x in shown]
    assert sorted(titles) == ["linear_attention_core", "retnet"]
    picture = shown[titles.index("retnet")]
    assert "the forward pass, linviz: " in picture.alt and "nothing at S6" in picture.alt
    assert "fla fails raised at S6, both passes: ModuleNotFoundError" in picture.note
    ours = {row["shape"]: row["runs"]["linviz"]["eager_ms"] for row in found["rows"][:2]}
    for theme in ("light", "dark"):
        (floor_line,) = picture.figure(theme).axes[0].collections
        assert len(floor_line.get_segments()) == 2
        drawn = {x.get_label(): list(x.get_ydata()) for x in picture.figure(theme).axes[0].lines}
        assert drawn["linviz"] == [ours["S1"], ours["S6"]]


# ---------------------------------------------------------------------------------- make gpu


def test_linviz_is_found_through_links(tmp_path):
    gpu.fill(tmp_path, ROOT)
    code = (
        "import linviz, linviz.kernels.scalar_decay as kernel, linviz.viz, linviz.__main__ as m;"
        "from linviz.experiments import recorded; assert recorded('recall')['rows'];"
        "print(linviz.__file__, kernel.__file__, m.repository())"
    )
    env = os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-c", code]  # in the clone, whose own linviz/ has no kernels/
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    package, kernel, clone = done.stdout.split()
    assert Path(package) == tmp_path / "linviz" / "__init__.py"
    assert Path(kernel) == tmp_path / "linviz" / "kernels" / "scalar_decay.py"
    assert Path(clone) == ROOT


def test_wheels_are_unpacked_beside_linviz(tmp_path, monkeypatch):
    clone, site = tmp_path / "clone", tmp_path / "site"
    for folder in (clone / "linviz", clone / "kernels", clone / ".whl", site):
        folder.mkdir(parents=True)
    (clone / ".whl" / "some-1-py3-none-any.whl").touch()
    commands = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: commands.append(command))
    gpu.fill(site, clone)
    assert [x[1:4] for x in commands] == [["-m", "pip", "install"]]
    assert {"--no-index", "--no-deps", str(site)} <= set(commands[0])
    assert commands[0][-1].endswith("some-1-py3-none-any.whl")
    assert (site / "linviz" / "kernels").is_symlink()


def test_the_parts_of_a_run(monkeypatch):
    """Each part in turn, also after a failure; what follows -- goes to the benchmark."""
    ran = []

    def run(folder, *command):
        ran.append(command)
        assert "linviz" in {x.name for x in Path(os.environ["PYTHONPATH"]).iterdir()}
        return "test_gpu.py" in command[-1]

    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONSAFEPATH", "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "run", run)
    monkeypatch.setattr(gpu, "notebooks", lambda folder: ran.append("notebooks"))
    assert gpu.main(["--", "--shapes", "S1"]) == 1
    assert [x if x == "notebooks" else x[-1] for x in ran] == [
        "tests/test_gpu.py", "tests/test_contract.py", "notebooks", "S1"
    ]  # fmt: skip
    assert ran[-1] == ("linviz", "bench", "gpu", "--shapes", "S1")
    ran.clear()
    monkeypatch.setenv("PYTHONPATH", "")
    assert gpu.main(["--only", "bench", "notebooks"]) == 0
    assert ran == [("linviz", "bench", "gpu"), "notebooks"]
