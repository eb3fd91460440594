"""What Prometheus is told, after known events."""

import trio
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.api import Api
from tests.e2e.daemon import Daemon
from tests.e2e.samples import run
from tests.e2e.subscriber import Subscriber
from tests.e2e.waiting import eventually

# The contract's, by the kind that they have.
HISTOGRAMS = {
    "database_query_duration_seconds": {"database", "query_type"},
    "classpulse_http_request_duration_seconds": {"route", "status"},
    "classpulse_journal_commit_seconds": set(),
    "classpulse_notify_latency_seconds": set(),
    "classpulse_store_flush_seconds": {"store"},
}
COUNTERS = {
    "classpulse_events_total": {"result"},
    "classpulse_outbox_conflated_total": set(),
    "classpulse_dead_letters_total": set(),
    "classpulse_bus_dropped_total": set(),
}
GAUGES = {
    "database_connection_pool_size": {"database"},
    "classpulse_journal_events": set(),
    "classpulse_journal_bytes": set(),
    "classpulse_store_lag_events": {"store"},
    "classpulse_session_actors": set(),
    "classpulse_mailbox_depth": set(),
    "classpulse_subscribers": set(),
}


class Scrape:
    """One answer of ``/metrics``."""

    def __init__(self, text: str) -> None:
        self.families = list(text_string_to_metric_families(text))
        self.samples = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in self.families
            for sample in family.samples
        }

    def __getitem__(self, name: str) -> float:
        return self.of(name)

    def of(self, name: str, **labels: str) -> float:
        return self.samples.get((name, frozenset(labels.items())), 0)

    def labels(self, name: str, label: str) -> set[str]:
        return {dict(labels)[label] for found, labels in self.samples if found == name}


async def scrape(api: Api) -> Scrape:
    answer = await api.call("GET", "/metrics")
    assert answer.status == 200
    assert answer.header("content-type").startswith("text/plain; version=")
    return Scrape(answer.body.decode())


async def test_every_metric_has_its_name_and_labels(shared_daemon):
    api = Api(shared_daemon)
    await api.accept(run("metrics-names"))
    await api.wait_flushed()
    await scrape(api)  # the first one has the time of no query of its own
    found = {family.name: family for family in (await scrape(api)).families}
    wanted = HISTOGRAMS | GAUGES | {name.removesuffix("_total"): labels for name, labels in COUNTERS.items()}
    assert found.keys() == wanted.keys()
    for name, labels in wanted.items():
        assert found[name].documentation
        for sample in found[name].samples:
            assert set(sample.labels) - {"le"} == labels
    assert {name for name, family in found.items() if family.type == "histogram"} == HISTOGRAMS.keys()


async def test_the_numbers_are_those_of_what_happened(database, data_dir):
    async with Daemon(data_dir, dsn=database.dsn) as daemon:
        api = Api(daemon)
        event = run("alice")
        await api.accept([event, run("alice"), run("bob")])
        await api.accept([event, run("carol")])
        assert (await api.post([{"no": "event"}])).status == 422
        assert (await api.post(b"[")).status == 400
        await api.sessions("alice")
        await api.sessions("bob")
        assert (await api.call("GET", "/nothing/of/the/kind")).status == 404
        await api.wait_flushed()
        async with trio.open_nursery() as nursery:
            subscriber = await Subscriber.connect(nursery, daemon.port, "class:default")
            seen = await scrape(api)
            await subscriber.close()

        results = {name: seen.of("classpulse_events_total", result=name) for name in ("accepted", "duplicate")}
        assert results == {"accepted": 4, "duplicate": 1}
        assert seen.of("classpulse_events_total", result="rejected") == 1
        assert seen.of("classpulse_events_total", result="unavailable") == 0

        def answered(route, status):
            return seen.of("classpulse_http_request_duration_seconds_count", route=route, status=status)

        assert answered("/api/v1/events", "202") == 2
        assert answered("/api/v1/events", "422") == answered("/api/v1/events", "400") == 1
        assert answered("/api/v1/users/{user_id}/sessions", "200") == 2
        assert answered("none", "404") == 1

        commits = seen["classpulse_journal_commit_seconds_count"]
        assert commits == 2
        assert seen.of("classpulse_journal_commit_seconds_bucket", le="+Inf") == commits
        assert seen["classpulse_journal_commit_seconds_sum"] > 0
        assert seen["classpulse_session_actors"] == 3
        assert seen["classpulse_subscribers"] == 1
        assert seen.of("classpulse_store_lag_events", store="postgresql") == 0
        assert seen.of("classpulse_store_flush_seconds_count", store="postgresql") >= 1
        assert 2 <= seen.of("database_connection_pool_size", database="postgresql") <= 3
        kinds = seen.labels("database_query_duration_seconds_count", "query_type")
        assert {"select", "insert", "copy", "begin", "commit"} <= kinds
        assert seen["classpulse_mailbox_depth"] == seen["classpulse_dead_letters_total"] == 0

        async def gone():
            return (await scrape(api))["classpulse_subscribers"] == 0

        await eventually(gone)


async def test_what_the_journal_holds_is_seen_while_the_database_is_away(data_dir):
    async with Daemon(
        data_dir, dsn="postgresql://postgres@127.0.0.1:1/nobody", settings={"JOURNAL__MAX_BYTES": "1"}
    ) as daemon:
        api = Api(daemon)
        await api.accept([run("alice"), run("alice")])
        assert (await api.post(run("alice"))).status == 503
        seen = await scrape(api)
        assert seen["classpulse_journal_events"] == 2
        assert seen["classpulse_journal_bytes"] > 100
        assert seen.of("classpulse_store_lag_events", store="postgresql") == 2
        assert seen.of("classpulse_events_total", result="unavailable") == 1
        assert seen.of("database_connection_pool_size", database="postgresql") == 0
