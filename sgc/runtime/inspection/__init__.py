"""What a user looks at.

Here belong the explanation of a program in tables, its stages and its text, and draws of its gradient beside training.
"""
