"""The page of a sweep: its settings in one table, the best first, and what that means."""

import shlex
from pathlib import Path
from typing import Any

import numpy as np

from defectcls.evaluation.metrics import METRICS
from defectcls.evaluation.sweeps import Number, Setting, Sweep, number_range, other_images
from defectcls.pages.blocks import Block, Cell, Page, Picture, Section, Table, Text
from defectcls.pages.wording import SPLITS, plural, shown, span

FIRST = ("auroc", "recall", "overkill_rate", "precision", "f1", "accuracy")  # of the judged part, in this order
MOST_IN_PICTURE, MOST_IN_TERMINAL, MOST_NAMED, LONGEST_NAME = 30, 20, 5, 60
COLUMNS_IN_TERMINAL = 7
SEEDS = (
    "± is the standard deviation over seeds; the interval is that of the mean, 95 %, and says what other seeds would "
    "give, which deal the split, the head and the order of the images anew. It does not say what new data would."
)
BEHIND = (
    "Behind the best: the mean difference over the seeds in common, with its 95 % interval by itself. Perhaps worse: "
    "it does not hold zero, but the best of many is partly the luckiest, and some of its equals seem worse. Worse: "
    "also if all pairs of settings are judged together. The validation number of the best flatters a little."
)
COUNTED = (
    "Passed, rejected and missed, caught: the images of all seeds; one that several seeds tested counts as often. The "
    "mean weighs all datasets alike, whatever their number of images."
)
TOLD = {  # of a verdict
    "worse": "worse by more than chance",
    "perhaps worse": "perhaps worse (more seeds would tell)",
    "within chance": "within chance of it",
    "equal": "equal to it",
    "chance unknown": "behind it by what may be chance: it takes two seeds in common that differ",
    "": "without a result to compare it by",
}


def sweep_page(sweep: Sweep, folder: Path, command: str | None = None) -> Page:
    """The page.

    Args:
        folder: of the sweep; the page links to the report of every job that has one in the folder of its number.
        command: what started it.
    """
    failed, columns, by_images = _failed(sweep), _columns(sweep), len(sweep.blocks) > 1
    ranked, compared = sweep.ranked_by, any(setting.behind for setting in sweep.settings)
    spread = ranked and any(setting.numbers[ranked].n > 1 for setting in sweep.settings)
    notes: dict[str, Any] = {SEEDS: spread, BEHIND: compared, COUNTED: by_images}
    notes[f"In all jobs: {shlex.join(sweep.shared)}"] = sweep.shared
    head = ["setting", "jobs finished", *["sound: passed, rejected", "defective: missed, caught"] * by_images]
    first = int(bool(columns and columns[0] == ranked))  # what ranks stands before the distance to the best
    labels = [_label(column) for column in columns]
    head += [*labels[:first], *["behind the best"] * compared, *labels[first:]]
    rows: list[list[object]] = []
    for heading, named in _groups(sweep):
        rows += [[heading]] * bool(heading)
        for name, one in named:
            counts = one.counts or ()
            sides = [f"{counts[at]}, {counts[at + 1]}" if counts else "–" for at in (0, 2)]
            cells = [_cell(column, one.numbers[column], len(one.seeds)) for column in columns]
            again = f", {one.again} of them again" if one.again else ""
            behind = [_behind(ranked, one)] * compared
            rows.append([name, f"{one.finished} of {one.jobs}{again}", *sides * by_images, *cells[:first], *behind])
            rows[-1] += cells[first:]
    jobs = []
    for job in sweep.jobs.to_dict("records"):
        report = f"{job['job']}/report.html"
        link = Cell(str(job["job"]), address=report if (folder / report).is_file() else "")
        numbers = [shown(_metric(column), job[column]) for column in columns]
        jobs.append([job["setting"], link, job["seed"], job["status"], *numbers])
    title = "Each on images of its own" if by_images else "The settings, best first" if compared else "The numbers"
    in_terminal = MOST_IN_TERMINAL, COLUMNS_IN_TERMINAL + 2 * by_images
    return Page(
        "Sweep",
        sweep.name,
        [
            Text(_verdict(sweep), "verdict", terminal=True),
            Text(failed, "caveats", terminal=True, title=f"{plural(len(failed), 'job')} did not finish"),
            Section(
                [
                    *_picture(sweep),
                    Table(rows, head, terminal=in_terminal),
                    Text([note for note, needed in notes.items() if needed], "note"),
                ],
                title,
            ),
            Section(
                [Table(jobs, ["setting", "job", "seed", "status", *labels])],
                f"The jobs ({len(jobs)}); their numbers lead to their reports",
                folded=True,
            ),
            Section([Text([command] if command else [], "code")], "To repeat"),
        ],
        broad=True,
    )


