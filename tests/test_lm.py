"""The language model: pieces, generation, files."""

import math

import pytest
import torch

from linviz import layers, models
from linviz.layers import State
from linviz.models.lm import PIECE, Config, choose


def tiny(kinds="gla", depth=None, **more):
    """A model with no weight at a special value."""
    torch.manual_seed(0)
    lm = models.small(kinds, depth, width=32, **more)
    with torch.no_grad():
        for p in lm.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return lm.eval()


HYBRID = ("gla", "softmax", "deltanet")


@pytest.mark.parametrize("kinds", [*layers.KINDS, HYBRID], ids=str)
def test_pieces_equal_one_pass(kinds):
    lm = tiny(kinds).double()
    ids = torch.randint(256, (2, 23))
    logits, state = lm(ids)
    first, middle = lm(ids[:, :9])
    second, after = lm(ids[:, 9:], middle)
    torch.testing.assert_close(torch.cat([first, second], 1), logits)
    assert len(after) == len(lm.blocks) and after.nbytes == state.nbytes
    torch.testing.assert_close(lm(ids, last=True)[0], logits[:, -1:])
    torch.testing.assert_close(lm.step(ids[:, 9], middle)[0], logits[:, 9])
    assert lm.first_state(3).rows([0, 1]).nbytes == lm.first_state(2).nbytes


@pytest.mark.parametrize("mlp", ["swiglu", "none"])
@pytest.mark.parametrize("tie", [False, True])
def test_parts_are_what_config_says(mlp, tie):
    lm = tiny(mlp=mlp, tie=tie, norm="layer", embedding_norm=True)
    assert (lm.head is None) == tie and all((b.mlp is None) == (mlp == "none") for b in lm.blocks)
    assert isinstance(lm.norm, torch.nn.LayerNorm) and lm.embedding_norm is not None
    lm(torch.randint(256, (1, 8)))[0].square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in lm.parameters())


def test_greedy_generation_is_the_likeliest_path():
    lm, ids = tiny(HYBRID), torch.randint(256, (2, 7))
    new, state = lm.generate(ids, 12, temperature=0)
    text = ids
    for _ in range(12):  # the slow way: everything anew for each token
        text = torch.cat([text, lm(text)[0][:, -1:].argmax(-1)], 1)
    assert torch.equal(new, text[:, 7:])
    more, _ = lm.generate(new[:, -1:], 5, state=state, temperature=0)
    longer, _ = lm.generate(ids, 17, temperature=0)
    assert torch.equal(more, longer[:, 12:])


def test_long_prompts_are_read_in_pieces():
    lm, seen = tiny(), []
    lm.blocks[0].register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1]))
    ids = torch.randint(256, (1, PIECE + 10))
    new, _ = lm.generate(ids, 2, temperature=0)
    assert seen == [PIECE, 10, 1]
    assert new[0, 0] == lm(ids)[0][0, -1].argmax()


def test_memory_stays_constant_for_linear_layers_only():
    ids = torch.randint(256, (1, 10))
    for kind, grows in (("gla", False), ("softmax", True)):
        lm = tiny(kind)
        _, early = lm.generate(ids, 2)
        _, late = lm.generate(ids, 30)
        assert (late.nbytes > early.nbytes) == grows


def test_sampling():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).expand(4000, -1)
    rng = torch.Generator().manual_seed(0)

    def shares(temperature=1.0, top_k=None, top_p=None):
        token = choose(logits, temperature, top_k, top_p, rng)
        return token.bincount(minlength=4) / len(token)

    close = lambda a, b: torch.testing.assert_close(a, torch.tensor(b), atol=0.03, rtol=0)
    close(shares(), [0.5, 0.3, 0.15, 0.05])
    close(shares(top_k=2), [0.625, 0.375, 0.0, 0.0])
    close(shares(top_p=0.8), [0.625, 0.375, 0.0, 0.0])
    close(shares(top_p=0.81), [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0.0])
    close(shares(top_p=1e-6), [1.0, 0.0, 0.0, 0.0])
    close(shares(temperature=0), [1.0, 0.0, 0.0, 0.0])
    squared = [p**2 / sum(q**2 for q in (0.5, 0.3, 0.15, 0.05)) for p in (0.5, 0.3, 0.15, 0.05)]
    close(shares(temperature=0.5), squared)
    close(shares(top_k=3, top_p=0.6), [0.625, 0.375, 0.0, 0.0])


