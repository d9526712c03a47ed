"""Train any nn.Module on any task, and test it: one recipe, the same numbers every time."""

import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from linviz.tasks.task import Task, at_least, seed_of


@dataclass(frozen=True)
class Record:
    """What a training run did. All plain values: `dataclasses.asdict` and json store it.

    Attributes:
        settings: the task, the recipe, the model's number of parameters, the version of torch.
        losses: the training loss at each step.
        evaluations: what `evaluate` found, with "step": the number of steps done by then.
        seconds: time spent, evaluations included.
    """

    settings: dict
    losses: list[float] = field(default_factory=list)
    evaluations: list[dict] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def steps(self) -> int:
        """Steps done; fewer than settings["steps"] when `stop_at` was reached."""
        return len(self.losses)

    @property
    def final(self) -> dict:
        """The last evaluation."""
        return self.evaluations[-1]


@torch.no_grad()
def evaluate(
    model: nn.Module, task: Task, *, batches: int = 4, batch: int = 64, seed: int = 0
) -> dict[str, float | int]:
    """Test a model on sequences it was not trained on.

    Synthetic tasks: fresh sequences, from seeds that `train` never uses. Text and Digits: the whole
    held-out split, the same whatever `batches` and `seed`. For Text windows of T bytes slide by
    T/2, and each byte is predicted once, from at least T/2 bytes before it (see Text.exam).

    Args:
        model: `model(inputs)` gives outputs [B, T, classes], or (outputs, state). It is put into
            eval mode and back.
        task: a Task.
        batches: how many batches.
        batch: sequences in a batch.
        seed: which fresh sequences.

    Returns:
        count: how many answers were asked for.
        loss: mean over the answers, in nats (of numbers: the mean squared error).
        bits: the same in bits per symbol; for Text bits per byte. Not for numbers.
        accuracy: share of the answers that were right. Not for numbers.

    Raises:
        ValueError: batches or batch is below 1, or the model's output has the wrong shape.
    """
    at_least("batches", batches, 1)
    at_least("batch", batch, 1)
    training = model.training
    model.eval()
    count, loss, hits = 0, 0.0, 0
    for inputs, labels in task.exam(batches, batch, seed):
        outputs, labels = answer(model, task, inputs, labels)
        losses = task.losses(outputs, labels)
        count += len(losses)
        loss += losses.double().sum().item()
        if "accuracy" in task.measures:
            hits += task.hits(outputs, labels).sum().item()
    model.train(training)
    found = {"count": count, "loss": loss / count}
    if "accuracy" in task.measures:
        found |= {"bits": found["loss"] / math.log(2), "accuracy": hits / count}
    return found


