"""Stages before a route: connection, host, key, admission, body, picture decoding."""
