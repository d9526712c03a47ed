"""The engine rooms: each recurrence once, as a loop, as one matrix, and in chunks.

scalar_decay, vector_decay, delta_rule and rank_one have a matrix for a state and share
`matrix_state` (the loop and the fold over chunks) and `exponents` (decay between two times).
diagonal_scan and convolution, its time-invariant case, have a vector. Each of the six offers step,
recurrent, parallel, chunked and trace. They import nothing else of linviz.
"""
