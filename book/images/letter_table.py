"""Draw book/images/letter_table.svg, the picture of the README: python book/images/letter_table.py.

The state of a linear attention that has read 12 000 letters, and what three mechanisms score when
the alphabet is shuffled every 1000 letters. The notebook 00_tour explains both.
"""

import re
import sys
from pathlib import Path
from pydoc_data.topics import topics

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

import linviz as lv
from linviz import viz

T, letters = 12_000, " abcdefghijklmnopqrstuvwxyz"


def main(path: str | Path | None = None) -> Path:
    """Compute, draw, save; returns the path, which is beside this file if not given."""
    rng = torch.Generator().manual_seed(0)
    text = re.sub("[^a-z]+", " ", " ".join(topics[name] for name in sorted(topics)).lower())
    x = torch.tensor([letters.index(c) for c in text[: T + 2]])
    codes = torch.stack([torch.randperm(27, generator=rng) for _ in range(T // 1000 + 1)])
    y = codes[torch.arange(T + 2) // 1000, x]
    plain, coded = (F.one_hot(z, 27).float()[None, :, None] for z in (x, y))
    counting = lv.linear_attention.having(feature_map="identity", normalize=False)
    _, (S, _) = counting.chunked(plain[:, 1:-1], plain[:, :-2], plain[:, 1:-1])

    qkv = coded[:, 1:-1], coded[:, :-2], coded[:, 1:-1]
    outs = {
        "linear attention: adds": counting.chunked(*qkv),
        "RetNet: adds and fades": lv.retnet.chunked(*qkv, gamma=torch.tensor([1 - 1 / 64])),
        "DeltaNet: overwrites": lv.deltanet.chunked(*qkv, torch.full((1, T, 1), 0.2)),
    }
    hits = {name: o[0, :, 0].argmax(-1) == y[2:] for name, (o, _) in outs.items()}

    with viz.style():
        fig, (left, right) = plt.subplots(
            1, 2, figsize=(9.6, 4.4), layout="constrained", width_ratios=(1, 1.1)
        )
        labels = {"row_name": "letter", "col_name": "next letter", "rows": letters, "cols": letters}
        viz.heat(S[0, 0], ax=left, log=True, bar=False, **labels)
        left.set_title("The state of a linear attention\nis a table you can read")
        row, column = letters.index("q"), letters.index("u")
        left.add_patch(plt.Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, ec="w", lw=1.2))
        left.annotate(
            "after q comes u",
            (column - 0.6, row),
            (11.5, row),
            color="w",
            va="center",
            ha="center",
            arrowprops={"arrowstyle": "->", "color": "w"},
        )
        curves = {name: viz.moving_mean(hit, 500)[499::50] for name, hit in hits.items()}
        steps = range(499, T, 50)
        viz.lines(curves, x=steps, ax=right, events=range(1000, T, 1000), xlabel=f"time t ({T})")
        right.set(ylabel="next letter guessed right", ylim=0)
        right.set_title("A new secret alphabet every 1000 letters:\nwho only adds, gets lost")
        right.legend(loc="lower left", ncols=1, fontsize="small", frameon=True, framealpha=0.9)
        plt.close(fig)
    return viz.save_card(fig, path or Path(__file__).with_suffix(".svg"))


if __name__ == "__main__":
    print(main(*sys.argv[1:2]))
