"""The jobs of a sweep as one table: what each setting reached over its seeds, best first, and what chance explains.

Jobs that differ in nothing but their seed are of one setting. Settings are ranked by validation numbers: of many test
numbers the best flatters. An interval is Student's, of the mean over seeds; a difference to the best setting is taken
seed by seed, as one seed deals both of them the same split. It takes two seeds that differ.

The best of many is partly the luckiest: where twelve settings are equal, with five seeds each, in two sweeps of three
some of them seem worse than the best at 95 %. Worse is therefore said only of a difference that would hold if all pairs
of settings were compared, at 95 % together (Bonferroni): of equals, in 1 to 6 sweeps of 100.
"""

import io
import shlex
import sys
from dataclasses import dataclass
from math import comb
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure
from scipy.stats import t as student

from defectcls.evaluation.comparison import METRICS
from defectcls.evaluation.page import render_page
from defectcls.evaluation.pictures import INK, LOOK, QUIET, RIGHT, png
from defectcls.evaluation.wording import SPLITS, number, percent, span
from defectcls.files import written_whole

RANKING = ("auroc", "loss")  # more is better, and of equal ones less
SHOWN = ("auroc", "recall", "overkill_rate", "f1", "accuracy", "f1_macro")  # of the test part
IN_TERMINAL = ("auroc", "recall", "overkill_rate", "accuracy")  # what 120 columns hold; the page shows all
LABELS = METRICS | {"f1_macro": "F1, mean over classes", "loss": "loss", "seconds": "seconds"}
PLAIN = ("auroc", "loss")  # not in percent
LEVEL = 0.95
DECIMALS = 4  # in which two AUROC are equal
ROUNDING = 1e-9  # smaller spreads are none
OTHER_IMAGES = ("dataset", "target", "folds")  # settings that differ in these are not judged alike
MOST_IN_PICTURE, MOST_IN_TERMINAL, LONGEST_NAME = 30, 20, 60
NOTES = (
    "± is the standard deviation over seeds; the interval is that of the mean, 95 %, and says what other seeds would "
    "give, which deal the split, the head and the order of the images anew. It does not say what new data would.",
    "Behind the best: the mean difference over the seeds in common, with its 95 % interval by itself. Perhaps worse: "
    "it does not hold zero, but the best of many is partly the luckiest, and some of its equals seem worse. Worse: "
    "also if all pairs of settings are judged together. The validation number of the best flatters a little.",
)


class Job(NamedTuple):
    """One job of a sweep; `metrics` is the metrics.json of a finished run that has one."""

    number: int
    overrides: tuple[str, ...]
    status: str
    error: str | None
    metrics: dict[str, Any] | None


class Number(NamedTuple):
    """Mean, standard deviation and interval of the mean over `n` seeds; NaN where these state none."""

    mean: float
    std: float
    low: float
    high: float
    n: int


class Setting(NamedTuple):
    """What was typed for it that is not the same in all jobs, by key; its jobs, seeds and numbers."""

    name: str
    values: dict[str, str]
    jobs: int
    finished: int
    seeds: pd.DataFrame  # one row a seed that finished, one column a number
    numbers: dict[str, Number]
    behind: Number | None = None  # the best less this one; None where nothing can be compared
    verdict: str = ""  # whether chance explains that it is behind


@dataclass(frozen=True)
class Sweep:
    """All jobs, one row each, and the settings, best first; `ranked_by` is "" where no job has a number."""

    name: str
    shared: list[str]
    varying: list[str]
    columns: list[str]  # of the numbers: <part>_<number>, and seconds
    ranked_by: str
    jobs: pd.DataFrame
    settings: list[Setting]


