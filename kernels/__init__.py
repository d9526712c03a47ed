"""Triton kernels, one file a recurrence, under the recurrence's name.

They need a GPU. Without one the same calls run in Triton's interpreter, on the CPU: the numbers are
right, and it is slow. That is decided when this package is first imported; TRITON_INTERPRET=0 or 1
decides it otherwise.
"""

import os
import sys

import torch


def interpret() -> None:
    """Have all kernels of this process run in Triton's interpreter.

    Where Triton was imported before, its own library is compiled already: it is wrapped anew.
    """
    os.environ["TRITON_INTERPRET"] = "1"
    import triton.language as tl
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    for module in (tl, tl.standard):
        for name, value in list(vars(module).items()):
            if isinstance(value, JITFunction):
                setattr(module, name, InterpretedFunction(value.fn))
    print(
        "linviz: no GPU here, so Triton kernels run in Triton's interpreter: right, but slow.",
        file=sys.stderr,
    )


if "TRITON_INTERPRET" not in os.environ and not torch.cuda.is_available():
    interpret()
