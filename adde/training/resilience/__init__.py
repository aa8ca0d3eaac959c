"""Checks before a run and diagnosis of its failures: preflight, heartbeat, stop signals."""
