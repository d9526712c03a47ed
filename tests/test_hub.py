"""Published checkpoints: the same numbers as other people's code, and their files back again."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import linviz as lv
from linviz import checkpoints, models
from linviz.__main__ import main
from linviz.models import MoE, parity, rwkv
from linviz.models.families import FAMILIES

transformers = pytest.importorskip("transformers")
KINDS = list(parity.SPECIMENS)
FLA = json.loads(Path(__file__).with_name("fla_keys.json").read_text(encoding="utf-8"))
FLA_CASES = [name for name in FLA if name != "fla"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A small random model of each family, as transformers writes it."""
    transformers.logging.disable_progress_bar()
    root = tmp_path_factory.mktemp("hub")
    for kind in KINDS:
        parity.specimen(kind).save_pretrained(root / kind)
    return {kind: root / kind for kind in KINDS}


def written(folder, kind="mamba", tensors=None, **config):
    """A folder with these tensors and this config, which completes that of a small specimen."""
    folder.mkdir(exist_ok=True)
    raw = {"model_type": kind} | parity.SPECIMENS.get(kind, {}) | config
    (folder / "config.json").write_text(json.dumps(raw))
    save_file(tensors or {}, folder / "model.safetensors")
    return folder


def ids_for(model, T=40):
    rng = torch.Generator().manual_seed(1)
    return torch.randint(model.config.vocab, (2, T), generator=rng)


def same_weights(a, b):
    """Two models have the same parameters, bit by bit."""
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


# --- numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_as_transformers_computes(folders, kind, record_property):
    row = parity.check(folders[kind])
    record_property("row", str(row))
    assert row.ok and row.tokens == 64, row
    assert row.margin > 20 * row.error  # so that equal tokens are no luck


@pytest.mark.parametrize("kind", KINDS)
def test_no_number_is_idle(folders, kind):
    model = lv.load(folders[kind])
    assert not any(x.is_meta for x in [*model.parameters(), *model.buffers()])
    assert not model.training
    logits = model(ids_for(model))[0]
    (logits * torch.randn(logits.shape)).sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_parity_sees_a_fault(folders):
    model = lv.load(folders["mamba"])
    theirs = lv.load(folders["mamba"])
    with torch.no_grad():
        model.blocks[1].mixer.D[3] += 0.05
    row = parity.compare("mamba", "ours", model, theirs, ids_for(model), 8)
    assert not row.ok and row.error > 1e-4 and "DIFFERENT" in str(row)
    same = parity.compare("mamba", "ours", theirs, theirs, ids_for(model), 8)
    assert same.ok and same.error == 0 and same.equal == 8


def test_command_says_what_differs(monkeypatch, capsys):
    good = parity.Parity("a", "b", 1, 1e-6, 64, 64, 0.1, 1.0)
    for row, code in ((good, 0), (parity.Parity("a", "b", 1, 1e-6, 63, 64, 0.1, 1.0), 1)):
        monkeypatch.setattr(parity, "specimens", lambda row=row: iter([row]))
        assert main(["hub", "parity"]) == code
        assert str(row) in capsys.readouterr().out
    with pytest.raises(SystemExit, match="wanted a folder"):
        main(["hub", "check", "nothing"])


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # in the package rwkv
@pytest.mark.parametrize("kind", ["rwkv4", "rwkv7"])
def test_command_checks_a_file_against_its_authors(kind, tmp_path, monkeypatch, capsys):
    pytest.importorskip("rwkv")
    for name in ("RWKV_V7_ON", "RWKV_JIT_ON", "RWKV_CUDA_ON"):
        monkeypatch.setenv(name, "0")  # is set by the package, and set back by pytest
    file = rwkv.save(parity.rwkv_specimen(kind), tmp_path / f"{kind}.pth")
    assert main(["hub", "check", str(file)]) == 0
    assert f"| {kind}.pth | rwkv | " in capsys.readouterr().out


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back(folders, tmp_path, kind):
    model = lv.load(folders[kind])
    model.save_pretrained(tmp_path)
    there, back = (load_file(f / "model.safetensors") for f in (folders[kind], tmp_path))
    assert there.keys() == back.keys()
    assert all(torch.equal(there[n], back[n]) and there[n].dtype == back[n].dtype for n in there)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config == json.loads((folders[kind] / "config.json").read_text())
    load, ids = transformers.AutoModelForCausalLM.from_pretrained, ids_for(model)[:1]
    logits = [load(f, dtype=torch.float32)(ids).logits for f in (folders[kind], tmp_path)]
    assert torch.equal(*logits)


