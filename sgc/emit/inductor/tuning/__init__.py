"""What makes Inductor's programs or their compilation faster, and changes no number.

Here belongs one idea a file, which can be switched off.
"""