def train(
    model: nn.Module,
    task: Task,
    *,
    steps: int,
    lr: float,
    batch: int = 64,
    weight_decay: float = 0.01,
    warmup: float = 0.1,
    clip: float = 1.0,
    seed: int = 0,
    stop_at: Mapping[str, float] | None = None,
    evaluate_every: int = 100,
    checkpoint: str | os.PathLike | None = None,
    progress: bool = True,
) -> Record:
    """Train a model on fresh data each step: AdamW, one cycle of the learning rate, clipping.

    Everything random in step n (data, dropout) follows from (seed, n) alone; the caller's own
    generators are left as they were. On one machine, with the same number of threads, a run gives
    the same numbers bit for bit, and so does one that was interrupted and goes on (on a GPU: as far
    as the model's kernels repeat themselves).

    A parameter may carry attributes: `no_weight_decay` (true for those with fewer than two axes,
    whatever they say), `lr_scale` (a factor on lr) and `max_lr` (a bound on it; S4's time step and
    A want 1e-3).

    Args:
        model: `model(inputs)` gives outputs [B, T, classes], or (outputs, state). It is trained in
            place, on the device it is on.
        task: a Task.
        steps: how many steps, and the length of the cycle.
        lr: the greatest learning rate.
        batch: sequences in a batch.
        weight_decay: AdamW's.
        warmup: share of the steps in which the learning rate rises.
        clip: greatest norm of the gradient.
        seed: which data.
        stop_at: stop when an evaluation is this good: {"accuracy": 0.99} (at least), {"loss": 0.1}
            or {"bits": 2.0} (at most). With several, one is enough.
        evaluate_every: steps between evaluations; there is one at the end too.
        checkpoint: a file to save to at each evaluation and on Ctrl-C. When it exists, the run goes
            on from there (a finished one returns at once).
        progress: show a progress bar.

    Returns:
        The Record; the model holds the weights.

    Raises:
        ValueError: a setting is out of range, the model's output has the wrong shape, or the
            checkpoint is of a run with other settings.
        FloatingPointError: the loss or its gradient is not a number any more, or infinite.
        KeyboardInterrupt: after Ctrl-C, at the end of the step.
    """
    for name, value in (("steps", steps), ("batch", batch), ("evaluate_every", evaluate_every)):
        at_least(name, value, 1)
    for name, value in (("lr", lr), ("clip", clip)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be a number above 0, got {value!r}")
    if not 0 <= warmup < 1:
        raise ValueError(f"warmup must be a share of the steps in [0, 1), got {warmup!r}")
    stop_at = dict(stop_at or {})
    if unknown := stop_at.keys() - set(task.measures):
        wanted = ", ".join(task.measures)
        raise ValueError(f"stop_at must name some of {wanted}, got {sorted(unknown)}")

    settings = {
        "task": task.describe(),
        "steps": steps,
        "lr": lr,
        "batch": batch,
        "weight_decay": weight_decay,
        "warmup": warmup,
        "clip": clip,
        "seed": seed,
        "stop_at": stop_at,
        "evaluate_every": evaluate_every,
        "parameters": sum(p.numel() for p in model.parameters()),
        "torch": str(torch.__version__),
    }
    optimizer = torch.optim.AdamW(groups(model, lr, weight_decay))
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    record = Record(settings)
    if checkpoint is not None and Path(checkpoint).exists():
        record = load(checkpoint, settings, model, optimizer)
    started = time.perf_counter() - record.seconds

    model.train()
    bar = tqdm(total=steps, initial=record.steps, disable=not progress)
    with bar, own_randomness(model), patience(checkpoint is not None) as interrupted:
        while not over(record):
            step = record.steps
            torch.manual_seed(seed_of("train", seed, step))
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * one_cycle(step, steps, warmup)
            data = task.sample(batch, torch.Generator().manual_seed(seed_of("data", seed, step)))
            loss = task.losses(*answer(model, task, *data)).mean()
            optimizer.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(parameters, clip)
            if not (loss.isfinite() and norm.isfinite()):
                raise FloatingPointError(
                    f"training diverged at step {step}: loss {loss.item():g}, norm of the "
                    f"gradient {norm.item():g}. Try a lower lr (now {lr:g}) or a longer warmup "
                    f"(now {warmup:g})"
                )
            optimizer.step()
            record.losses.append(loss.item())
            bar.update()
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
            due = record.steps % evaluate_every == 0 or record.steps == steps
            if due:
                found = evaluate(model, task, batch=batch, seed=seed)
                record.evaluations.append({"step": record.steps} | found)
            record = replace(record, seconds=time.perf_counter() - started)
            if checkpoint is not None and (due or interrupted.is_set()):
                save(checkpoint, record, model, optimizer)
            if interrupted.is_set():
                raise KeyboardInterrupt
    return record


def over(record: Record) -> bool:
    """Whether all steps are done, or the last evaluation was as good as asked."""
    if not record.evaluations:
        return False
    found, stop_at = record.final, record.settings["stop_at"]
    return found["step"] == record.settings["steps"] or any(
        found[name] >= wanted if name == "accuracy" else found[name] <= wanted
        for name, wanted in stop_at.items()
    )


def answer(model: nn.Module, task: Task, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The model's outputs, and the labels beside them."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    outputs = model(inputs.to(device))
    if isinstance(outputs, tuple):
        outputs = outputs[0]
    wanted = (*labels.shape, task.classes)
    if outputs.shape != wanted:
        raise ValueError(
            f"model must give outputs [B, T, classes] = {list(wanted)} for {task}, "
            f"got {list(outputs.shape)}"
        )
    return outputs, labels.to(device)


def groups(model: nn.Module, lr: float, weight_decay: float) -> list[dict]:
    """Parameters with the same weight decay and the same greatest learning rate, "peak"."""
    found: dict[tuple[float, float], list[nn.Parameter]] = {}
    for p in model.parameters():
        if p.requires_grad:
            spared = p.ndim < 2 or getattr(p, "no_weight_decay", False)
            peak = min(lr * getattr(p, "lr_scale", 1.0), getattr(p, "max_lr", math.inf))
            found.setdefault((0.0 if spared else weight_decay, peak), []).append(p)
    return [
        {"params": params, "weight_decay": decay, "lr": peak, "peak": peak}
        for (decay, peak), params in found.items()
    ]


def one_cycle(step: int, steps: int, warmup: float) -> float:
    """The factor on the learning rate: half a cosine up from 1/25 to 1, half a cosine down to 0."""
    rise = warmup * steps
    if step < rise:
        start, end, way = 1 / 25, 1.0, step / rise
    else:
        start, end, way = 1.0, 0.0, (step - rise) / (steps - rise)
    return end + (start - end) * (1 + math.cos(math.pi * way)) / 2


@contextmanager
def own_randomness(model: nn.Module) -> Iterator[None]:
    """Give the caller's global generators back as they were."""
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(devices)):
        yield


@contextmanager
def patience(wanted: bool) -> Iterator[threading.Event]:
    """Let the first Ctrl-C set a flag only: the step under way ends, and what is saved is whole."""
    interrupted = threading.Event()
    if not (wanted and threading.current_thread() is threading.main_thread()):
        yield interrupted
        return

    def wait(*_) -> None:
        interrupted.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, wait)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


def save(
    path: str | os.PathLike, record: Record, model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Write all that the run needs to go on; the file is never half written.

    The learning rate and the random numbers of a step follow from its number: no state to keep.
    """
    whole = asdict(record) | {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(whole, f"{path}.part")
    os.replace(f"{path}.part", path)


def load(
    path: str | os.PathLike, settings: dict, model: nn.Module, optimizer: torch.optim.Optimizer
) -> Record:
    """Fill model and optimizer from a checkpoint, and give its record."""
    saved = torch.load(path, map_location="cpu", weights_only=True)
    was = saved["settings"]
    other = [f"{k} {was[k]}, now {v}" for k, v in settings.items() if k != "torch" and was[k] != v]
    if other:
        raise ValueError(f"checkpoint {path} is of a run with other settings: {'; '.join(other)}")
    model.load_state_dict(saved.pop("model"))
    optimizer.load_state_dict(saved.pop("optimizer"))
    return Record(**saved)