def summarise_sweep(name: str, jobs: list[Job]) -> Sweep:
    """Settings by validation AUROC, by test AUROC where nothing was validated. A seed that ran twice counts once."""
    typed = [{override.partition("=")[0].lstrip("+"): override for override in job.overrides} for job in jobs]
    keys = [key for key in dict.fromkeys(key for one in typed for key in one) if key != "seed"]
    varying = [key for key in keys if len({one.get(key) for one in typed}) > 1]
    measured = [_numbers(job.metrics or {}) for job in jobs]
    columns = sorted(dict.fromkeys(column for one in measured for column in one), key="seconds".__eq__)
    rows: list[dict[str, Any]] = []
    for job, one, numbers in zip(jobs, typed, measured, strict=True):
        seed = (job.metrics or {}).get("seed", one.get("seed", "").partition("=")[2])
        about = {"job": job.number, "status": job.status, "setting": _name(one, varying), "seed": str(seed)}
        rows.append(about | numbers | {"overrides": shlex.join(job.overrides), "error": job.error or ""})
    table = pd.DataFrame(rows, columns=["job", "status", "setting", "seed", *columns, "overrides", "error"])
    table[columns] = table[columns].astype(float)

    ranked_by = next((one for one in columns if one.endswith(RANKING) and table[one].notna().any()), "")
    settings = []
    for setting, of_setting in table.groupby("setting", sort=False):
        values = {key: _value(typed[of_setting.index[0]].get(key, "")) for key in varying}
        finished = of_setting[of_setting["status"] == "finished"]
        seeds = finished.drop_duplicates("seed").set_index("seed")[columns]
        means = {column: over_seeds(seeds[column], *_range(column)) for column in columns}
        settings.append(Setting(str(setting), values, len(of_setting), len(finished), seeds, means))
    if ranked_by:
        settings.sort(key=lambda setting: _rank(setting, ranked_by))
        if not _other_images(varying):
            pairs = comb(sum(one.numbers[ranked_by].n > 0 for one in settings), 2)
            settings[1:] = [_compare(settings[0], one, ranked_by, pairs) for one in settings[1:]]
    shared = [typed[0][key] for key in keys if key not in varying]
    return Sweep(name, shared, varying, columns, ranked_by, table, settings)


def over_seeds(values: pd.Series, least: float = -np.inf, most: float = np.inf) -> Number:
    """Of one value a seed, those that are defined; the interval ends where the number can."""
    known = values.dropna()
    mean, std, n = known.mean(), known.std(), len(known)
    if not std > ROUNDING:
        return Number(mean, std, np.nan, np.nan, n)
    reach = student.ppf((1 + LEVEL) / 2, n - 1) * std / np.sqrt(n)
    return Number(mean, std, max(least, mean - reach), min(most, mean + reach), n)


def settings_table(sweep: Sweep) -> pd.DataFrame:
    """One row a setting: each key that differs between jobs, then mean, std, low, high and n of each number."""
    rows = []
    for rank, setting in enumerate(sweep.settings, 1):
        ranked = sweep.ranked_by and setting.numbers[sweep.ranked_by].n
        row: dict[str, Any] = {"rank": rank if ranked else None, "setting": setting.name} | setting.values
        row |= {"jobs": setting.jobs, "finished": setting.finished}
        behind = {} if setting.behind is None else {"behind": setting.behind}
        for column, value in (setting.numbers | behind).items():
            row |= {f"{column}_{part}": item for part, item in value._asdict().items()}
        rows.append(row | {"verdict": setting.verdict})
    table = pd.DataFrame(rows)
    return table[[*table.columns.drop("verdict"), "verdict"]] if rows else table


def sentences(sweep: Sweep) -> list[str]:
    """What finished, which setting is the best, and which of the others chance does not explain."""
    counts = sweep.jobs["status"].value_counts()
    said = [f"{_count(len(sweep.jobs), 'job')}: {', '.join(f'{n} {status}' for status, n in counts.items())}."]
    if not len(sweep.jobs) or not sweep.ranked_by:
        return said if len(sweep.jobs) else ["No job was started."]
    part, others = sweep.ranked_by.partition("_")[0], sweep.settings[1:]
    best = sweep.settings[0]
    if differs := _other_images(sweep.varying):
        said.append(
            f"The settings differ in {', '.join(differs)}: they are not measured on the same task, and the first is "
            "not better for being first."
        )
    else:
        value, interval = _cell(sweep.ranked_by, best)
        first = f"Best on {SPLITS[part]} images: {best.name}" if others else f"On {SPLITS[part]} images"
        within = f", interval {interval}" if interval else ""
        seeds = _count(best.numbers[sweep.ranked_by].n, "seed")
        said.append(f"{first}, {_label(sweep.ranked_by).split(' ', 1)[1]} {value} over {seeds}{within}.")
        if others:
            verdicts = pd.Series([one.verdict for one in others])
            told = {
                "worse": "worse by more than chance",
                "perhaps worse": "perhaps worse (more seeds would tell)",
                "within chance": "within chance of it",
                "equal": "equal to it",
                "chance unknown": "behind it by what may be chance: it takes two seeds in common that differ",
                "": "without a result to compare it by",
            }
            parts = [f"{n} {text}" for verdict, text in told.items() if (n := int((verdicts == verdict).sum()))]
            several = f"Of the {len(others)} others: {'; '.join(parts)}."
            said.append(several if len(others) > 1 else f"The other is {told[others[0].verdict]}.")
    if part != "val":
        said.append(
            f"Ranked by {SPLITS[part]} images, as these jobs have no validation part: the number of the best flatters."
        )
    return said


