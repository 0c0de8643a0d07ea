"""The backends: what turns an emitted module into a callable.

Here belongs one backend a file, what all of them can do (``protocol.py``), and their list (``registry.py``). Nothing
outside compares a backend with its name: it asks the backend for a property.
"""
