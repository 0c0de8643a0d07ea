"""The backends: what turns an emitted module into a callable.

Here belongs one backend a file, and the entry that chooses.
"""
