"""What a program takes from around it: globals, closures, attributes.

Here belong the guard, the walk over what a program can reach, and what of it is a library's own.
"""
