"""Checkpoints: written by all ranks in the background, verified by hash, mirrored remotely."""
