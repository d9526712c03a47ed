"""How a model is listened to while it runs: layers say what they compute, a listener keeps it.

Layers call `note` and `ran`. Without a listener both cost one look at a variable. `lv.trace` is a
listener.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from linviz.mechanism import Mechanism, State


@runtime_checkable
class Listener(Protocol):
    """What is told about each layer that runs."""

    def noted(self, module: Any, named: Mapping[str, Tensor]) -> None:
        """`module` computed these activations."""

    def ran(
        self,
        module: Any,
        mechanism: Mechanism,
        inputs: Sequence[Tensor],
        S: State | None,
        options: Mapping[str, Any],
    ) -> None:
        """`module` is about to run its mechanism on these inputs, from the state S."""


LISTENER: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Tell `listener` about every layer that runs inside the block."""
    token = LISTENER.set(listener)
    try:
        yield
    finally:
        LISTENER.reset(token)


def note(module: Any, **named: Tensor) -> None:
    """Tell the listener, if there is one, what `module` computed."""
    if (listener := LISTENER.get()) is not None:
        listener.noted(module, named)
