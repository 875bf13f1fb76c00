"""The page of a sweep: its settings in one table, the best first, and what that means."""

from collections import Counter
from pathlib import Path
from typing import Any

from defectcls.evaluation.metrics import METRICS
from defectcls.evaluation.sweeps import Sweep
from defectcls.pages.blocks import Cell, Page, Table, section, text
from defectcls.pages.wording import SPLITS, plural, shown, span

NOTE = (
    "± is the standard deviation over so many seeds, the interval that of the mean, 95 %: of other seeds, not of new "
    "data. Behind the best: the mean difference over the seeds in common; its interval holds for all pairs of settings."
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
            failed.append(f"job {number} {job['status']} ({job['setting']}, seed={job['seed']}) {job['error']}")
    settings = sweep.settings.to_dict("records")
    compared = "verdict" in sweep.settings
    labels = ["seconds" if one == "seconds" else f"{_part(one)} {METRICS[_metric(one)].name}" for one in sweep.columns]
    rows = []
    for one in settings:
        behind = [_cell("behind", _metric(sweep.ranked_by), one), one["verdict"]] if compared else []
        numbers = [_cell(column, _metric(column), one) for column in sweep.columns]
        rows.append([one["setting"], f"{one['finished']} of {one['jobs']}", *behind, *numbers])
    blocks = [
        text(*_verdict(sweep, settings), look="verdict", terminal=True),
        text(*failed, look="caveats", terminal=True),
        section(
            "The settings, best first" if compared else "The numbers",
            Table(rows, ["setting", "finished", *["behind", "which is"] * compared, *labels], terminal=True),
            text(NOTE, look="note"),
        ),
        section(
            f"The jobs ({len(jobs)}); their numbers lead to their reports",
            Table(jobs, ["setting", "job", "seed", "status", *labels]),
        ),
        section("To repeat", text(command, look="code")),
    ]
    return Page("Sweep", sweep.name, blocks)


def _verdict(sweep: Sweep, settings: list[dict[Any, Any]]) -> list[str]:
    """What finished, which setting is the best, and which others chance does not explain."""
    counts = sweep.jobs["status"].value_counts()
    said = [f"{plural(len(sweep.jobs), 'job')}: {', '.join(f'{n} {status}' for status, n in counts.items())}."]
    if not sweep.ranked_by:
        return said
    if sweep.other_images:
        return [*said, f"The settings differ in {', '.join(sweep.other_images)}: on other images none is the best."]
    part, metric, (best, *others) = _part(sweep.ranked_by), _metric(sweep.ranked_by), settings
    reached = _cell(sweep.ranked_by, metric, best).replace("\n", ", interval ")
    what = f"Best on {part} images: {best['setting']}" if others else f"On {part} images"
    said.append(f"{what}, {METRICS[metric].name} {reached}.")
    if "verdict" in best:
        verdicts = Counter(one["verdict"] or "without a result to compare" for one in others)
        parts = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items())
        said.append(f"Of {plural(len(others), 'other')}: {parts}.")
    if part != SPLITS["val"]:
        said.append(f"These jobs have no validation part: of many {part} numbers the best flatters.")
    return said


def _part(column: str) -> str:
    return SPLITS[column.partition("_")[0]]


def _metric(column: str) -> str:
    return column.partition("_")[2] or column


def _cell(column: str, metric: str, setting: dict[Any, Any]) -> str:
    """The mean, with its spread over how many seeds; below it the interval."""
    mean, std, low, high, n = (setting[f"{column}_{part}"] for part in ("mean", "std", "low", "high", "n"))
    said = f"{shown(metric, mean)} ± {shown(metric, std)} of {n:.0f}" if n > 1 else shown(metric, mean)
    interval = span(metric, (low, high))
    return said if interval == "–" or metric == "seconds" else f"{said}\n{interval}"