def _verdict(sweep: Sweep) -> list[str]:
    """What finished, which setting is the best of its images, which others chance does not explain, what collapsed."""
    counts = sweep.jobs["status"].value_counts()
    said = [f"{plural(len(sweep.jobs), 'job')}: {', '.join(f'{n} {status}' for status, n in counts.items())}."]
    if not len(sweep.jobs) or not sweep.ranked_by:
        return said if len(sweep.jobs) else ["No job was started."]
    part, differs, blocks = sweep.ranked_by.partition("_")[0], other_images(sweep.varying), sweep.blocks
    chosen = [block for block in blocks if not differs or any(one.behind for one in block)]
    if differs:
        why = ", and each has its own best" if chosen else ""
        if len(blocks) == 1:
            why = ", and the first is not better for being first"
        said.append(f"The settings differ in {', '.join(differs)}: they are not measured on the same task{why}.")
    for best, *others in chosen:
        number = best.numbers[sweep.ranked_by]
        reached, _, interval = _cell(sweep.ranked_by, number, len(best.seeds)).text.partition("\n")
        first = f"Best on {SPLITS[part]} images: {best.name}" if others else f"On {SPLITS[part]} images"
        within = f", interval {interval}" if interval else ""
        metric = METRICS[_metric(sweep.ranked_by)].name
        said.append(f"{first}, {metric} {reached} over {plural(number.n, 'seed')}{within}.")
        verdicts = [one.verdict for one in others]
        parts = [f"{verdicts.count(verdict)} {text}" for verdict, text in TOLD.items() if verdict in verdicts]
        if len(others) > 1:
            said.append(f"Of the {len(others)} others: {'; '.join(parts)}.")
        elif others:
            said.append(f"The other is {TOLD[others[0].verdict]}.")
    if collapsed := [one for one in sweep.settings if one.collapsed]:
        names = [f"{one.name} ({one.collapsed} of {plural(len(one.seeds), 'seed')})" for one in collapsed[:MOST_NAMED]]
        more = f"; and {len(collapsed) - MOST_NAMED} more" if len(collapsed) > MOST_NAMED else ""
        said.append(f"Collapsed, nearly every image called alike: {'; '.join(names)}{more}.")
    if part != "val" and (chosen or len(blocks) == 1):
        said.append(
            f"Ranked by {SPLITS[part]} images, as these jobs have no validation part: the number of the best flatters."
        )
    return said


def _failed(sweep: Sweep) -> list[str]:
    """The jobs that did not finish, each with its error."""
    found = []
    for job in sweep.jobs[sweep.jobs["status"] != "finished"].to_dict("records"):
        which = [job["setting"]] * bool(sweep.varying) + [f"seed={job['seed']}"] * bool(job["seed"])
        found.append(
            f"job {job['job']} {job['status']} ({', '.join(which)})" + f": {job['error']}" * bool(job["error"])
        )
    return found


