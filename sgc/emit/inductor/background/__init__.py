"""Compilation in a process of its own, so that the steps of this one go on meanwhile.

Here belongs what travels between the two processes (``graph_as_data.py``, ``compile_request.py``), what the other one
runs (``compile_worker.py``), how it is started and asked (``compiler_process.py``), and how what it has compiled is
loaded here without Inductor (``precompiled.py``).
"""
