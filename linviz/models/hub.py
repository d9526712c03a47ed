"""Published checkpoints in our layers, and back into the files of their format.

`lv.load` takes a name or a folder, finds the family in config.json (see families.py) and puts the
weights where they belong. Code that comes with a checkpoint is never run: weights are read from
safetensors, or by torch.load(weights_only=True). RWKV's .pth files: see rwkv.py.
"""

import json
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from linviz import checkpoints, layers
from linviz.models import rwkv
from linviz.models.families import family_of
from linviz.models.keys import Pair, Table
from linviz.models.lm import LM, Config

TOKENIZER = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt")
EXTRA = (*TOKENIZER, "generation_config.json")
SAFE = ("model.safetensors", "model*-of-*.safetensors", "model.safetensors.index.json")
PICKLED = ("pytorch_model.bin", "pytorch_model*-of-*.bin", "pytorch_model.bin.index.json")
SHOWN = 20  # lines of a message


@dataclass(frozen=True)
class Weights:
    """Tensors that are read when they are asked for.

    Attributes:
        shapes: of all, by name.
        get: name -> tensor.
    """

    shapes: Mapping[str, tuple[int, ...]]
    get: Callable[[str], Tensor]


class Tokenizer:
    """The tokenizer in a folder, read by transformers on first use."""

    def __init__(self, folder: Path):
        self.folder = folder

    @cached_property
    def theirs(self) -> Any:
        """The tokenizer of transformers."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.folder, trust_remote_code=False)

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""
        return self.theirs.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""
        return self.theirs.decode(ids)


def load(
    source: str | Path | nn.Module,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    revision: str | None = None,
) -> LM:
    """A trained model.

    Args:
        source: the name of a model that comes with linviz ("byte-gla"); a file that LM.save wrote;
            a folder with config.json and weights; "owner/name" on the Hugging Face hub; the .pth
            file of an RWKV, also as "owner/name/file.pth"; or a model of transformers.
        dtype: of the weights; None leaves them as they are stored (float32 for what LM.save wrote).
        device: where they go.
        revision: branch, tag or commit on the hub.

    Returns:
        The model, in eval mode. `model.tokenizer` is set where the folder has one.

    Raises:
        ValueError: there is no such source, its family or an option of it is not known, or its
            weights do not fit: the message lists what is missing, unexpected or of another shape.
    """
    if isinstance(source, nn.Module):
        raw, weights = of_object(source)
        return build(raw, weights, dtype, device)
    place = locate(source, revision)
    if place.suffix == ".safetensors":
        return LM.open(place, dtype=dtype or torch.float32).to(device)
    if place.suffix == ".pth":
        state = pickled(place)
        config = rwkv.config_of(state)
        return assembled(place.name, (rwkv.KEYS,), config, of_state(state), dtype, device)[0]
    raw = json.loads((place / "config.json").read_text(encoding="utf-8"))
    model = build(raw, of_folder(place), dtype, device)
    if any(place.glob("tokenizer*")):
        model.tokenizer = Tokenizer(place)
    return model


def locate(source: str | Path, revision: str | None) -> Path:
    """The file or folder of a source.

    Raises:
        ValueError: there is none.
    """
    place, name = Path(source), str(source)
    if place.is_file() and place.suffix in (".safetensors", ".pth"):
        return place
    if (place / "config.json").is_file():
        return place
    if not place.exists():
        if name in checkpoints.names():
            return checkpoints.path(name)
        if found := re.fullmatch(r"([\w.-]+/[\w.-]+)(?:/(.+\.pth))?", name):
            return download(found[1], found[2], revision)
    raise ValueError(
        "source: wanted a folder with config.json, a file .safetensors or .pth, owner/name on the "
        f"hub or one of {', '.join(checkpoints.names())}; got {name!r}"
    )


def download(name: str, file: str | None, revision: str | None) -> Path:
    """Fetch config, tokenizer and weights from the hub, or one file; no code.

    Of two formats of the weights only the newer one is fetched.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError("to load from the hub: python -m pip install huggingface_hub") from error
    if file is not None:
        return Path(huggingface_hub.hf_hub_download(name, file, revision=revision))
    for weights in (SAFE, PICKLED):
        patterns = ["config.json", *EXTRA, *weights]
        folder = huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=patterns)
        if any(next(Path(folder).glob(pattern), None) for pattern in weights):
            break
    return Path(folder)


# reading


