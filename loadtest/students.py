"""The people of a class. What they send is what cell_monitor sends from JupyterLab: camelCase, some 550 bytes a run."""

from math import floor
from typing import Any, Final
from urllib.parse import quote
from uuid import UUID

from loadtest.users import Get, Person, Post, Steps, VirtualUser, task

CELLS: Final = 12  # of a notebook
NOTEBOOKS: Final = 6
ERRORS: Final = ("NameError: name 'score' is not defined", "ZeroDivisionError: division by zero", "KeyError: 'week'")
_CODE: Final = "frame = pd.read_csv('week_{cell:02}.csv')\nframe[frame.score > {run}].score.mean()"
# The real client repeats a call for help every 10 s until it is taken back.
HELP_REPEAT_S: Final = 10.0
# A notebook, and with it a client session, is kept at least so long however fast its cells are run: a student of a soak
# is many times as busy as a real one, but would not open hundreds of sessions an hour. Those not seen yet come sooner:
# at the pace of `soak` all of them within its first half, so that what grows in the second is not the students' work.
STAY_S: Final = 300.0
FIRST_STAY_S: Final = 45.0


class Learner(VirtualUser):
    """Somebody with an open notebook, who can run its cells."""

    error_rate = 0.2  # of runs; more in the recorded lessons, which had cells made to fail

    def __init__(self, person: Person, seed: str, pace_s: float) -> None:
        super().__init__(person, seed, pace_s)
        self._notebook = person.index % NOTEBOOKS
        self._cell = 0
        self._runs = 0
        self._hand_up_until = 0.0  # offset in the run
        self._stays_until = 0.0  # offset in the run
        self._opened = 1  # how often a notebook was opened, the same one again counted
        self._open_session()

    def _open_session(self) -> None:
        self._session = str(UUID(int=self.random.getrandbits(128), version=4))

    def begin(self) -> Steps:
        """Open the notebook, some time within the first pace: nobody marches in step."""
        yield self.random.uniform(0, self.pace_s), self.post("notebook_opened")

    def run(self, cell: int, *, failed: bool) -> Post:
        """One run of a cell."""
        self._runs += 1
        fields: dict[str, Any] = {
            "cellId": f"nb{self._notebook:02}-c{cell:02}",
            "cellIndex": cell,
            "cellType": "code",
            "code": _CODE.format(cell=cell, run=self._runs),
            "executionCount": self._runs,
            "hasError": failed,
            "executionDurationMs": self._runs % 7,
        }
        if failed:
            fields["errorMessage"] = ERRORS[self._runs % len(ERRORS)]
        else:
            fields["result"] = f"{cell}.5"
        return self.post("cell_executed", alert="error" if failed else "", execution=True, failed=failed, **fields)

    def post(
        self, kind: str, *, alert: str = "", execution: bool = False, failed: bool = False, **more: object
    ) -> Post:
        """An event of this student on the open notebook."""
        person = self.person
        fields: dict[str, Any] = {
            "eventType": kind,
            "classId": person.class_id,
            "emailAddress": person.user_id,
            "teamName": person.team,
            "userName": person.name,
            "sessionId": self._session,
            "notebookPath": f"lessons/week_{self._notebook:02}.ipynb",
        }
        return Post(fields | more, alert, execution, failed)


class Student(Learner):
    """Runs a notebook's cells in order with time to think, errs and tries again, asks for help, saves, leaves."""

    most_retries = 4

    @task(80)
    def run_cell(self) -> Steps:
        """The next cell, again while it fails."""
        for _ in range(1 + self.most_retries):
            failed = self.random.random() < self.error_rate
            yield self.think(), self.run(self._cell, failed=failed)
            if not failed:
                break
        yield from self._go_on()

    def _go_on(self) -> Steps:
        """To the next cell; after the last one to the next notebook, or once more through this one."""
        self._cell = (self._cell + 1) % CELLS
        if self._cell == 0:
            yield from self.change_notebook()

    @task(8)
    def save(self) -> Steps:
        """Save the notebook."""
        yield self.think(), self.post("notebook_saved")

    @task(2)
    def ask_for_help(self) -> Steps:
        """Raise a hand, go on working, take it back after a while. Nothing when it is up already."""
        if self.offset_s >= self._hand_up_until:
            asked_s = self.offset_s + (wait_s := self.think())
            taken_back_s = self._hand_up_until = asked_s + self.random.uniform(4, 28)
            for repeat in range(1, int((taken_back_s - asked_s) / HELP_REPEAT_S) + 1):
                self.later(asked_s + repeat * HELP_REPEAT_S, self.post("help"))
            self.later(taken_back_s, self.post("help_stop", alert="help_resolved"))
            yield wait_s, self.post("help", alert="help_requested")

    @task(1)
    def change_notebook(self) -> Steps:
        """Leave, and come back with another notebook and a new client session. Nothing soon after the last time."""
        if self.offset_s < self._stays_until:
            return
        self._opened += 1
        self._stays_until = self.offset_s + (STAY_S if self._opened >= NOTEBOOKS else FIRST_STAY_S)
        yield self.think(), self.post("notebook_closed")
        self._notebook = (self._notebook + 1) % NOTEBOOKS
        self._cell = 0
        self._open_session()
        yield self.think(), self.post("notebook_opened")


class StuckStudent(Student):
    """Fails the same cell again and again, asks for help, and gets through."""

    error_rate = 0.1

    @task(80)
    def run_cell(self) -> Steps:
        """Three to six failures in a row, a call for help, the run that succeeds."""
        for _ in range(self.random.randint(3, 6)):
            yield self.think(), self.run(self._cell, failed=True)
        yield from self.ask_for_help()
        yield self.think(), self.run(self._cell, failed=False)
        yield from self._go_on()


class BurstyClass(Learner):
    """Everybody runs the same cell within seconds, each time the teacher says "now run it"."""

    first_moment_s = 8.0
    every_s = 10.0
    spread_s = 2.0
    least_s = first_moment_s + spread_s
    error_rate = 0.3

    @task(1)
    def run_cell(self) -> Steps:
        """Wait for the next moment, then run the cell somewhere within the spread."""
        moments = max(0, floor((self.offset_s - self.first_moment_s) / self.every_s) + 1)
        due_s = self.first_moment_s + moments * self.every_s + self.random.uniform(0, self.spread_s)
        self._cell = moments % CELLS
        yield self.until(due_s), self.run(self._cell, failed=self.random.random() < self.error_rate)


class Instructor(VirtualUser):
    """Follows the class on the stream (the run opens it) and asks for the overview and for one student's sessions."""

    def __init__(self, person: Person, seed: str, pace_s: float, students: range, student_id: str) -> None:
        """`students` are the indices of the class, `student_id` is a format with the place of one."""
        super().__init__(person, seed, pace_s)
        self._students = students
        self._student_id = student_id

    @task(1)
    def look_at_class(self) -> Steps:
        """The overview."""
        yield self.think(), Get(f"/api/v1/classes/{quote(self.person.class_id, safe='')}/overview")

    @task(2)
    def look_at_student(self) -> Steps:
        """One student's sessions."""
        user = self._student_id.format(self.random.choice(self._students))
        path = f"/api/v1/users/{quote(user, safe='')}/sessions?class={quote(self.person.class_id, safe='')}"
        yield self.think(), Get(path)
