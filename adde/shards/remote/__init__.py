"""Shards behind http(s), s3 and gs: transport, download, and the cache on local disk."""
