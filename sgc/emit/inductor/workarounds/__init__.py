"""Defects of Inductor, one a file.

Here belongs what would be deleted if torch mended one defect.
"""
