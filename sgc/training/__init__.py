"""The compiled training step, many steps, checkpoints.

Here belongs what happens from the arguments of a step to the updated parameters.
"""
