"""Layers: each mechanism as its paper uses it, with projections, gates and norm around it.

`layers.GLA(D)(x, state=None) -> (y, state)`. `layers.make("gla", D, heads=2)` builds one by its
mechanism's name; `layers.KINDS` has them all.
"""

from typing import Any

from linviz.layers.base import Layer, State, known_options
from linviz.layers.deltanet import DeltaNet
from linviz.layers.gated_deltanet import GatedDeltaNet
from linviz.layers.gla import GLA
from linviz.layers.gru import GRU
from linviz.layers.h3 import H3
from linviz.layers.kda import KDA
from linviz.layers.linear_attention import LinearAttention
from linviz.layers.lstm import LSTM
from linviz.layers.mamba import Mamba
from linviz.layers.mamba2 import Mamba2
from linviz.layers.parts import RMSNorm, ShortConv
from linviz.layers.retnet import RetNet
from linviz.layers.rnn import RNN
from linviz.layers.rwkv4 import RWKV4
from linviz.layers.rwkv5 import RWKV5
from linviz.layers.rwkv6 import RWKV6
from linviz.layers.rwkv7 import RWKV7
from linviz.layers.s4 import S4
from linviz.layers.softmax import Softmax

KINDS: dict[str, type[Layer]] = {
    "softmax": Softmax,
    "rnn": RNN,
    "lstm": LSTM,
    "gru": GRU,
    "linear_attention": LinearAttention,
    "retnet": RetNet,
    "gla": GLA,
    "s4": S4,
    "h3": H3,
    "mamba": Mamba,
    "mamba2": Mamba2,
    "rwkv4": RWKV4,
    "rwkv5": RWKV5,
    "rwkv6": RWKV6,
    "rwkv7": RWKV7,
    "deltanet": DeltaNet,
    "gated_deltanet": GatedDeltaNet,
    "kda": KDA,
}

__all__ = ["KINDS", "Layer", "RMSNorm", "ShortConv", "State", "make"]
__all__ += [kind.__name__ for kind in KINDS.values()]


def make(name: str, width: int, *, place: tuple[int, int] = (0, 1), **options: Any) -> Layer:
    """The layer around the mechanism of that name.

    Args:
        name: of a mechanism.
        width: channels of a token, D.
        place: (number of this layer, number of layers).
        options: of the layer.

    Raises:
        ValueError: no such layer, or no such option.
    """
    if name not in KINDS:
        raise ValueError(f"name: wanted one of {', '.join(KINDS)}, got {name!r}")
    kind = KINDS[name]
    for option in options:
        if option not in known_options(kind):
            known = ", ".join(known_options(kind))
            raise ValueError(f"layers.{kind.__name__}: {option!r} is not one of {known}")
    return kind(width, place=place, **options)
