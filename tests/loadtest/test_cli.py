"""The command line: what is refused, and what files say."""

import io
import json
import math
import os
import re

import msgspec
import pytest

from loadtest import cli, columns, comparison, promises, recording, report, result, scenarios, target
from loadtest.accounts import Accounts
from loadtest.check import Check
from loadtest.display import PlainDisplay, display, text
from loadtest.durations import written
from loadtest.errors import UsageError
from loadtest.faults import parse as parse_fault
from loadtest.generator import Tick
from loadtest.histograms import Histogram
from loadtest.ledger import ACKNOWLEDGED, REFUSED, Entry, Tally
from loadtest.monitor import Monitor, Sample, Scrape, bucket_percentile, commits_say
from loadtest.plan import Plan, clock
from loadtest.plots import nice_steps
from loadtest.progress import Progress
from loadtest.runner import Course, Run
from loadtest.target import Target
from loadtest.transports import LeanTransport
from loadtest.workers import Assignment
from tests.loadtest.conftest import RECORDINGS
from tests.loadtest.peer import answer, serving


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["classroom-2000"], "no scenario"),
        (["classroom-200", "--target", "http://school.example.org:8765"], "--i-own-this-host school.example.org"),
        (["classroom-200", "--target", "http://10.0.0.7:8765", "--i-own-this-host", "10.0.0.8"], "not this machine"),
        (["classroom-200", "--target", "ftp://127.0.0.1"], "expected http://"),
        (["classroom-200", "--target", "http://127.0.0.1:99999"], "expected http://"),
        (["classroom-200", "--target", "http://me:secret@127.0.0.1"], "--key-file"),
        (["classroom-200", "--fault", "kill-daemon@5s"], "--fault needs --local"),
        (["classroom-200", "--local", "--fault", "burn-daemon@5s"], "expected postgres-stop@"),
        (["classroom-200", "--local", "--fault", "kill-daemon@59.5s"], "not over when the load ends"),
        (["classroom-200", "--local", "--target", "http://127.0.0.1"], "no --target"),
        (["classroom-200", "--duration", "7 days"], "not a duration"),
        (["classroom-200", "--duration", "9h"], "at most 6 h"),
        (["soak", "--duration", "6h"], "say --max-events 7128000"),
        (["burst", "--local", "--duration", "10s"], "burst: duration: over 10 s"),
        (["classroom-200", "--students", "99999"], "students: 1 to 50000"),
        (["classroom-200", "--rate", "-3"], "rate"),
        (["classroom-200", "--shape", "hill:5s"], "expected ramp"),
        (["classroom-200", "--slo", "p99<soon"], "promise"),
        (["classroom-200", "--json", "/nowhere/at/all.json"], "no such directory"),
        (["classroom-200", "--workers", "1000"], "--workers"),
        (["classroom-200", "extra.json"], "Only replay and compare"),
        (["replay"], "expected one file"),
        (["replay", "/nowhere.jsonl"], "not a recording"),
        (["compare", "a.json"], "expected two files"),
        (["compare", "/nowhere-a.json", "/nowhere-b.json"], "No such file"),
        (["capacity", "--local", "--html", "report.html"], "no HTML"),
        (["capacity", "--students", "300", "--most", "200"], "more than --most"),
        (["capacity", "--duration", "5s"], "--step"),
        (["classroom-200", "--step", "5s"], "--step is of capacity"),
        (["classroom-200", "--most", "5"], "--most is of capacity"),
        (["classroom-200", "--local", "--drain", "soon"], "--drain: not a duration: 'soon'"),
        (["classroom-200", "--local", "--drain", "7h"], "--drain: at most 6 h"),
        (["classroom-200", "--local", "--fault", "kill-daemon@"], "--fault kill-daemon@: not a duration: ''"),
        (["capacity", "--local", "--step", "0"], "--step: over 0, at most 540 s"),
        (["capacity", "--local", "--step", "10m"], "--step: over 0, at most 540 s"),
        (["capacity", "--local", "--drain", "soon"], "not a duration: 'soon'"),
        (["compare", "a.json", "b.json", "--workers", "2"], "no --workers"),
        (["compare", "a.json", "b.json", "--class", "x"], "no --class"),
        (["compare", "a.json", "b.json", "--fault", "kill-daemon@5s"], "no --fault"),
        (["compare", "a.json", "b.json", "--i-own-this-host", "x"], "no --i-own-this-host"),
        (["capacity", "--rate", "5"], "say --students"),
        (["capacity", "--students", "5", "--rate", "0"], "rate: over 0"),
        (["capacity", "--most", "50001"], "--most: at most 50000"),
        (["classroom-200", "--speed", "2"], "--speed is of replay"),
        (["capacity", "--json", "/"], "is a directory"),
        (["compare", "a.json", "b.json", "--json", "c.json"], "writes no file"),
        (["replay", str(RECORDINGS / "cell_monitor.jsonl"), "--rate", "5"], "--speed"),
        (["mine.py"], "mine.py: No such file"),
        (["classroom-200", "--target", ""], "expected http://"),
        (["classroom-200", "--target", "http://[::1"], "expected http://"),
        (["classroom-200", "--shape", ""], "lasts no time"),
        (["classroom-200", "--rate", "0"], "rate: over 0"),
        (["classroom-200", "--subscribers", "1000000000"], "--subscribers: at most"),
        (["classroom-200", "--json", "/"], "is a directory"),
        (["classroom-200", "--html", "/tmp/" + "x" * 300], "File name too long"),
        (
            ["classroom-200", "--local", "--fault", "pause-daemon@2s+5s", "--fault", "kill-daemon@3s"],
            "before pause-daemon@2s+5s is over",
        ),
    ],
)
def test_bad_usage_is_exit_2_in_one_line(arguments, says, capsys):
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert says in captured.err
    assert len(captured.err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["classroom-200", "--students", "none"],
        ["classroom-200", "--students", "0"],
        ["classroom-200", "--class", ""],
        ["classroom-200", "--class", "my class"],
        ["classroom-200", "--class", "x" * 65],
        ["classroom-200", "--class", "ok\n"],
    ],
)
def test_bad_options_are_exit_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2