@rc_context(LOOK)
def plot_sweep(sweep: Sweep) -> Figure | None:
    """The number that ranks, best on top: a dot a seed, the mean and its interval. None of less than two dots."""
    ranked = [one for one in sweep.settings if sweep.ranked_by and one.numbers[sweep.ranked_by].n]
    if sum(one.numbers[sweep.ranked_by].n for one in ranked) < 2:
        return None
    shown = ranked[:MOST_IN_PICTURE]
    figure = Figure(figsize=(7.2, 0.9 + 0.3 * len(shown)), layout="constrained")
    axes = figure.subplots()
    seeds = [one.seeds[sweep.ranked_by].dropna() for one in shown]
    for height, (setting, values) in enumerate(zip(shown, seeds, strict=True)):
        colour = QUIET if setting.verdict.endswith("worse") else RIGHT
        mean = setting.numbers[sweep.ranked_by]
        axes.plot([mean.low, mean.high], [height, height], color=colour, linewidth=2, alpha=0.45)
        axes.plot(values, [height] * len(values), "o", color=colour, markersize=4, alpha=0.7, clip_on=False)
        axes.plot(mean.mean, height, "|", color=INK, markersize=11, markeredgewidth=1.6, clip_on=False)
    dots = pd.concat(seeds)
    means = [setting.numbers[sweep.ranked_by] for setting in shown]
    ends = [end for one in means if one.n > 2 for end in (one.low, one.high)]  # of two seeds it would dwarf the dots
    least, most = np.nanmin([dots.min(), *ends]), np.nanmax([dots.max(), *ends])
    room = 0.05 * (most - least) or 0.01
    axes.set_xlim(least - room, min(most + room, max(_range(sweep.ranked_by)[1], dots.max())))
    axes.set_yticks(range(len(shown)), [_shortened(setting.name) for setting in shown])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    more = f" (the {len(shown)} best of {len(ranked)} settings)" if len(shown) < len(ranked) else ""
    axes.set_xlabel(f"{_label(sweep.ranked_by)}: seeds, mean, 95 % interval{more}")
    return figure


def write_sweep(folder: Path, sweep: Sweep, command: str | None = None) -> None:
    """sweep.csv with one row a setting, jobs.csv with one row a job, sweep.png and sweep.html.

    Args:
        folder: of the sweep; the page links to the report of every job that has one in the folder of its number.
        command: what started it.
    """
    figure = plot_sweep(sweep)
    picture = {} if figure is None else {"sweep": png(figure)}
    reports = {n: f"{n}/report.html" for n in sweep.jobs["job"] if (folder / f"{n}/report.html").is_file()}
    files = {
        "sweep.csv": _csv(settings_table(sweep)),
        "jobs.csv": _csv(sweep.jobs),
        "sweep.html": render_sweep(sweep, picture, reports, command).encode(),
        **{f"{name}.png": content for name, content in picture.items()},
    }
    for name, content in files.items():
        with written_whole(folder / name) as unfinished:
            unfinished.write_bytes(content)


