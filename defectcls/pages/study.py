"""The page of a study: its trials, the best first, what they depend on, and what the best says of new photos."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

import matplotlib.pyplot as plt
import optuna.visualization.matplotlib as drawing
import pandas as pd
from optuna import create_study
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
    names, keys, best, finalists = summary["objectives"], summary["keys"], summary["best"], []
    points = pd.DataFrame(summary["trials"]).query("repeat == 0").set_index("trial")
    rows = points[[*dict.fromkeys([*names, "ms_per_photo"])]].map(number)
    rows["seconds"] = points["seconds"].map(lambda seconds: number(seconds, 1))
    rows[keys] = points[keys].map(lambda value: f"{value:.3g}" if isinstance(value, float) else str(value))
    front = [", on the front" * (len(names) > 1 and place < summary["front"]) for place in range(len(points))]
    rows["state"] = points["state"] + front
    for one in summary["finalists"]:
        mean, std, low, high = (number(one[key]) for key in ("mean", "std", "low", "high"))
        report = f"trials/{best}/0/report.html" if test and one["trial"] == best else ""
        reached = f"{mean} ± {std} of {one['n']:.0f}\n{low} to {high}" if one["n"] > 1 else mean
        finalists.append([Cell(str(one["trial"]), address=report), reached, *rows.loc[one["trial"], keys]])
    counts = ", ".join(f"{count} {state}" for state, count in points["state"].value_counts().items())
    again = summary["drawn"] - len(points)
    told = [
        f"{plural(len(points), 'trial')}: {counts}{f'; {again} were drawn again' * bool(again)}.",
        f"Best: trial {best}, {', '.join(f'{key}={rows.loc[best, key]}' for key in keys)}.",
        f"It takes {rows.loc[best, 'ms_per_photo']} ms a photo here, and {rows.loc[best, 'seconds']} s of training.",
    ]
    if "pruned" in counts:
        saved = 1 - points["epochs"].sum() / points["planned"].sum()
        told += [f"Trials that ended early saved {percent(saved)} of the epochs."]
    told += ["On photos that no trial saw:", *verdict(test)] if test else ["It has not judged what was set aside yet."]
    best_few = Table(finalists, ["trial", names[0], *keys], terminal=True)
    blocks = [
        Text(*told, look="verdict", terminal=True),
        Text(*(f"trial {at} failed: {said}" for at, said in points["error"].dropna().items()), look="caveats"),
        Section("The best, with further seeds", best_few),
        Section("What it depends on", *pictures, Text(NOTE, look="note")),
        Section("The trials, best first", Table(rows.reset_index().to_numpy().tolist(), ["trial", *rows.columns])),
        Section("To repeat", Text(command, look="code")),
    ]
    return Page("Study", summary["study"], blocks)


def study_pictures(trials: Iterable[FrozenTrial], ways: Any, names: list[str]) -> list[Picture]:
    """Optuna's own, of these trials in this order, by the first number; and of two numbers the Pareto front."""
    study, both = create_study(directions=ways[:1]), create_study(directions=ways)
    for one in trials:
        known: Any = {"params": one.params, "distributions": one.distributions}
        study.add_trial(create_trial(value=one.values[0], **known))
        both.add_trial(create_trial(values=one.values, **known))
    first: Any = {"target_name": names[0]}
    least: Any = first | {"evaluator": FanovaImportanceEvaluator(seed=0)}
    pictures: dict[str, Callable[[], Any]] = {
        f"{names[0]} of each trial, and the best until then": lambda: drawing.plot_optimization_history(study, **first),
        f"what explains {names[0]}": lambda: drawing.plot_param_importances(study, **least),
        "each trial a line, the darker the better": lambda: drawing.plot_parallel_coordinate(study, **first),
    }
    if len(names) == 2:
        pictures["red: no other betters it in both"] = lambda: drawing.plot_pareto_front(both, target_names=names)
    drawn = []
    for place, (words, draw) in enumerate(pictures.items()):
        with plt.rc_context({"savefig.bbox": "tight"}), suppress(ValueError, RuntimeError), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of too few, all alike
            (figure := draw().figure).set_size_inches(8.4, 3.6)
            for axes in figure.axes:
                axes.set(facecolor="white", title="")
                axes.set_title("", loc="left")
                axes.tick_params(labelsize=7)
                plt.setp(
                    axes.get_yticklabels(), bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
                )
                if axes.get_xlabel() == "Trial":  # whose numbers it does not know
                    axes.set_xlabel("finished trials, one after another")
            figure.axes[0].set_title(words, fontsize=10, pad=14)
            drawn.append(Picture(png(figure), f"study_{place}", words))
        plt.close("all")
    return drawn
