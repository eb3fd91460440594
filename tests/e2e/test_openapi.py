"""The API is as its description says: the routes, what they take, and every answer."""

import os

import hypothesis
import schemathesis
from schemathesis import checks

from adapters.http.api import api
from adapters.http.docs_page import page
from adapters.http.ingest import PATH as EVENTS
from adapters.http.openapi import document
from adapters.http.parameters import MAX_LIMIT
from engine.decode import FIELDS
from engine.event import CELL_TYPES
from tests.e2e.api import Api

# Requests for each operation; many more by hand: CLASSPULSE_API_EXAMPLES=1000.
EXAMPLES = int(os.environ.get("CLASSPULSE_API_EXAMPLES", "40"))
PATH = "/api/v1/openapi.json"


async def test_it_is_served_and_valid(shared_daemon):
    served = await Api(shared_daemon).get(PATH)
    assert served == document(max_events=1000, max_limit=MAX_LIMIT)
    assert served["openapi"].startswith("3.1")


def test_every_route_is_described_and_no_other():
    described = document(max_events=1, max_limit=1)["paths"]
    served = api(None, None, None, None, ready=None, metrics=None, description={}, cors_origins=[]).routes
    assert described.keys() == {route.path_format for route in served} | {EVENTS.decode()}
    for route in served:
        assert set(described[route.path_format]) == {"get"} == {each.lower() for each in route.methods - {"HEAD"}}


def test_every_field_of_an_event_is_described():
    schemas = document(max_events=1, max_limit=1)["components"]["schemas"]
    assert schemas["Event"]["properties"].keys() == FIELDS.keys()
    spellings = {name: {name, *others} for name, (others, _) in FIELDS.items()}
    for name, given in zip(FIELDS, schemas["CellMonitorEvent"]["properties"], strict=True):
        assert given in spellings[name]
    assert set(schemas["Event"]["if"]["properties"]["event_type"]["enum"]) > CELL_TYPES


async def test_the_page_needs_nothing_else(shared_daemon):
    api = Api(shared_daemon)
    answer = await api.call("GET", "/docs")
    assert answer.status == 200
    assert answer.header("content-type") == "text/html; charset=utf-8"
    text = answer.body.decode()
    described = await api.get(PATH)
    assert text == page(described)
    for path in described["paths"]:
        assert path in text
    assert "src=" not in text
    assert "http://" not in text
    assert "https://" not in text


def mixes_spellings(body):
    events = body if isinstance(body, list) else [body]
    others = {spelling for spellings, _ in FIELDS.values() for spelling in spellings}
    return any(isinstance(event, dict) and others & event.keys() and FIELDS.keys() & event.keys() for event in events)


def test_the_daemon_answers_as_described(shared_daemon):
    """schemathesis makes requests from the description, good and bad, and holds each answer against it."""
    schema = schemathesis.openapi.from_url(f"{shared_daemon.url}{PATH}")
    tried = set()

    def try_all(operation, mode):
        @hypothesis.settings(
            max_examples=EXAMPLES, database=None, deadline=None, suppress_health_check=list(hypothesis.HealthCheck)
        )
        @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
        def hold(case):
            case.body = without_whole_floats(case.body)
            excluded = []
            if case.query and "cursor" in case.query:  # only the daemon can make one
                excluded.append(checks.positive_data_acceptance)
            if case.query and ("since" in case.query or "every" in case.query):  # together they may be too many buckets
                excluded.append(checks.positive_data_acceptance)
            if mixes_spellings(case.body):  # a name that the schema does not know may be another's other spelling
                excluded.append(checks.positive_data_acceptance)
            if isinstance(case.body, list):  # the bad events of a batch are named, and the others taken
                excluded.append(checks.negative_data_rejection)
            case.call_and_validate(excluded_checks=excluded)
            tried.add((operation.method.upper(), operation.path))

        hold()

    for result in schema.get_all_operations():
        operation = result.ok()
        try_all(operation, schemathesis.GenerationMode.POSITIVE)
        if operation.method == "post":
            try_all(operation, schemathesis.GenerationMode.NEGATIVE)
    described = document(max_events=1, max_limit=1)["paths"]
    routes = {(method.upper(), path) for path, item in described.items() for method in item}
    assert tried == routes - {("GET", PATH)}  # which schemathesis read to begin with
    assert "Traceback" not in shared_daemon.stderr


def without_whole_floats(value):
    """To JSON Schema 1.0 is an integer; the daemon coerces nothing, and takes it for what was written."""
    if isinstance(value, dict):
        return {key: without_whole_floats(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_whole_floats(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
