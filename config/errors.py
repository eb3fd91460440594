"""What loading raises. It stands apart from ``engine.errors``: ``config`` imports no other room."""


class ConfigError(Exception):
    """The configuration cannot be used. ``faults`` holds one line for each fault, led by its key or its file."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults
