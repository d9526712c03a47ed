"""The X-ray: every kernel compiles for every target it is meant for, and nothing spills."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from linviz.kernels import launch, xray
from linviz.kernels.launch import Config

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "kernels").glob("*.py"))
BANNED = {  # what Triton drops, and what it has compiled wrong on Hopper
    r"tl\.make_block_ptr": "masked pointers, or a descriptor",
    r"tl\.advance": "masked pointers, or a descriptor",
    r"tl\.dot\(\s*tl\.trans\(b_(?:S|o|A)\b": "the product the other way round",
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory, worker_id):
    """All there is to compile; once for all workers."""
    shared = tmp_path_factory.getbasetemp()
    path = (shared if worker_id == "master" else shared.parent) / "xray.json"
    with FileLock(f"{path}.lock"):
        if not path.exists():
            found = xray.xray()
            path.write_text(json.dumps([dataclasses.asdict(row) for row in found]))
    return [xray.Row(**row) for row in json.loads(path.read_text())]


# ---------------------------------------------------------------------------------- what compiles


def test_everything_compiles_and_nothing_spills(rows):
    assert xray.faults(rows) == []
    assert all(0 < row.registers <= 255 and row.programs for row in rows)


def test_every_role_and_configuration_of_every_kernel_is_there(rows):
    from linviz.kernels import (
        decode,
        delta_rule,
        diagonal_scan,
        rwkv7,
        scalar_decay,
        vector_decay,
        wkv4,
    )

    sweeps = {
        "scalar_decay.sweep": (scalar_decay.CONFIGS, {"forward", "dq", "dk", "dv"}),
        "scalar_decay.ends": ((scalar_decay.ENDS,), {"forward", "backward"}),
        "vector_decay.gated_scores": (vector_decay.SCORES, {"forward", "dv"}),
        "vector_decay.gated_values": (vector_decay.VALUES, {"dq", "dk"}),
        "vector_decay.ends": ((vector_decay.ENDS,), {"forward", "backward"}),
        "delta_rule.grams": (delta_rule.GRAMS, {"any"}),
        "delta_rule.sweep": (delta_rule.SWEEPS, {"any", "states"}),
        "delta_rule.back": (delta_rule.SWEEPS, {"any"}),
        "delta_rule.reads": (delta_rule.VALUES, {"any"}),
        "delta_rule.writes": (delta_rule.VALUES, {"any"}),
        "diagonal_scan.scan": (diagonal_scan.CONFIGS, {"any"}),
        "diagonal_scan.scan_back": (diagonal_scan.CONFIGS, {"any"}),
        "diagonal_scan.leave": (diagonal_scan.CONFIGS, {"forward", "backward"}),
        "diagonal_scan.connect": (diagonal_scan.CONFIGS, {"any"}),
        "rank_one.system": (rwkv7.CHUNKS, {"any", "back"}),
        "rank_one.sweep": (rwkv7.SWEEPS, {"any", "states"}),
        "rank_one.back": (rwkv7.SWEEPS, {"any"}),
        "rank_one.system_back": (rwkv7.CHUNKS, {"back"}),
        "rank_one.keys_back": (rwkv7.CHUNKS, {"any"}),
        "wkv4.sweep": (wkv4.CONFIGS, {"any", "states"}),
        "wkv4.back": (wkv4.CONFIGS, {"any", "states"}),
        "wkv4.connect": (wkv4.CONFIGS[:1], {"forward", "backward"}),
        "decode.matrix_step": (decode.MATRIX, {"any"}),
        "decode.diagonal_step": (decode.DIAGONAL, {"any"}),
        "decode.average_step": (decode.AVERAGE, {"any"}),
    }
    each = {
        "scalar_decay": {"none", "fixed", "data"},
        "vector_decay": {"plain", "bonus"},
        "delta_rule": {"none", "scalar", "vector"},
        "diagonal_scan": {"chunked", "fixed", "fused"},
        "diagonal_scan.connect": {"any", "fixed"},  # the same for chunked and fused
        "rank_one": {"plain"},
        "wkv4": {"plain"},
        "decode.matrix_step": {"scalar_decay", "vector_decay", "delta_rule", "rank_one"},
        "decode.diagonal_step": {"diagonal_scan"},
        "decode.average_step": {"rwkv4"},
    }
    vectors = {  # with a gate a channel, other configurations
        "delta_rule.sweep": delta_rule.GATED_SWEEPS,
        "delta_rule.back": delta_rule.GATED_SWEEPS,
        "delta_rule.reads": delta_rule.GATED_VALUES,
        "delta_rule.writes": delta_rule.GATED_VALUES,
    }
    assert {row.kernel for row in rows} == {*sweeps, "scalar_decay.join", "vector_decay.join"}
    for kernel, (configs, roles) in sweeps.items():
        variants = each.get(kernel) or each[kernel.split(".")[0]]
        tables = dict.fromkeys(variants, configs)
        if kernel in vectors:
            tables["vector"] = vectors[kernel]
        wanted = {
            (n, target, role, variant)
            for variant, table in tables.items()
            for n, config in enumerate(table)
            for target in config.targets
            for role in roles
        }
        found = [r for r in rows if r.kernel == kernel]
        assert {(r.config, r.target, r.role, r.variant) for r in found} == wanted, kernel
    places = [(r.kernel, r.role, r.variant, r.kind, r.target, r.config) for r in rows]
    assert len({*places}) == len(places)


@pytest.mark.parametrize("channels", [64, 128])
@pytest.mark.parametrize("kernel", ["scalar_decay.sweep", "vector_decay.gated_scores"])
def test_hopper_multiplies_with_groups_of_warps(rows, kernel, channels):
    found = [
        r
        for r in rows
        if (r.kernel, r.target, r.kind) == (kernel, 90, "bf16")
        and r.settings.endswith(f"K{channels}")
    ]
    assert found and all(row.wgmma for row in found)
    older = [row for row in rows if row.kernel == kernel and row.target == 80]
    assert older and not any(row.wgmma for row in older) and all(row.mma for row in older)


# ------------------------------------------------------------------------------- configurations


def configurations():
    """Name -> configurations, of each list in the kernels' files."""
    from linviz.kernels import scalar_decay, vector_decay

    return {
        f"{module.__name__}.{name}": x
        for module in (scalar_decay, vector_decay)
        for name, x in vars(module).items()
        if isinstance(x, tuple) and x and all(isinstance(each, Config) for each in x)
    }


