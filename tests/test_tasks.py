"""linviz.tasks: each generator by its defining property, and a recipe that repeats itself."""

import ast
import math
import signal
import sys
from collections import Counter, defaultdict
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import linviz.tasks as tasks
from linviz.tasks import (
    IGNORE,
    MQAR,
    Digits,
    GroupWords,
    Induction,
    KneserNey,
    Parity,
    Passkey,
    Regression,
    SelectiveCopy,
    Text,
    backoff_bits,
    evaluate,
    text,
    train,
    training,
)

SYNTHETIC = (
    MQAR(),
    SelectiveCopy(),
    Induction(),
    Passkey(),
    Parity(),
    GroupWords(),
    GroupWords("A5", T=8),
    GroupWords("S5", T=8, transpositions_only=True),
    Text(T=64),
)
ASKED = {"MQAR": 8, "SelectiveCopy": 6, "Induction": 1, "Passkey": 2}  # a sequence; others: all


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


class Tiny(nn.Module):
    """Embedding, short convolution, attention, output: as much as associative recall needs."""

    def __init__(self, task, D=32, dropout=0.0, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(task.vocab, D)
        nn.init.normal_(self.embed.weight, std=0.02)
        self.norm, self.qkv = nn.LayerNorm(D), nn.Linear(D, 3 * D, bias=False)
        self.conv = nn.Conv1d(3 * D, 3 * D, 4, groups=3 * D, padding=3)
        self.dropout = nn.Dropout(dropout)
        self.out, self.end = nn.Linear(D, D), nn.LayerNorm(D)
        self.head = nn.Linear(D, task.classes)

    def forward(self, ids):
        x = self.embed(ids)
        mixed = F.silu(self.conv(self.qkv(self.norm(x)).mT)[..., : ids.shape[1]].mT)
        q, k, v = mixed.chunk(3, -1)
        x = x + self.out(self.dropout(F.scaled_dot_product_attention(q, k, v, is_causal=True)))
        return self.head(self.end(x))


class Constant(nn.Module):
    """The same output for every token."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs = nn.Parameter(outputs)

    def forward(self, x):
        return self.outputs.expand(*x.shape[:2], -1), "a state"


# --- every task --------------------------------------------------------------------------------


@pytest.mark.parametrize("task", SYNTHETIC, ids=str)
def test_shapes_ranges_and_seeds(task):
    inputs, labels = task.sample(5, rng())
    assert inputs.shape == labels.shape == (5, task.T)
    assert inputs.dtype == labels.dtype == torch.int64
    assert 0 <= inputs.min() and inputs.max() < task.vocab
    asked = labels != IGNORE
    assert (asked.sum(1) == ASKED.get(type(task).__name__, task.T)).all()
    assert 0 <= labels[asked].min() and labels[asked].max() < task.classes
    again, other = task.sample(5, rng())[0], task.sample(5, rng(1))[0]
    assert torch.equal(inputs, again) and not torch.equal(inputs, other)


@pytest.mark.parametrize("task", SYNTHETIC[:-1], ids=str)
def test_longer_sequences_are_a_replaced_T(task):
    inputs, labels = replace(task, T=2 * task.T).sample(3, rng())
    assert inputs.shape == labels.shape == (3, 2 * task.T)


def test_exams_and_training_never_draw_the_same():
    seen = []

    class Spy(Parity):
        def draw(self, batch, rng):
            seen.append(rng.initial_seed())
            return super().draw(batch, rng)

    model, task = Constant(torch.zeros(2)), Spy(T=4)
    train(model, task, steps=3, lr=1e-3, batch=2, evaluate_every=3, seed=7, progress=False)
    evaluate(model, task, seed=7, batches=2)
    evaluate(model, task, seed=8, batches=2)
    assert len(set(seen[:7])) == 7 and seen[7:9] == seen[3:5] and not {*seen[9:]} & {*seen[:7]}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MQAR(pairs=0), "pairs must be .* 1 or more, got 0"),
        (lambda: MQAR(pairs=8, T=30), "T must be .* 32 or more, got 30"),
        (lambda: MQAR(T=65), "T must be even"),
        (lambda: MQAR(pairs=8, vocab=17), "vocab must be .* 18 or more"),
        (lambda: SelectiveCopy(tokens=6, T=11), "T must be .* 12 or more"),
        (lambda: Induction(T=3), "T must be .* 4 or more"),
        (lambda: Passkey(digits=3, T=6), "T must be .* 7 or more"),
        (lambda: GroupWords("D4"), "group must be one of S3, S4"),
        (lambda: GroupWords("A5", transpositions_only=True), "transpositions_only needs an S"),
        (lambda: Regression(d=0), "d must be"),
        (lambda: Regression(noise=-1.0), "noise must be"),
        (lambda: Text(held_out="train"), "held_out must be"),
        (lambda: Text(T=10**6), "T must be below"),
        (lambda: Text.bytes("dev"), "split must be one of"),
        (lambda: Parity().sample(0, rng()), "batch must be"),
        (lambda: KneserNey(b"some text", 8), "order must be at most 7"),
        (lambda: backoff_bits(b"some text", torch.zeros(3)), "test_bytes must be bytes or uint8"),
        (lambda: backoff_bits(b"", b"some text"), "train_bytes must be bytes or uint8"),
        (lambda: evaluate(Constant(torch.zeros(2)), Parity(), batches=0), "batches must be"),
    ],
)
def test_bad_sizes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_smallest_sizes_work():
    smallest = (
        MQAR(1, 4, 4),
        SelectiveCopy(1, 2, 3),
        Induction(4, 3),
        Passkey(1, 3),
        Parity(1),
        GroupWords(T=1),
    )
    for task in smallest:
        assert task.sample(2, rng())[0].shape == (2, task.T)


def test_imports_only_itself():
    roots = Counter()
    for file in Path(tasks.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            roots.update(n if n.startswith("linviz") else n.split(".")[0] for n in names)
    ours = {name for name in roots if name.startswith("linviz")}
    assert roots and all(name.startswith("linviz.tasks") for name in ours)
    assert set(roots) - ours <= sys.stdlib_module_names | {"torch", "numpy", "tqdm", "sklearn"}


# --- recall ------------------------------------------------------------------------------------


def test_mqar_asks_each_key_once_for_its_value():
    task = MQAR(pairs=4, T=32, vocab=20)
    zeros = 0
    for x, y in zip(*(z.tolist() for z in task.sample(200, rng())), strict=True):
        keys, values = x[0:8:2], x[1:8:2]
        assert len(set(keys)) == 4 and set(keys) <= set(range(1, 10))
        assert len(set(values)) == 4 and set(values) <= set(range(10, 20))
        asked = [t for t in range(32) if y[t] != IGNORE]
        assert all(t >= 8 and t % 2 == 0 for t in asked)
        assert {x[t]: y[t] for t in asked} == dict(zip(keys, values, strict=True))
        zeros += x.count(0)
    assert zeros > 100  # all else is random, zero among it


@pytest.mark.parametrize("power", [0.01, 1.0])
def test_mqar_draws_queries_one_after_the_other_by_the_power_law(power):
    n, task = 40_000, MQAR(pairs=2, T=14, vocab=8, power=power)
    labels = task.sample(n, rng())[1]
    slots = (labels[:, 4::2] != IGNORE).nonzero()[:, 1].view(n, 2)
    found = Counter(map(tuple, slots.tolist()))
    p = torch.arange(1, 6, dtype=torch.float64) ** (power - 1)
    p = (p / p.sum()).tolist()
    for i in range(5):
        for j in range(i + 1, 5):
            chance = p[i] * p[j] / (1 - p[i]) + p[j] * p[i] / (1 - p[j])
            assert abs(found[i, j] / n - chance) < 5 * math.sqrt(chance / n)


def test_selective_copy_skips_the_noise():
    inputs, labels = SelectiveCopy(tokens=3, T=11, vocab=6).sample(2000, rng())
    assert (inputs[:, 8:] == 5).all() and (labels[:, :8] == IGNORE).all()
    body = inputs[:, :8]
    assert (body < 5).all()
    assert torch.equal(body[body > 0].view(-1, 3), labels[:, 8:])
    often = (body > 0).double().mean(0)
    assert (often - 3 / 8).abs().max() < 5 * math.sqrt(3 / 8 / 2000)
    assert set(labels[:, 8:].unique().tolist()) == {1, 2, 3, 4}


def test_induction_asks_what_came_after_the_marker():
    inputs, labels = Induction(T=10, vocab=5).sample(1000, rng())
    places = set()
    for x, y in zip(inputs.tolist(), labels.tolist(), strict=True):
        p = x.index(4)
        assert x.count(4) == 2 and x[-1] == 4 and y[-1] == x[p + 1] and set(y[:-1]) == {IGNORE}
        places.add(p)
    assert places == set(range(7))


def test_passkey_stands_once_in_the_filler():
    inputs, labels = Passkey(digits=3, T=14).sample(1000, rng())
    places = set()
    for x, y in zip(inputs.tolist(), labels.tolist(), strict=True):
        key, p = y[-3:], x.index(20)
        assert x[p : p + 4] == [20, *key] and all(10 <= digit < 20 for digit in key)
        assert x[-3:] == [20, *key[:-1]] and set(y[:-3]) == {IGNORE}
        assert all(i < 10 for i in x[:p] + x[p + 4 : -3])
        places.add(p)
    assert places == set(range(8))


# --- state tracking ----------------------------------------------------------------------------


def test_parity_counts_ones():
    inputs, labels = Parity(T=20).sample(50, rng())
    for x, y in zip(inputs.tolist(), labels.tolist(), strict=True):
        assert y == [sum(x[: t + 1]) % 2 for t in range(20)]
    assert 0.4 < inputs.double().mean() < 0.6


@pytest.mark.parametrize(
    ("task", "order", "tokens"),
    [
        (GroupWords("S3", T=12), 6, 6),
        (GroupWords("S4", T=12), 24, 24),
        (GroupWords("S5", T=12), 120, 120),
        (GroupWords("A4", T=12), 12, 12),
        (GroupWords("A5", T=12), 60, 60),
        (GroupWords("S3", T=12, transpositions_only=True), 6, 3),
        (GroupWords("S5", T=12, transpositions_only=True), 120, 10),
    ],
    ids=str,
)
def test_group_words_move_things(task, order, tokens):
    inputs, labels = task.sample(200, rng())
    assert task.vocab == task.classes == order == len(set(task.elements))
    assert len(inputs.unique()) == tokens
    n = len(task.elements[0])
    for x, y in zip(inputs[:20].tolist(), labels[:20].tolist(), strict=True):
        places = list(range(n))  # where each thing is now
        for token, label in zip(x, y, strict=True):
            places = [task.elements[token][place] for place in places]
            assert task.elements[label] == tuple(places)
    if task.transpositions_only:
        assert all(sum(i != p for i, p in enumerate(task.elements[t])) == 2 for t in x)
    if task.group == "A5":
        matrices = torch.eye(5)[torch.tensor(task.elements)]
        assert torch.allclose(torch.linalg.det(matrices), torch.ones(60))


# --- regression --------------------------------------------------------------------------------


def test_regression_can_be_solved_from_its_examples():
    inputs, labels = Regression(d=3, T=8).sample(50, rng())
    assert inputs.shape == (50, 8, 4) and labels[:, :-1].isnan().all()
    assert (inputs[:, -1, -1] == 0).all()
    x, y = inputs[:, :-1, :-1].double(), inputs[:, :-1, -1:].double()
    w = torch.linalg.lstsq(x, y).solution
    guess = (inputs[:, -1, :-1].double() @ w)[:, :, 0].diagonal()
    torch.testing.assert_close(guess.float(), labels[:, -1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_regression_has_the_risk_that_theory_gives(noise):
    """The best linear attention: x^T (sum of x_i y_i) / (n + d + 1 + noise^2)."""
    n, d = 10, 5
    inputs, labels = Regression(d=d, T=n + 1, noise=noise).sample(100_000, rng())
    summed = (inputs[:, :-1, :-1] * inputs[:, :-1, -1:]).sum(1)
    guess = (inputs[:, -1, :-1] * summed).sum(1) / (n + d + 1 + noise**2)
    squares = (guess - labels[:, -1]).double() ** 2
    risk = d + noise**2 - n * d / (n + d + 1 + noise**2)
    assert abs(squares.mean() - risk) < 5 * squares.std() / math.sqrt(len(squares))


def test_numbers_have_a_loss_but_no_accuracy():
    found = evaluate(Constant(torch.ones(1)), Regression(T=6), batches=2, batch=100)
    exam = Regression(T=6).exam(2, 100, 0)
    y = torch.cat([labels[:, -1] for _, labels in exam]).double()
    assert set(found) == {"count", "loss"} and found["count"] == 200
    assert found["loss"] == pytest.approx(((y - 1) ** 2).mean().item(), rel=1e-6)


# --- text --------------------------------------------------------------------------------------


def test_splits_share_neither_pages_nor_sentences():
    pages = {split: text.pages(split) for split in text.SPLITS}
    names = [name for split in text.SPLITS for name in pages[split]]
    assert len(names) == len(set(names)) > 40
    assert min(len(pages[split]) for split in text.SPLITS) >= 4
    training = Text.bytes("train").numpy().tobytes().decode()
    for split in ("validation", "test"):
        held = "\n\n".join(pages[split].values())
        assert Text.bytes(split).numpy().tobytes().decode() == held
        assert 0.02 < len(held) / len(training) < 0.12
        pieces = [held[i : i + 60] for i in range(0, len(held) - 60, 10)]
        assert sum(piece in training for piece in pieces) / len(pieces) < 0.01


def test_a_page_keeps_its_split():
    """The names alone decide: the same in every release of Python."""
    known = {"train": "compound specialnames types", "test": "dict execmodel raise return"}
    known |= {"validation": "lists objects slicings typesmapping"}
    for split, names in known.items():
        assert {text.split_of(name) for name in names.split()} == {split}


def test_training_windows_come_from_the_training_split():
    task = Text(T=50)
    train_bytes = Text.bytes("train").numpy().tobytes()
    inputs, labels = task.sample(20, rng())
    assert torch.equal(inputs[:, 1:], labels[:, :-1])
    for x, last in zip(inputs, labels[:, -1:], strict=True):
        assert bytes(torch.cat([x, last]).tolist()) in train_bytes


@pytest.mark.parametrize("T", [64, 65, 10_000])
def test_the_exam_asks_each_byte_once_with_half_a_window_before_it(T):
    task = Text(T=T, held_out="test")
    whole = Text.bytes("test").tolist()
    answers, shortest, start = [], T, None
    for inputs, labels in task.exam(1, 16, 0):
        for x, y in zip(inputs, labels, strict=True):
            first = int((y != IGNORE).nonzero()[0])
            assert (y[first:] != IGNORE).all()
            start = len(answers) - first
            assert x.tolist() == whole[start : start + T]
            shortest = min(shortest, first + 1) if answers else shortest
            answers += y[first:].tolist()
    assert answers == whole[1:] and shortest >= T / 2


def test_text_says_which_text_it_is():
    described = Text().describe()
    assert len(described["sha256"]) == 64 and described["name"] == "Text"
    found = evaluate(Constant(torch.zeros(256)), Text(T=512))
    assert found["bits"] == pytest.approx(8) and found["count"] == len(Text.bytes("validation")) - 1


# --- the n-gram --------------------------------------------------------------------------------


def slow_kneser_ney(train, context, order):
    """The distribution over the next byte, by the book: dictionaries and recursion."""
    counts = {n: Counter() for n in range(1, order + 1)}
    for i in range(len(train) - order + 1):
        counts[order][train[i : i + order]] += 1
    for n in range(order - 1, 0, -1):
        before = defaultdict(set)
        for i in range(len(train) - n):
            before[train[i + 1 : i + 1 + n]].add(train[i])
        counts[n] = Counter({gram: len(who) for gram, who in before.items()})

    def distribution(n):
        if n == 0:
            return [1 / 256] * 256
        below, tail = distribution(n - 1), context[len(context) - n + 1 :]
        many = Counter(counts[n].values())
        n1, n2, n3, n4 = (max(1, many[c]) for c in (1, 2, 3, 4))
        y = n1 / (n1 + 2 * n2)
        off = [0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]
        off = [0] + [min(max(off[c], 0.1), c) for c in (1, 2, 3)]
        c = [counts[n][tail + bytes([s])] for s in range(256)]
        if not sum(c):
            return below
        taken = sum(off[min(x, 3)] for x in c)
        return [(x - off[min(x, 3)] + taken * b) / sum(c) for x, b in zip(c, below, strict=True)]

    return distribution(order)


@pytest.mark.parametrize("length", [3000, 500])
@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_probabilities_are_kneser_neys_and_sum_to_one(order, length):
    train_bytes = Text.bytes("train")[:length].numpy().tobytes()
    if length == 500:
        train_bytes *= 2  # few n-grams stand once: the estimates of the discounts are useless
    model = KneserNey(train_bytes, order)
    for context in (train_bytes[100:110], b"an unseen \xff\xfe", b"a \xffth"):
        p = [model.probability(context + bytes([s]))[-1] for s in range(256)]
        assert min(p) > 0 and sum(p) == pytest.approx(1, abs=1e-12)
        if order > 1:
            context = context[1 - order :]
        assert p == pytest.approx(slow_kneser_ney(train_bytes, context, order), rel=1e-9)


def test_the_start_of_a_text_has_short_contexts():
    train_bytes = Text.bytes("train")[:3000]
    p = KneserNey(train_bytes, 3).probability(b"the")
    assert p[2] == pytest.approx(slow_kneser_ney(train_bytes.numpy().tobytes(), b"th", 3)[ord("e")])
    assert len(p) == 3 and 1 / 256 < p[0] < p[2]


def test_backoff_bits_are_a_bar():
    training, held = Text.bytes("train"), Text.bytes("validation")
    bits = [backoff_bits(training, held, order) for order in (1, 2, 3, 5)]
    assert bits == sorted(bits, reverse=True) and 2.5 < bits[2] < 3.2
    p = KneserNey(training, 3).probability(held)
    assert bits[2] == pytest.approx(sum(-math.log2(x) for x in p[1:]) / (len(held) - 1))
    assert backoff_bits(b"ab" * 5000, b"ab" * 100) < 0.01
    noise = torch.randint(256, (20_000,), generator=rng()).to(torch.uint8)
    assert 8 < backoff_bits(noise[:10_000], noise[10_000:]) < 8.3


# --- digits ------------------------------------------------------------------------------------


def test_digits_are_read_row_by_row():
    data = pytest.importorskip("sklearn.datasets").load_digits()
    pixels = torch.tensor(data.images).long().view(-1, 64)
    exam = [torch.cat(parts) for parts in zip(*Digits().exam(1, 100, 0), strict=True)]
    assert torch.equal(exam[0], pixels[1437:]) and (exam[1][:, :-1] == IGNORE).all()
    assert exam[1][:, -1].tolist() == data.target[1437:].tolist()
    inputs, labels = Digits().sample(200, rng())
    known = {tuple(x): y for x, y in zip(pixels[:1437].tolist(), data.target, strict=False)}
    assert all(known[tuple(x)] == y[-1] for x, y in zip(inputs.tolist(), labels, strict=True))
    assert not torch.equal(inputs, Digits().sample(200, rng(1))[0])
    assert not {tuple(x) for x in exam[0].tolist()} & known.keys()
    assert evaluate(Constant(torch.zeros(10)), Digits())["count"] == 360


def test_digits_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    tasks.digits.images.cache_clear()
    with pytest.raises(ImportError, match="pip install scikit-learn"):
        Digits().sample(1, rng())


# --- evaluate and train ------------------------------------------------------------------------


def test_evaluate_counts_right_answers():
    task = Parity(T=8)
    found = evaluate(Constant(torch.tensor([1.0, 0.0])), task, batches=3, batch=50, seed=4)
    y = torch.cat([labels for _, labels in task.exam(3, 50, 4)])
    zeros = (y == 0).double().mean().item()
    right, wrong = math.log(1 + math.exp(-1)), math.log(1 + math.exp(1))
    assert found["count"] == 1200 and found["accuracy"] == pytest.approx(zeros)
    assert found["loss"] == pytest.approx(zeros * right + (1 - zeros) * wrong, rel=1e-6)
    assert found["bits"] == pytest.approx(found["loss"] / math.log(2))


def test_evaluate_leaves_the_model_as_it_was():
    task = MQAR(2, 8, 8)
    model = Tiny(task, dropout=0.5)
    assert evaluate(model, task) == evaluate(model, task)  # no dropout inside
    assert model.training and all(p.grad is None for p in model.parameters())
    evaluate(model.eval(), task)
    assert not model.training


def test_training_solves_recall_and_stops_there():
    task = MQAR(pairs=4, T=32, vocab=32)
    model = Tiny(task)
    record = train(
        model,
        task,
        steps=600,
        lr=1e-2,
        stop_at={"accuracy": 0.95},
        evaluate_every=50,
        progress=False,
    )
    assert record.final["accuracy"] >= 0.95 and record.steps == record.final["step"] < 600
    assert len(record.losses) == record.steps and record.losses[0] > math.log(20)
    assert evaluate(model, replace(task, T=48))["accuracy"] > 0.9
    assert record.settings["task"] == {"name": "MQAR", **asdict(task)}


RECIPE = dict(steps=12, lr=1e-2, batch=8, evaluate_every=5, seed=3, progress=False)
SMALL = MQAR(2, 16, 16)


def outcome(model, record):
    weights = [p.detach() for p in model.parameters()]
    return record.losses, record.evaluations, weights


def same(a, b):
    pairs = zip(a[2], b[2], strict=True)
    return a[:2] == b[:2] and all(torch.equal(x, y) for x, y in pairs)


@pytest.fixture(scope="module")
def uninterrupted():
    model = Tiny(SMALL, dropout=0.1)
    return outcome(model, train(model, SMALL, **RECIPE))


def test_two_runs_are_equal_bit_for_bit(uninterrupted):
    model = Tiny(SMALL, dropout=0.1)
    torch.manual_seed(123)  # the caller's generator changes nothing, and is not changed
    before = torch.get_rng_state()
    again = outcome(model, train(model, SMALL, **RECIPE))
    assert same(again, uninterrupted) and torch.equal(torch.get_rng_state(), before)
    assert [e["step"] for e in again[1]] == [5, 10, 12]
    model = Tiny(SMALL, dropout=0.1)
    other = train(model, SMALL, **{**RECIPE, "seed": 4})
    assert other.losses != uninterrupted[0]


class Interrupted(Tiny):
    """Ctrl-C in the middle of a step, and a power cut in another."""

    calls, ctrl_c, cut = 0, None, None

    def forward(self, ids):
        if self.training:
            self.calls += 1
            if self.calls == self.ctrl_c:
                signal.raise_signal(signal.SIGINT)
            if self.calls == self.cut:
                raise OSError("power cut")
        return super().forward(ids)


@pytest.mark.parametrize(("ctrl_c", "cut", "saved"), [(7, None, 7), (5, None, 5), (None, 9, 5)])
def test_an_interrupted_run_goes_on_to_the_same_numbers(
    tmp_path, uninterrupted, ctrl_c, cut, saved
):
    path, handler = tmp_path / "run.pt", signal.getsignal(signal.SIGINT)
    model = Interrupted(SMALL, dropout=0.1)
    model.ctrl_c, model.cut = ctrl_c, cut
    with pytest.raises(KeyboardInterrupt if ctrl_c else OSError):
        train(model, SMALL, **RECIPE, checkpoint=path)
    assert signal.getsignal(signal.SIGINT) is handler
    kept = torch.load(path, weights_only=True)
    assert len(kept["losses"]) == saved

    model = Tiny(SMALL, dropout=0.1, seed=99)
    record = train(model, SMALL, **RECIPE, checkpoint=path)
    assert same(outcome(model, record), uninterrupted) and record.seconds > kept["seconds"]

    model = Tiny(SMALL, dropout=0.1, seed=98)  # a finished run has nothing left to do
    assert train(model, SMALL, **RECIPE, checkpoint=path) == record
    assert same(outcome(model, record), uninterrupted)
    assert [file.name for file in tmp_path.iterdir()] == ["run.pt"]
    with pytest.raises(ValueError, match=r"other settings: lr 0.01, now 0.02$"):
        train(model, SMALL, **{**RECIPE, "lr": 0.02}, checkpoint=path)


def test_without_a_checkpoint_ctrl_c_is_python_s_own():
    model = Interrupted(SMALL)
    model.ctrl_c = 3
    # a process that a shell started in the background ignores it
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            train(model, SMALL, **RECIPE)
    finally:
        signal.signal(signal.SIGINT, before)
    assert model.calls == 3


def test_stop_at_bounds_losses_from_above():
    model = Constant(torch.zeros(2))
    recipe = dict(steps=9, lr=1e-3, batch=2, evaluate_every=2, progress=False)
    assert train(model, Parity(T=4), stop_at={"bits": 1.1}, **recipe).steps == 2
    assert train(model, Parity(T=4), stop_at={"loss": 0.1}, **recipe).steps == 9


class Steep(Constant):
    """A finite output with an infinite gradient."""

    def forward(self, x):
        return super().forward(x)[0].sqrt()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Constant(torch.tensor([0.0, math.nan])), "loss nan, norm of the gradient nan"),
        (Constant(torch.tensor([0.0, -math.inf])), "loss inf, norm of the gradient 0"),
        (Steep(torch.zeros(2)), "loss 0.69.*, norm of the gradient (inf|nan)"),
    ],
)
def test_divergence_is_named(model, message):
    with pytest.raises(FloatingPointError, match=f"diverged at step 0: {message}.*lower lr"):
        train(model, Parity(T=4), steps=5, lr=0.5, batch=2, progress=False)


def test_the_gradient_is_clipped(tmp_path):
    path = tmp_path / "run.pt"
    train(Tiny(SMALL), SMALL, **{**RECIPE, "steps": 1}, clip=1e-3, checkpoint=path)
    states = torch.load(path, weights_only=True)["optimizer"]["state"].values()
    norm = torch.cat([state["exp_avg"].flatten() for state in states]).norm()
    assert norm.item() == pytest.approx(0.1 * 1e-3, rel=1e-3)  # Adam's first mean: 0.1 gradients


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(steps=0), "steps must be"),
        (dict(lr=0.0), "lr must be a number above 0"),
        (dict(lr=math.nan), "lr must be a number above 0"),
        (dict(clip=-1.0), "clip must be"),
        (dict(warmup=1.0), "warmup must be a share"),
        (dict(evaluate_every=0), "evaluate_every must be"),
        (dict(stop_at={"speed": 1.0}), r"stop_at must name .* accuracy, got \['speed'\]"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        train(Tiny(SMALL), SMALL, **{**RECIPE, **settings})


def test_outputs_of_the_wrong_shape_are_named():
    with pytest.raises(ValueError, match=r"\[B, T, classes\] = \[8, 16, 16\] .* got \[8, 16, 3\]"):
        train(Constant(torch.zeros(3)), SMALL, **RECIPE)


def test_parameters_choose_their_decay_and_rate():
    model = nn.Module()
    model.w = nn.Parameter(torch.zeros(2, 2))
    model.bias = nn.Parameter(torch.zeros(2))
    model.A = nn.Parameter(torch.zeros(2, 2))
    model.A.no_weight_decay, model.A.max_lr = True, 1e-3
    model.slow = nn.Parameter(torch.zeros(2, 2))
    model.slow.lr_scale = 0.1
    model.frozen = nn.Parameter(torch.zeros(2, 2), requires_grad=False)
    found = {
        name: (group["weight_decay"], group["peak"])
        for group in training.groups(model, 0.02, 0.3)
        for name, p in model.named_parameters()
        if any(p is q for q in group["params"])
    }
    assert found == {
        "w": (0.3, 0.02),
        "bias": (0.0, 0.02),
        "A": (0.0, 1e-3),
        "slow": (0.3, pytest.approx(0.002)),
    }


def test_rates_and_decay_reach_the_weights():
    """Without a gradient only weight decay moves a weight: by lr(step) * decay each step."""

    class Idle(Constant):
        def __init__(self):
            super().__init__(torch.zeros(2))
            self.w, self.slow = (nn.Parameter(torch.ones(2, 2)) for _ in range(2))
            self.slow.lr_scale = 0.5

        def forward(self, x):
            return super().forward(x)[0] + 0 * (self.w.sum() + self.slow.sum())

    model = Idle()
    train(model, Parity(T=2), steps=20, lr=0.5, weight_decay=0.1, warmup=0.25, progress=False)
    rates = [0.5 * training.one_cycle(step, 20, 0.25) for step in range(20)]
    wanted = math.prod(1 - 0.1 * rate for rate in rates)
    slower = math.prod(1 - 0.05 * rate for rate in rates)
    torch.testing.assert_close(model.w.detach(), torch.full((2, 2), wanted))
    torch.testing.assert_close(model.slow.detach(), torch.full((2, 2), slower))


def test_one_cycle_rises_and_falls():
    rates = [training.one_cycle(step, 100, 0.1) for step in range(100)]
    assert rates[0] == pytest.approx(1 / 25) and rates[10] == 1 and 0 < rates[-1] < 1e-3
    assert rates[:11] == sorted(rates[:11]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[5] == pytest.approx((1 + 1 / 25) / 2) and rates[55] == pytest.approx(0.5)
    assert training.one_cycle(0, 1, 0.0) == 1
