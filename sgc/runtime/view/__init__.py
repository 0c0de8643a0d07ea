"""A loss module as torch shows it: ``parameters()``, ``state_dict()``, copies and pickles.

Here belongs who holds which tensor of a program, for others to see and to save.
"""
