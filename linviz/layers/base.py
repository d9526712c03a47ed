"""What all layers share: the state as an object, and the contract."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from linviz.listening import LISTENER
from linviz.mechanism import Mechanism

X = Float[Tensor, "b t d"]


class State(dict[str, Any]):
    """What a layer or a model remembers between two calls: tensors by name, or states by name.

    Every tensor has the batch on its first axis. A state is never changed in place by a layer: an
    old one can be kept and gone back to.
    """

    def map(self, f: Callable[[Tensor], Tensor]) -> "State":
        """A state with f(x) for each tensor x."""
        return State({n: x.map(f) if isinstance(x, State) else f(x) for n, x in self.items()})

    def tensors(self) -> list[Tensor]:
        """All tensors, depth first."""
        nested = (x.tensors() if isinstance(x, State) else [x] for x in self.values())
        return [x for xs in nested for x in xs]

    def clone(self) -> "State":
        """A copy that shares no memory."""
        return self.map(Tensor.clone)

    def detach(self) -> "State":
        """The same numbers without their history of gradients."""
        return self.map(Tensor.detach)

    def to(self, device: str | torch.device) -> "State":
        """The state on another device."""
        return self.map(lambda x: x.to(device))

    def rows(self, which: Any) -> "State":
        """Some sequences of the batch.

        Args:
            which: a slice, or whole numbers; a number may stand there twice, which makes a copy.
        """
        which = which if isinstance(which, slice) else torch.as_tensor(which, dtype=torch.long)
        if isinstance(which, Tensor) and which.ndim != 1:
            raise ValueError(f"rows: wanted a slice or a list of whole numbers, got {which}")
        return self.map(lambda x: x[which.to(x.device) if isinstance(which, Tensor) else which])

    @classmethod
    def join(cls, states: Sequence["State"]) -> "State":
        """One batch of several: the inverse of `rows`.

        Raises:
            ValueError: they are not of one kind and size.
        """
        if not states or any(s.keys() != states[0].keys() for s in states):
            raise ValueError(f"join: wanted states with the same parts, got {states}")
        parts = {}
        for name, first in states[0].items():
            xs = [s[name] for s in states]
            if isinstance(first, State):
                parts[name] = cls.join(xs)
            elif any(x.shape[1:] != first.shape[1:] for x in xs):
                shapes = ", ".join(str(list(x.shape)) for x in xs)
                raise ValueError(f"join: {name} wanted one shape but for the batch, got {shapes}")
            else:
                parts[name] = torch.cat(xs)
        return cls(parts)

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        return sum(x.nbytes for x in self.tensors())

    def __repr__(self) -> str:
        parts = (
            f"{name}={x!r}" if isinstance(x, State) else f"{name} {list(x.shape)}"
            for name, x in self.items()
        )
        return f"State({', '.join(parts)})"


class Layer(nn.Module):
    """A mixer of tokens: a mechanism with the projections, gates and norm of its paper.

    `forward(x, state=None) -> (y, state)` takes and gives [B, T, D]; a sequence may be fed in
    pieces. `step(x_t, state=None) -> (y_t, state)` takes one token [B, D].

    Attributes:
        mechanism: what it is built around, with the layer's options.
        width: channels of a token, D.
        place: (number of this layer, number of layers): some initial values depend on it.
        form: the mechanism's form to use ("recurrent", "parallel", "chunked", "triton"), or None:
            a single step for one token, else the best for the device.
        chunk: chunk size where the form is "chunked".
        shares: whether `forward` takes `shared`, a dict in which the layers of a model hand each
            other tensors during one call.
    """

    mechanism: Mechanism
    shares: ClassVar[bool] = False

    def __init__(self, width: int, *, place: tuple[int, int] = (0, 1)):
        super().__init__()
        self.width, self.place = width, place
        self.form: str | None = None
        self.chunk = 64

    def __call__(self, x: Any, state: Any = None, **more: Any) -> tuple[Tensor, State]:
        """`forward`, after a look at what came in."""
        self.check(x, state)
        return super().__call__(x, state, **more)

    def forward(self, x: X, state: State | None = None) -> tuple[X, State]:
        """Mix the tokens of x; see the class."""
        raise NotImplementedError

    def step(
        self, x_t: Float[Tensor, "b d"], state: State | None = None
    ) -> tuple[Float[Tensor, "b d"], State]:
        """One token."""
        y, state = self(x_t[:, None], state)
        return y[:, 0], state

    def mix(
        self, *inputs: Tensor, state: State | None = None, **options: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Run the mechanism.

        Args:
            inputs: those of the mechanism.
            state: the layer's state, in which the mechanism's parts are found by their names.
            options: of the mechanism.

        Returns:
            The mechanism's output, and the parts of its new state by name.
        """
        m = self.mechanism
        parts = () if state is None else tuple(state[part.name] for part in m.state)
        S: Any = None if state is None else parts if len(parts) > 1 else parts[0]
        if (listener := LISTENER.get()) is not None:
            listener.ran(self, m, inputs, S, options)
        one_token = inputs[m.value_index].shape[1] == 1 and self.form is None
        if one_token:
            pairs = zip(inputs, m.inputs, strict=True)
            o, S = m.step(*(x[:, 0] if spec.timed else x for x, spec in pairs), S=S, **options)
            o = o[:, None]
        elif self.form is None:
            o, S = m(*inputs, S=S, **options)
        else:
            chunk = {"chunk": self.chunk} if self.form == "chunked" else {}
            o, S = m.form(self.form)(*inputs, S=S, **chunk, **options)
        parts = (S,) if isinstance(S, Tensor) else S
        return o, {spec.name: part for spec, part in zip(m.state, parts, strict=True)}

    def check(self, x: Any, state: Any) -> None:
        """Refuse what `forward` cannot take, by name."""
        where, wanted = type(self).__name__, f"[B, T, D={self.width}]"
        if not isinstance(x, Tensor) or x.ndim != 3 or x.shape[-1] != self.width:
            came = f"shape {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"{where}: x must be a tensor {wanted}, got {came}")
        if state is None:
            return
        if not isinstance(state, State):
            raise ValueError(f"{where}: state must be a State or None, got {type(state).__name__}")
        names = {part.name for part in self.mechanism.state}
        if not names <= state.keys():
            raise ValueError(f"{where}: state must have {', '.join(sorted(names))}, got {state}")
        sizes = {len(part) for part in state.tensors()}
        if sizes != {len(x)}:
            raise ValueError(f"{where}: state must be of B={len(x)} sequences, got {sorted(sizes)}")

    def first_state(self, batch: int = 1) -> State:
        """The state before the first token."""
        like = next(self.parameters())
        with torch.no_grad():
            return self(like.new_empty(batch, 0, self.width))[1]

    def extra_repr(self) -> str:
        """The mechanism's name and the width."""
        return f"{self.mechanism.name}, D={self.width}"


def divided(whole: float | int, by: int, what: str, where: str) -> int:
    """A width divided evenly.

    Raises:
        ValueError: it does not divide evenly into a whole number of at least 1.
    """
    n = whole / by if by else 0
    if n < 1 or n != int(n):
        raise ValueError(f"{where}: {what} must divide evenly, got {whole:g} by {by}")
    return int(n)


def known_options(kind: type[Layer]) -> list[str]:
    """The names of the options that a layer class takes."""
    return [n for n in inspect.signature(kind).parameters if n not in ("width", "place")]