def test_help_says_what_can_be_promised(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    told = capsys.readouterr().out
    for figure, (unit, says) in promises.FIGURES.items():
        assert re.search(rf"^  {figure} +{re.escape(says)}{f' .{unit}.' * bool(unit)}$", told, re.MULTILINE)


GOOD = """
from loadtest import promises, shapes
from loadtest.scenarios import Scenario
from loadtest.students import Student
from loadtest.users import VirtualUser
SCENARIO = Scenario("mine", "", 2, 4.0, shapes.parse("hold:1s"), mix=((Student, 1.0),))
"""


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('parse("hold:1s")', 'parse("hold:1s"', "SyntaxError"),
        (
            "\nSCENARIO",
            "\nimport nowhere_at_all\nSCENARIO",
            "line 6: ModuleNotFoundError: No module named 'nowhere_at_all'",
        ),
        ('shapes.parse("hold:1s")', '"hold:1s"', "shape: expected shapes.parse"),
        ("mix=((Student, 1.0),)", "mix=((Student, 1.0))", "mix: expected pairs"),
        ("mix=((Student, 1.0),)", "mix=()", "mix: at least one"),
        ("(Student, 1.0)", "(Student, 0.0)", "mix: at least one"),
        ("mix=", "promises='p99<1s', mix=", "promises: expected promises.parse"),
        ("SCENARIO =", "OTHER =", "binds no SCENARIO"),
        ("((Student, 1.0),)", "((type('Idle', (VirtualUser,), {}), 1.0),)", "Idle has no task"),
        ('"", 2, 4.0', '"", "2", 4.0', "mine.py: students: expected a number, got '2'"),
        ('"", 2, 4.0', '"", 2, None', "mine.py: events_per_s: expected a number, got None"),
    ],
)
def test_a_scenario_that_is_wrong_is_told_in_one_line(tmp_path, capsys, old, new, says):
    assert old in GOOD
    (tmp_path / "mine.py").write_text(GOOD.replace(old, new))
    assert cli.main([str(tmp_path / "mine.py")]) == 2
    told = capsys.readouterr().err
    assert says in told
    assert "Traceback" not in told