def test_types_and_places(folders, tmp_path):
    stored = lv.load(folders["mamba2"], dtype=torch.bfloat16)
    assert {p.dtype for p in stored.parameters()} == {torch.bfloat16}
    stored.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    assert lv.load(tmp_path).head.weight.dtype == torch.bfloat16
    wide = lv.load(tmp_path, dtype=torch.float64, device=torch.device("cpu"))
    assert wide(ids_for(wide))[0].dtype == torch.float64
    before = load_file(tmp_path / "model.safetensors")
    lv.load(tmp_path).save_pretrained(tmp_path)  # over the file that it is mapped from
    after = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(before[n], after[n]) for n in before)
    assert wide.blocks[0].mixer.A_log.no_weight_decay
    assert not getattr(wide.blocks[0].norm.weight, "no_weight_decay", False)


def test_own_files_and_names(folders, tmp_path, monkeypatch):
    for kind in KINDS:
        published = lv.load(folders[kind])
        file = published.save(tmp_path / "mine.safetensors")
        assert same_weights(lv.load(file), published)
        back = lv.load(file).save_pretrained(tmp_path / kind)  # it knows where it came from
        assert same_weights(lv.load(back), published)
    monkeypatch.setattr(checkpoints, "FOLDER", tmp_path)
    assert same_weights(lv.load("mine"), published)
    with pytest.raises(ValueError, match=r"owner/name on the hub or one of mine; got 'yours'"):
        lv.load("yours")
    with pytest.raises(ValueError, match=r"wanted one that lv\.load read"):
        models.small("gla", width=16).save_pretrained(tmp_path)


def test_shards_and_older_files(folders, tmp_path):
    whole = lv.load(folders["qwen3_next"])
    theirs = parity.specimen("qwen3_next")
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="50KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 3
    assert same_weights(lv.load(tmp_path / "shards"), whole)
    longer = lv.load(tmp_path / "shards")
    with torch.no_grad():
        longer.norm.weight += 1
    longer.save_pretrained(tmp_path / "shards")  # the shards stay, but count no more
    assert same_weights(lv.load(tmp_path / "shards"), longer)
    for zipped in (True, False):
        folder = tmp_path / f"pickled{zipped}"
        folder.mkdir()
        state = load_file(folders["qwen3_next"] / "model.safetensors")
        names = sorted(state)
        parts = {"a.bin": names[::2], "b.bin": names[1::2]}
        for name, held in parts.items():
            held = {n: state[n] for n in held}
            torch.save(held, folder / name, _use_new_zipfile_serialization=zipped)
        index = {"weight_map": {n: part for part, held in parts.items() for n in held}}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        (folder / "config.json").write_bytes((folders["qwen3_next"] / "config.json").read_bytes())
        assert same_weights(lv.load(folder), whole)
    (folder / "b.bin").unlink()
    with pytest.raises(ValueError, match=r"wanted b\.bin beside it"):
        lv.load(folder)
    (folder / "pytorch_model.bin.index.json").unlink()
    with pytest.raises(ValueError, match=r"wanted model\.safetensors or pytorch_model\.bin"):
        lv.load(folder)


