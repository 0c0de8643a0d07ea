"""The capture: from a model, a guide and their arguments to a :class:`~sgc.graph.program.Program`.

Here belongs what runs the user's Python: one eager run (``prototype.py``), then one under torch's tracer and Pyro's
handlers (``driver.py``). Nothing here decides how a gradient is estimated.
"""