def test_a_scenario_may_import_its_neighbours(tmp_path):
    (tmp_path / "a_neighbour_of_it.py").write_text("SIZE = 7\n")
    (tmp_path / "mine.py").write_text(
        GOOD.replace("2, 4.0", "SIZE, 4.0").replace("\nfrom", "\nfrom a_neighbour_of_it import SIZE\nfrom", 1)
    )
    assert scenarios.find(str(tmp_path / "mine.py")).students == 7


@pytest.mark.parametrize("key", [b"", b"\n", b"a b", b"a\nX-Evil: 1", "schlüssel".encode(), b"\xff\xfe"])
def test_what_is_no_access_key_is_exit_2(tmp_path, capsys, key):
    (tmp_path / "key").write_bytes(key)
    assert cli.main(["classroom-200", "--key-file", str(tmp_path / "key")]) == 2
    assert "holds no access key" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line",
    [
        '{"t_ms": NaN, "method": "POST", "body": "[]"}',
        '{"t_ms": 1e999, "method": "POST", "body": "[]"}',
        '{"t_ms": 1' + "0" * 400 + ', "method": "POST", "body": "[]"}',
        '{"t_ms": 1, "method": "POST", "body": "[{\\"user_id\\":\\"a\\",\\"event_type\\":\\"\\\\ud800\\"}]"}',
        '{"t_ms": 1, "method": "POST", "body": "' + "[" * 100_000 + '"}',
        "[" * 100_000,
    ],
    ids=range(6),
)
def test_what_is_no_recording_is_exit_2(tmp_path, capsys, line):
    (tmp_path / "rec.jsonl").write_text(line + "\n")
    assert cli.main(["replay", str(tmp_path / "rec.jsonl")]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"t_ms": 1', "line 2: Expecting ',' delimiter: column 11"),
        ('{"method": "POST", "body": "[]"}', "line 2: t_ms: expected milliseconds, got None"),
        ('{"t_ms": "1", "method": "POST", "body": "[]"}', "line 2: t_ms: expected milliseconds, got '1'"),
        ('{"t_ms": 1, "method": "POST", "body": []}', "line 2: body: expected text, got list"),
        ("[]", "line 2: expected an object"),
    ],
)
def test_what_is_wrong_in_a_recording_is_told_with_its_line(tmp_path, capsys, line, says):
    (tmp_path / "rec.jsonl").write_text('{"t_ms": 1, "method": "POST", "body": "[]"}\n' + line + "\n")
    assert cli.main(["replay", str(tmp_path / "rec.jsonl")]) == 2
    assert says in capsys.readouterr().err


def test_files_may_come_behind_options(tmp_path, capsys):
    assert cli.main(["replay", "--speed", "2", str(tmp_path / "none.jsonl")]) == 2
    assert "none.jsonl: not a recording" in capsys.readouterr().err


def test_no_key_and_no_password_is_shown_by_accident():
    secret = "s3cret"
    shape = ((0.0, 1.0), (1.0, 1.0))
    plan = Plan("classroom-200", "abcd1234", "1", "http://127.0.0.1:1", secret, 1, 1, 0, 1.0, shape)
    run = Run(plan, PlainDisplay(io.StringIO()), promises=(), dsn=f"postgresql://u:{secret}@127.0.0.1/x")
    assert plan.target.key == secret
    for holder in (plan, plan.target, run, Assignment(plan, 0, 1)):
        assert secret not in repr(holder)
        assert "127.0.0.1:1" in repr(holder)


