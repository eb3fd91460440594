"""`compare A.json B.json`: what changed between two runs."""

from loadtest.promises import shown
from loadtest.result import SHOWN, Result

# A figure that moved by less is taken for the same: runs on one machine differ by that much.
SAME = 0.10
# Higher is better for these alone.
_MORE_IS_BETTER = ("rate",)


def broke(before: Result, after: Result) -> list[str]:
    """Promises that held before and do not hold after, and accounts that did."""
    held = {each.promise for each in before.judgements if each.held}
    faulty = {check.name for check in before.checks if not check.held}  # some are there only when they fail
    found = [each.promise for each in after.judgements if not each.held and each.promise in held]
    return found + [check.name for check in after.checks if not check.held and check.name not in faulty]


def table(before: Result, after: Result) -> str:
    """Figures side by side."""
    lines = [f"{'':<14} {before.started:>22} {after.started:>22}   change"]
    for name in SHOWN:
        old, new = before.figures.get(name), after.figures.get(name)
        if old is None and new is None:
            continue
        lines.append(f"{name:<14} {shown(name, old):>22} {shown(name, new):>22}   {change(name, old, new)}")
    differing = [
        f"{key}: {before.options.get(key)} before, {value} after"
        for key, value in after.options.items()
        if before.options.get(key) != value
    ]
    differing += [
        f"{key}: {before.environment.get(key)} before, {value} after"
        for key, value in after.environment.items()
        if before.environment.get(key) != value and key != "target"
    ]
    faults = [" ".join(fault[0] for fault in each.faults) or "none" for each in (before, after)]
    if faults[0] != faults[1]:
        differing.insert(0, f"faults: {faults[0]} before, {faults[1]} after")
    promised = [{each.promise for each in run.judgements} for run in (before, after)]
    differing += [f"promise {name}: in one of them only" for name in sorted(promised[0] ^ promised[1])]
    if before.scenario != after.scenario:
        differing.insert(0, f"scenario: {before.scenario} before, {after.scenario} after")
    lines += ["", f"before: {before.verdict}", f"after:  {after.verdict}"]
    lines += [f"broke: {name}" for name in broke(before, after)]
    lines += [f"differs: {text}" for text in differing]
    return "\n".join(lines)


def change(name: str, old: float | None, new: float | None) -> str:
    """In words."""
    if old is None or new is None:
        return "not measured in both"
    if old == new:
        return "same"
    words = "better" if (new > old) == (name in _MORE_IS_BETTER) else "worse"
    if old <= 0 or new < 0:  # a slope's sign, or nothing: no ratio says anything
        return f"from nothing, {words}" if not old else words
    ratio = new / old
    return f"x {ratio:.2f}, {'about the same' if abs(ratio - 1) < SAME else words}"