class Harm:
    """What runs code when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (self.file, "w")


def test_code_is_never_run(tmp_path):
    folder = written(tmp_path / "bad")
    (folder / "model.safetensors").unlink()
    torch.save({"x": Harm(str(tmp_path / "harm"))}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="code is never run"):
        lv.load(folder)
    assert not (tmp_path / "harm").exists()


def test_models_of_transformers(folders, tmp_path):
    for kind in KINDS:
        theirs = parity.specimen(kind)
        model = lv.load(theirs)
        assert same_weights(model, lv.load(folders[kind])), kind
        logits = theirs(ids_for(model)[:1]).logits
        again = model.save_pretrained(tmp_path / kind)
        again = transformers.AutoModelForCausalLM.from_pretrained(again, dtype=torch.float32)
        assert torch.equal(again(ids_for(model)[:1]).logits, logits)
        with torch.no_grad():
            for p in theirs.parameters():
                p.zero_()
        assert same_weights(model, lv.load(folders[kind])), "it shares memory"
    theirs, untouched = parity.specimen("rwkv"), parity.specimen("rwkv")
    theirs.config.rescale_every = 1
    theirs(torch.tensor([[1, 2]]))  # now some weights are halved
    halved, first = (m.rwkv.blocks[2].attention.output.weight for m in (theirs, untouched))
    assert torch.equal(4 * halved, first)
    assert same_weights(lv.load(theirs), lv.load(folders["rwkv"]))
    with pytest.raises(ValueError, match="wanted a model of transformers, got Linear"):
        lv.load(torch.nn.Linear(2, 2))


def test_what_mamba_ssm_writes(folders, tmp_path):
    sizes = {"d_model": 32, "n_layer": 3, "vocab_size": 95, "attn_layer_idx": [], "rms_norm": True}
    inside = {
        "mamba": {"d_state": 5, "dt_rank": 3},
        "mamba2": {"layer": "Mamba2", "d_state": 6, "headdim": 8, "ngroups": 2},
    }
    for kind, ssm in inside.items():
        theirs = load_file(folders[kind] / "model.safetensors")
        theirs = {n.replace("embeddings", "embedding"): x for n, x in theirs.items()}
        tied = "lm_head.weight" not in theirs
        if tied:  # their files have it twice
            theirs["lm_head.weight"] = theirs["backbone.embedding.weight"]
        folder = tmp_path / kind
        folder.mkdir()
        torch.save(theirs, folder / "pytorch_model.bin")
        raw = sizes | {"ssm_cfg": ssm, "pad_vocab_size_multiple": 97, "tie_embeddings": tied}
        (folder / "config.json").write_text(json.dumps(raw))
        model = lv.load(folder)
        assert same_weights(model, lv.load(folders[kind]))
        assert model.config == lv.load(folders[kind]).config
        if tied:
            theirs["lm_head.weight"] = theirs["lm_head.weight"] + 1
            torch.save(theirs, folder / "pytorch_model.bin")
            with pytest.raises(
                ValueError, match=r"not tied: lm_head\.weight differs from backbone"
            ):
                lv.load(folder)
    raw["ssm_cfg"] = {"layer": "Mamba2", "D_has_hdim": True}
    (folder / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=r'a field of ssm_cfg must be .* got "D_has_hdim"'):
        lv.load(folder)


# --- what does not fit ---------------------------------------------------------------------------


def test_keys_that_do_not_fit_are_listed(folders, tmp_path):
    state = load_file(folders["qwen3_next"] / "model.safetensors")
    config = json.loads((folders["qwen3_next"] / "config.json").read_text())
    state |= {"mtp.fc.weight": torch.ones(2)}  # no part of the language model
    assert same_weights(
        lv.load(written(tmp_path, "qwen3_next", state, **config)), lv.load(folders["qwen3_next"])
    )
    del state["model.layers.2.mlp.experts.3.up_proj.weight"]
    state["model.layers.9.extra"] = torch.ones(4, 5)
    state["model.layers.0.linear_attn.in_proj_qkvz.weight"] = torch.ones(7, 32)
    with pytest.raises(ValueError) as error:
        lv.load(written(tmp_path, "qwen3_next", state, **config))
    assert str(error.value).splitlines() == [
        "the weights do not fit qwen3_next:",
        "  shape: model.layers.0.linear_attn.in_proj_qkvz.weight (for "
        "blocks.0.mixer.q.linear.weight, blocks.0.mixer.k.linear.weight, "
        "blocks.0.mixer.v.linear.weight, blocks.0.mixer.gate.weight) "
        "wanted [128, 32], got [7, 32]",
        "  missing: model.layers.2.mlp.experts.3.up_proj.weight [16, 32] (for blocks.2.mlp.up)",
        "  unexpected: model.layers.9.extra [4, 5]",
    ]
    with pytest.raises(ValueError, match=r"missing: backbone(.|\n)*and 12 more$"):
        lv.load(written(tmp_path))


UNKNOWN = [
    ("llama", {}, "model_type must be one of mamba, .*, got 'llama'"),
    ("mamba", {"hidden_act": "gelu"}, 'hidden_act must be "silu" or "swish", got "gelu"'),
    ("mamba", {"quantization_config": {"bits": 4}}, "quantization_config must be null"),
    ("mamba2", {"num_heads": 5}, "num_heads must be 8, got 5"),
    ("rwkv", {"attention_hidden_size": 64}, "attention_hidden_size must be null or 32, got 64"),
    ("rwkv", {"layer_norm_epsilon": 1e-3}, "layer_norm_epsilon must be 1e-05"),
    ("qwen3_next", {"attention_bias": True}, "attention_bias must be false, got true"),
    ("qwen3_next", {"rope_scaling": {"type": "yarn"}}, 'rope_type must be "default", got "yarn"'),
    ("qwen3_next", {"rope_parameters": {"rope_type": "yarn"}}, "rope_type must be"),
    ("qwen3_next", {"layer_types": ["other"] * 4}, "layer_types must be"),
    ("gla", {"use_output_gate": False}, "use_output_gate must be true, got false"),
    ("gla", {"clamp_min": -1.0}, "clamp_min must be null"),
    ("gla", {"num_kv_heads": 2}, "num_kv_heads must be null or 4, got 2"),
    ("gla", {"attn": {"layers": [1]}}, "attn must be null"),
    ("retnet", {"feature_map": "relu"}, "feature_map must be null"),
    ("retnet", {"hidden_act": "powlu"}, 'hidden_act must be "swish"'),
]


@pytest.mark.parametrize(("kind", "config", "said"), UNKNOWN, ids=lambda x: str(x)[:40])
def test_what_we_do_not_have_is_refused_by_name(tmp_path, kind, config, said):
    with pytest.raises(ValueError, match=said):
        lv.load(written(tmp_path, kind, **config))


def test_absent_fields_are_what_they_are_in_their_code():
    for kind in KINDS:
        theirs = transformers.AutoConfig.for_model(kind)
        for name, value in FAMILIES[kind].fields.items():
            if value not in (None, "auto") and hasattr(theirs, name):
                assert value == getattr(theirs, name), (kind, name)
        assert {n for n in FAMILIES[kind].only if n not in ("rms_norm",)} <= vars(theirs).keys()
    for case in FLA_CASES:
        family = FAMILIES[FLA[case]["config"]["model_type"]]
        assert family.fields.keys() | family.only.keys() <= FLA[case]["config"].keys() | {
            "clamp_min"
        }
    for kind in ("gla", "retnet"):
        set_ = {"vocab_size", "hidden_size", "num_hidden_layers", "num_heads"}
        theirs = FLA[kind]["config"]
        for name, value in FAMILIES[kind].fields.items():
            assert name in set_ or theirs[name] == value, (kind, name)
        for name, allowed in FAMILIES[kind].only.items():
            assert theirs[name] == allowed[0], (kind, name)


# --- GLA and RetNet in fla's format: names and shapes of its models, numbers from the formulas ---


def fla_folder(case, folder):
    """Random weights under fla's names, in its shapes."""
    rng = torch.Generator().manual_seed(0)
    shapes = FLA[case]["keys"]
    weights = {n: torch.randn(s, generator=rng) * s[-1] ** -0.5 for n, s in shapes.items()}
    weights |= {n: 1 + x for n, x in weights.items() if "norm" in n}
    return written(folder, FLA[case]["config"]["model_type"], weights, **FLA[case]["config"])


