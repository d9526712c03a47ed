"""Models: a small language model over any layer, and published checkpoints in our layers."""

from linviz.models.hub import load, save_pretrained
from linviz.models.lm import LM, Block, Config, small
from linviz.models.mlp import SwiGLU
from linviz.models.moe import MoE

__all__ = ["LM", "Block", "Config", "MoE", "SwiGLU", "load", "save_pretrained", "small"]