def _groups(sweep: Sweep) -> list[tuple[str, list[tuple[str, Setting]]]]:
    """(heading, [(name of the row, setting)]): all in one, or those of the same images, and the means below them."""
    if len(sweep.blocks) < 2:
        return [("", [(one.name, one) for one in sweep.settings])]
    blocks = [*sweep.blocks, *[sweep.means] * bool(sweep.means)]
    if any(len(block) > 1 for block in blocks):
        return [(block[0].images, [(one.within, one) for one in block]) for block in blocks]
    return [("", [(block[0].images if sweep.means else block[0].name, block[0])]) for block in blocks]


def _columns(sweep: Sweep) -> list[str]:
    """What ranks, unless nothing is compared by it; then FIRST of the judged part, and the rest."""
    judged = next((part for part in ("test", "val", "train") if f"{part}_recall" in sweep.columns), "test")
    ranked = [sweep.ranked_by] * (len(sweep.blocks) == 1 or any(one.behind for one in sweep.settings))
    wanted = [*ranked, *(f"{judged}_{name}" for name in FIRST), *sweep.columns]
    return list(dict.fromkeys(column for column in wanted if column in sweep.columns))


def _metric(column: str) -> str:
    return column.partition("_")[2] or column


def _label(column: str) -> str:
    return f"{SPLITS[column.partition('_')[0]]} {METRICS[_metric(column)].name}" if "_" in column else column


def _cell(column: str, value: Number, seeds: int) -> Cell:
    """The mean with its spread, and the interval; with how many seeds state the number, where some do not."""
    metric = _metric(column)
    text, interval = shown(metric, value.mean), span(metric, (value.low, value.high))
    if value.n > 1:
        spread = shown(metric, value.std).removesuffix(" %")
        text = f"{text.removesuffix(' %')} ± {spread}" + " %" * METRICS[metric].percent
    few = f"{value.n} of {plural(seeds, 'seed')}" if 0 < value.n < seeds else ""
    small = ", ".join(part for part in (interval if metric != "seconds" else "–", few) if part not in ("", "–"))
    return Cell(f"{text}\n{small}" if small else text)


def _behind(ranked: str, setting: Setting) -> Cell:
    if (behind := setting.behind) is None:
        return Cell("")
    interval = span(_metric(ranked), (behind.low, behind.high))
    return Cell(f"{behind.mean:.3f}, {setting.verdict}" + f"\n{interval}" * (interval != "–"))


def _picture(sweep: Sweep) -> list[Block]:
    """The number that ranks: a dot a seed, the mean and its interval. None of less than two dots."""
    ranked = [one for one in sweep.settings if sweep.ranked_by and one.numbers[sweep.ranked_by].n]
    if sum(one.numbers[sweep.ranked_by].n for one in ranked) < 2:
        return []
    from defectcls.pages.pictures import Bar, plot_intervals, png

    bars, most = [], number_range(sweep.ranked_by)[1]
    for one in ranked[:MOST_IN_PICTURE]:
        name, value = one.name, one.numbers[sweep.ranked_by]
        if len(name) > LONGEST_NAME:
            name = f"{name[: LONGEST_NAME // 2]}…{name[-LONGEST_NAME // 2 + 1 :]}"
        dots = one.seeds[sweep.ranked_by].dropna().tolist()
        bars.append(Bar(name, dots, value.low, value.high, not one.verdict.endswith("worse")))
    # of two seeds the interval would dwarf the dots
    ends = [end for bar in bars for end in (*bar.dots, *([bar.low, bar.high] if len(bar.dots) > 2 else []))]
    least, largest = np.nanmin(ends), np.nanmax(ends)
    room = 0.05 * (largest - least) or 0.01
    which = "first" if len(sweep.blocks) > 1 else "best"
    more = f" (the {len(bars)} {which} of {len(ranked)} settings)" if len(bars) < len(ranked) else ""
    label = f"{_label(sweep.ranked_by)}: seeds, mean, 95 % interval{more}"
    figure = plot_intervals(bars, label, (least - room, min(largest + room, max(most, largest))))
    return [Picture(png(figure), "sweep", "Each setting's seeds as dots, with their mean and its interval")]
