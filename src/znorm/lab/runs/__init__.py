"""Runs: their folders, grids of them, and what trains them."""
