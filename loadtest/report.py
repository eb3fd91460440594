"""A result as one HTML page that needs nothing else: verdict first, then accounts, then plots over time."""

from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Final

from loadtest import promises
from loadtest.check import TOLD, Check
from loadtest.monitor import Sample
from loadtest.plots import Plot, Series, svg
from loadtest.result import SHOWN, Moment, Result

_STYLE: Final = Path(__file__).with_name("report.css")
# What the tiles show: figure, words.
_TILES: Final = (
    ("rate", "events acknowledged a second"),
    ("p99", "API answers, p99"),
    ("notify_p99", "news at a socket, p99"),
    ("errors", "requests failed at first"),
    ("lost", "faults in the accounts"),
    ("drain", "until all was stored"),
)


def html(result: Result) -> str:
    """The page."""
    tone = "partial" if result.interrupted else "good" if result.ok else "bad"
    options = result.options
    load = (
        f"{options['students']:,} students in {options['classes']:,} class{'es' * (options['classes'] != 1)}, "
        f"{options['subscribers']:,} subscribers, {options['events_per_s']:,.0f} events/s planned, "
        f"{options['duration_s']:,.0f} s, {options['loop']} loop, {options['transport']} transport, "
        f"{options['workers']} worker{'s' * (options['workers'] != 1)}, seed {options['seed']}"
    )
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
        f"<title>{escape(result.scenario)}: {escape(result.verdict)}</title>",
        f"<style>{_STYLE.read_text(encoding='utf-8')}</style></head><body>",
        f"<h1>Load test: {escape(result.scenario)}</h1>",
        f'<p class="soft">{escape(result.says)}. {escape(result.started)}, {escape(result.environment["target"])}</p>',
        f'<p class="soft">{escape(load)}</p>',
        f'<div class="verdict {tone}"><b>{escape(result.verdict)}</b></div>',
        _tiles(result),
        "<h2>Promises</h2>",
        _promises(result),
        "<h2>Accounts: is everything acknowledged really there?</h2>",
        _accounts(result),
        "<h2>Over the time of the run</h2>",
        _plots(result),
        '<div class="columns"><div><h2>Figures</h2>',
        _pairs([(name, promises.shown(name, result.figures[name])) for name in SHOWN if name in result.figures]),
        "</div><div><h2>Requests</h2>",
        _pairs([(name, f"{number:,}") for name, number in result.events.items()]),
        _pairs([(kind, f"{times:,}") for kind, times in sorted(result.errors_by_kind.items())]),
        "<h2>Environment</h2>",
        _pairs(list(result.environment.items())),
        "</div></div><h2>Notes</h2>",
        *(f"<p>{escape(note)}</p>" for note in [*result.notes, *_legend_notes(result)]),
        "</body></html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _legend_notes(result: Result) -> list[str]:
    notes = ["Times are plotted by the second in which a request was due, and count from then."]
    if result.faults:
        notes.append("Shaded: " + ", ".join(text for text, _, _ in result.faults))
    return notes


def _tiles(result: Result) -> str:
    tiles = [
        f'<div class="tile"><b>{escape(promises.shown(name, result.figures.get(name)))}</b><span>{words}</span></div>'
        for name, words in _TILES
    ]
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _badge(*, good: bool, yes: str, no: str) -> str:
    return f'<span class="badge {"good" if good else "bad"}">{yes if good else no}</span>'


def _promises(result: Result) -> str:
    if not result.judgements:
        return "<p>None were made.</p>"
    rows = []
    for each in result.judgements:
        used = min(1.0, max(0.0, 1.0 if each.strain is None else each.strain))  # a slope may be below 0
        bar = (
            f'<div class="bar{"" if each.held else " bad"}"><i style="width:{used:.0%}"></i></div>'
            if each.value is not None
            else ""
        )
        rows.append(
            f"<tr><td>{_badge(good=each.held, yes='held', no='broken')}</td>"
            f"<td><code>{escape(each.promise)}</code></td>"
            f'<td class="number"><b>{escape(each.measured)}</b></td><td>{bar}</td></tr>'
        )
    return (
        f"<table><tr><th>verdict</th><th>promise</th><th>measured</th><th>of the bound</th></tr>{''.join(rows)}</table>"
    )