def test_nobody_there_is_exit_1(capsys, unused_port):
    assert cli.main(["classroom-200", "--target", f"http://127.0.0.1:{unused_port}"]) == 1
    assert "is the daemon running?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "owned"),
    [
        ("http://127.0.0.1:8765", None),
        ("http://localhost:8765/", None),
        ("http://[::1]:8765", None),
        ("https://school.example.org", "school.example.org"),
        ("http://School.Example.org:8765", "SCHOOL.example.org"),
    ],
)
def test_allowed_targets(url, owned):
    assert target.allowed(url, owned).url == url.rstrip("/")


@pytest.mark.parametrize("url", ["http://localhost.example.org", "http://127.0.0.1.example.org", "http://0.0.0.0:1"])
def test_names_that_only_look_like_loopback(url):
    with pytest.raises(UsageError):
        target.allowed(url, None)


def test_a_scenario_of_ones_own(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from loadtest.scenarios import Scenario\nfrom loadtest import shapes\n"
        "SCENARIO = Scenario('mine', 'two people', students=2, events_per_s=1, shape=shapes.parse('hold:5s'))\n"
    )
    assert scenarios.find(str(file)).says == "two people"
    file.write_text("x = 1")
    with pytest.raises(UsageError, match="SCENARIO"):
        scenarios.find(str(file))


def test_fewer_students_keep_their_pace():
    tuned = scenarios.tuned(scenarios.BUILT_IN["campus-5000"], students=50)
    assert (tuned.events_per_s, tuned.classes) == (15, 20)
    assert tuned.says.endswith("(here 50 students in 20 classes, 15 events/s, 90 s)")
    assert scenarios.tuned(scenarios.BUILT_IN["soak"]).says == scenarios.BUILT_IN["soak"].says
    assert scenarios.tuned(scenarios.BUILT_IN["campus-5000"], students=5).classes == 5


def test_a_fault_has_a_time_and_a_length():
    fault = parse_fault("postgres-stop@1m+30s")
    assert (fault.at_s, fault.for_s) == (60, 30)
    assert parse_fault("kill-daemon@20s").for_s == 1


def test_a_recording_is_played_in_its_order_and_without_the_repeats():
    events = recording.read(RECORDINGS / "cell_monitor.jsonl").events
    assert len(events) == 65
    assert [event.at_s for event in events] == sorted(event.at_s for event in events)
    scenario = scenarios.tuned(recording.scenario_of(RECORDINGS / "cell_monitor.jsonl", speed=10), students=3)
    person = scenario.person(2, "run")
    steps = list(scenario.user(person, "1", "run").steps())
    assert sum(wait for wait, _ in steps) == pytest.approx(events[-1].at_s / 10)
    posts = [action for _, action in steps]
    assert (sum(post.execution for post in posts), sum(post.failed for post in posts)) == (52, 24)
    assert {post.fields["emailAddress"] for post in posts} == {"run-student00002@example.com"}
    assert all("eventId" not in post.fields and "eventTime" not in post.fields for post in posts)


