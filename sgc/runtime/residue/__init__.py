"""What a capture leaves in the program's objects.

Here belongs what finds traced tensors there, and puts back what was in their place.
"""
