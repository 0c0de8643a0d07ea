"""What watches a run of training: at steps, at the ends of epochs, at its end.

Here belongs the class to derive from, what it is given, and a file for each of those that sgc brings.
"""