def test_what_a_recorded_event_says_inside_data_is_played_and_accounted_for(tmp_path):
    """Seed-style events carry their fields there, and the daemon lifts them. Of two spellings the canonical one holds."""
    inner = {"notebookPath": "n", "cellIndex": 1, "hasError": True, "sessionId": "s1"}
    sent = [
        {"eventType": "cell_executed", "emailAddress": "a", "data": inner},
        {"eventType": "cell_executed", "emailAddress": "a", "notebookPath": "n", "has_error": True, "hasError": False},
    ]
    lines = [{"t_ms": at, "method": "POST", "body": json.dumps(event)} for at, event in enumerate(sent)]
    (tmp_path / "a.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    scenario = scenarios.tuned(recording.scenario_of(tmp_path / "a.jsonl", speed=1), students=1)
    posts = [action for _, action in scenario.user(scenario.person(0, "run"), "1", "run").steps()]
    assert [(post.execution, post.failed, post.alert) for post in posts] == [(True, True, "error")] * 2
    assert columns.value_of(posts[0].fields, "session_id", str) == "s1"


def test_a_recording_may_say_null_and_two_of_its_people_may_have_the_same_id(tmp_path):
    sent = [("ann", "1"), ("ann", "1"), ("bob", "1"), ("ann", None), ("ann", None), ("bob", None)]
    lines = [
        {"t_ms": at, "method": "POST", "body": json.dumps({"eventType": "seen", "userId": user, "eventId": name})}
        for at, (user, name) in enumerate(sent)
    ]
    (tmp_path / "a.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert [event.fields["userId"] for event in recording.read(tmp_path / "a.jsonl").events] == [
        "ann",
        "bob",
        "ann",
        "ann",
        "bob",
    ]


def test_a_recorded_body_may_have_an_event_a_line(tmp_path):
    event = '{"eventType": "seen", "userId": "%s"}'
    bodies = [event % "ann" + "\n" + event % "bob" + "\n", event % "cid", f"[{event % 'dan'}]", "no event", ""]
    lines = [json.dumps({"t_ms": at, "method": "POST", "body": body}) for at, body in enumerate(bodies)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    played = recording.read(tmp_path / "a.jsonl")
    assert [event.fields["userId"] for event in played.events] == ["ann", "bob", "cid", "dan"]
    assert played.others == 2
    says = recording.scenario_of(tmp_path / "a.jsonl", speed=2).says
    assert says == "4 recorded events at speed 2, without 2 requests that hold none"


def found(**changes):
    """A result, as of a run of 4 s."""
    tally = Tally()
    for number in range(4):
        second = tally.second(number)
        second.requests = second.acknowledged = 100
        second.post.record(0.01, 99)
        second.post.record(0.05)
    tally.requests = 400
    promised = promises.parse("p99<100ms, errors<0.1%")
    figures = result.figures(tally, None, [], loaded_s=4, drain_s=0.5, lost=0)
    fields = {
        "scenario": "classroom-200",
        "says": "says <b>so</b>",
        "started": "2026-11-24T10:00:00Z",
        "options": {
            "students": 10,
            "classes": 1,
            "instructors": 1,
            "subscribers": 1,
            "events_per_s": 100.0,
            "duration_s": 4.0,
            "loop": "open",
            "transport": "lean",
            "workers": 1,
            "seed": "1",
        },
        "environment": {"target": "http://127.0.0.1:1", "Python": "3.11"},
        "interrupted": False,
        "ok": True,
        "judgements": [result.judgement(each) for each in promises.judged(promised, figures)],
        "checks": [Check("stored, by SQL", 400, 400)],
        "figures": figures,
        "events": dict.fromkeys(("refused", "unknown", "requests", "retries", "given up", "never sent in time"), 0)
        | {"sent": 400, "acknowledged": 400},
        "errors_by_kind": {},
        "generator": result.limits(tally, processes=1),
        "notes": [],
        "faults": [("kill-daemon@1s+1s", 1.0, 1.0)],
        "timeline": result.timeline(tally, None),
        "samples": [Sample(float(second), lag_events=3.0, rss_bytes=5e7, cpu_cores=0.5) for second in range(5)],
        "histograms": {"post": Histogram()},
        "subscribers": {},
    }
    return result.Result(**fields | changes)


def test_figures_are_percentiles_and_not_averages():
    figures = found().figures
    assert figures["rate"] == 100
    assert figures["p50"] == pytest.approx(0.01, rel=0.01)
    assert figures["p99"] == pytest.approx(0.01, rel=0.01)
    assert figures["p999"] == figures["max"] == 0.05


def test_a_result_is_read_as_it_was_written(tmp_path):
    (tmp_path / "a.json").write_bytes(result.packed(found()))
    assert result.read(tmp_path / "a.json") == found()
    (tmp_path / "b.json").write_text('{"format":1}')
    with pytest.raises(UsageError, match="not a result"):
        result.read(tmp_path / "b.json")
    (tmp_path / "c.json").write_bytes(result.packed(found(events={})))
    with pytest.raises(UsageError, match="not a result of a load test: events without 'sent'"):
        result.read(tmp_path / "c.json")


def test_the_report_needs_nothing_else_and_shows_verdicts_faults_and_lost_events():
    page = report.html(found())
    assert "HELD" in page
    assert "says &lt;b&gt;so" in page
    assert page.count("<svg") == 5
    assert "kill-daemon@1s+1s" in page
    assert not re.search(r"(?:src|href)=|url\(|@import|<script", page)
    broken = found(ok=False, checks=[Check("stored, by SQL", 400, 399, event_ids=["run-00001-000007"], faults=1)])
    page = report.html(broken)
    assert "run-00001-000007" in page
    assert "BROKEN" in page
    assert "missing" in page


def test_the_report_does_not_take_the_reader_of_streams_for_the_workers():
    assert "generator</span>" in report.html(found())
    assert "generator, without its workers</span>" in report.html(found(options=found().options | {"workers": 2}))


def test_compare_says_what_changed_and_what_broke(tmp_path, capsys):
    before = found()
    slower = before.figures | {"p99": 0.3}
    after = found(
        figures=slower,
        ok=False,
        judgements=[result.judgement(each) for each in promises.judged(promises.parse("p99<100ms"), slower)],
    )
    text = comparison.table(before, after)
    assert "x 29" in text
    assert "worse" in text
    assert "broke: p99<100ms" in text
    assert "differs: promise errors<0.1%: in one of them only" in text
    for name, each in (("a.json", before), ("b.json", after)):
        (tmp_path / name).write_bytes(result.packed(each))
    assert cli.main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 1
    assert cli.main(["compare", str(tmp_path / "b.json"), str(tmp_path / "a.json")]) == 0
    assert "better" in capsys.readouterr().out


@pytest.mark.parametrize("changes", [{"interrupted": True}, {"events": found().events | {"acknowledged": 0}}])
def test_a_second_run_that_is_no_success_is_worse_whatever_its_figures(tmp_path, changes):
    for name, each in (("a.json", found()), ("b.json", found(ok=False, **changes))):
        (tmp_path / name).write_bytes(result.packed(each))
    assert cli.main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 1
    assert cli.main(["compare", str(tmp_path / "b.json"), str(tmp_path / "b.json")]) == 0


def test_who_has_closed_stderr_sees_nothing_and_has_a_result(monkeypatch):
    monkeypatch.setattr("sys.stderr", None)
    with display() as shown:
        shown.say("waiting")


def test_a_mean_is_of_the_load_alone():
    seen = {-1.0: 9.0, 0.5: 1.0, 1.5: None, 4.0: 2.0, 4.5: 9.0}
    run = found(samples=[Sample(offset_s, cpu_cores=cores) for offset_s, cores in seen.items()])
    assert run.while_loaded(lambda sample: sample.cpu_cores) == 1.5
    assert run.while_loaded(lambda sample: sample.commit_mean_s) is None


def test_what_was_different_between_two_runs_is_told():
    before = found(faults=[])
    after = found(faults=[("kill-daemon@8s", 8.0, 1.0)], options=before.options | {"shape": "0s@0% 5s@100%"})
    told = comparison.table(before, after)
    assert "differs: faults: none before, kill-daemon@8s after" in told
    assert "differs: shape: None before, 0s@0% 5s@100% after" in told
    assert "differs" not in comparison.table(after, after)


def test_an_account_that_is_only_there_when_it_fails_broke_too():
    after = found(ok=False, checks=[Check("all stored", 0, 0, faults=1), *found().checks])
    assert comparison.broke(found(), after) == ["all stored"]
    assert comparison.broke(after, after) == []


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (-1.0, 2.0, "worse"), (-0.2, -3.0, "better"), (2.0, -1.0, "better"), (0.0, 5.0, "from nothing, worse"),
        (1.0, 1.02, "x 1.02, about the same"), (1.0, 3.0, "x 3.00, worse"),
    ],
)  # fmt: skip
def test_a_figure_with_a_sign_has_no_ratio(old, new, says):
    assert comparison.change("memory_slope", old, new) == says


