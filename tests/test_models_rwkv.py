"""Published RWKV files: read, run as the authors' own package runs them, and written back."""

import os
import subprocess
import sys

import pytest
import torch

from linviz.models import hub, rwkv, small

D, H, DEPTH, VOCAB = 128, 2, 3, 61
IDS = [(7 * i * i + 3 * i) % VOCAB for i in range(48)]
NEW = 64
VERSIONS = ("rwkv4", "rwkv5", "rwkv6", "rwkv7")
ORACLE = f"""
import sys
import torch
from rwkv.model import RWKV
torch.set_num_threads(1)
for file in sys.argv[1:]:
    model = RWKV(file.removesuffix(".pth"), "cpu fp32")
    logits, state = model.forward({IDS}, None, full_output=True)
    all_logits, new = [logits], []
    for _ in range({NEW}):
        new.append(int(all_logits[-1][-1].argmax()))
        logits, state = model.forward(new[-1:], state)
        all_logits.append(logits.reshape(1, -1))
    torch.save({{"new": new, "logits": torch.cat(all_logits)}}, file + ".out")
"""


def published(version, seed=3):
    """Random tensors under the names and in the shapes of a published file; none is zero or one."""
    rng = torch.Generator().manual_seed(seed)
    w = {}

    def add(name, *shape, scale=1.0, about=0.0):
        w[name] = about + scale * torch.randn(shape, generator=rng)

    def between(name, low, high, *shape):
        w[name] = low + (high - low) * torch.rand(shape, generator=rng)

    def norm(name):
        add(f"{name}.weight", D, scale=0.2, about=1.0)
        add(f"{name}.bias", D, scale=0.2)

    def linear(name, out=D, size=D):
        add(f"{name}.weight", out, size, scale=size**-0.5)

    hidden = 448 if version in ("rwkv5", "rwkv6") else 4 * D
    mixed = {
        "rwkv4": ("time_mix_", "rkv", "kr"),
        "rwkv5": ("time_mix_", "rkvg", "kr"),
        "rwkv6": ("time_maa_", "xwrkvg", "kr"),
        "rwkv7": ("x_", "rwkvag", "k"),
    }
    prefix, time, channel = mixed[version]
    add("emb.weight", VOCAB, D)
    norm("blocks.0.ln0")
    for i in range(DEPTH):
        att, ffn = f"blocks.{i}.att.", f"blocks.{i}.ffn."
        norm(f"blocks.{i}.ln1")
        norm(f"blocks.{i}.ln2")
        for name in ("receptance", "key", "value", "output"):
            linear(att + name)
        for name in time:
            between(f"{att}{prefix}{name}", 0, 1, 1, 1, D)
        for name in channel:
            between(f"{ffn}{prefix}{name}", 0, 1, 1, 1, D)
        linear(f"{ffn}key", hidden)
        linear(f"{ffn}value", D, hidden)
        if version != "rwkv7":
            linear(f"{ffn}receptance")
        if version != "rwkv4":
            norm(f"{att}ln_x")
        if version == "rwkv4":
            between(f"{att}time_decay", -5, 1, D)
            add(f"{att}time_first", D)
        if version in ("rwkv5", "rwkv6"):
            linear(f"{att}gate")
            add(f"{att}time_faaaa", H, D // H)
        if version == "rwkv5":
            between(f"{att}time_decay", -6, 1, H, D // H)
        if version == "rwkv6":
            add(f"{att}time_maa_w1", D, 5 * 32, scale=D**-0.5)
            add(f"{att}time_maa_w2", 5, 32, D, scale=0.1)
            between(f"{att}time_decay", -5, 0, 1, 1, D)
            add(f"{att}time_decay_w1", D, 64, scale=D**-0.5)
            add(f"{att}time_decay_w2", 64, D, scale=0.1)
        if version == "rwkv7":
            for name, rank in (("w", 64), ("a", 48), ("v", 32), ("g", 96)):
                if name != "v" or i > 0:
                    add(f"{att}{name}1", D, rank, scale=D**-0.5)
                    add(f"{att}{name}2", rank, D, scale=rank**-0.5)
                    if name != "g":
                        add(f"{att}{name}0", 1, 1, D)
            add(f"{att}k_k", 1, 1, D, scale=0.3, about=0.7)
            add(f"{att}k_a", 1, 1, D, scale=0.3, about=1.0)
            add(f"{att}r_k", H, D // H, scale=0.3)
    norm("ln_out")
    linear("head", VOCAB)
    return w


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A file of each version, and beside it what the package `rwkv` says about it."""
    folder = tmp_path_factory.mktemp("rwkv")
    made = {version: folder / f"{version}.pth" for version in VERSIONS}
    for version, file in made.items():
        torch.save(published(version), file)
    for versions, goose in ((VERSIONS[:3], "0"), (VERSIONS[3:], "1")):
        command = [sys.executable, "-c", ORACLE, *(str(made[v]) for v in versions)]
        own = {"RWKV_V7_ON": goose, "RWKV_JIT_ON": "0", "OMP_NUM_THREADS": "1"}
        subprocess.run(command, env=os.environ | own, check=True, capture_output=True)
    return made


def same(model, logits, new):
    """Compare with logits of the prompt and of `new`, each the likeliest token after the last."""
    prompt = torch.tensor([IDS])
    ours, _ = model.generate(prompt, NEW, temperature=0)
    assert ours[0].tolist() == new and len(set(new)) > 15
    with torch.no_grad():
        mine = model(torch.cat([prompt, ours], 1))[0][0]
    error = (mine - logits).abs().max()
    best = logits[len(IDS) - 1 : -1].topk(2).values
    margin = (best[:, 0] - best[:, 1]).min()
    print(f"error {error / logits.abs().max():.1e}, smallest lead of a chosen token {margin:.4f}")
    assert error < 1e-5 * logits.abs().max()
    assert margin > 100 * error  # so that equal tokens are no luck


@pytest.mark.parametrize("version", VERSIONS)
def test_as_the_authors_run_it(files, version):
    theirs = torch.load(f"{files[version]}.out")
    same(hub.load(files[version]), theirs["logits"], theirs["new"])


def test_as_transformers_runs_4(files):
    from transformers import RwkvConfig, RwkvForCausalLM

    config = RwkvConfig(
        vocab_size=VOCAB, hidden_size=D, num_hidden_layers=DEPTH, rescale_every=0, use_cache=True
    )
    theirs, ours = RwkvForCausalLM(config).eval(), hub.load(files["rwkv4"])
    words = {"emb": "rwkv.embeddings", "blocks": "rwkv.blocks", "ln_out": "rwkv.ln_out"}
    words |= {"att": "attention", "ffn": "feed_forward", "ln0": "pre_ln"}
    words |= {f"time_mix_{n[0]}": f"time_mix_{n}" for n in ("key", "value", "receptance")}
    renamed = {
        ".".join(words.get(word, word) for word in name.split(".")): x
        for name, x in hub.pickled(files["rwkv4"]).items()
    }
    theirs.load_state_dict(renamed)
    with torch.no_grad():
        out = theirs(torch.tensor([IDS]))
        logits, new = [out.logits[0]], []
        for _ in range(NEW):
            new.append(logits[-1][-1].argmax().item())
            out = theirs(torch.tensor([new[-1:]]), state=out.state)
            logits.append(out.logits[0])
        same(ours, torch.cat(logits), new)
        theirs.rwkv.layers_are_rescaled, config.rescale_every = False, 2
        theirs(torch.tensor([IDS]))  # halves some of its weights in place
    assert (theirs.rwkv.blocks[2].attention.output.weight == renamed[OUTPUT] / 2).all()
    own, read = ours.state_dict(), hub.load(theirs).state_dict()
    assert read.keys() == own.keys() and all(torch.equal(read[n], own[n]) for n in own)


OUTPUT = "rwkv.blocks.2.attention.output.weight"


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_there_and_back(tmp_path, version, kind):
    weights = {name: x.to(kind) for name, x in published(version).items()}
    if version == "rwkv7":  # some files have them, though layer 0 has no use for them
        weights |= {f"blocks.0.att.v{n}": 2 * weights[f"blocks.1.att.v{n}"] for n in "012"}
    torch.save(weights, tmp_path / "there.pth")
    model = hub.load(tmp_path / "there.pth")
    back = torch.load(rwkv.save(model, tmp_path / "there.pth"))
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[n], weights[n]) and back[n].dtype == kind for n in weights)
    wide = hub.load(tmp_path / "there.pth", dtype=torch.float64)
    assert all(p.dtype == torch.float64 for p in wide.parameters())


def test_sizes_and_marks(files):
    config = rwkv.config_of(hub.pickled(files["rwkv7"]))
    assert config.options == {
        "rwkv7": {
            "heads": 2,
            "decay_rank": 64,
            "rate_rank": 48,
            "value_rank": 32,
            "gate_rank": 96,
            "spare": False,
        }
    }
    config = rwkv.config_of(hub.pickled(files["rwkv6"]))
    assert config.options == {"rwkv6": {"heads": 2, "mix_rank": 32, "decay_rank": 64}}
    assert config.mlp_options == {"rwkv6": {"hidden": 448}}
    assert (config.vocab, config.width, config.layers) == (VOCAB, D, ("rwkv6",) * 3)
    model = hub.load(files["rwkv6"])
    assert model.blocks[0].mixer.u.no_weight_decay and model.blocks[0].mixer.u.requires_grad


def test_other_tensors(tmp_path):
    for version in VERSIONS:
        assert rwkv.recognise(published(version)) == version
    older = published("rwkv5")
    older |= {n: x[:, 0] for n, x in older.items() if n.endswith("time_decay")}  # one a head: 5.1
    assert rwkv.recognise(older) is None
    with pytest.raises(ValueError, match=r"RWKV-4, 5.2, 6 or 7 .* 1 tensors: weight"):
        rwkv.config_of({"weight": torch.ones(2)})
    file = tmp_path / "x.pth"
    for wrong in ([torch.ones(2)], {"step": 3}):
        torch.save(wrong, file)
        with pytest.raises(ValueError, match="wanted a table of tensors by name"):
            hub.pickled(file)
    torch.save({"weight": os.getcwd}, file)
    with pytest.raises(ValueError, match="code is never run"):
        hub.pickled(file)
    weights = published("rwkv4")
    with pytest.raises(ValueError, match=r"'emb.weight' of rwkv4 is missing"):
        rwkv.config_of({n: x for n, x in weights.items() if n != "emb.weight"})
    weights["blocks.1.att.time_state"] = weights.pop("blocks.1.att.time_first")
    weights["blocks.2.ln1.bias"] = torch.ones(7)
    torch.save(weights, file)
    with pytest.raises(ValueError) as error:
        hub.load(file)
    for said in (
        "the weights do not fit x.pth",
        "missing: blocks.1.att.time_first [128] (for blocks.1.mixer.u)",
        "unexpected: blocks.1.att.time_state [128]",
        "shape: blocks.2.ln1.bias (for blocks.2.norm.bias) wanted [128], got [7]",
    ):
        assert said in str(error.value)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_model_of_our_own_as_a_published_file(version, tmp_path):
    model = small(version, width=64, mlp=version, norm="layer", embedding_norm=True).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
        read = hub.load(rwkv.save(model, tmp_path / "own.pth"))
        ids = torch.tensor([IDS])
        assert torch.equal(read(ids)[0], model(ids)[0])


@pytest.mark.parametrize(
    "model",
    [
        small("gla", width=16),
        small(("rwkv4", "rwkv5"), width=16, mlp="rwkv4", norm="layer", embedding_norm=True),
        small("rwkv6", width=16, mlp="rwkv6", norm="layer", embedding_norm=True, tie=True),
        small("rwkv6", width=16, mlp="rwkv6"),
    ],
)
def test_save_refuses_what_the_format_cannot_say(model, tmp_path):
    with pytest.raises(ValueError, match="wanted an RWKV of one version"):
        rwkv.save(model, tmp_path / "x.pth")
