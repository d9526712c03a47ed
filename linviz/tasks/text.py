"""Real text that needs no download, and a bar for models of it: the Kneser-Ney n-gram."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import torch
from torch import Tensor

from linviz.tasks.task import IGNORE, Batch, Task, at_least

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Text(Task):
    """Predict the next byte of Python's own help pages (`pydoc_data.topics`, 370 kB in English).

    The pages overlap: "if" stands word for word in "compound" too. So a page goes when more than
    half of its lines (of 30 characters or more) already stand in a longer one that stays. A page
    that stays belongs wholly to one split, which a hash of its name decides (salted once, so that
    the sizes come near 90, 5 and 5 %): a held-out page was never seen in training. What is left in
    common are a few stock sentences.

    The text differs from one release of Python to the next, and the figures with it: compare only
    figures with the same `sha256` (`describe()` gives it, and `train` records it). With Python
    3.11.7 there are 335, 21 and 19 kB, and sha256 begins with 9b61ab4a.

    Attributes:
        T: length of the sequences.
        held_out: the split that `evaluate` uses, "validation" or "test".
    """

    T: int = 256
    held_out: str = "validation"

    vocab = 256

    def __post_init__(self):
        if self.held_out not in SPLITS[1:]:
            raise ValueError(f"held_out must be 'validation' or 'test', got {self.held_out!r}")
        at_least("T", self.T, 2)
        for split in ("train", self.held_out):
            size = len(corpus()[split])
            if self.T >= size:
                raise ValueError(f"T must be below the {size} bytes of {split}, got {self.T}")

    @staticmethod
    def bytes(split: str) -> Tensor:
        """The pages of a split in the order of their names, a blank line between: uint8 [n]."""
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
        return corpus()[split].clone()

    @cached_property
    def sha256(self) -> str:
        """Fingerprint of the three splits."""
        splits = [corpus()[split].numpy().tobytes() for split in SPLITS]
        return hashlib.sha256(b"\0".join(splits)).hexdigest()

    def describe(self) -> dict:
        """See Task.describe; with the text's fingerprint."""
        return super().describe() | {"sha256": self.sha256}

    def draw(self, batch: int, rng: torch.Generator) -> Batch:
        """Windows of the training split at random places; see Task.sample."""
        text = corpus()["train"]
        starts = torch.randint(len(text) - self.T, (batch, 1), generator=rng)
        windows = text[starts + torch.arange(self.T + 1)].long()
        return windows[:, :-1], windows[:, 1:]

    def exam(self, batches: int, batch: int, seed: int) -> Iterator[Batch]:
        """The whole held-out split, whatever `batches` and `seed`.

        Windows of T bytes start T/2 apart, the last one at the very end. In each only bytes that
        no window before it asked for are asked for: every byte but the first exactly once, each
        with at least T/2 bytes before it (but those that start the split).
        """
        text = corpus()[self.held_out]
        last = len(text) - 1 - self.T
        starts = torch.tensor([*range(0, last, self.T // 2), last])
        windows = text[starts[:, None] + torch.arange(self.T + 1)].long()
        inputs, labels = windows[:, :-1], windows[:, 1:].clone()
        for i in range(1, len(starts)):
            labels[i, : starts[i - 1] + self.T - starts[i]] = IGNORE
        yield from zip(inputs.split(batch), labels.split(batch), strict=True)


@cache
def corpus() -> dict[str, Tensor]:
    """The bytes of each split, uint8 [n]."""
    texts = {split: "\n\n".join(pages(split).values()).encode() for split in SPLITS}
    return {s: torch.frombuffer(bytearray(text), dtype=torch.uint8) for s, text in texts.items()}


def pages(split: str) -> dict[str, str]:
    """The pages of a split by name, in the order of names."""
    from pydoc_data.topics import topics  # 0.5 MB: only when needed

    seen, kept = set(), {}
    for name in sorted(topics, key=lambda name: (-len(topics[name]), name)):
        lines = {line.strip() for line in topics[name].splitlines() if len(line.strip()) >= 30}
        if 2 * len(lines & seen) <= len(lines):
            seen |= lines
            kept[name] = topics[name]
    return {name: kept[name] for name in sorted(kept) if split_of(name) == split}


def split_of(name: str) -> str:
    """The split that a page belongs to, by its name alone."""
    share = int.from_bytes(hashlib.sha256(f"6 {name}".encode()).digest()[:4], "big") % 100
    return "train" if share < 80 else "validation" if share < 90 else "test"


class KneserNey:
    """An n-gram model of bytes: interpolated Kneser-Ney with three discounts.

    Every n-gram gives up a part of its count (one discount for counts of 1, of 2, and of 3 and
    more). What is freed is shared out as the (n-1)-gram says, and so on down to 1/256 for every
    byte. Below the highest order not occurrences are counted, but the different bytes that came
    before. After a context never seen the shorter one speaks alone.

    Source: Chen and Goodman, "An Empirical Study of Smoothing Techniques for Language Modeling",
    1998, Harvard TR-10-98 ("modified Kneser-Ney").
    """

    def __init__(self, text: bytes | Tensor | np.ndarray, order: int):
        at_least("order", order, 1)
        if order > 7:
            raise ValueError(f"order must be at most 7 (n-grams are 64-bit numbers), got {order}")
        text = as_bytes("text", text, order + 1)
        self.tables = []
        for n in range(1, order + 1):
            if n == order:
                grams, counts = np.unique(n_grams(text, n), return_counts=True)
            else:
                longer = np.unique(n_grams(text, n + 1))
                grams, counts = np.unique(longer % 256**n, return_counts=True)
            self.tables.append(Table(grams, counts))

    def probability(self, text: bytes | Tensor | np.ndarray) -> np.ndarray:
        """The probability of each byte given the order - 1 (at the start fewer) before it, [n]."""
        text = as_bytes("text", text, 1)
        p = np.full(len(text), 1 / 256)
        for n, table in enumerate(self.tables[: len(text)], start=1):
            p[n - 1 :] = table.interpolate(n_grams(text, n), p[n - 1 :])
        return p


class Table:
    """The n-grams of one order: what remains of each count, and what each context has freed."""

    def __init__(self, grams: np.ndarray, counts: np.ndarray):
        discount = discounts(counts)[np.minimum(counts, 3)]
        self.grams, self.remains = grams, counts - discount
        self.contexts, starts = np.unique(grams // 256, return_index=True)
        self.totals = np.add.reduceat(counts, starts)
        self.freed = np.add.reduceat(discount, starts)

    def interpolate(self, grams: np.ndarray, shorter: np.ndarray) -> np.ndarray:
        """Probabilities of the n-grams' last bytes from those by the order below."""
        total = look_up(self.contexts, self.totals, grams // 256)
        freed = look_up(self.contexts, self.freed, grams // 256)
        own = look_up(self.grams, self.remains, grams) + freed * shorter
        return np.where(total > 0, own / np.maximum(total, 1), shorter)


def discounts(counts: np.ndarray) -> np.ndarray:
    """What to take off a count of 0, 1, 2 and 3 or more (Chen and Goodman's estimate).

    At least 0.1 of any count, so that no byte becomes impossible, and never more than the count.
    """
    n1, n2, n3, n4 = (max(1, int((counts == c).sum())) for c in (1, 2, 3, 4))
    y = n1 / (n1 + 2 * n2)
    found = np.array([1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
    return np.concatenate([[0.0], found.clip(0.1, [1, 2, 3])])


def backoff_bits(train_bytes: bytes | Tensor, test_bytes: bytes | Tensor, order: int = 3) -> float:
    """Bits per byte of a KneserNey n-gram: what a trained model must beat.

    The first byte is left out, as `evaluate` leaves it out: the figures can be compared. Text of
    Python 3.11.7 has, on validation and test, 2.87 and 2.66 with order 3, 2.04 and 1.67 with
    order 6.

    Args:
        train_bytes: text to count n-grams in, uint8 [n] or bytes.
        test_bytes: text to predict, 2 bytes or more.
        order: n, 1 to 7; 3 looks at the two bytes before.

    Raises:
        ValueError: order out of range, or a text too short or not of bytes.
    """
    train_bytes = as_bytes("train_bytes", train_bytes, 2)
    test_bytes = as_bytes("test_bytes", test_bytes, 2)
    p = KneserNey(train_bytes, order).probability(test_bytes)
    return float(-np.log2(p[1:]).mean())


def as_bytes(name: str, text: bytes | Tensor | np.ndarray, least: int) -> np.ndarray:
    """The text as uint8 [n], checked."""
    x = np.frombuffer(text, np.uint8) if isinstance(text, bytes) else np.asarray(text)
    if x.ndim != 1 or x.dtype != np.uint8 or len(x) < least:
        wanted = f"{name} must be bytes or uint8 [n], n at least {least}"
        raise ValueError(f"{wanted}, got {x.dtype} {list(x.shape)}")
    return x


def n_grams(text: np.ndarray, n: int) -> np.ndarray:
    """Every n-gram of the text as one number in base 256, int64."""
    size = len(text) - n + 1
    return sum(text[i : i + size].astype(np.int64) * 256 ** (n - 1 - i) for i in range(n))


def look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The value of each wanted key (keys are sorted); 0 where there is none."""
    at = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)