def test_of_many_suspects_the_first_are_told_and_how_many_there_are():
    check = Check("counted", 99, 98, candidates=[f"event-{n:03}" for n in range(99)], suspects=99, faults=1)
    broken = found(ok=False, checks=[check])
    for said in (text(broken), report.html(broken)):
        assert said.count("event-0") == 20
        assert "or of 79 more" in said


def test_without_rows_nobody_can_say_that_nothing_is_missing():
    assert found().verdict == "HELD: every promise, and nothing is missing"
    assert "nothing that the API shows is missing" in found(checks=[Check("counted in sessions", 1, 1)]).verdict


def test_a_load_that_was_not_played_to_its_end_is_no_success():
    assert concluded(Tally(), TAKEN).ok
    told = concluded(Tally(capped=1), TAKEN)
    assert (told.ok, told.verdict) == (False, "BROKEN: the load was not played to its end")


def test_what_an_interruption_cut_off_is_told():
    assert "no answer yet" not in " ".join(concluded(Tally(), TAKEN).notes)
    (note,) = [note for note in concluded(Tally(cut_off=7, cut_off_s=6.54), TAKEN).notes if "no answer yet" in note]
    assert note.startswith("7 requests had no answer yet when the run was interrupted, the first for 6.5 s")


def test_a_load_of_which_nothing_was_taken_is_no_success():
    for entries in ([], [msgspec.structs.replace(each, state=REFUSED) for each in TAKEN]):
        told = concluded(Tally(), entries)
        assert (told.ok, told.verdict) == (False, "BROKEN: nothing was acknowledged")
    assert concluded(Tally(), TAKEN).ok


