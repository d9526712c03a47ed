"""Synthetic tasks, real text and digits that need no download, and one recipe to train on them.

task = MQAR(pairs=8, T=64)
record = train(model, task, steps=800, lr=1e-2)    # any nn.Module: inputs to logits
evaluate(model, dataclasses.replace(task, T=128))  # {"accuracy": ..., "loss": ..., ...}
"""

from linviz.tasks.digits import Digits
from linviz.tasks.recall import MQAR, Induction, Passkey, SelectiveCopy
from linviz.tasks.regression import Regression
from linviz.tasks.task import IGNORE, Batch, Task
from linviz.tasks.text import KneserNey, Text, backoff_bits
from linviz.tasks.tracking import GroupWords, Parity
from linviz.tasks.training import Record, evaluate, train

__all__ = [
    "IGNORE",
    "MQAR",
    "Batch",
    "Digits",
    "GroupWords",
    "Induction",
    "KneserNey",
    "Parity",
    "Passkey",
    "Record",
    "Regression",
    "SelectiveCopy",
    "Task",
    "Text",
    "backoff_bits",
    "evaluate",
    "train",
]
