"""What is compiled by the C++ compiler; first of all, a directory for it.

Torch makes the directory of Inductor's cache when that is imported, and cannot be imported if it cannot make it.
"""

from sgc.native.directory import make_directory

make_directory()