TAKEN = [Entry("e", 0, 0, True, False, "", "s", ACKNOWLEDGED)]


def concluded(tally, entries=()):
    """What a run says of what was counted, with no promise to judge."""
    plan = Plan("classroom-200", "abcd1234", "1", "http://127.0.0.1:1", None, 1, 1, 0, 1.0, ((0.0, 1.0), (1.0, 1.0)))
    course = Course(clock(0), Monitor(plan.target, clock(0), None), [], None, 1.0, 0.1)
    run = Run(plan, PlainDisplay(io.StringIO()), promises=(), options={})
    return run._concluded(course, Accounts({}, tally, list(entries), None, []), None, "")


def test_a_line_comes_every_few_seconds_however_often_there_is_news():
    out = io.StringIO()
    shown, monitor = PlainDisplay(out), Monitor(Target("http://127.0.0.1:1"), clock(0), None)
    for offset_s in (0.9, 2.0, 4.1, 5.5, 7.0, 10.4, 11.0):
        tick = Tick(2.0, Histogram(), 600, 500, 0, 9)
        shown.tick(Progress(offset_s, 20.0, tick, Histogram(), monitor))
    lines = out.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["1/20", "6/20", "10/20"]
    assert all("events/s 250" in line for line in lines)


def test_each_run_of_a_search_has_its_lines():
    out = io.StringIO()
    shown, monitor = PlainDisplay(out), Monitor(Target("http://127.0.0.1:1"), clock(0), None)
    for offset_s in (0.9, 10.4, 19.5, 0.9, 2.0, 5.5):
        shown.tick(Progress(offset_s, 20.0, Tick(2.0, Histogram(), 600, 500, 0, 9), Histogram(), monitor))
    assert [line.split()[1] for line in out.getvalue().splitlines()] == ["1/20", "10/20", "20/20", "1/20", "6/20"]


def test_lines_that_nobody_reads_cost_nothing():
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as nobody:
        PlainDisplay(nobody).say("is somebody there?")
        PlainDisplay(nobody).say("no")


