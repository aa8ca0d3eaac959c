"""Check a folder of shards: its bytes against the index, its labels and its pictures."""
