"""Structured logs on stderr: JSON lines for machines, columns for a terminal."""

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
        errors = [structlog.processors.dict_tracebacks]
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