def test_configurations_are_few_and_have_reasons():
    found = configurations()
    assert len(found) == 3
    for name, configs in found.items():
        assert len(configs) <= 8 and len({*configs}) == len(configs), name
        for config in configs:
            assert len(config.why.split()) >= 3, f"{name}: {config}"
            assert config.targets and {*config.targets} <= {*xray.MACHINES}, f"{name}: {config}"
        for target in xray.MACHINES:  # one for each width and type, wherever it runs
            for bits, channels in ((16, 64), (16, 128), (16, 256), (32, 64)):
                fits = [c for c in configs if c.bits == bits and c.most >= channels]
                assert any(target in c.targets for c in fits), (name, target, bits, channels)


# --------------------------------------------------------------------------------------- sources


def banned(source):
    """What a kernel's source must not say."""
    return [
        f"{word}: take {instead}" for word, instead in BANNED.items() if re.search(word, source)
    ]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_sources_are_plain(path):
    source = path.read_text(encoding="utf-8")
    assert banned(source) == []
    assert max(map(len, source.splitlines())) <= 100


def test_banned_words_are_found():
    assert len(banned("tl.advance(p, 1)")) == len(banned("tl.dot(tl.trans(b_S), b_k)")) == 1
    assert not banned("tl.dot(tl.trans(b_v), b_k)")


# ------------------------------------------------------------------------------------- measures


@pytest.mark.parametrize(
    "registers, shared, warps, target, programs",
    [
        (128, 0, 4, 90, 4),  # 128 x 32 = 4096 a warp: 16 warps
        (255, 0, 8, 90, 1),  # 8160 rounds up to 8192: 8 warps
        (129, 0, 4, 90, 3),  # 4128 rounds up to 4352: 15 warps
        (32, 0, 4, 80, 16),  # 64 warps
        (16, 0, 1, 80, 32),  # programs
        (32, 80 * 1024, 4, 80, 2),  # 164 / 81
        (32, 81 * 1024, 4, 80, 2),  # 164 / 82: exactly
        (32, 82 * 1024, 4, 80, 1),
        (32, 82 * 1024, 4, 90, 2),  # 228 / 83
        (32, 230 * 1024, 4, 100, 0),  # more than there is
    ],
)
def test_programs_on_a_multiprocessor(registers, shared, warps, target, programs):
    assert xray.resident(registers, shared, warps, target) == programs


def test_tensor_memory_limits_too():
    assert xray.resident(32, 0, 4, 100, columns=256) == 2


