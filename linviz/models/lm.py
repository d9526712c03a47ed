"""A language model over one kind of layer, or a list of kinds: hybrids at any ratio."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm import tqdm

from linviz import layers
from linviz.layers import RMSNorm, State
from linviz.layers.channel_mix import CHANNEL_MIXES
from linviz.listening import note
from linviz.models.mlp import SwiGLU
from linviz.models.moe import MoE

Ids = Int[Tensor, "b t"]
Logits = Float[Tensor, "b s n"]

MLPS: dict[str, Callable[..., nn.Module]] = {"swiglu": SwiGLU, "moe": MoE} | CHANNEL_MIXES
PIECE = 1024  # tokens of a prompt that are computed at once


@dataclass(frozen=True)
class Config:
    """What a language model is made of.

    Attributes:
        vocab: size of the vocabulary.
        width: channels of a token, D.
        layers: the kind of layer of each block, first to last.
        options: options of the layers by kind, such as {"gla": {"heads": 2}}.
        mlp: "swiglu", "moe", "rwkv4" to "rwkv7" (channel mixing) or "none"; or one for each block.
        mlp_options: options of the mlps by kind.
        norm: "rms" or "layer", before each mixer and mlp and at the end.
        eps: of these norms.
        offset: added to the weights of these norms, see RMSNorm.
        embedding_norm: a norm after the embedding, as in RWKV.
        tie: the embedding is also the map to the logits.
        dropout: share of each mixer's and mlp's output that is dropped while training.
        tokenizer: "bytes" (ids are UTF-8 bytes), or "" for one that comes with the weights.
    """

    vocab: int
    width: int
    layers: Sequence[str]
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    mlp: str | Sequence[str] = "swiglu"
    mlp_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    norm: str = "rms"
    eps: float = 1e-5
    offset: float = 0.0
    embedding_norm: bool = False
    tie: bool = False
    dropout: float = 0.0
    tokenizer: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        if not isinstance(self.mlp, str):
            object.__setattr__(self, "mlp", tuple(self.mlp))
        for name, least in (("vocab", 1), ("width", 1)):
            n = getattr(self, name)
            if not isinstance(n, int) or n < least:
                raise ValueError(f"Config: {name} must be a whole number >= {least}, got {n!r}")
        for kind in self.layers:
            one_of("layers", kind, layers.KINDS)
        for kind in self.mlps:
            one_of("mlp", kind, [*MLPS, "none"])
        if len(self.mlps) != len(self.layers):
            raise ValueError(
                f"Config: mlp must be one for each of {len(self.layers)} blocks, got {self.mlp}"
            )
        one_of("norm", self.norm, ("rms", "layer"))
        one_of("tokenizer", self.tokenizer, ("", "bytes"))
        for name, given, used in (
            ("options", self.options, self.layers),
            ("mlp_options", self.mlp_options, self.mlps),
        ):
            for kind in given:
                one_of(name, kind, used)

    @property
    def mlps(self) -> tuple[str, ...]:
        """The kind of mlp of each block."""
        return (self.mlp,) * len(self.layers) if isinstance(self.mlp, str) else tuple(self.mlp)


def one_of(name: str, given: Any, known: Any) -> None:
    """Refuse what is not known."""
    if given not in known:
        raise ValueError(f"Config: {name} must be one of {', '.join(known)}, got {given!r}")


class Block(nn.Module):
    """x + mixer(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: Config, i: int):
        super().__init__()
        kind, mlp = config.layers[i], config.mlps[i]
        place = (i, len(config.layers))
        self.norm = make_norm(config)
        self.mixer = layers.make(kind, config.width, place=place, **config.options.get(kind, {}))
        self.mlp_norm = self.mlp = None
        if mlp != "none":
            placed = {"place": place} if mlp.startswith("rwkv") else {}
            self.mlp_norm = make_norm(config)
            self.mlp = MLPS[mlp](config.width, **placed, **config.mlp_options.get(mlp, {}))
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, state: State | None = None, shared: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, State]:
        """[B, T, D] -> [B, T, D], from a state."""
        shares = {"shared": shared} if self.mixer.shares else {}
        past = None if state is None else state["mixer"]
        y, mixed = self.mixer(self.norm(x), past, **shares)
        note(self, x=x, mixed=y)
        x = x + self.dropout(y)
        if self.mlp is None:
            return x, State(mixer=mixed)
        state_after = State(mixer=mixed)
        if getattr(self.mlp, "stateful", False):  # channel mixing looks at the token before
            y, state_after["mlp"] = self.mlp(
                self.mlp_norm(x), None if state is None else state["mlp"]
            )
        else:
            y = self.mlp(self.mlp_norm(x))
        note(self, mlp=y)
        return x + self.dropout(y), state_after


