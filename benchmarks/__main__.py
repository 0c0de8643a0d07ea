"""How long a training step takes, compiled by sgc and elsewhere; ``python -m benchmarks`` measures."""

from benchmarks.run import main

main()