def test_the_bound_is_that_of_the_slower_side():
    assert xray.bound(0, 4.3e9, 90) == (pytest.approx(1.0), "bytes")
    assert xray.bound(780e9, 4.2e9, 90) == (pytest.approx(1.0), "flops")


def test_operations_and_bytes_of_a_sweep(rows):
    """scalar_decay at K = V = 128: q, k, v in, o out, a gate; four products of chunk x tile."""
    from linviz.kernels import scalar_decay

    sweeps = [r for r in rows if r.kernel == "scalar_decay.sweep" and r.role == "forward"]
    sweeps = [r for r in sweeps if scalar_decay.CONFIGS[r.config].most == 128]
    sweeps = [r for r in sweeps if r.variant == "data"]
    assert sweeps
    for row in sweeps:
        C, V = scalar_decay.CONFIGS[row.config].chunk, scalar_decay.CONFIGS[row.config].tile
        chunk = 2 * C * C * 128 + 2 * V * 128 * C + 2 * V * C * C + 2 * V * C * 128
        assert row.flops == 128 // V * chunk / C
        assert 0 <= row.bytes - (4 * 128 * 2 + 4) < 8  # and the states at two ends
        if V == 64:  # 192 programs: one segment
            moved = (4 * 128 * 2 + 4) * 8192 * 96 + 2 * 96 * 128 * 128 * 4
            assert row.traffic["S1"] == moved
            machine = xray.MACHINES[row.target]
            times = (row.flops * 8192 * 96 / machine.peak, moved / machine.bandwidth)
            assert row.bounds["S1"].ms == 1e3 * max(times)


def test_a_step_reads_and_writes_its_state(rows):
    """64 sequences of 32 heads at K = V = 128 in float32, beside which a token is little."""
    steps = [r for r in rows if r.kernel == "decode.matrix_step" and "D1" in r.traffic]
    assert {(r.variant, r.target) for r in steps} == {
        (variant, target)
        for variant in ("scalar_decay", "vector_decay", "delta_rule", "rank_one")
        for target in (80, 90, 100)
    }
    for row in steps:
        tokens = row.traffic["D1"] / (64 * 32) - 2 * 4 * 128 * 128
        assert 4 * 4 * 128 < tokens < 8 * 4 * 128 and row.bounds["D1"].by == "bytes"


def test_segments_come_where_programs_are_few(rows):
    """The one canonical shape with heads as wide as `ends` is compiled for fills every chip."""
    ends = [r for r in rows if r.kernel.endswith(".ends") and r.kind == "bf16"]
    assert ends and all(row.settings.endswith("K256") and not row.traffic for row in ends)
    sweeps = [r for r in rows if r.kernel == "scalar_decay.sweep" and r.settings.endswith("K256")]
    assert sweeps and all("S5" in row.traffic for row in sweeps)


def test_reading_what_the_tools_say():
    said = "Function k:\n  REG:255 STACK:16 SHARED:0 LOCAL:0 CONSTANT[0]:412"
    assert xray.usage(said) == {"registers": 255, "spills": 16}
    with pytest.raises(ValueError, match="no registers"):
        xray.usage("cuobjdump fatal")
    dot = "%3 = tt.dot %1, %2, %0, inputPrecision = tf32x3 : "
    dot += "tensor<64x32xbf16> * tensor<32x128xbf16> -> tensor<64x128xf32> loc(#loc9)"
    assert xray.products(f"{dot}\n{dot}") == 2 * 2 * 64 * 32 * 128
    ptx = "wgmma.mma_async.sync.aligned.m64n8k16\nmma.sync.aligned\nldmatrix.sync\ncp.async.cg.x\n"
    found = xray.instructions(ptx + "cp.async.bulk.tensor.2d\ntcgen05.mma.cta_group\n")
    assert found == dict.fromkeys(xray.INSTRUCTIONS, 1)


# --------------------------------------------------------------------------- the process and CLI


def row(**more):
    """A row as the process sends it."""
    where = {"role": "forward", "variant": "data", "kind": "bf16", "target": 90, "config": 0}
    numbers = {"settings": "32x64 w4 s2 K64", "warps": 4, "registers": 128, "traffic": {"S6": 8}}
    return {"kernel": "scalar_decay.sweep"} | where | numbers | more


@pytest.fixture
def answers(monkeypatch):
    """Let the process that compiles say this."""

    def say(*found):
        monkeypatch.setattr(xray, "answer", lambda wanted: iter([{"total": len(found)}, *found]))

    return say