def make_norm(config: Config) -> nn.Module:
    """A norm over D."""
    if config.norm == "layer":
        return nn.LayerNorm(config.width, config.eps)
    return RMSNorm(config.width, config.eps, offset=config.offset)


class LM(nn.Module):
    """A language model: embedding, blocks, norm, logits.

    `forward(ids, state=None) -> (logits, state)`; a text may be fed in pieces. `step` takes one
    token, `generate` samples, `write` continues a text.

    Attributes:
        config: what it is made of.
        tokenizer: an object with encode and decode, for models that are not over bytes.
        record: how it was trained or in what format it was published, where that is known.
    """

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.tokenizer: Any = None
        self.record: dict[str, Any] = {}
        self.embedding = nn.Embedding(config.vocab, config.width)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.embedding_norm = make_norm(config) if config.embedding_norm else None
        self.blocks = nn.ModuleList(Block(config, i) for i in range(len(config.layers)))
        self.norm = make_norm(config)
        self.head = None if config.tie else nn.Linear(config.width, config.vocab, bias=False)
        if self.head is not None:
            nn.init.normal_(self.head.weight, std=0.02)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.weight.device

    def __call__(self, ids: Any, state: Any = None, **options: Any) -> tuple[Tensor, State]:
        """`forward`, after a look at what came in."""
        self.check(ids, state)
        return super().__call__(ids, state, **options)

    def forward(
        self, ids: Ids, state: State | None = None, *, last: bool = False
    ) -> tuple[Logits, State]:
        """Read tokens.

        Args:
            ids: [B, T].
            state: from an earlier call, or None for a new text.
            last: give the logits of the last token only, [B, 1, vocab].

        Returns:
            Logits [B, T, vocab], of the token after each; and the state after the last.

        Raises:
            ValueError: ids are no whole numbers below `vocab`, or the state is not this model's.
        """
        x = self.embedding(ids)
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        shared: dict[str, Tensor] = {}
        after = State()
        for i, block in enumerate(self.blocks):
            name = str(i)
            x, after[name] = block(x, None if state is None else state[name], shared)
        x = self.norm(x[:, -1:] if last else x)
        note(self, x=x)
        weight = self.embedding.weight if self.head is None else self.head.weight
        return F.linear(x, weight), after

    def step(self, ids_t: Int[Tensor, " b"], state: State | None = None) -> tuple[Tensor, State]:
        """One token: ids [B] -> logits [B, vocab]."""
        logits, state = self(ids_t[:, None], state)
        return logits[:, 0], state

    def check(self, ids: Any, state: Any) -> None:
        """Refuse what `forward` cannot take, by name."""
        if not isinstance(ids, Tensor) or ids.ndim != 2 or ids.dtype not in (torch.long, torch.int):
            came = f"{ids.dtype} {list(ids.shape)}" if isinstance(ids, Tensor) else type(ids)
            raise ValueError(f"ids: wanted whole numbers [B, T], got {came}")
        if ids.device.type == "cpu" and ids.numel():
            low, high = ids.aminmax()
            if low < 0 or high >= self.config.vocab:
                wanted = f"ids: wanted 0 to {self.config.vocab - 1}"
                raise ValueError(f"{wanted}, got {int(low if low < 0 else high)}")
        if state is not None and len(state) != len(self.blocks):
            raise ValueError(
                f"state: wanted one of this model's {len(self.blocks)} blocks, got {len(state)}"
            )

    # writing

    @torch.no_grad()
    def stream(
        self,
        ids: Ids,
        *,
        state: State | None = None,
        temperature: float | int = 1.0,
        top_k: int | None = None,
        top_p: float | int | None = None,
        seed: int | None = None,
    ) -> Iterator[tuple[Int[Tensor, " b"], State]]:
        """Sample without end: the next token of each sequence, and the state before it is read.

        The prompt is read in pieces, so that memory does not grow with its length where the layers
        are linear. Arguments are those of `generate`.
        """
        if ids.shape[1] == 0:
            raise ValueError("ids: wanted one token or more to begin with, got none")
        rng = torch.Generator(self.device)
        rng.manual_seed(seed) if seed is not None else rng.seed()
        logits = None
        for piece in ids.to(self.device).split(PIECE, 1):
            logits, state = self(piece, state, last=True)
        while True:
            token = choose(logits[:, 0], temperature, top_k, top_p, rng)
            yield token, state
            logits, state = self(token[:, None], state)

    def generate(
        self,
        ids: Ids,
        n: int,
        *,
        state: State | None = None,
        temperature: float | int = 1.0,
        top_k: int | None = None,
        top_p: float | int | None = None,
        seed: int | None = None,
        stop: int | None = None,
        progress: bool = False,
    ) -> tuple[Int[Tensor, "b n"], State]:
        """Sample n tokens after a prompt.

        Args:
            ids: the prompt, [B, T].
            n: tokens to make.
            state: what was read before the prompt.
            temperature: divides the logits; 0 takes the likeliest token.
            top_k: choose among so many likeliest tokens.
            top_p: choose among the likeliest tokens that together have this probability.
            seed: of the choice; None for a new one each time.
            stop: an id after which a sequence ends; it is repeated to the end of the row.
            progress: show a bar.

        Returns:
            The new ids [B, n], fewer if every sequence has ended, and the state that has read all
            but the last of them: go on with `generate(new[:, -1:], m, state=state)`.

        Raises:
            ValueError: an argument is out of range.
        """
        if n < 1:
            raise ValueError(f"n: wanted 1 or more, got {n}")
        options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
        made, ended = [], torch.zeros(len(ids), dtype=torch.bool, device=self.device)
        training = self.training
        self.eval()
        try:
            following = self.stream(ids, state=state, **options)
            for _ in tqdm(range(n), desc="tokens", disable=not progress):
                token, state = next(following)
                if stop is not None:
                    token = token.masked_fill(ended, stop)
                    ended |= token == stop
                made.append(token)
                if stop is not None and ended.all():
                    break
        finally:
            self.train(training)
        return torch.stack(made, 1), state

    def encode(self, text: str) -> Ids:
        """The ids of a text, [1, T]."""
        if self.config.tokenizer == "bytes":
            return torch.tensor([list(text.encode())], device=self.device)
        return torch.tensor([self.own_tokenizer().encode(text)], device=self.device)

    def decode(self, ids: Int[Tensor, " t"]) -> str:
        """The text of the ids of one sequence."""
        if self.config.tokenizer == "bytes":
            return bytes(ids.tolist()).decode(errors="replace")
        return self.own_tokenizer().decode(ids.tolist())

    def own_tokenizer(self) -> Any:
        """The tokenizer, or how to give one."""
        if self.tokenizer is None:
            raise ValueError(
                "this model has no tokenizer: set model.tokenizer to an object with encode and "
                "decode, or work with ids"
            )
        return self.tokenizer

    def write(self, text: str, n: int, **options: Any) -> str:
        """Continue a text by n tokens; options are those of `generate`."""
        return self.decode(self.generate(self.encode(text), n, **options)[0][0])

    # sizes, files

    @property
    def parameters_count(self) -> int:
        """How many numbers it has learnt."""
        return sum(p.numel() for p in self.parameters())

    def first_state(self, batch: int = 1) -> State:
        """The state before the first token."""
        with torch.no_grad():
            return self(torch.empty(batch, 0, dtype=torch.long, device=self.device))[1]

    def save(self, file: str | Path, *, dtype: torch.dtype | None = None) -> Path:
        """Write weights, config and record into one safetensors file; `lv.load(file)` reads it.

        Args:
            file: its name, ending in .safetensors.
            dtype: store floating-point weights in this type.
        """
        from safetensors.torch import save_file

        file = Path(file)
        if file.suffix != ".safetensors":
            raise ValueError(f"file: wanted a name that ends in .safetensors, got {str(file)!r}")
        weights = {n: x.detach().to(dtype or x.dtype) for n, x in self.state_dict().items()}
        weights = {n: x.contiguous() for n, x in weights.items()}
        metadata = {"config": json.dumps(asdict(self.config)), "record": json.dumps(self.record)}
        save_file(weights, file, metadata)
        return file

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write a published model back in the format that it was read from, see models.hub."""
        from linviz.models import hub

        return hub.save_pretrained(self, folder)

    @classmethod
    def open(cls, file: str | Path, *, dtype: torch.dtype = torch.float32) -> "LM":
        """Read a file that `save` wrote."""
        from safetensors import safe_open

        with safe_open(file, "pt") as opened:
            metadata = opened.metadata() or {}
            if "config" not in metadata:
                raise ValueError(f"file: wanted one that LM.save wrote, got {str(file)!r}")
            weights = {name: opened.get_tensor(name) for name in opened.keys()}
        model = cls(Config(**json.loads(metadata["config"]))).to(dtype)
        model.load_state_dict(weights)
        model.record = json.loads(metadata["record"])
        return model.eval()

    def extra_repr(self) -> str:
        """Sizes."""
        c = self.config
        return f"vocab={c.vocab}, D={c.width}, {self.parameters_count:,} parameters"


def choose(
    logits: Float[Tensor, "b n"],
    temperature: float | int,
    top_k: int | None,
    top_p: float | int | None,
    rng: torch.Generator,
) -> Int[Tensor, " b"]:
    """One token a row, see `LM.generate`.

    Source of top_p: Holtzman et al., 2019, arXiv:1904.09751, sec. 3.1.
    """
    if temperature < 0:
        raise ValueError(f"temperature: wanted 0 or more, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k: wanted 1 or more, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p: wanted a share in (0, 1], got {top_p}")
    if temperature == 0:
        return logits.argmax(-1)
    p, order = (logits.float() / temperature).softmax(-1).sort(-1, descending=True)
    if top_k is not None:
        p[:, top_k:] = 0
    if top_p is not None:  # a token stays if those before it have less than top_p
        p = p.masked_fill(p.cumsum(-1) - p >= top_p * p.sum(-1, keepdim=True), 0)
    return order.gather(-1, torch.multinomial(p, 1, generator=rng)).squeeze(-1)


def small(
    kinds: str | Sequence[str],
    depth: int | None = None,
    *,
    vocab: int = 256,
    width: int = 128,
    tokenizer: str = "bytes",
    options: Mapping[str, Any] | None = None,
    **more: Any,
) -> LM:
    """A small language model over one kind of layer, or over a list.

    Args:
        kinds: a kind for all blocks, or one for each.
        depth: number of blocks; 2 by default for one kind.
        vocab: size of the vocabulary; 256 for bytes.
        width: channels of a token, D.
        tokenizer: "bytes" or "".
        options: of the layers: by kind for a list, else those of the one kind.
        more: other fields of Config.
    """
    alone = isinstance(kinds, str)
    names = (kinds,) * (depth or 2) if alone else tuple(kinds)
    if depth is not None and depth != len(names):
        raise ValueError(f"depth: wanted {len(names)}, one for each of kinds, got {depth}")
    options = ({kinds: options} if alone else options) if options else {}
    config = Config(vocab, width, names, options, tokenizer=tokenizer, **more)
    return LM(config)
