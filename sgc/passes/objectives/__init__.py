"""The objectives: what is estimated, and the scalar whose gradient is the estimate.

Here belongs a file for each: the nodes of its value (``loss``) and of its surrogate (``surrogate_loss``), down to the
mean over particles and the sign.
"""
