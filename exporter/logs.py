"""What ``-v`` shows: messages of this distribution's modules on stderr, one line each."""

import logging
import sys
from collections.abc import Callable
from typing import Any

PACKAGES = ("exporter", "engines", "calibration")
"""Each module has the logger of its own name; other people's loggers are left alone."""
LEVELS = (logging.NOTSET, logging.INFO, logging.DEBUG)
"""How often ``-v`` was given → what is shown."""


class _Stderr(logging.Handler):
    """Looks stderr up for each line: while progress is drawn, it is what writes above the bars."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(self.format(record) + "\n")


class _Told(logging.Handler):
    """Gives each message to a function, in a form that another process can read."""

    def __init__(self, tell: Callable[[logging.LogRecord], Any]) -> None:
        super().__init__()
        self.tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        record.msg, record.args, record.exc_info = record.getMessage(), None, None
        self.tell(record)


def show(verbosity: int) -> None:
    """Show messages of the verbosity that was asked for; of none, only what Python shows by itself: warnings."""
    handler = _Stderr()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-5s %(name)s: %(message)s", "%H:%M:%S"))
    _install(handler if verbosity else None, LEVELS[min(verbosity, len(LEVELS) - 1)])


def forward(tell: Callable[[logging.LogRecord], Any], level: int) -> None:
    """Give messages to ``tell`` instead: of a process whose parent shows them."""
    _install(_Told(tell), level)


def level() -> int:
    """What is shown now, for processes that are started."""
    return logging.getLogger(PACKAGES[0]).getEffectiveLevel()


def show_forwarded(record: logging.LogRecord) -> None:
    """Show a message of another process as one of this one."""
    logging.getLogger(record.name).handle(record)


def _install(handler: logging.Handler | None, level: int) -> None:
    for name in PACKAGES:
        logger = logging.getLogger(name)
        for old in [one for one in logger.handlers if isinstance(one, _Stderr | _Told)]:
            logger.removeHandler(old)
        if handler:
            logger.addHandler(handler)
        logger.setLevel(level)
