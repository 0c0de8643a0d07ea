"""The passes: every statistical decision, as nodes of the stochastic computation graph.

Here belongs how a gradient is estimated, one decision a file, in the order of ``pipeline.py``; ``graph/verify.py``
checks the laws after each.
"""
