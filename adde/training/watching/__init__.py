"""Logs, dashboards, alerts, profiles and the report of a run."""
