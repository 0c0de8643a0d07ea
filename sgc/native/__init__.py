"""What the C++ compiler makes: the library that every step passes through, and what all compilations need.

Here belongs what is C++ of our own, with the Python that says the same, and the care for the compiler, its cache and
its errors. It makes a directory when it is imported: torch makes that of Inductor's cache when
it is imported, and cannot be imported if it cannot make it.
"""

from sgc.native.directory import make_directory

make_directory()