def of_folder(folder: Path) -> Weights:
    """The weights in a folder, whole or in shards.

    Raises:
        ValueError: there are none, or a shard is missing.
    """
    for name, read in (("model.safetensors", of_safetensors), ("pytorch_model.bin", of_pickled)):
        if (folder / name).is_file():
            return read([folder / name])
        index = folder / f"{name}.index.json"
        if index.is_file():
            shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            files = [folder / shard for shard in sorted(set(shards))]
            for file in files:
                if not file.is_file():
                    raise ValueError(f"{index}: wanted {file.name} beside it, which is not there")
            return read(files)
    raise ValueError(f"{folder}: wanted model.safetensors or pytorch_model.bin in it, or shards")


def of_safetensors(files: Iterable[Path]) -> Weights:
    """Tensors in safetensors files."""
    from safetensors import safe_open

    holder = {}
    for file in files:
        opened = safe_open(file, "pt")
        holder |= dict.fromkeys(opened.keys(), opened)
    shapes = {name: tuple(holder[name].get_slice(name).get_shape()) for name in holder}
    return Weights(shapes, lambda name: holder[name].get_tensor(name))


def of_pickled(files: Iterable[Path]) -> Weights:
    """Tensors in files of torch.save."""
    state: dict[str, Tensor] = {}
    for file in files:
        state |= pickled(file)
    return of_state(state)


def pickled(file: str | Path) -> dict[str, Tensor]:
    """The tensors in a file of torch.save, mapped into memory: they are read when they are used.

    Raises:
        ValueError: it holds something else.
    """
    options = {"map_location": "cpu", "weights_only": True, "mmap": zipfile.is_zipfile(file)}
    try:
        state = torch.load(file, **options)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{file}: holds more than tensors, and code is never run") from error
    if not isinstance(state, dict) or not all(isinstance(x, Tensor) for x in state.values()):
        raise ValueError(f"{file}: wanted a table of tensors by name, got {type(state).__name__}")
    return state


def of_state(state: Mapping[str, Tensor]) -> Weights:
    """Tensors that are there already."""
    return Weights({name: tuple(x.shape) for name, x in state.items()}, state.__getitem__)


def of_object(model: nn.Module) -> tuple[dict[str, Any], Weights]:
    """The config and a copy of the weights of a model of transformers.

    Raises:
        ValueError: it is no such model.
    """
    config = getattr(model, "config", None)
    if not hasattr(config, "to_json_string"):
        raise ValueError(f"source: wanted a model of transformers, got {type(model).__name__}")
    raw = json.loads(config.to_json_string(use_diff=False))
    state = model.state_dict()
    scale = rescaled(model)
    shapes = {name: tuple(x.shape) for name, x in state.items()}
    return raw, Weights(shapes, lambda name: state[name].detach() * scale(name))


