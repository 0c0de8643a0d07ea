"""What all rewrites of ``torch.fx`` graphs share.

Here belong tools: values and copies of nodes, purity of operators, the laws of a module, modules without source.
"""
