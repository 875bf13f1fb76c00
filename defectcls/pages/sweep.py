"""The page of a sweep: its settings in one table, the best first, and what that means."""

from collections import Counter
from pathlib import Path
from typing import Any

from defectcls.evaluation.metrics import METRICS
from defectcls.evaluation.sweeps import Sweep
from defectcls.pages.blocks import Cell, Page, Section, Table, Text
from defectcls.pages.wording import SPLITS, plural, shown, span

NOTE = (
    "± is the standard deviation over so many seeds, the interval that of the mean, 95 %: of other seeds, not of new "
    "data. Behind the best: the mean difference over the seeds in common; its interval holds for all pairs of settings."
)


def sweep_page(sweep: Sweep, folder: Path, command: str) -> Page:
    """The page; it links to the report of every job that has one in the folder of its number below `folder`."""
    numbers = {column: _part_and_metric(sweep, column) for column in sweep.columns}
    labels = [f"{part} {METRICS[metric].name}".lstrip() for part, metric in numbers.values()]
    compared = "verdict" in sweep.settings
    settings, jobs, failed = [], [], []
    for one in sweep.settings.to_dict("records"):
        row = [one["setting"], f"{one['finished']} of {one['jobs']}"]
        if compared:
            row += [_cell("behind", numbers[sweep.ranked_by][1], one), one["verdict"]]
        settings.append(row + [_cell(column, metric, one) for column, (_, metric) in numbers.items()])
    for job in sweep.jobs.to_dict("records"):
        number, report = str(job["job"]), f"{job['job']}/report.html"
        link = Cell(number, address=report if (folder / report).is_file() else "")
        reached = [shown(metric, job[column]) for column, (_, metric) in numbers.items()]
        jobs.append([job["setting"], link, job["seed"], job["status"], *reached])
        if job["status"] != "finished":
            failed.append(f"job {number} {job['status']} ({job['setting']}, seed={job['seed']}) {job['error']}")
    head = ["setting", "finished", *["behind", "which is"] * compared, *labels]
    by_setting = Table(settings, head, terminal=True)
    by_job = Table(jobs, ["setting", "job", "seed", "status", *labels])
    blocks = [
        Text(*_verdict(sweep), look="verdict", terminal=True),
        Text(*failed, look="caveats", terminal=True),
        Section("The settings, best first" if compared else "The numbers", by_setting, Text(NOTE, look="note")),
        Section(f"The jobs ({len(jobs)}); their numbers lead to their reports", by_job),
        Section("To repeat", Text(command, look="code")),
    ]
    return Page("Sweep", sweep.name, blocks)


def _verdict(sweep: Sweep) -> list[str]:
    """What finished, which setting is the best, and which others chance does not explain."""
    counts = sweep.jobs["status"].value_counts()
    said = [f"{plural(len(sweep.jobs), 'job')}: {', '.join(f'{n} {status}' for status, n in counts.items())}."]
    if not sweep.ranked_by:
        return said
    if sweep.other_images:
        return [*said, f"The settings differ in {', '.join(sweep.other_images)}: on other images none is the best."]
    part, metric = _part_and_metric(sweep, sweep.ranked_by)
    best, *others = sweep.settings.to_dict("records")
    reached = _cell(sweep.ranked_by, metric, best).replace("\n", ", interval ")
    what = f"Best on {part} images: {best['setting']}" if others else f"On {part} images"
    said.append(f"{what}, {METRICS[metric].name} {reached}.")
    if "verdict" in best:
        verdicts = Counter(one["verdict"] or "without a result to compare" for one in others)
        parts = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items())
        said.append(f"Of {plural(len(others), 'other')}: {parts}.")
    of_parts = {one.partition("_")[0] for one in sweep.columns if one != "seconds"}
    if len(of_parts) == 1:
        missing = "test" if of_parts == {"val"} else "validation"
        said.append(f"These jobs have no {missing} part: of many {part} numbers the best flatters.")
    return said


def _part_and_metric(sweep: Sweep, column: str) -> tuple[str, str]:
    """The images in words, "" of seconds, and which of METRICS it is."""
    part, _, metric = column.partition("_")
    return "out-of-fold" if sweep.out_of_fold and part == "val" else SPLITS.get(part, ""), metric or column


def _cell(column: str, metric: str, setting: dict[Any, Any]) -> str:
    """The mean, with its spread over how many seeds; below it the interval."""
    mean, std, low, high, n = (setting[f"{column}_{part}"] for part in ("mean", "std", "low", "high", "n"))
    said = f"{shown(metric, mean)} ± {shown(metric, std)} of {n:.0f}" if n > 1 else shown(metric, mean)
    interval = span(metric, (low, high))
    return said if interval == "–" or metric == "seconds" else f"{said}\n{interval}"
