"""How long loss and gradients take, compiled by sgc and in Pyro; ``python -m benchmarks`` measures."""
