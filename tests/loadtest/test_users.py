"""What virtual users do: the same for the same seed, as often as planned, in a student's own order."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise, takewhile

import pytest

from loadtest import scenarios
from loadtest.errors import UsageError
from loadtest.students import NOTEBOOKS, STAY_S, BurstyClass, StuckStudent, Student
from loadtest.users import Get, Person, Post, VirtualUser, task

ANN = Person(3, "class", "ann@example.com", "Ann", "Team")


def steps_of(user, until_s):
    """(when due, what) until then."""
    found = []
    due = 0.0
    for wait_s, action in user.steps():
        due += wait_s
        if due > until_s:
            return found
        found.append((due, action))
    return found


def kinds(user, until_s):
    return [action.fields["eventType"] for _, action in steps_of(user, until_s)]


def test_tasks_are_drawn_by_weight():
    class Walker(VirtualUser):
        @task(3)
        def left(self):
            yield 1.0, Get("left")

        @task(1)
        def right(self):
            yield 1.0, Get("right")

    drawn = Counter(action.path for _, action in steps_of(Walker(ANN, "1", 1), 4000))
    assert 2.5 < drawn["left"] / drawn["right"] < 3.5


def test_a_task_may_do_without_a_weight():
    class Walker(VirtualUser):
        @task
        def go(self):
            yield 1.0, Get("slow")

        @task(3)
        def stay(self):
            yield 1.0, Get("stay")

    assert list(Walker.weights) == [1, 3]


def test_who_has_nothing_to_do_is_told():
    class Idle(VirtualUser):
        pass

    class Empty(VirtualUser):
        @task
        def go(self):
            yield from ()

    class Odd(VirtualUser):
        @task
        def go(self):
            yield 1

    class Bare(VirtualUser):
        @task
        def go(self):
            return 7

    class Late(VirtualUser):
        @task
        def go(self):
            yield "1", Get("/")

    for kind, says in (
        (Idle, "Idle has no task"),
        (Empty, "yield no step"),
        (Odd, r"Odd: a task yields \(seconds from 0 on, action\), and one yields 1$"),
        (Bare, "Bare: a task yields steps"),
        (Late, "Late: a task yields"),
    ):
        with pytest.raises(UsageError, match=says):
            next(kind(ANN, "1", 1).steps())


def test_a_subclass_may_change_a_task():
    class Walker(VirtualUser):
        @task(1)
        def go(self):
            yield 1.0, Get("slow")

    class Runner(Walker):
        @task(5)
        def go(self):
            yield 0.1, Get("fast")

    assert (len(Runner.tasks), list(Runner.weights)) == (1, [5])
    assert steps_of(Runner(ANN, "1", 1), 0.15)[0][1].path == "fast"


@pytest.mark.parametrize("kind", [Student, StuckStudent, BurstyClass])
def test_the_same_seed_gives_the_same_steps_and_another_others(kind):
    assert steps_of(kind(ANN, "1", 1), 60) == steps_of(kind(ANN, "1", 1), 60)
    assert steps_of(kind(ANN, "1", 1), 60) != steps_of(kind(ANN, "2", 1), 60)


def test_a_student_opens_a_notebook_runs_its_cells_and_tries_again_what_failed():
    posts = [action for _, action in steps_of(Student(ANN, "1", 1), 600)]
    assert posts[0].fields["eventType"] == "notebook_opened"
    runs = [post for post in posts if post.execution]
    for before, after in pairwise(runs):
        if before.fields["notebookPath"] != after.fields["notebookPath"]:
            assert after.fields["cellIndex"] == 0
        elif not before.failed:
            assert after.fields["cellIndex"] == (before.fields["cellIndex"] + 1) % 12
    failed = sum(post.failed for post in runs) / len(runs)
    assert 0.1 < failed < 0.3
    assert all(post.alert == ("error" if post.failed else "") for post in runs)


def test_a_busy_student_opens_no_more_sessions_than_a_real_one():
    steps = steps_of(Student(ANN, "1", 0.05), 3000)
    opened = [due for due, action in steps if action.fields["eventType"] == "notebook_opened"]
    assert len(opened) > 12
    assert all(after - before >= STAY_S for before, after in pairwise(opened[NOTEBOOKS - 1 :]))


def test_all_notebooks_are_seen_in_the_first_half_of_a_soak():
    for kind in (Student, StuckStudent):
        for index in range(20):
            steps = steps_of(kind(replace(ANN, index=index), "1", 200 / 300), 600)
            seen = {action.fields["notebookPath"] for _, action in steps}
            assert len(seen) == NOTEBOOKS


def test_a_hand_goes_up_is_kept_up_and_comes_down():
    calls = [
        (due, action) for due, action in steps_of(Student(ANN, "1", 0.5), 3000) if "help" in action.fields["eventType"]
    ]
    told = [action.alert for _, action in calls if action.alert]
    assert told[:4] == ["help_requested", "help_resolved"] * 2
    assert len(told) > 20
    for (before_s, before), (after_s, after) in pairwise(calls):
        if not after.alert:  # a repeat
            assert before.fields["eventType"] == "help"
            assert after_s - before_s == pytest.approx(10)


def test_a_stuck_student_fails_three_times_in_a_row_and_asks():
    runs = [action for _, action in steps_of(StuckStudent(ANN, "1", 1), 300)]
    assert "help" in [post.fields["eventType"] for post in runs]
    row = takewhile(lambda post: post.failed, [post for post in runs if post.execution][:3])
    assert len(list(row)) == 3


def test_a_class_runs_one_cell_when_the_teacher_says_so():
    due = [
        (due, action.fields["cellIndex"])
        for index in range(50)
        for due, action in steps_of(BurstyClass(Person(index, "c", f"u{index}", "", ""), "1", 1), 21)
        if action.execution
    ]
    assert len(due) == 100
    for moment in (8, 18):
        assert len({cell for at, cell in due if moment <= at <= moment + 2}) == 1
        assert sum(moment <= at <= moment + 2 for at, _ in due) == 50


@pytest.mark.parametrize("name", ["classroom-200", "campus-5000"])
def test_the_rate_is_what_the_scenario_says(name):
    scenario = scenarios.BUILT_IN[name]
    sample = range(0, scenario.students, scenario.students // 100)
    seconds = 100
    events = sum(
        isinstance(action, Post)
        for index in sample
        for _, action in steps_of(scenario.user(scenario.person(index, "run"), "1", "run"), seconds)
    )
    rate = events / seconds * scenario.students / len(sample)
    assert rate == pytest.approx(scenario.events_per_s, rel=0.1)


def test_instructors_look_at_their_own_class():
    scenario = scenarios.BUILT_IN["campus-5000"]
    person = scenario.person(scenario.students + 3, "run")
    paths = [action.path for _, action in steps_of(scenario.user(person, "1", "run"), 60)]
    assert person.class_id == "lt-run-03"
    assert f"/api/v1/classes/{person.class_id}/overview" in paths
    asked = {int(path.split("student")[1][:5]) % 20 for path in paths if "/users/" in path}
    assert asked == {3}


@pytest.mark.parametrize("wait_s", [-1.0, float("nan"), float("inf")])
def test_nobody_waits_for_less_than_nothing_or_for_ever(wait_s):
    class Odd(VirtualUser):
        @task
        def wait(self):
            yield wait_s, Get("/livez")

    with pytest.raises(UsageError, match="seconds from 0 on"):
        next(Odd(Person(0, "a", "ann", "", ""), "1", 1.0).steps())


@pytest.mark.parametrize("weight", [0, -20, float("nan"), float("inf")])
def test_a_task_has_a_weight_over_0(weight):
    with pytest.raises(UsageError, match="over 0"):
        task(weight)
