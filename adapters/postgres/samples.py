"""Samples of students' states as rows, where no other store holds time series."""

from typing import Final

from adapters.asyncio_bridge import Connection, to_timestamptz
from engine.ports import Sample
from engine.samples import CELL_TYPE

_PROGRESS_COLUMNS: Final = (
    "sampled_at", "class_id", "user_id", "notebook_path", "completed_cells", "total_cells", "progress_percentage",
    "session_duration_ms",
)  # fmt: skip
_METRICS_COLUMNS: Final = (
    "sampled_at", "class_id", "user_id", "notebook_path", "cell_type", "avg_execution_time", "max_execution_time",
    "error_rate",
)  # fmt: skip


async def copy_samples(connection: Connection, samples: list[Sample]) -> None:
    """Append them; one that was written before is there twice then."""
    if not samples:
        return
    await connection.copy(
        "learning_progress",
        _PROGRESS_COLUMNS,
        [
            (
                to_timestamptz(each.time), each.class_id, each.user_id, each.notebook_path, each.completed_cells,
                each.total_cells, each.progress_percentage, each.session_duration_ms,
            )
            for each in samples
        ],
    )  # fmt: skip
    ran = [
        (
            to_timestamptz(each.time), each.class_id, each.user_id, each.notebook_path, CELL_TYPE,
            each.avg_execution_time, each.max_execution_time, each.error_rate,
        )
        for each in samples
        if each.error_rate is not None
    ]  # fmt: skip
    if ran:
        await connection.copy("performance_metrics", _METRICS_COLUMNS, ran)
