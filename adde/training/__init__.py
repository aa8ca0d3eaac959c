"""Configuration, checkpoints, objectives, tracking and evaluation of a training run."""
