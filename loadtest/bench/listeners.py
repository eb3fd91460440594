"""Subscribers that only listen, as a process of their own.

`python -m loadtest.bench.listeners URL CLASS COUNT` prints `listeners ready URL` when each has had its snapshot.
"""

import sys

import trio

from loadtest.plan import clock
from loadtest.runner import stretched_limits
from loadtest.subscribers import Subscriber
from loadtest.target import Target


async def listen(url: str, class_id: str, count: int) -> None:
    """Until ended."""
    # None of the students is theirs to note: reading is all that they do.
    subscribers = [Subscriber(Target(url), class_id, {}, clock(0)) for _ in range(count)]
    async with trio.open_nursery() as nursery:
        for subscriber in subscribers:
            nursery.start_soon(subscriber.run)
        for subscriber in subscribers:
            await subscriber.ready.wait()
        print(f"listeners ready {url}", flush=True)


if __name__ == "__main__":
    with stretched_limits():
        trio.run(listen, sys.argv[1], sys.argv[2], int(sys.argv[3]))
