"""The page of a sweep: its settings in one table, the best first, and what that means."""

import shlex
from pathlib import Path

import numpy as np

from defectcls.evaluation.metrics import METRICS
from defectcls.evaluation.sweeps import Number, Setting, Sweep, other_images
from defectcls.pages.blocks import Cell, Page, Picture, Table, Text, section, text
from defectcls.pages.wording import SPLITS, plural, shown, span

FIRST = ("auroc", "recall", "overkill_rate", "precision", "f1", "accuracy")  # of the judged part, in this order
MOST_IN_PICTURE, MOST_NAMED, LONGEST_NAME = 30, 5, 60
ROWS_IN_TERMINAL, COLUMNS_IN_TERMINAL = 20, 7
SEEDS = "± is the standard deviation over seeds, the interval that of the mean, 95 %: of other seeds, not of new data."
BEHIND = (
    "Behind the best: the mean difference over the seeds in common, with its 95 % interval. Perhaps worse: it does not "
    "hold zero, as of some of many equals. Worse: nor if all pairs are judged together. The best flatters a little."
)
COUNTED = "Counts are of the images of all seeds. The mean weighs all datasets alike, whatever their number of images."
TOLD = {  # of a verdict
    "worse": "worse by more than chance",
    "perhaps worse": "perhaps worse (more seeds would tell)",
    "within chance": "within chance of it",
    "equal": "equal to it",
    "chance unknown": "behind it by what may be chance: it takes two seeds in common that differ",
    "": "without a result to compare it by",
}


def sweep_page(sweep: Sweep, folder: Path, command: str | None = None) -> Page:
    """The page; it links to the report of every job that has one in the folder of its number below `folder`."""
    by_images, ranked = len(sweep.blocks) > 1, sweep.ranked_by
    compared = any(setting.behind for setting in sweep.settings)
    spread = ranked and any(setting.numbers[ranked].n > 1 for setting in sweep.settings)
    jobs, failed, columns = [], [], _columns(sweep, compared)
    for job in sweep.jobs.to_dict("records"):
        number, report = str(job["job"]), f"{job['job']}/report.html"
        link = Cell(number, address=report if (folder / report).is_file() else "")
        numbers = [shown(_metric(column), job[column]) for column in columns]
        jobs.append([job["setting"], link, job["seed"], job["status"], *numbers])
        if job["status"] != "finished":
            which = [job["setting"]] * bool(sweep.varying) + [f"seed={job['seed']}"] * bool(job["seed"])
            error = f": {job['error']}" * bool(job["error"])
            failed.append(f"job {number} {job['status']} ({', '.join(which)}){error}")
    labels = [_label(column) for column in columns]
    head = ["setting", "jobs finished", *["sound: passed, rejected", "defective: missed, caught"] * by_images]
    head += ["behind the best"] * compared + labels
    in_terminal = ROWS_IN_TERMINAL, COLUMNS_IN_TERMINAL + 2 * by_images
    blocks = [
        text(*_verdict(sweep), look="verdict", terminal=True),
        Text(failed, "caveats", terminal=True, title=f"{plural(len(failed), 'job')} did not finish"),
        section(
            "Each on images of its own" if by_images else "The settings, best first" if compared else "The numbers",
            _picture(sweep),
            Table(_rows(sweep, columns, compared), head, terminal=in_terminal),
            text(SEEDS if spread else "", BEHIND if compared else "", COUNTED if by_images else "", look="note"),
            text(f"In all jobs: {shlex.join(sweep.shared)}" if sweep.shared else "", look="note"),
        ),
        section(
            f"The jobs ({len(jobs)}); their numbers lead to their reports",
            Table(jobs, ["setting", "job", "seed", "status", *labels]),
            folded=True,
        ),
        section("To repeat", text(command, look="code")),
    ]
    return Page("Sweep", sweep.name, blocks, broad=True)


def _verdict(sweep: Sweep) -> list[str]:
    """What finished, which setting is the best of its images, which others chance does not explain, what collapsed."""
    counts = sweep.jobs["status"].value_counts()
    said = [f"{plural(len(sweep.jobs), 'job')}: {', '.join(f'{n} {status}' for status, n in counts.items())}."]
    if not len(sweep.jobs) or not sweep.ranked_by:
        return said if len(sweep.jobs) else ["No job was started."]
    part, differs, blocks = SPLITS[sweep.ranked_by.partition("_")[0]], other_images(sweep.varying), sweep.blocks
    chosen = [block for block in blocks if not differs or any(one.behind for one in block)]
    if differs:
        why = ", and each has its own best" if chosen else ""
        if len(blocks) == 1:
            why = ", and the first is not better for being first"
        said.append(f"The settings differ in {', '.join(differs)}: they are not measured on the same task{why}.")
    for best, *others in chosen:
        number = best.numbers[sweep.ranked_by]
        reached, _, interval = _cell(sweep.ranked_by, number, len(best.seeds)).partition("\n")
        first = f"Best on {part} images: {best.name}" if others else f"On {part} images"
        within = f", interval {interval}" if interval else ""
        metric = METRICS[_metric(sweep.ranked_by)].name
        said.append(f"{first}, {metric} {reached} over {plural(number.n, 'seed')}{within}.")
        verdicts = [one.verdict for one in others]
        parts = [f"{verdicts.count(verdict)} {words}" for verdict, words in TOLD.items() if verdict in verdicts]
        said += [f"Of {plural(len(others), 'other')}: {'; '.join(parts)}."] * bool(others)
    if collapsed := [one for one in sweep.settings if one.collapsed]:
        names = [f"{one.name} ({one.collapsed} of {plural(len(one.seeds), 'seed')})" for one in collapsed[:MOST_NAMED]]
        more = f"; and {len(collapsed) - MOST_NAMED} more" if len(collapsed) > MOST_NAMED else ""
        said.append(f"Collapsed, nearly every image called alike: {'; '.join(names)}{more}.")
    if part != SPLITS["val"] and (chosen or len(blocks) == 1):
        said.append(f"Ranked by {part} images, as these jobs have no validation part: the number of the best flatters.")
    return said


