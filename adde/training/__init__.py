"""The training engine: runs, checkpoints, strategies, monitoring; independent of the method."""
