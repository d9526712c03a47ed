"""linviz: see linear attention think.

Every mechanism is bound by name: `lv.gla.recurrent(q, k, v, g)`, `.parallel`, `.chunked`, `.step`,
`.trace`, `.attention_map`, `.example`. `lv.registry` has them all, `lv.table()` compares them,
`lv.fold` cuts time into pieces, `lv.check` says whether two results agree, `lv.viz` draws.
"""

import importlib
from types import ModuleType

from linviz.checks import check
from linviz.mechanism import Edge, Form, Input, Mechanism, Trace, fold
from linviz.mechanisms import REGISTRY as registry
from linviz.tables import table

__version__ = "0.1.0"
__all__ = ["Edge", "Form", "Input", "Mechanism", "Trace", "check", "fold", "registry", "table"]
__all__ += registry.names

globals().update({mechanism.name: mechanism for mechanism in registry})


def __getattr__(name: str) -> ModuleType:
    """Pictures are loaded on first use: matplotlib takes a while."""
    if name == "viz":
        return importlib.import_module("linviz.viz")
    raise AttributeError(f"module 'linviz' has no attribute {name!r}")
