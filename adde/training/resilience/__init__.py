"""Checks before a run, diagnosis of its failures, and stop signals."""
