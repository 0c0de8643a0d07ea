"""The comparison with eager Pyro, ``loss_module.verify()``.

Here belongs what Pyro computes, with and without its known faults.
"""
