"""Checkpoints: written by all ranks in the background, verified when read, mirrored remotely."""