def _accounts(result: Result) -> str:
    rows = "".join(_account(check) for check in result.checks)
    return f"<table><tr><th>verdict</th><th>where</th><th>found</th><th></th></tr>{rows}</table>"


def _account(check: Check) -> str:
    badge = (
        '<span class="badge skip">skipped</span>'
        if check.skipped
        else _badge(good=check.held, yes="complete", no="missing")
    )
    ids = "".join(f"<code>{escape(event_id)}</code>" for event_id in check.event_ids)
    if check.candidates:
        told = check.candidates[:TOLD]
        ids += "one or more of: " + "".join(f"<code>{escape(event_id)}</code>" for event_id in told)
        ids += f" or of {check.more_suspects:,} more" * bool(check.more_suspects)
    if check.faults > len(check.event_ids) and check.event_ids:
        ids += f" and {check.faults - len(check.event_ids):,} more"
    return (
        f'<tr><td>{badge}</td><td>{escape(check.name)} <span class="soft">{escape(check.note)}</span></td>'
        f'<td class="number">{check.counted}</td><td class="ids">{ids}</td></tr>'
    )


def _pairs(pairs: list[tuple[str, str]]) -> str:
    rows = "".join(
        f'<tr><td class="soft">{escape(name)}</td><td class="number">{escape(value)}</td></tr>'
        for name, value in pairs
        if value != "not measured"
    )
    return f"<table>{rows}</table>" if rows else ""


def _plots(result: Result) -> str:
    bounds = {each.figure: promises.parse(each.promise)[0].bound for each in result.judgements}
    # The first second's requests and the last's are a part of a second's.
    duration_s = float(result.options["duration_s"])
    # The harness' own process alone is looked at: with workers it reads the streams, and they make the load.
    generator = "generator" if result.options["workers"] == 1 else "generator, without its workers"

    def moments(name: str, read: Callable[[Moment], float | None]) -> Series:
        return Series(name, [(moment.second + 0.5, read(moment)) for moment in result.timeline])

    def samples(name: str, read: Callable[[Sample], float | None]) -> Series:
        return Series(name, [(sample.offset_s, read(sample)) for sample in result.samples if sample.offset_s >= 0])

    plots = [
        Plot(
            "Rate",
            "a second",
            [
                moments("events acknowledged", lambda moment: moment.acknowledged),
                moments("requests that failed at first", lambda moment: moment.errors),
            ],
        ),
        Plot(
            "API answers to POSTs",
            "ms, logarithmic",
            [
                moments("p50", lambda moment: moment.p50_s),
                moments("p99", lambda moment: moment.p99_s),
                moments("longest", lambda moment: moment.max_s),
            ],
            scale=1000,
            bound=bounds.get("p99"),
            logarithmic=True,
        ),
        Plot(
            "News at the subscribers' sockets",
            "ms, logarithmic",
            [
                moments("p50", lambda moment: moment.notify_p50_s),
                moments("p99", lambda moment: moment.notify_p99_s),
            ],
            scale=1000,
            bound=bounds.get("notify_p99"),
            logarithmic=True,
        ),
        Plot("Acknowledged and not yet stored", "events", [samples("lag", lambda sample: sample.lag_events)]),
        Plot(
            "CPU",
            "% of a core",
            [
                samples("daemon", lambda sample: sample.cpu_cores),
                samples(generator, lambda sample: sample.generator_cpu_cores),
                samples("all of this machine", lambda sample: sample.machine_cpu_cores),
            ],
            scale=100,
        ),
        Plot("Memory of the daemon", "MB resident", [samples("memory", lambda sample: sample.rss_bytes)], scale=1e-6),
        Plot(
            "Commits of the journal",
            "ms",
            [
                samples("mean", lambda sample: sample.commit_mean_s),
                samples("p99 (bucket's end)", lambda sample: sample.commit_p99_s),
            ],
            scale=1000,
        ),
        Plot("Students in the daemon's memory", "", [samples("students", lambda sample: sample.actors)]),
    ]
    bands = [(text, begin, length) for text, begin, length in result.faults]
    return f'<div class="plots">{"".join(svg(plot, duration_s, bands) for plot in plots)}</div>'
