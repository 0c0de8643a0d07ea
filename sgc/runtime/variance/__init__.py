"""The variance of the gradient, and where it comes from.

Here belongs what splits a graph's surrogate into its sites' terms (``terms.py``), what draws gradients of them and adds
up their moments (``sampling.py``, ``moments.py``), what is told of that (``variance_report.py``), and what chooses the
baselines of sites that ask for ``"auto"`` (``estimator_choice.py``, of ``covariances.py``; ``choice_report.py``).
"""
