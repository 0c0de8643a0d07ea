"""What stays one node of the captured graph, with the program's own Python behind it.

Here belong functions with a gradient of their own, and samplers and densities that cannot be traced.
"""
