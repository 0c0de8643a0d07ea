"""Random Pyro programs, run by eager Pyro and by sgc under one seed.

``python -m tests.fuzz --programs 3000 --backend eager --seed 0`` runs many; what fails is shrunk and written down.
"""
