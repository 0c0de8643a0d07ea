"""The state that a program reads and writes: parameters, buffers, random generators, and what is around it.

Here belongs who owns a tensor, what is put back after a run, and what two runs of a program must have in common.
"""
