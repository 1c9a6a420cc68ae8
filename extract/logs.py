"""The log as JSON, for programs: one object a line."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime


class JsonLines(logging.Formatter):
    """`{"time", "level", "message"}`, of a line of progress also `status` (extract/progress.py), of an error `traceback`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": time, "level": record.levelname.lower(), "message": record.getMessage()}
        if (status := getattr(record, "status", None)) is not None:
            line["status"] = status
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def is_json() -> bool:
    """Whether the log of this process is JSON."""
    return any(isinstance(handler.formatter, JsonLines) for handler in logging.root.handlers)
