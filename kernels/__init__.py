"""Triton kernels, one file a recurrence, under the recurrence's name."""
