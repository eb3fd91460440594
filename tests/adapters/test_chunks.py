"""Commits, some events at a time."""

from adapters.chunks import in_chunks
from tests.adapters.events import run
from tests.adapters.flushes import Feed


def test_chunks_are_of_whole_commits_and_lose_none():
    feed = Feed()
    commits = [feed.flush(*(run() for _ in range(size))).commits[0] for size in (1000, 1000, 4000, 1, 1)]
    chunks = list(in_chunks(commits))
    assert [commit for chunk in chunks for commit in chunk] == commits
    assert [sum(map(len, chunk)) for chunk in chunks] == [2000, 4000, 2]
    assert list(in_chunks([])) == []
