"""Training: configuration, objectives, checkpoints, evaluation, and the watching of a run."""
