"""What was last written, where the order of arrival says nothing: the later by the event's own order wins."""

from typing import Generic, TypeVar

import msgspec

from engine.event import Order

Value = TypeVar("Value")


class Latest(msgspec.Struct, Generic[Value], array_like=True, gc=False):
    """What was last written, and by which event: see `written`."""

    order: Order
    value: Value


def written(known: Latest[Value] | None, order: Order, value: Value) -> Latest[Value]:
    """Last write wins, by the event's order: ``known`` itself, written over where this one is later."""
    if known is None:
        return Latest(order, value)
    if order > known.order:
        known.order = order
        if known.value != value:
            known.value = value
    return known


def latest(left: Latest[Value] | None, right: Latest[Value] | None) -> Latest[Value] | None:
    """The later of two that may be missing; the left one of two that are the same."""
    return left if right is None or (left is not None and left.order >= right.order) else right
