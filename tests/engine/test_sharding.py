"""Who keeps a student, and one answer of several databases."""

from collections import Counter
from statistics import median
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from engine.merging import merge_activity, merge_cells, merge_errors, merge_sessions
from engine.ports import ClassSession, SessionRow
from engine.series import Activity, CellWork, Errors
from engine.sharding import Shard, shard_of


def test_the_contracts_hash():
    assert shard_of("alice", 1_000_000) == 0x6384E2B2 % 1_000_000  # md5 of "alice" begins with these
    assert shard_of("ß@x", 1_000_000) == 0xAC83B67E % 1_000_000  # of its UTF-8


def test_students_are_spread_and_each_has_one_shard():
    users = [f"user{number}@example.org" for number in range(3000)]
    counts = Counter(shard_of(user, 3) for user in users)
    assert all(900 < counts[place] < 1100 for place in range(3))
    for user in users[:50]:
        assert [Shard(place, 3).keeps(user) for place in range(3)].count(True) == 1
        assert Shard().keeps(user)


def test_names():
    assert Shard().name("postgresql") == "postgresql"
    assert Shard(1, 2).name("postgresql") == "postgresql.1"


def session(started_at, number):
    return ClassSession("ann", None, SessionRow(UUID(int=number), None, None, started_at, started_at, False, 0, 0))


@given(
    st.lists(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 50)), unique=True), max_size=4), st.integers(1, 10)
)
def test_pages_of_shards_are_the_page_of_all(rows, limit):
    def newest(found):
        return sorted(found, key=lambda each: (each.row.started_at, each.row.id), reverse=True)[:limit]

    shards = [[session(*row) for row in part] for part in rows]
    assert merge_sessions([newest(part) for part in shards], limit) == newest(
        [each for part in shards for each in part]
    )


runs = st.lists(  # (shard, user, cell, ms or None, failed)
    st.tuples(
        st.integers(0, 2),
        st.integers(0, 4),
        st.integers(0, 3),
        st.none() | st.integers(0, 9) | st.just(1e300),
        st.booleans(),
    ),
    max_size=40,
)


def cells_of(found):
    cells = {run[2] for run in found}
    return [
        CellWork(
            cell,
            len({(run[0], run[1]) for run in found if run[2] == cell}),
            sum(run[2] == cell for run in found),
            sum(run[4] for run in found if run[2] == cell),
            None,
        )
        for cell in cells
    ]


@given(runs)
def test_cells_of_shards_are_the_cells_of_all(found):
    shards = [[run for run in found if run[0] == place] for place in range(3)]
    durations = [
        [
            (cell, ms, count)
            for (cell, ms), count in Counter((run[2], run[3]) for run in part if run[3] is not None).items()
        ]
        for part in shards
    ]
    merged = {cell.cell_index: cell for cell in merge_cells(map(cells_of, shards), durations)}
    for cell in cells_of(found):
        timed = [run[3] for run in found if run[2] == cell.cell_index and run[3] is not None]
        assert merged.pop(cell.cell_index) == cell._replace(median_ms=median(timed) if timed else None)
    assert merged == {}


@given(runs)
def test_series_of_shards_are_the_series_of_all(found):
    def activity(part):
        groups = {run[2] for run in part}
        return [
            Activity(
                str(group),
                0,
                sum(run[2] == group for run in part),
                sum(run[2] == group and run[3] is not None for run in part),
                float(sum(run[3] or 0 for run in part if run[2] == group and run[3] != 1e300)),
            )
            for group in groups
        ]

    def errors(part):
        return [Errors(row.group, row.start, row.executions, row.timed) for row in activity(part)]

    shards = [[run for run in found if run[0] == place] for place in range(3)]
    assert sorted(merge_activity(map(activity, shards))) == sorted(activity(found))
    assert sorted(merge_errors(map(errors, shards))) == sorted(errors(found))
