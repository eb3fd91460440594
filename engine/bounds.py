"""Bounds on what is kept: past one, the oldest leaves."""

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


def trim(items: dict[Key, Value], limit: int, age: Callable[[Value], Any]) -> None:
    """Drop the oldest when there are more than ``limit``."""
    if len(items) > limit:
        del items[min(items, key=lambda key: age(items[key]))]
