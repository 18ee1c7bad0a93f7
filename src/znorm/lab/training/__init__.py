"""Training: the loop, its batches, its checkpoints, and what stops it."""
