"""Many small operators of one kind as one operator on stacked operands.

Here belongs what groups the nodes of a program, runs a group at once, and turns chains of sums into reductions.
"""
