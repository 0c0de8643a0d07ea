"""Compilations that nobody waits for.

Here belong which programs another process compiles, what runs meanwhile, and how a loss changes over.
"""
