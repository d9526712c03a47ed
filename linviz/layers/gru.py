"""Layer of the gated recurrent unit: lv.gru between two projections.

Source: Cho et al., 2014, arXiv:1406.1078, sec. 2.3; initial values as in Keras.
"""

from linviz.layers.rnn import RNN
from linviz.mechanisms import gru


class GRU(RNN):
    """y = W_O lv.gru(x W_X + b, W).

    State: h [B, D]. Without `recurrent` the gates see x alone, and h is a diagonal scan.

    Args:
        width: channels of a token, D.
        recurrent: whether the old state is fed back into the gates through W.
        place: see Layer.
    """

    mechanism = gru.MECHANISM
    biases = (0.0, 0.0, 0.0)  # r, z, n