@pytest.mark.parametrize("case", FLA_CASES)
def test_names_and_shapes_are_those_of_fla(case, tmp_path):
    folder = fla_folder(case, tmp_path / "there")
    lv.load(folder).save_pretrained(tmp_path / "back")
    there, back = (load_file(tmp_path / f / "model.safetensors") for f in ("there", "back"))
    assert {n: list(x.shape) for n, x in back.items()} == FLA[case]["keys"]
    assert all(torch.equal(there[n], back[n]) for n in there)


def by_formula(c, w, ids):
    """Logits of fla's model of GLA or RetNet, token by token in plain sums."""

    def norm(x, weight=1.0):
        return x * (x.square().mean(-1, keepdim=True) + c["norm_eps"]).rsqrt() * weight

    def projected(x, name):
        y = x @ w[f"{at}{name}_proj.weight"].T
        if not c["use_short_conv"]:
            return y.unflatten(-1, (H, -1))
        taps = w[f"{at}{name}_conv1d.weight"][:, 0]
        padded = F.pad(y, (0, 0, taps.shape[1] - 1, 0))
        y = sum(padded[:, j : j + y.shape[1]] * taps[:, j] for j in range(taps.shape[1]))
        return (y * y.sigmoid()).unflatten(-1, (H, -1))

    def turned(x):
        half = x.shape[-1] // 2
        speed = (10_000 ** -(torch.arange(half, dtype=torch.float32) / half)).double()
        angle = torch.arange(x.shape[1])[:, None, None] * speed
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)

    H = c["num_heads"]
    x = w["model.embeddings.weight"][ids]
    for i in range(c["num_hidden_layers"]):
        at, block = f"model.layers.{i}.attn.", f"model.layers.{i}."
        h = norm(x, w[f"{block}attn_norm.weight"])
        q, k, v = (projected(h, name) for name in "qkv")
        if c["model_type"] == "gla":
            logit = h @ w[f"{at}gk_proj.0.weight"].T @ w[f"{at}gk_proj.1.weight"].T
            decay = (logit + w[f"{at}gk_proj.1.bias"]).sigmoid() ** (1 / 16)
            decay = decay.unflatten(-1, (H, -1))
        else:
            q, k = turned(q), turned(k)
            decay = (1 - 2.0 ** (-5 - torch.arange(H)))[:, None].expand(k.shape).double()
        S, o = 0, []
        for t in range(ids.shape[1]):
            S = decay[:, t, :, :, None] * S + k[:, t, :, :, None] * v[:, t, :, None]
            o.append((q[:, t, :, :, None] * S).sum(2) * q.shape[-1] ** -0.5)
        weights = (w[n] for n in (f"{at}g_norm_swish_gate.weight", f"{at}g_norm.weight") if n in w)
        y = norm(torch.stack(o, 1), next(weights, 1.0)).flatten(-2)
        gate = h @ w[f"{at}g_proj.weight"].T
        x = x + (y * gate * gate.sigmoid()) @ w[f"{at}o_proj.weight"].T
        h = norm(x, w[f"{block}mlp_norm.weight"])
        gate = h @ w[f"{block}mlp.gate_proj.weight"].T
        inner = gate * gate.sigmoid() * (h @ w[f"{block}mlp.up_proj.weight"].T)
        x = x + inner @ w[f"{block}mlp.down_proj.weight"].T
    head = w.get("lm_head.weight", w["model.embeddings.weight"])
    return norm(x, w["model.norm.weight"]) @ head.T


