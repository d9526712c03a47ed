"""Tasks that ask for something seen earlier: what a state must hold, and for how long."""

from dataclasses import dataclass

import torch

from linviz.tasks.task import IGNORE, Batch, Task, at_least, distinct


@dataclass(frozen=True)
class MQAR(Task):
    """Multi-query associative recall: key-value pairs first, then each key once more.

    The sequence starts with k1 v1 k2 v2 ...; later each key comes again at a random place, where
    its value is asked for. A query stands 2s tokens after the pairs, s = 0, 1, ... drawn without
    replacement with p(s) ~ (s + 1)^(power - 1): most soon, some late. All else is random tokens.
    Keys are different numbers of 1..vocab/2-1, values of vocab/2..vocab-1.

    Source: Arora et al., "Zoology", 2023, arXiv:2312.04927 (the generator of its code, whose
    further demand vocab > T is dropped).

    Attributes:
        pairs: key-value pairs.
        T: length of the sequence, even, at least 4 pairs.
        vocab: input and output ids.
        power: exponent of the power law; 1 places the queries evenly.
    """

    pairs: int = 8
    T: int = 64
    vocab: int = 256
    power: float = 0.01

    def __post_init__(self):
        at_least("pairs", self.pairs, 1)
        at_least("T", self.T, 4 * self.pairs)
        at_least("vocab", self.vocab, 2 * self.pairs + 2)
        if self.T % 2:
            raise ValueError(f"T must be even, got {self.T}")

    def draw(self, batch: int, rng: torch.Generator) -> Batch:
        """See Task.sample."""
        half, start = self.vocab // 2, 2 * self.pairs
        keys = 1 + distinct(batch, self.pairs, half - 1, rng)
        values = half + distinct(batch, self.pairs, self.vocab - half, rng)
        slots = torch.arange(1, (self.T - start) // 2 + 1, dtype=torch.float64)
        chances = (slots ** (self.power - 1)).expand(batch, -1)
        queries = start + 2 * chances.multinomial(self.pairs, generator=rng)
        inputs = torch.randint(self.vocab, (batch, self.T), generator=rng)
        inputs[:, 0:start:2] = keys
        inputs[:, 1:start:2] = values
        inputs.scatter_(1, queries, keys)
        return inputs, torch.full_like(inputs, IGNORE).scatter_(1, queries, values)


@dataclass(frozen=True)
class SelectiveCopy(Task):
    """Copy the data tokens and skip the noise between them.

    The first T - tokens places hold the data (1..vocab-2) in random places of their own and noise
    (0) elsewhere; then comes one marker (vocab-1) for each data token. At the j-th marker the j-th
    data token is asked for.

    Source: Gu and Dao, "Mamba", 2023, arXiv:2312.00752, section 4.1.1.

    Attributes:
        tokens: data tokens.
        T: length of the sequence, markers included, at least 2 tokens.
        vocab: input and output ids.
    """

    tokens: int = 6
    T: int = 54
    vocab: int = 16

    def __post_init__(self):
        at_least("tokens", self.tokens, 1)
        at_least("T", self.T, 2 * self.tokens)
        at_least("vocab", self.vocab, 3)

    def draw(self, batch: int, rng: torch.Generator) -> Batch:
        """See Task.sample."""
        start = self.T - self.tokens
        places = distinct(batch, self.tokens, start, rng).sort(1).values
        data = torch.randint(1, self.vocab - 1, (batch, self.tokens), generator=rng)
        inputs = torch.zeros(batch, self.T, dtype=torch.int64).scatter_(1, places, data)
        inputs[:, start:] = self.vocab - 1
        labels = torch.full_like(inputs, IGNORE)
        labels[:, start:] = data
        return inputs, labels


@dataclass(frozen=True)
class Induction(Task):
    """Induction heads: what came after the marker when it stood here before?

    Random tokens of 0..vocab-2; the marker vocab-1 stands at one random place up to T-4 and at the
    end, where the token after the first marker is asked for.

    Source: Gu and Dao, "Mamba", 2023, arXiv:2312.00752, section 4.1.2.

    Attributes:
        T: length of the sequence, at least 4.
        vocab: input and output ids.
    """

    T: int = 64
    vocab: int = 16

    def __post_init__(self):
        at_least("T", self.T, 4)
        at_least("vocab", self.vocab, 3)

    def draw(self, batch: int, rng: torch.Generator) -> Batch:
        """See Task.sample."""
        inputs = torch.randint(self.vocab - 1, (batch, self.T), generator=rng)
        marker = torch.randint(self.T - 3, (batch, 1), generator=rng)
        inputs.scatter_(1, marker, self.vocab - 1)
        inputs[:, -1] = self.vocab - 1
        labels = torch.full_like(inputs, IGNORE)
        labels[:, -1:] = inputs.gather(1, marker + 1)
        return inputs, labels


@dataclass(frozen=True)
class Passkey(Task):
    """Find the needle: a short key once in long filler, asked for at the end.

    Filler is random tokens of 0..9. At a random place stand the marker 20 and the key, digits of
    10..19. The sequence ends in the marker and the key without its last digit; at each of these
    places the next digit of the key is asked for, as a language model would be asked.

    Source: Mohtashami and Jaggi, "Landmark Attention", 2023, arXiv:2305.16300, with tokens in
    the place of sentences.

    Attributes:
        digits: length of the key.
        T: length of the sequence, at least 2 digits + 1.
    """

    digits: int = 2
    T: int = 96

    vocab = 21

    def __post_init__(self):
        at_least("digits", self.digits, 1)
        at_least("T", self.T, 2 * self.digits + 1)

    def draw(self, batch: int, rng: torch.Generator) -> Batch:
        """See Task.sample."""
        start = self.T - self.digits
        inputs = torch.randint(10, (batch, self.T), generator=rng)
        key = torch.randint(10, 20, (batch, self.digits), generator=rng)
        marked = torch.cat([torch.full((batch, 1), 20), key], 1)
        place = torch.randint(start - self.digits, (batch, 1), generator=rng)
        inputs.scatter_(1, place + torch.arange(self.digits + 1), marked)
        inputs[:, start:] = marked[:, :-1]
        labels = torch.full_like(inputs, IGNORE)
        labels[:, start:] = key
        return inputs, labels
