"""Layer of long short-term memory: lv.lstm between two projections.

Source: Hochreiter and Schmidhuber, Neural Computation 9(8), 1997, with the forget gate of Gers et
al., 2000; initial values as in Keras.
"""

from linviz.layers.rnn import RNN
from linviz.mechanisms import lstm


class LSTM(RNN):
    """y = W_O lv.lstm(x W_X + b, W).

    State: h and c [B, D]. The forget gate's bias is 1 at first: the cell keeps what it has. Without
    `recurrent` the gates see x alone, and the cell is a diagonal scan.

    Args:
        width: channels of a token, D.
        recurrent: whether the old output is fed back into the gates through W.
        place: see Layer.
    """

    mechanism = lstm.MECHANISM
    biases = (0.0, 1.0, 0.0, 0.0)  # i, f, o, c