def test_seeds():
    lm, ids = tiny(), torch.randint(256, (2, 4))
    a, b, c = (lm.generate(ids, 20, seed=s)[0] for s in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_stop():
    lm, ids = tiny(), torch.randint(256, (2, 7))
    new, _ = lm.generate(ids, 12, temperature=0)
    at = [row.tolist().index(new[0, 3]) if new[0, 3] in row else math.inf for row in new]
    cut, _ = lm.generate(ids, 12, temperature=0, stop=int(new[0, 3]))
    assert cut.shape[1] == min(12, max(at) + 1)
    for row, whole, n in zip(cut, new, at, strict=True):
        n = int(min(n, 12))
        assert torch.equal(row[:n], whole[:n]) and (row[n:] == new[0, 3]).all()


def test_text():
    lm = tiny()
    assert lm.decode(lm.encode("état")[0]) == "état"
    assert isinstance(lm.write("abc", 5, seed=0), str)
    with pytest.raises(ValueError, match=r"set model\.tokenizer"):
        tiny(tokenizer="").encode("abc")


def test_files(tmp_path):
    lm = tiny(HYBRID, options={"gla": {"heads": 2}}, tie=True, dropout=0.1)
    lm.record = {"bits": 1.5}
    file = lm.save(tmp_path / "a.safetensors")
    again = models.LM.open(file)
    assert again.config == lm.config and again.record == lm.record and not again.training
    ids = torch.randint(256, (1, 9))
    assert torch.equal(again(ids)[0], lm(ids)[0])
    half = models.LM.open(lm.save(tmp_path / "b.safetensors", dtype=torch.float16))
    assert half.norm.weight.dtype == torch.float32
    torch.testing.assert_close(half(ids)[0], lm(ids)[0], atol=0.05, rtol=0)
    with pytest.raises(ValueError, match=r"ends in \.safetensors"):
        lm.save(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"layers": ("glad",)}, r"layers must be one of softmax.*got 'glad'"),
        ({"mlp": "big"}, "mlp must be one of swiglu.*got 'big'"),
        ({"mlp": ("none", "none")}, "mlp must be one for each of 1 blocks"),
        ({"norm": "batch"}, "norm must be one of rms, layer"),
        ({"options": {"mamba": {}}}, "options must be one of gla, got 'mamba'"),
        ({"vocab": 0}, "vocab must be a whole number >= 1"),
        ({"tokenizer": "words"}, "tokenizer must be one of"),
    ],
)
def test_bad_config(given, message):
    with pytest.raises(ValueError, match=message):
        Config(**{"vocab": 8, "width": 8, "layers": ("gla",)} | given)


def test_bad_input():
    lm, ids = tiny(vocab=10, tokenizer=""), torch.zeros(1, 4, dtype=torch.long)
    for wrong, message in (
        (ids[0], r"wanted whole numbers \[B, T\], got torch.int64 \[4\]"),
        (ids.float(), "got torch.float32"),
        ([[1]], "got <class 'list'>"),
        (ids + 10, "ids: wanted 0 to 9, got 10"),
        (ids - 1, "ids: wanted 0 to 9, got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            lm(wrong)
    with pytest.raises(ValueError, match="state: wanted one of this model's 2 blocks, got 0"):
        lm(ids, State())
    for options, name in (
        ({"temperature": -1.0}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
    ):
        with pytest.raises(ValueError, match=f"{name}: wanted"):
            lm.generate(ids, 2, **options)
    with pytest.raises(ValueError, match="n: wanted 1 or more"):
        lm.generate(ids, 0)
    with pytest.raises(ValueError, match="one token or more"):
        lm.generate(ids[:, :0], 2)
    with pytest.raises(ValueError, match="depth: wanted 3"):
        models.small(HYBRID, 2)
