"""linviz: see linear attention think.

Every mechanism is bound by name: `lv.gla.recurrent(q, k, v, g)`, `.parallel`, `.chunked`, `.step`,
`.trace`, `.attention_map`, `.example`. `lv.registry` has them all, `lv.table()` compares them,
`lv.fold` cuts time into pieces, `lv.check` says whether two results agree, `lv.trace` keeps what a
whole model computes, `lv.viz` draws. `lv.load` reads a trained model, `lv.layers`, `lv.models` and
`lv.tasks` make new ones.
"""

import importlib
from typing import Any

from linviz.checks import check
from linviz.mechanism import Edge, Form, Input, Mechanism, Trace, fold
from linviz.mechanisms import REGISTRY as registry
from linviz.tables import table
from linviz.tracing import ModelTrace, trace

__version__ = "0.1.0"
__all__ = ["Edge", "Form", "Input", "Mechanism", "ModelTrace", "Trace"]
__all__ += ["check", "fold", "registry", "table", "trace"]
__all__ += registry.names

globals().update({mechanism.name: mechanism for mechanism in registry})


def __getattr__(name: str) -> Any:
    """Pictures, layers and models are loaded on first use: matplotlib takes a while."""
    if name in ("checkpoints", "layers", "models", "tasks", "viz"):
        return importlib.import_module(f"linviz.{name}")
    if name == "load":
        return importlib.import_module("linviz.models").load
    raise AttributeError(f"module 'linviz' has no attribute {name!r}")
