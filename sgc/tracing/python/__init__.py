"""Python that meets traced tensors where torch's operators are not enough.

Here belongs one construct of Python, Pyro or torch a file, which is captured in a way of its own or refused.
"""