def _rows(sweep: Sweep, columns: list[str], compared: bool) -> list[list[str]]:
    """The settings, those of the same images under a heading, and the means over all images below them."""
    blocks = [*sweep.blocks, *[sweep.means] * (len(sweep.blocks) > 1 and bool(sweep.means))]
    headed = len(blocks) > 1 and any(len(block) > 1 for block in blocks)
    rows: list[list[str]] = []
    for block in blocks:
        rows += [[block[0].images]] * headed
        for one in block:
            name = one.within if headed else one.images if len(blocks) > 1 and sweep.means else one.name
            row = [name, f"{one.finished} of {one.jobs}" + f", {one.again} of them again" * bool(one.again)]
            if len(blocks) > 1:
                row += [f"{one.counts[at]}, {one.counts[at + 1]}" if one.counts else "–" for at in (0, 2)]
            row += [_behind(sweep.ranked_by, one)] * compared
            rows.append(row + [_cell(column, one.numbers[column], len(one.seeds)) for column in columns])
    return rows


def _columns(sweep: Sweep, compared: bool) -> list[str]:
    """What ranks, unless nothing is compared by it; then FIRST of the judged part, and the rest."""
    judged = next((part for part in ("test", "val", "train") if f"{part}_recall" in sweep.columns), "test")
    ranked = [sweep.ranked_by] * (len(sweep.blocks) == 1 or compared)
    wanted = [*ranked, *(f"{judged}_{name}" for name in FIRST), *sweep.columns]
    return list(dict.fromkeys(column for column in wanted if column in sweep.columns))


def _metric(column: str) -> str:
    return column.partition("_")[2] or column


def _label(column: str) -> str:
    return f"{SPLITS[column.partition('_')[0]]} {METRICS[_metric(column)].name}" if "_" in column else column


def _cell(column: str, value: Number, seeds: int) -> str:
    """The mean with its spread; below it the interval, and how many seeds state the number, where some do not."""
    metric, small = _metric(column), []
    said = shown(metric, value.mean)
    if value.n > 1:
        spread, unit = shown(metric, value.std).removesuffix(" %"), " %" * METRICS[metric].percent
        said = f"{said.removesuffix(' %')} ± {spread}{unit}"
    if not np.isnan(value.low) and metric != "seconds":
        small.append(span(metric, (value.low, value.high)))
    if 0 < value.n < seeds:
        small.append(f"{value.n} of {plural(seeds, 'seed')}")
    return "\n".join([said, ", ".join(small)] if small else [said])


def _behind(ranked: str, setting: Setting) -> str:
    if (behind := setting.behind) is None:
        return ""
    interval = span(_metric(ranked), (behind.low, behind.high))
    return f"{behind.mean:.3f}, {setting.verdict}" + f"\n{interval}" * (interval != "–")


def _picture(sweep: Sweep) -> Picture:
    """The number that ranks: a dot a seed, the mean and its interval. Nothing of less than two dots."""
    from defectcls.pages.pictures import Bar, plot_intervals, png

    ranked = [one for one in sweep.settings if sweep.ranked_by and one.numbers[sweep.ranked_by].n]
    bars, content = [], b""
    for one in ranked[:MOST_IN_PICTURE]:
        name, value, dots = one.name, one.numbers[sweep.ranked_by], one.seeds[sweep.ranked_by].dropna().tolist()
        if len(name) > LONGEST_NAME:
            name = f"{name[: LONGEST_NAME // 2]}…{name[-LONGEST_NAME // 2 + 1 :]}"
        interval = value[2:4] if len(dots) > 2 else (np.nan, np.nan)  # of two seeds it would dwarf the dots
        bars.append(Bar(name, dots, *interval, not one.verdict.endswith("worse")))
    if sum(len(bar.dots) for bar in bars) > 1:
        which = "first" if len(sweep.blocks) > 1 else "best"
        more = f" (the {len(bars)} {which} of {len(ranked)} settings)" if len(bars) < len(ranked) else ""
        content = png(plot_intervals(bars, f"{_label(sweep.ranked_by)}: seeds, mean, 95 % interval{more}"))
    return Picture(content, "sweep", "Each setting's seeds as dots, with their mean and its interval")