def render_sweep(sweep: Sweep, pictures: dict[str, bytes], reports: dict[int, str], command: str | None = None) -> str:
    """The page as text.

    Args:
        pictures: the PNG file of `plot_sweep`, if there is one.
        reports: where the report of a job lies, by the job's number.
    """
    compared = _compared(sweep)
    head = [_label(column) for column in sweep.columns]
    settings = []
    for setting in sweep.settings:
        cells = [_cell(column, setting) for column in sweep.columns]
        settings.append(
            (setting.name, _finished(setting), *cells[:1], *([_behind_cell(setting)] * compared), *cells[1:])
        )
    return render_page(
        "sweep",
        pictures,
        name=sweep.name,
        sentences=sentences(sweep),
        failed=_failed(sweep),
        shared=sweep.shared,
        settings_head=["setting", "jobs finished", *head[:1], *["behind the best"] * compared, *head[1:]],
        settings=settings,
        notes=_notes(sweep),
        jobs_head=["job", "setting", "seed", "status", *head],
        jobs=[
            (job, [_shown(column, job[column]) for column in sweep.columns]) for job in sweep.jobs.to_dict("records")
        ],
        reports=reports,
        command=command,
    )


def print_sweep(folder: Path, sweep: Sweep) -> None:
    """The settings, what they mean, the jobs that did not finish and why, and where the page lies, on stdout."""
    from rich.console import Console
    from rich.table import Column, Table

    console = Console(
        soft_wrap=True, highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 140
    )
    ranked, compared = sweep.ranked_by, _compared(sweep)
    others = [one for one in sweep.columns if one != ranked and one.partition("_")[2] in IN_TERMINAL]
    head = [*([_label(ranked)] if ranked else []), *["behind the best"] * compared, *map(_label, others)]
    table = Table(Column("setting", overflow="fold"), "finished", *head, title=sweep.name)
    for setting in sweep.settings[:MOST_IN_TERMINAL]:
        cells = ["\n".join(_cell(ranked, setting))] if ranked else []
        cells += ["\n".join(_behind_cell(setting))] * compared
        table.add_row(setting.name, _finished(setting), *cells, *(_cell(column, setting)[0] for column in others))
    if sweep.settings:
        console.print(table)
    if len(sweep.settings) > MOST_IN_TERMINAL:
        console.print(f"{len(sweep.settings) - MOST_IN_TERMINAL} more settings are in {folder / 'sweep.csv'}")
    if sweep.shared:
        console.print(f"in all jobs: {shlex.join(sweep.shared)}")
    for line in sentences(sweep):
        console.print(line)
    for line in _failed(sweep):
        console.print(f"- {line}")
    console.print(f"page: {folder / 'sweep.html'}")


def _numbers(metrics: dict[str, Any]) -> dict[str, float | None]:
    """Of metrics.json, by <part>_<number>: what ranks, and what is shown of the part that the verdict is on."""
    parts = [part for part in ("val", "test", "train") if part in metrics]
    judged = "test" if "test" in parts else next(iter(parts), "")
    found: dict[str, float | None] = {}
    for part, names in ((next(iter(parts), ""), RANKING), (judged, SHOWN)):
        values = metrics.get(part, {})
        values = values.get("defect", {}) | values
        two_classes = "per_class" not in values
        wanted = [name for name in names if name in values and not (two_classes and name == "f1_macro")]
        found |= {f"{part}_{name}": values[name] for name in wanted}
    if "seconds" in metrics:
        found["seconds"] = sum(metrics["seconds"].values())
    return found


def _name(typed: dict[str, str], varying: list[str]) -> str:
    return ", ".join(typed[key] for key in varying if key in typed) or ("defaults" if varying else "all jobs")


def _value(override: str) -> str:
    _, is_set, value = override.partition("=")
    return value if is_set else override


def _range(column: str) -> tuple[float, float]:
    return 0.0, np.inf if column.endswith(("loss", "seconds")) else 1.0


def _rank(setting: Setting, ranked_by: str) -> tuple[float, float]:
    part = ranked_by.partition("_")[0]
    auroc, loss = (
        setting.numbers[column].mean if (column := f"{part}_{name}") in setting.numbers else np.nan for name in RANKING
    )
    return np.inf if np.isnan(auroc) else -round(auroc, DECIMALS), np.inf if np.isnan(loss) else loss