@pytest.mark.parametrize("case", FLA_CASES)
def test_numbers_are_those_of_the_formulas(case, tmp_path):
    folder = fla_folder(case, tmp_path / "x")
    model = lv.load(folder, dtype=torch.float64)
    weights = {n: x.double() for n, x in load_file(folder / "model.safetensors").items()}
    ids = ids_for(model)
    logits = model(ids)[0]
    wanted = by_formula(FLA[case]["config"], weights, ids)
    assert ((logits - wanted).abs().max() / wanted.abs().max()).item() < 1e-12


# --- the hub, tokenizers -------------------------------------------------------------------------


def test_the_hub_is_asked_for_data_only(folders, tmp_path, monkeypatch):
    import fnmatch
    import shutil

    import huggingface_hub

    there = tmp_path / "there"
    shutil.copytree(folders["mamba"], there)
    (there / "modeling_mamba.py").write_text("raise SystemExit")
    (there / "pytorch_model.bin").write_bytes(b"")
    asked = []

    def snapshot_download(name, *, revision, allow_patterns):
        asked.append((name, revision, allow_patterns))
        here = tmp_path / f"here{len(asked)}"
        here.mkdir()
        for file in there.iterdir():
            if any(fnmatch.fnmatch(file.name, pattern) for pattern in allow_patterns):
                shutil.copy(file, here)
        return str(here)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    model = lv.load("state-spaces/mamba-130m-hf", revision="abc")
    assert same_weights(model, lv.load(folders["mamba"]))
    assert asked[0][:2] == ("state-spaces/mamba-130m-hf", "abc") and len(asked) == 1
    assert not list(tmp_path.glob("here1/*.py")) and not list(tmp_path.glob("here1/*.bin"))
    torch.save(load_file(there / "model.safetensors"), there / "pytorch_model.bin")
    (there / "model.safetensors").unlink()
    assert same_weights(lv.load("state-spaces/mamba-130m"), model) and len(asked) == 3
    assert not list(tmp_path.glob("here*/*.py"))

    def hf_hub_download(name, file, *, revision):
        assert (name, file, revision) == ("BlinkDL/rwkv-7-world", "RWKV-x070-0.1B.pth", None)
        return rwkv.save(parity.rwkv_specimen("rwkv7"), tmp_path / "x.pth")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    goose = lv.load("BlinkDL/rwkv-7-world/RWKV-x070-0.1B.pth", dtype=torch.float64)
    assert goose.config.layers == ("rwkv7",) * 3 and goose.head.weight.dtype == torch.float64
    assert goose.save_pretrained(tmp_path / "back.pth").is_file()


