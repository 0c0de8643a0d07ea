"""Inductor: how it is asked to compile, and how what it has compiled is called.

Here belongs everything that only this backend needs; what mends it is in ``workarounds``, what is only speed in
``tuning``.
"""
