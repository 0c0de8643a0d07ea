"""The program, the stochastic computation graph, and their laws.

Here belong data structures, what they answer, how they print, and how they are verified. Nothing here knows Pyro's
handlers, or how code is emitted.
"""
