"""The page of a study: its trials, the best first, what they depend on, and what the best says of new photos."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from defectcls.pages.blocks import Cell, Page, Picture, Section, Table, Text
from defectcls.pages.wording import number, percent, plural, verdict

NOTE = (
    "± is the standard deviation over seeds, the interval that of the mean, 95 %: of other seeds, not of new photos. "
    "The best of many flatters itself; what was set aside knows nothing of the search. Importance: what share of the "
    "spread between trials a key explains (fANOVA)."
)


def study_page(summary: dict[str, Any], pictures: Sequence[Picture], test: dict[str, Any] | None, command: str) -> Page:
    """The page of study.json; `test` are the metrics of the best, with what was set aside, once it is measured."""
    names, points = summary["objectives"], [one for one in summary["trials"] if one["repeat"] == 0]
    rows, settings, columns = [], {}, [*names, "ms_per_photo", "seconds"]
    for place, one in enumerate(points):
        values = {key: f"{one[key]:.3g}" if isinstance(one[key], float) else one[key] for key in summary["keys"]}
        settings[one["trial"]] = said = ", ".join(f"{key}={value}" for key, value in values.items())
        state = one["error"] or one["state"] + ", on the front" * (len(names) > 1 and place < summary["front"])
        rows.append([one["trial"], *(number(one[column]) for column in columns), said, state])
    best = next(one for one in points if one["trial"] == summary["best"])
    finalists = []
    for one in summary["finalists"]:
        mean, std, low, high = (number(one[key]) for key in ("mean", "std", "low", "high"))
        report = f"trials/{best['trial']}/0/report.html" if test and one["trial"] == best["trial"] else ""
        reached = f"{mean} ± {std} of {one['n']:.0f}\n{low} to {high}"
        finalists.append([Cell(str(one["trial"]), address=report), reached, settings[one["trial"]]])
    counts = Counter(one["state"] for one in points)
    told = [f"{plural(len(points), 'trial')}: {', '.join(f'{count} {state}' for state, count in counts.items())}."]
    told += [f"Best: trial {best['trial']}, {settings[best['trial']]}."]
    told += [
        f"It takes {number(best['ms_per_photo'])} ms a photo here, and {number(best['seconds'], 0)} s of training."
    ]
    if counts["pruned"]:
        planned, done = (sum(one[key] or 0 for one in points) for key in ("planned", "epochs"))
        told += [f"Trials that ended early saved {percent(1 - done / planned)} of the epochs."]
    told += ["On photos that no trial saw:", *verdict(test)] if test else ["It has not judged what was set aside yet."]
    blocks = [
        Text(*told, look="verdict", terminal=True),
        Section("The best, with further seeds", Table(finalists, ["trial", names[0], "setting"], terminal=True)),
        Section("What it depends on", *pictures, Text(NOTE, look="note")),
        Section("The trials, best first", Table(rows, ["trial", *columns, "setting", "state"])),
        Section("To repeat", Text(command, look="code")),
    ]
    return Page("Study", summary["study"], blocks)
