"""The page of a study: its trials, the best first, what they depend on, and what the best says of new photos."""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import matplotlib.pyplot as plt
import optuna.visualization.matplotlib as drawing
from optuna import Study, create_study
from optuna.importance import FanovaImportanceEvaluator
from optuna.trial import FrozenTrial, create_trial

from defectcls.pages.blocks import Cell, Page, Picture, Section, Table, Text
from defectcls.pages.pictures import png
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
    told = [
        f"{plural(len(points), 'trial')}: {', '.join(f'{count} {state}' for state, count in counts.items())}.",
        f"Best: trial {best['trial']}, {settings[best['trial']]}.",
        f"It takes {number(best['ms_per_photo'])} ms a photo here, and {number(best['seconds'], 0)} s of training.",
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


def study_pictures(study: Study, trials: Sequence[FrozenTrial], names: list[str]) -> list[Picture]:
    """Optuna's own, of these trials in this order by the first number; and of two numbers the Pareto front."""
    points = create_study(direction=study.directions[0])
    for one in trials:
        points.add_trial(create_trial(params=one.params, distributions=one.distributions, value=one.values[0]))
    first: Any = {"target_name": names[0]}
    importances = {"evaluator": FanovaImportanceEvaluator(seed=0)} | first
    ways: dict[str, Callable[[], Any]] = {
        "each trial, and the best until then": lambda: drawing.plot_optimization_history(points, **first),
        f"what explains {names[0]}": lambda: drawing.plot_param_importances(points, **importances),
        "each trial a line, the darker the better": lambda: drawing.plot_parallel_coordinate(points, **first),
    }
    if len(names) == 2:
        ways["red: none betters both"] = lambda: drawing.plot_pareto_front(study, target_names=names)
    drawn = []
    for number_of, (words, draw) in enumerate(ways.items()):
        with plt.rc_context({"savefig.bbox": "tight"}), suppress(ValueError, RuntimeError):  # of too few, all alike
            drawn.append(Picture(png(draw().figure), f"study_{number_of}", words))
        plt.close("all")
    return drawn
