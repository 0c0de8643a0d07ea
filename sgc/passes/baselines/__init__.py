"""The baselines: what is subtracted from downstream costs.

Here belongs a file for each kind, and what is said of those that have no effect.
"""
