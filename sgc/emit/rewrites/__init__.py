"""Rewrites of emitted modules, fx to fx, each of which keeps every number.

Here belongs one rewrite a file, named after what it does; ``optimize.py`` lists those after the gradient in order.
"""
