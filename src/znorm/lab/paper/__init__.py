"""The paper's tables and figure: its numbers, its grids, and the command that runs them."""
