"""Structured logs on stderr: JSON lines for machines, columns for a terminal."""

import logging
import sys

import structlog


def configure(level: str) -> None:
    """Set structlog up for this process. ``level``: debug, info, warning or error."""
    renderer: structlog.typing.Processor
    if sys.stderr.isatty():
        renderer = structlog.dev.ConsoleRenderer()
        errors: list[structlog.typing.Processor] = []
    else:
        renderer = structlog.processors.JSONRenderer()
        # Without the values of variables: they hold passwords and what students did.
        traces = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        errors = [structlog.processors.ExceptionRenderer(traces)]
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *errors,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(handlers=[_ToStructlog()], level=logging.WARNING, force=True)


class _ToStructlog(logging.Handler):
    """Libraries' own log lines (trio's, when descriptors run out) in the same form as ours."""

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler.emit`."""
        structlog.get_logger(record.name).log(record.levelno, record.getMessage(), logger=record.name)
