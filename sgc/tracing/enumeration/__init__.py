"""Discrete sites that have all their values, or several samples, side by side.

Here belong the runs of model and guide with such sites, and the sums over them. Whether a distribution can be
enumerated is said in ``tracing/reference/enumerable_sites.py``.
"""