def test_a_spill_is_a_failure(answers, capsys):
    answers(row(), row(role="dk", spills=56))
    assert xray.main([]) == 1
    out, err = capsys.readouterr()
    assert "2 compiled, 1 spill, 0 do not compile" in out
    assert "sweep dk data bf16 sm_90 config 0" in err and "smaller tile or more warps" in err


def test_a_compile_error_is_a_failure(answers, capsys):
    answers(row(warps=0, registers=0, error="CompilationError: at 3:4"))
    assert xray.main(["--json"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)[0]["error"] and "fix the kernel: CompilationError: at 3:4" in err


def test_a_program_that_does_not_fit_is_a_failure(answers, capsys):
    answers(row(shared=240 * 1024))
    assert xray.main([]) == 1
    assert "fewer stages" in capsys.readouterr().err


def test_nothing_wrong_is_no_failure(answers, capsys):
    answers(row())
    assert xray.main([]) == 0
    out, err = capsys.readouterr()
    assert not err and max(map(len, out.splitlines())) <= 120


def test_a_process_that_dies_is_an_error(monkeypatch):
    monkeypatch.setattr(xray.sys, "executable", "false")
    with pytest.raises(RuntimeError, match="stands above"):
        xray.xray("sweep")


def run(*arguments):
    """The command in a process of its own."""
    command = [sys.executable, "-m", "linviz", "xray", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_the_table_of_one_kernel_and_target():
    done = run("vector_decay.join", "--target", "sm_90")
    assert done.returncode == 0, done.stderr
    kernel, head, line, _, total = done.stdout.splitlines()
    assert kernel == "vector_decay.join" and head.split()[0] == "role" and " 90 " in line
    assert total == "1 compiled, 0 spill, 0 do not compile"


def test_json_of_a_kernel():
    done = run("join", "--target", "sm_90", "--json")
    found = json.loads(done.stdout)
    assert {x["kernel"] for x in found} == {"scalar_decay.join", "vector_decay.join"}
    assert all(x["programs"] > 0 and x["traffic"].keys() == x["bounds"].keys() for x in found)


def test_the_compiled_text_of_one_row():
    done = run("scalar_decay.join", "--target", "sm_90", "--dump", "ptx")
    assert done.returncode == 0 and ".target sm_90" in done.stdout
    done = run("sweep", "--dump", "ptx", "--variant", "data")
    assert done.returncode == 2 and re.search(r"wanted one row, got \d+", done.stderr)
    assert (
        "role (dk, dq, dv, forward)" in done.stderr and "variant" not in done.stderr.split(":")[-1]
    )


def test_an_unknown_name_is_refused_with_the_known_ones():
    done = run("swep")
    assert done.returncode == 2 and not done.stdout
    assert "got swep" in done.stderr and "scalar_decay.sweep, " in done.stderr
    assert (
        "wanted one of any, dk, dq, dv, forward, states, got up"
        in run("sweep", "--role", "up").stderr
    )


PLANT = """
import triton
import triton.language as tl

from linviz.kernels import scalar_decay, xray, xray_compile


@triton.jit
def broken(
    S, ends, total, n_segments,
    K: tl.constexpr, V: tl.constexpr, TOTALS: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):
    tl.store(S, tl.load(S + tl.arange(0, 3)))


def find(kernel, most):
    return next(
        job
        for job in xray_compile.jobs()
        if job.labels["kernel"] == kernel and job.traced.most == most and job.target == 90
    )


scalar_decay.join = broken
print(xray.Row(**xray_compile.compiled(find("scalar_decay.join", 128))).fault)
wide = find("scalar_decay.sweep", 256)
wide = wide._replace(launch=wide.launch._replace(options={"num_warps": 2, "num_stages": 1}))
print(xray.Row(**xray_compile.compiled(wide)).fault)
"""


def test_what_is_planted_is_found(tmp_path):
    """A kernel that does not compile, and one that has too few registers."""
    path = tmp_path / "plant.py"  # Triton reads a kernel's source from its file
    path.write_text(PLANT)
    env = os.environ | {"TRITON_INTERPRET": "0"}
    command = [sys.executable, str(path)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert re.search(r"^does not compile, fix the kernel: CompilationError", done.stdout, re.M), (
        done
    )
    assert re.search(r"^spills \d+ bytes a thread", done.stdout, re.M), done


def test_the_kernels_of_this_process_stay_as_they_are():
    before = launch.interpreted()
    xray.xray("scalar_decay.join", 90)
    assert launch.interpreted() == before
