"""Checks of a folder of shards: its bytes against the index, and its labels and pictures."""
