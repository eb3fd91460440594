"""A daemon without I/O: the journal, the live students and one store, wired as the actors wire them.

It exists to be crashed. Only the journal, the stored snapshots, their floor and the table of sessions outlive `crash`.
"""

from array import array
from uuid import UUID

from engine.dedupe import DedupeWindow, Digester
from engine.dirty import DirtyUsers
from engine.event import Commit, Event, UserKey
from engine.ports import SessionRow
from engine.rows import Past, StoredRows, decode_state, encode_state
from engine.session import UserState, merge

JOURNAL = "0123456789abcdef"
KEY = b"journal"


class Student:
    """What a session actor holds."""

    def __init__(self, key: UserKey) -> None:
        self.state = UserState(class_id=key[0], user_id=key[1])
        self.rows = StoredRows()
        self.settled = False

    def adopt(self, past: Past | None, idle_ms: int) -> None:
        if past is not None:
            self.rows = past.rows
            self.state = merge(past.state, self.state, idle_ms)
        self.settled = True


class Pipeline:
    def __init__(self, idle_ms: int, received_at: int) -> None:
        self.idle_ms = idle_ms
        self.received_at = received_at
        self.journal: list[Commit] = []
        self.snapshots: dict[UserKey, bytes] = {}
        self.floor = 0
        self.table: dict[tuple[UserKey, UUID, int], SessionRow] = {}
        self.crash()

    @property
    def last_seq(self) -> int:
        return self.journal[-1].last_seq if self.journal else 0

    def crash(self) -> None:
        """Forget all that was only in memory. Students are shown, but not stored, until `recover`."""
        self.students: dict[UserKey, Student] = {}
        self.dirty: DirtyUsers[Student] = DirtyUsers()
        self.window = DedupeWindow(max_events=100_000, window_ms=10**12)
        for commit in self.journal:
            self._note(commit.events)
        self.head = self.last_seq
        self.recovered = False

    def recover(self) -> None:
        """Replay what the oldest snapshot lacks, then join it with what arrived meanwhile."""
        if self.recovered:
            return
        pasts = {key: Past.of(decode_state(stored)) for key, stored in self.snapshots.items()}
        firsts: dict[UserKey, int] = {}
        for seq, event in self._events(self.floor, self.head):
            key = (event.class_id, event.user_id)
            state = pasts.setdefault(key, Past.of(UserState(class_id=key[0], user_id=key[1]))).state
            if seq > state.position(JOURNAL):
                state.apply(event, self.received_at, self.idle_ms)
                state.advance(JOURNAL, seq)
                firsts.setdefault(key, seq)
        for key, past in pasts.items():
            student = self.students.setdefault(key, Student(key))
            student.adopt(past, self.idle_ms)
            if key in firsts:
                self.dirty.mark(key, firsts[key], student)
        self.recovered = True

    def settle(self) -> None:
        """Give students that were met again their stored past."""
        self.recover()
        for key, student in self.students.items():
            if not student.settled:
                stored = self.snapshots.get(key)
                student.adopt(None if stored is None else Past.of(decode_state(stored)), self.idle_ms)

    def retire(self) -> None:
        """Let go of every student whose state is stored."""
        if self.recovered:
            self.students = {key: student for key, student in self.students.items() if key in self.dirty}

    def deliver(self, batch: list[Event]) -> None:
        """What one request brings: only what the window does not know becomes a commit."""
        new: dict[int, Event] = {}
        for event in batch:
            known = Digester(KEY)(event.class_id, event.user_id, event.event_id)
            if known not in self.window:
                new.setdefault(known, event)
        if not new:
            return
        commit = Commit(self.last_seq + 1, self.received_at, list(new.values()))
        self.journal.append(commit)
        self._note(commit.events)
        for seq, event in enumerate(commit.events, commit.first_seq):
            key = (event.class_id, event.user_id)
            student = self.students.get(key)
            if student is None:
                student = self.students[key] = Student(key)
            student.state.apply(event, commit.received_at, self.idle_ms)
            student.state.advance(JOURNAL, seq)
            self.dirty.mark(key, seq, student)

    def flush(self, *, limit: int, committed: bool, answered: bool) -> None:
        """Store the longest dirty students. Without an answer the writer cannot know whether it was committed."""
        if not self.recovered:
            return
        chosen = dict([(key, student) for key, student in self.dirty.waiting(self.last_seq) if student.settled][:limit])
        self.dirty.take(chosen)
        floor = max(self.floor, self.dirty.floor(self.last_seq))
        for student in chosen.values():
            student.rows.shed(student.state)
        told = {key: student.rows.changes(student.state) for key, student in chosen.items()}
        if committed:
            for key, student in chosen.items():
                self._store(key, student, *told[key])
            self.floor = floor
        if answered:
            self.dirty.stored()
            for student in chosen.values():
                student.rows.stored()
        else:
            for student in self.dirty.failed():
                student.rows.unsure()

    def _store(self, key: UserKey, student: Student, rows: list[SessionRow], moved: list[tuple[UUID, int]]) -> None:
        self.snapshots[key] = encode_state(student.state)
        for identity, started_at in moved:
            self.table.pop((key, identity, started_at), None)
        for row in rows:
            self.table[key, row.id, row.started_at] = row

    def _note(self, events: list[Event]) -> None:
        digests = (Digester(KEY)(event.class_id, event.user_id, event.event_id) for event in events)
        self.window.add(self.received_at, array("Q", digests))

    def _events(self, after: int, upto: int) -> list[tuple[int, Event]]:
        numbered = [pair for commit in self.journal for pair in enumerate(commit.events, commit.first_seq)]
        return [(seq, event) for seq, event in numbered if after < seq <= upto]
