"""Specializations: one compiled version of a program each, valid as long as its guards hold.

Here belong the record of one, how it is made of a call, how one is chosen, and why there are several.
"""
