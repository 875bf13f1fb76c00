"""The page of a sweep: its settings in one table, the best first, and what that means."""

from pathlib import Path
from typing import Any

import numpy as np

from defectcls.evaluation.metrics import METRICS
from defectcls.evaluation.sweeps import Sweep
from defectcls.pages.blocks import Cell, Page, Table, section, text
from defectcls.pages.wording import SPLITS, plural, shown, span

SEEDS = "± is the standard deviation over seeds, the interval that of the mean, 95 %: of other seeds, not of new data."
BEHIND = (
    "Behind the best of the same images: the mean difference over the seeds in common, with its 95 % interval. Worse: "
    "if all pairs of settings are judged together, at 95 %. The best flatters a little."
)


def sweep_page(sweep: Sweep, folder: Path, command: str | None = None) -> Page:
    """The page; it links to the report of every job that has one in the folder of its number below `folder`."""
    jobs, failed = [], []
    for job in sweep.jobs.to_dict("records"):
        number, report = str(job["job"]), f"{job['job']}/report.html"
        link = Cell(number, address=report if (folder / report).is_file() else "")
        numbers = [shown(_metric(column), job[column]) for column in sweep.columns]
        jobs.append([job["setting"], link, job["seed"], job["status"], *numbers])
        if job["status"] != "finished":
            which = job["setting"] + f", seed={job['seed']}" * bool(job["seed"])
            failed.append(f"job {number} {job['status']} ({which}){': ' * bool(job['error'])}{job['error']}")
    settings = sweep.settings.to_dict("records")
    compared = "behind_mean" in sweep.settings
    spread = any(one[f"{sweep.ranked_by}_n"] > 1 for one in settings if sweep.ranked_by)
    rows = [
        [one["setting"], f"{one['finished']} of {one['jobs']}", *[_behind(sweep.ranked_by, one)] * compared]
        + [_cell(column, one) for column in sweep.columns]
        for one in settings
    ]
    labels = [_label(column) for column in sweep.columns]
    head = ["setting", "jobs finished", *["behind the best"] * compared, *labels]
    blocks = [
        text(*_verdict(sweep, settings), look="verdict", terminal=True),
        text(*failed, look="caveats", terminal=True),
        section(
            "The settings, best first" if compared else "The numbers",
            Table(rows, head, terminal=True),
            text(SEEDS if spread else "", BEHIND if compared else "", look="note"),
        ),
        section(
            f"The jobs ({len(jobs)}); their numbers lead to their reports",
            Table(jobs, ["setting", "job", "seed", "status", *labels]),
        ),
        section("To repeat", text(command, look="code")),
    ]
    return Page("Sweep", sweep.name, blocks)


def _verdict(sweep: Sweep, settings: list[dict[Any, Any]]) -> list[str]:
    """What finished, which setting is the best of its images, and which others chance does not explain."""
    counts = sweep.jobs["status"].value_counts()
    said = [f"{plural(len(sweep.jobs), 'job')}: {', '.join(f'{n} {status}' for status, n in counts.items())}."]
    if not sweep.ranked_by:
        return said
    part, metric = SPLITS[sweep.ranked_by.partition("_")[0]], _metric(sweep.ranked_by)
    if sweep.other_images:
        differ = ", ".join(sweep.other_images)
        said.append(f"The settings differ in {differ}: they are compared on the same images only.")
    starts = [place for place, one in enumerate(settings) if one["rank"] == 1]
    for start, end in zip(starts, [*starts[1:], len(settings)], strict=True):
        best, others = settings[start], settings[start + 1 : end]
        if not best[f"{sweep.ranked_by}_n"] or (sweep.other_images and not others):
            continue
        reached, _, interval = _cell(sweep.ranked_by, best).partition("\n")
        first = f"Best on {part} images: {best['setting']}" if others else f"On {part} images"
        over = f"over {plural(int(best[f'{sweep.ranked_by}_n']), 'seed')}"
        said.append(f"{first}, {METRICS[metric].name} {reached} {over}{', interval ' * bool(interval)}{interval}.")
        verdicts = [one["verdict"] or "without a result to compare" for one in others]
        parts = [f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(verdicts)]
        said += [f"Of {plural(len(others), 'other')}: {', '.join(parts)}."] * bool(others)
    if part != SPLITS["val"]:
        said.append(f"Ranked by {part} images, as these jobs have no validation part: the number of the best flatters.")
    return said


def _metric(column: str) -> str:
    return column.partition("_")[2] or column


def _label(column: str) -> str:
    return f"{SPLITS[column.partition('_')[0]]} {METRICS[_metric(column)].name}" if "_" in column else column


def _cell(column: str, setting: dict[Any, Any]) -> str:
    """The mean with its spread; below it the interval, and how many jobs it is of, where not of all that finished."""
    metric = _metric(column)
    mean, std, low, high, n = (setting[f"{column}_{part}"] for part in ("mean", "std", "low", "high", "n"))
    said = shown(metric, mean)
    if n > 1:
        said = f"{said.removesuffix(' %')} ± {shown(metric, std)}"
    small = [] if np.isnan(low) or metric == "seconds" else [span(metric, (low, high))]
    small += [f"{n:.0f} of {plural(setting['finished'], 'job')}"] * (0 < n < setting["finished"])
    return "\n".join([said, ", ".join(small)] if small else [said])


def _behind(ranked_by: str, setting: dict[Any, Any]) -> str:
    if not setting["verdict"]:
        return ""
    interval = span(_metric(ranked_by), (setting["behind_low"], setting["behind_high"]))
    return f"{setting['behind_mean']:.3f}, {setting['verdict']}" + f"\n{interval}" * (interval != "–")