def test_tokenizer_comes_along(folders, tmp_path):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    tokenizer = Tokenizer(WordLevel({f"w{i}": i for i in range(97)}, "w0"))
    tokenizer.pre_tokenizer = Whitespace()
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    folder = tmp_path / "there"
    lv.load(folders["mamba"]).save_pretrained(folder)
    assert lv.load(folder).tokenizer is None
    wrapped.save_pretrained(folder)
    model = lv.load(folder)
    assert "theirs" not in vars(model.tokenizer)  # not read yet
    assert model.encode("w3 w5").tolist() == [[3, 5]] and model.decode(torch.tensor([7])) == "w7"
    assert model.write("w3 w5", 4, temperature=0).startswith("w")
    again = lv.load(model.save_pretrained(tmp_path / "back"))
    assert again.encode("w9").tolist() == [[9]]


# --- mixture of experts --------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [0, 5])
@pytest.mark.parametrize("normalize", [True, False])
def test_mixture_is_the_weighted_sum_of_chosen_experts(shared, normalize):
    torch.manual_seed(0)
    moe = MoE(8, experts=5, active=2, hidden=6, shared=shared, normalize=normalize).double()
    x = torch.randn(2, 7, 8, dtype=torch.float64)
    wanted = torch.zeros_like(x)
    for b, t in ((b, t) for b in range(2) for t in range(7)):
        p = (moe.router.weight @ x[b, t]).softmax(0)
        best = p.argsort(descending=True)[:2]
        for e in best:
            inner = F.silu(moe.gate[e] @ x[b, t]) * (moe.up[e] @ x[b, t])
            share = p[e] / p[best].sum() if normalize else p[e]
            wanted[b, t] += share * (moe.down[e] @ inner)
    if shared:
        wanted += moe.shared_gate(x).sigmoid() * moe.shared(x)
    y = moe(x)
    torch.testing.assert_close(y, wanted, rtol=0, atol=1e-14)
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in moe.parameters())
    assert moe(x[:, :0]).shape == (2, 0, 8)
    with pytest.raises(ValueError, match="active must be 1 to experts=5, got 6"):
        MoE(8, experts=5, active=6)
