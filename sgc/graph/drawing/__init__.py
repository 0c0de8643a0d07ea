"""How a graph is drawn, and how what is repeated in it is folded, in pictures and in the printed text.

Here belong the folding, the scene (what is drawn, without a format), a file for each format, and what a notebook shows.
Nothing here changes a graph.
"""
