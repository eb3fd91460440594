"""What a row has to hold, of an event as it is posted."""

import pytest

from loadtest.columns import NAMES, differences, of_fields, of_row

RUN = ("cell_executed", "a.ipynb", 3, 5.0, None, None, None)


@pytest.mark.parametrize(
    ("fields", "row"),
    [
        ({"eventType": "cell_execution", "notebookPath": "a.ipynb", "cellIndex": 3, "duration": 5}, RUN),
        ({"event": "cell_executed", "notebook_path": "a.ipynb", "cell_index": 3, "executionDurationMs": 5.0}, RUN),
        ({"event_type": "cell_executed", "data": {"notebookPath": "a.ipynb", "cellIndex": 3, "duration": 5}}, RUN),
        (
            {
                "eventType": "cell_executed",
                "notebookPath": "a.ipynb",
                "cellIndex": 3,
                "duration": 5,
                "cell_index": None,
            },
            RUN,
        ),
        (
            {
                "eventType": "execution_error",
                "notebookPath": "a",
                "hasError": False,
                "errorMessage": "é\0" + "x" * 9000,
            },
            ("execution_error", "a", None, None, False, "é␀" + "x" * 8190, None),
        ),
        (
            {"eventType": "help", "event_type": "notebook_saved", "notebookPath": "a\0"},
            ("notebook_saved", "a␀", *[None] * 5),
        ),
        ({"eventType": "help", "cellIndex": 3}, ("help_requested", None, *[None] * 5)),
        ({"eventType": "help_stop"}, ("help_resolved", None, *[None] * 5)),
        ({"eventType": "notebook_saved", "notebookPath": "a", "cellIndex": 3}, ("notebook_saved", "a", *[None] * 5)),
    ],
)
def test_what_is_posted_is_what_the_row_holds(fields, row):
    assert differences(of_fields(fields), of_row(row)) == []


@pytest.mark.parametrize("place", range(len(NAMES)))
def test_what_differs_is_named(place):
    row = ["execution_error", "a.ipynb", 3, 5.0, True, "KeyError", 2]
    other = list(row)
    other[place] = ("cell_executed", "b.ipynb", 4, 5.25, False, "NameError", 3)[place]
    assert differences(of_row(row), of_row(other)) == [NAMES[place]]
    assert of_row(other) < 2**63


@pytest.mark.parametrize(
    "fields",
    [
        {"eventType": ["x"]},
        {"eventType": "cell_executed", "errorMessage": 5, "duration": "x", "cellIndex": {}, "hasError": "no"},
        {"eventType": "cell_executed", "duration": 10**400, "data": [1]},
        {},
    ],
)
def test_what_the_daemon_refuses_is_no_trouble(fields):
    assert 0 <= of_fields(fields) < 2**63
