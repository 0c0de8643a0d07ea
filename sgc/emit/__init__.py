"""From the graph to a callable: the ``torch.fx`` module, its gradient, its rewrites, and the backends.

Here belongs how fast a program is, never what it computes: the statistical decisions stand in the graph.
"""
