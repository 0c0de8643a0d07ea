"""What a program asks of its tensors in Python while it is captured.

Here belongs what answers ``.item()``, a branch, an index or a check from the inputs, as a guard or as a node.
"""
