"""What sample statements ask for.

Here belongs what is read from the ``infer`` of a statement, or from the option ``estimators``, before anything is
decided.
"""
