"""A loss module at work: it chooses a specialization for a call, or has one made, and runs it.

Here belongs what happens at a call. ``compiler.py`` is the one place that sees every stage of a compilation.
"""
