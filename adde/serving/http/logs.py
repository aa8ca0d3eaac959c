"""JSON logging: one object per line, on stderr."""

import json
import logging
from datetime import datetime, timezone

USUAL = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}
"""Attributes of every record; any others came as `extra`."""


class JsonLines(logging.Formatter):
    """Formats time, level, message and the record's `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record as one line."""
        when = datetime.fromtimestamp(record.created, timezone.utc)
        content = {
            "time": when.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **{name: value for name, value in vars(record).items() if name not in USUAL},
        }
        if record.exc_info:
            content["trace"] = self.formatException(record.exc_info)
        return json.dumps(content, ensure_ascii=False, default=str)


def install() -> None:
    """Install the formatter for the whole process."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
