"""Galleries: stored items, the engines that search them, filters, and building them from shards."""
