"""Optimizers as functions that can be traced, and the state that is theirs.

Here belongs what knows a class of optimizer.
"""