def rescaled(model: nn.Module) -> Callable[[str], float]:
    """By what a weight must be multiplied: RWKV-4 in transformers halves some when it first runs.

    Every `rescale_every` blocks the residual stream is halved, and so are the later maps into it.
    """
    if not getattr(getattr(model, "rwkv", None), "layers_are_rescaled", False):
        return lambda name: 1.0
    every = model.config.rescale_every

    def scale(name: str) -> float:
        found = re.search(r"blocks\.(\d+)\.(?:attention\.output|feed_forward\.value)\.", name)
        return 2.0 ** (int(found[1]) // every) if found and every > 0 else 1.0

    return scale


# fitting


def build(
    raw: Mapping[str, Any],
    weights: Weights,
    dtype: torch.dtype | None,
    device: str | torch.device,
) -> LM:
    """A model from their config and weights."""
    family = family_of(raw)
    model, spelling = assembled(
        family.name, family.tables, family.read(raw), weights, dtype, device, family.ignored
    )
    model.record["published"] = {"spelling": spelling, "config": dict(raw)}
    return model


def assembled(
    name: str,
    tables: Sequence[Table],
    config: Config,
    weights: Weights,
    dtype: torch.dtype | None,
    device: str | torch.device,
    ignored: str = "",
) -> tuple[LM, int]:
    """A model from its config and weights that one of the tables names; and which table does."""
    with torch.device("meta"):  # no memory, no random numbers
        model = LM(config)
    parameters = dict(model.named_parameters())
    spelling, pairs = fit(name, tables, config, parameters, weights, ignored)
    for pair in pairs:
        for ours, x in pair.read(weights.get).items():
            put(model, ours, x.to(device, dtype).contiguous())
    fill_buffers(model, dtype)
    return model.to(device).eval(), spelling


def fill_buffers(model: LM, dtype: torch.dtype | None) -> None:
    """Compute what is in no file, such as a rotation's frequencies, which are never narrowed."""
    mixers = dict(zip(model.config.layers, model.blocks, strict=True))
    for kind, options in model.config.options.items():
        if any(x.is_meta for x in mixers[kind].buffers()):
            real = layers.make(kind, model.config.width, **options)
            for mixer in (b.mixer for b in model.blocks if type(b.mixer) is type(real)):
                for name, x in real.named_buffers():
                    setattr(mixer, name, x.to(torch.promote_types(x.dtype, dtype or x.dtype)))


def put(model: nn.Module, name: str, x: Tensor) -> None:
    """Give a parameter its numbers; what is marked on it stays."""
    where, _, leaf = name.rpartition(".")
    module = model.get_submodule(where)
    filled = nn.Parameter(x)
    filled.__dict__.update(getattr(module, leaf).__dict__)
    setattr(module, leaf, filled)


def fit(
    name: str,
    tables: Sequence[Table],
    config: Config,
    ours: Mapping[str, Tensor],
    weights: Weights,
    ignored: str,
) -> tuple[int, list[Pair]]:
    """The table that the weights are written in, by its number, and its rows.

    Raises:
        ValueError: they fit none; the message is about the nearest.
    """
    tried = []
    for spelling, table in enumerate(tables):
        pairs = list(table.pairs(config, ours))
        faults = faults_of(config, table, pairs, ours, weights, ignored)
        if not faults:
            return spelling, pairs
        tried.append(faults)
    faults = min(tried, key=len)
    shown = faults[:SHOWN] + [f"and {len(faults) - SHOWN} more"] * (len(faults) > SHOWN)
    raise ValueError(f"the weights do not fit {name}:\n  " + "\n  ".join(shown))


@torch.no_grad()
def faults_of(
    config: Config,
    table: Table,
    pairs: Iterable[Pair],
    ours: Mapping[str, Tensor],
    weights: Weights,
    ignored: str,
) -> list[str]:
    """What does not fit, a line each."""
    faults, came = [], dict(weights.shapes)
    for pair in pairs:
        for name, x in pair.write(ours.__getitem__).items():
            mine, shape, wanted = ", ".join(pair.ours), came.pop(name, None), tuple(x.shape)
            if shape is None:
                faults.append(f"missing: {name} {list(wanted)} (for {mine})")
            elif shape != wanted:
                faults.append(
                    f"shape: {name} (for {mine}) wanted {list(wanted)}, got {list(shape)}"
                )
    named = {r.ours[0]: r.theirs for r in table.outer}
    embedding, head = named["embedding.weight"], named["head.weight"]
    if config.tie and head in came and embedding in weights.shapes:
        del came[head]  # the same numbers once more
        if not torch.equal(weights.get(head), weights.get(embedding)):
            faults.append(f"not tied: {head} differs from {embedding}, which config.json ties")
    unexpected = (n for n in came if not ignored or not n.startswith(ignored))
    return faults + [f"unexpected: {name} {list(came[name])}" for name in unexpected]


# writing


def save_pretrained(model: LM, folder: str | Path) -> Path:
    """Write a model that `load` read back into its format: config.json and model.safetensors.

    config.json is the one it was read with, names and shapes of the tensors are theirs. Tokenizer
    files are copied.

    Args:
        model: from `load`.
        folder: is made where it is missing; for an RWKV also a file that ends in .pth.

    Raises:
        ValueError: the model does not come from a published format.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    if folder.suffix == ".pth":
        return rwkv.save(model, folder)
    if "published" not in model.record:
        raise ValueError("model: wanted one that lv.load read from a folder, or use LM.save")
    raw, spelling = model.record["published"]["config"], model.record["published"]["spelling"]
    ours = model.state_dict()
    tensors: dict[str, Tensor] = {}
    for pair in family_of(raw).tables[spelling].pairs(model.config, ours):
        tensors |= {n: x.contiguous() for n, x in pair.write(ours.__getitem__).items()}
    kind = str(model.embedding.weight.dtype).removeprefix("torch.")
    config = dict(raw) | {name: kind for name in ("dtype", "torch_dtype") if name in raw}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if isinstance(model.tokenizer, Tokenizer) and model.tokenizer.folder != folder:
        for pattern in EXTRA:
            for file in model.tokenizer.folder.glob(pattern):
                shutil.copy(file, folder)
    target, part = folder / "model.safetensors", folder / "model.safetensors.part"
    save_file(tensors, part, {"format": "pt"})
    part.replace(target)  # its weights may be mapped from this very file
    return folder