def _compare(best: Setting, other: Setting, ranked_by: str, pairs: int) -> Setting:
    """`other` with its distance to the best; `pairs` of settings could have been the one that is looked at."""
    sign = -1 if ranked_by.endswith("loss") else 1
    differences = (sign * (best.seeds[ranked_by] - other.seeds[ranked_by])).dropna()  # joined by seed
    if differences.empty:
        return other
    behind = over_seeds(differences)
    if np.isnan(behind.low):
        verdict = "equal" if abs(behind.mean) < ROUNDING else "chance unknown"
    elif behind.low <= 0:
        verdict = "within chance"
    else:
        chance = 2 * student.sf(behind.mean / behind.std * np.sqrt(behind.n), behind.n - 1)
        verdict = "worse" if chance < (1 - LEVEL) / pairs else "perhaps worse"
    return other._replace(behind=behind, verdict=verdict)


def _other_images(varying: list[str]) -> list[str]:
    """The keys by which the settings are measured on other images, or other classes."""
    return [
        key
        for key in varying
        if key.partition(".")[0] in OTHER_IMAGES and not key.startswith(("dataset.cache", "dataset.download"))
    ]


def _notes(sweep: Sweep) -> list[str]:
    spread = sweep.ranked_by and any(setting.numbers[sweep.ranked_by].n > 1 for setting in sweep.settings)
    return [note for note, needed in zip(NOTES, (spread, _compared(sweep)), strict=True) if needed]


def _compared(sweep: Sweep) -> bool:
    return any(setting.behind for setting in sweep.settings)


def _failed(sweep: Sweep) -> list[str]:
    """The jobs that did not finish, each with its error."""
    jobs = sweep.jobs[sweep.jobs["status"] != "finished"]
    names = (
        (jobs["setting"] if sweep.varying else "") + jobs["seed"].map(lambda seed: f", seed={seed}" if seed else "")
    ).str.removeprefix(", ")
    errors = jobs["error"].map(lambda error: f": {error}" if error else "")
    return (("job " + jobs["job"].astype(str) + " " + jobs["status"] + " (" + names + ")") + errors).tolist()


def _label(column: str) -> str:
    part, _, name = column.partition("_")
    return f"{SPLITS[part]} {LABELS[name]}" if name else LABELS[part]


def _shown(column: str, value: float) -> str:
    if column == "seconds":
        return "–" if np.isnan(value) else f"{value:.0f}"
    return (number if column.endswith(PLAIN) else percent)(value)


def _cell(column: str, setting: Setting) -> tuple[str, str]:
    """The mean with its spread, and the interval; with how many seeds state the number, where some do not."""
    value, plain = setting.numbers[column], column.endswith(PLAIN)
    shown = _shown(column, value.mean)
    if value.n > 1:
        spread = (
            f"{value.std:.0f}"
            if column == "seconds"
            else f"{value.std if plain else 100 * value.std:.{3 if plain else 1}f}"
        )
        shown = f"{shown.removesuffix(' %')} ± {spread}{' %' if shown.endswith('%') else ''}"
    interval = "" if np.isnan(value.low) or column == "seconds" else span((value.low, value.high), plain)
    few = f"{value.n} of {_count(len(setting.seeds), 'seed')}" if 0 < value.n < len(setting.seeds) else ""
    return shown, ", ".join(part for part in (interval, few) if part)


def _behind_cell(setting: Setting) -> tuple[str, str]:
    behind = setting.behind
    if behind is None:
        return "", ""
    interval = "" if np.isnan(behind.low) else span((behind.low, behind.high), plain=True)
    return f"{behind.mean:.3f}, {setting.verdict}", interval


def _finished(setting: Setting) -> str:
    repeated = setting.finished - len(setting.seeds)
    return f"{setting.finished} of {setting.jobs}" + (f", {repeated} of them again" if repeated else "")


def _shortened(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME // 2]}…{name[-LONGEST_NAME // 2 + 1 :]}"


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _csv(table: pd.DataFrame) -> bytes:
    buffer = io.StringIO()
    table.to_csv(buffer, index=False)
    return buffer.getvalue().encode()
