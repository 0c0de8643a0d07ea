"""Guards: what a specialization relies on, and how that is checked at each call.

Here belongs one kind of condition a file, and what is noted of Python values, modules and tensors for it.
"""
