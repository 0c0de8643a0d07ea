"""Eager Pyro's loss: what a compiled one is compared with, and what answers the calls that cannot be compiled.

Here belongs a file for each of Pyro's classes, with what sgc lets a site ask for and Pyro does not know.
"""
