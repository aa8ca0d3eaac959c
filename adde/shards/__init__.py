"""From catalogue rows to WebDataset shards, and from shards to samples."""
