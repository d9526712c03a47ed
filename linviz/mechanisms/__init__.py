"""The mechanisms, one room each, and their registry in the order of the course."""

from linviz.mechanism import Registry
from linviz.mechanisms import (
    deltanet,
    gated_deltanet,
    gla,
    gru,
    h3,
    kda,
    linear_attention,
    lstm,
    mamba,
    mamba2,
    retnet,
    rnn,
    rwkv4,
    rwkv5,
    rwkv6,
    rwkv7,
    s4,
    softmax,
)

REGISTRY = Registry(
    room.MECHANISM
    for room in (
        softmax,
        rnn,
        lstm,
        gru,
        linear_attention,
        retnet,
        gla,
        s4,
        h3,
        mamba,
        mamba2,
        rwkv4,
        rwkv5,
        rwkv6,
        rwkv7,
        deltanet,
        gated_deltanet,
        kda,
    )
)
