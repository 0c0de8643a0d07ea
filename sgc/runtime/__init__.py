"""A loss module at work: it chooses a specialization for a call, or has one made, and runs it.

Here belongs what happens at a call. ``specializing/compiler.py`` is the one place that sees every stage of compiling.

What a loss module shows without an underscore is for users (``tests/runtime/test_public_names.py``). With one it is for
sgc: training, speculation and the classes of ``sgc.infer`` call it too.
"""
