"""Shards at http(s), s3 and gs addresses: transport, download, and the cache on local disk."""