def test_the_slope_of_memory_leaves_the_warm_up_out():
    flat = [(float(second), 5e7 + max(0, 30 - second) * 1e6) for second in range(0, 1200, 10)]
    assert result.slope(flat) == pytest.approx(0, abs=0.01)
    rising = [(float(second), 5e7 + second * 1e4) for second in range(0, 1200, 10)]
    assert result.slope(rising) == pytest.approx(1e4)
    assert result.slope(rising[:5]) is None


def test_slopes_are_of_the_load_alone_and_told_in_ten_minutes():
    """300 events/s; after the load the lag falls and memory is let go, which is no growth."""
    tally = Tally()
    tally.second(0).acknowledged = 300 * 300
    loaded = [Sample(float(second), lag_events=100 + second / 2, rss_bytes=5e7 - second * 1e3) for second in range(300)]
    after = [Sample(300.5 + second, lag_events=0.0, rss_bytes=1e7) for second in range(100)]
    figures = result.figures(tally, None, loaded + after, loaded_s=300, drain_s=1, lost=0)
    assert figures["lag_slope"] == pytest.approx(1)
    assert promises.shown("lag_slope", figures["lag_slope"]) == "1 s in 10 min"
    assert figures["memory_slope"] == pytest.approx(-0.6)
    assert promises.shown("memory_slope", figures["memory_slope"]) == "-0.6 MB in 10 min"
    assert promises.shown("lag_slope", -0.02) == "-20 ms in 10 min"


def test_metrics_are_read():
    scrape = Scrape(
        '# TYPE lag gauge\nlag_events{store="postgresql"} 3.0\nlag_events{store="influx db, \\"2\\""} 4.0\n'
        't_seconds_bucket{le="0.1"} 5\nt_seconds_bucket{le="+Inf"} 10\n'
    )
    assert scrape.total("lag_events") == 7
    assert scrape.highest("lag_events") == 4
    assert scrape.total("nothing") is scrape.highest("nothing") is None
    assert bucket_percentile({}, scrape.buckets("t_seconds"), 50) == 0.1
    assert bucket_percentile(scrape.buckets("t_seconds"), scrape.buckets("t_seconds"), 50) is None


async def test_an_event_that_two_stores_wait_for_is_one_event():
    async def script(number, head, body):
        lags = (f'classpulse_store_lag_events{{store="{name}"}} 7.0' for name in ("postgresql", "influxdb"))
        return answer(200, "\n".join(lags).encode())

    async with serving(script) as peer:
        monitor = Monitor(Target(peer.url), clock(0), None)
        async with LeanTransport(Target(peer.url)) as transport:
            line = transport.line()
            await monitor.look(line)
            await line.aclose()
    assert [sample.lag_events for sample in monitor.samples] == [7]


def test_the_slowest_commit_is_told_though_many_others_were_quick_in_its_second():
    samples = [Sample(-1.0, commit_mean_s=9.0, commit_max_s=10.0)]  # before the load: nobody waited for it
    samples += [Sample(float(second), commit_mean_s=0.002, commit_max_s=0.005) for second in range(5)]
    samples += [Sample(5.0), Sample(87.2, commit_mean_s=0.003, commit_max_s=0.5)]
    said = "commits took 2 ms on average in the usual second; the slowest took "
    assert commits_say(samples) == said + "up to 500 ms, at 87 s"
    samples.append(Sample(90.0, commit_mean_s=0.1, commit_max_s=math.inf))
    assert commits_say(samples) == said + "longer than the metrics tell, at 90 s"
    assert commits_say(samples[:1]) is None


@pytest.mark.parametrize(
    ("low", "high", "steps"), [(0, 60, [0, 10, 20, 30, 40, 50, 60]), (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (0, 7, None)]
)
def test_steps_of_an_axis(low, high, steps):
    found_steps = nice_steps(low, high, 6)
    assert found_steps[-1] <= high
    assert steps is None or found_steps == steps


def test_times_for_people():
    assert [written(value) for value in (0, 0.00005, 0.0123, 1.5, 1200)] == [
        "0 ms",
        "50 µs",
        "12.3 ms",
        "1.5 s",
        "20 min",
    ]
