"""Programs that assume which way their branches on samples go.

Here belongs what checks the assumption at a call, runs Pyro where it fails, and decides when to capture again.
"""
