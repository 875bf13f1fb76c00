"""A sweep's table as a page, a picture, files and in the terminal, and what it means in sentences."""

import io
import shlex
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from defectcls.evaluation.metrics import METRICS
from defectcls.evaluation.sweeps import Setting, Sweep, number_range, other_images, settings_table
from defectcls.files import written_whole
from defectcls.pages.page import render_page
from defectcls.pages.pictures import INK, LOOK, QUIET, RIGHT, png
from defectcls.pages.wording import SPLITS, number, percent, span

IN_TERMINAL = ("auroc", "recall", "overkill_rate", "accuracy")  # what 120 columns hold; the page shows all
BY_IMAGES = ("auroc", "recall", "precision", "f1", "accuracy")  # the same, where each dataset has a block
MATRIX = "passed, rejected"
PLAIN = ("auroc", "loss")  # not in percent
MOST_IN_PICTURE, MOST_IN_TERMINAL, MOST_NAMED, LONGEST_NAME = 30, 20, 5, 60
NOTES = (
    "± is the standard deviation over seeds; the interval is that of the mean, 95 %, and says what other seeds would "
    "give, which deal the split, the head and the order of the images anew. It does not say what new data would.",
    "Behind the best: the mean difference over the seeds in common, with its 95 % interval by itself. Perhaps worse: "
    "it does not hold zero, but the best of many is partly the luckiest, and some of its equals seem worse. Worse: "
    "also if all pairs of settings are judged together. The validation number of the best flatters a little.",
    "Passed, rejected: the sound and below them the defective images of all seeds; one that several seeds tested "
    "counts as often. The mean weighs all datasets alike, whatever their number of images.",
)
TOLD = {  # of a verdict
    "worse": "worse by more than chance",
    "perhaps worse": "perhaps worse (more seeds would tell)",
    "within chance": "within chance of it",
    "equal": "equal to it",
    "chance unknown": "behind it by what may be chance: it takes two seeds in common that differ",
    "": "without a result to compare it by",
}


def sentences(sweep: Sweep) -> list[str]:
    """What finished, which setting is the best of its images, which others chance does not explain, and what failed."""
    counts = sweep.jobs["status"].value_counts()
    said = [f"{_count(len(sweep.jobs), 'job')}: {', '.join(f'{n} {status}' for status, n in counts.items())}."]
    if not len(sweep.jobs) or not sweep.ranked_by:
        return said if len(sweep.jobs) else ["No job was started."]
    part, differs, blocks = sweep.ranked_by.partition("_")[0], other_images(sweep.varying), sweep.blocks
    chosen = [block for block in blocks if not differs or any(one.behind for one in block)]
    if differs:
        best = ", and each has its own best" if chosen else ""
        why = ", and the first is not better for being first" if len(blocks) == 1 else best
        said.append(f"The settings differ in {', '.join(differs)}: they are not measured on the same task{why}.")
    for block in chosen:
        said += _best_of(sweep, block)
    if collapsed := [one for one in sweep.settings if one.collapsed]:
        names = [f"{one.name} ({one.collapsed} of {_count(len(one.seeds), 'seed')})" for one in collapsed[:MOST_NAMED]]
        more = f"; and {len(collapsed) - MOST_NAMED} more" if len(collapsed) > MOST_NAMED else ""
        said.append(f"Collapsed, nearly every image called alike: {'; '.join(names)}{more}.")
    if part != "val" and (chosen or len(blocks) == 1):
        said.append(
            f"Ranked by {SPLITS[part]} images, as these jobs have no validation part: the number of the best flatters."
        )
    return said


def _best_of(sweep: Sweep, block: list[Setting]) -> list[str]:
    """The first of the settings of the same images, and how far the others are behind it."""
    (best, *others), split = block, SPLITS[sweep.ranked_by.partition("_")[0]]
    value, interval = _cell(sweep.ranked_by, best)
    first = f"Best on {split} images: {best.name}" if others else f"On {split} images"
    within = f", interval {interval}" if interval else ""
    seeds = _count(best.numbers[sweep.ranked_by].n, "seed")
    said = [f"{first}, {_label(sweep.ranked_by).split(' ', 1)[1]} {value} over {seeds}{within}."]
    if others:
        verdicts = pd.Series([one.verdict for one in others])
        parts = [f"{n} {text}" for verdict, text in TOLD.items() if (n := int((verdicts == verdict).sum()))]
        several = f"Of the {len(others)} others: {'; '.join(parts)}."
        said.append(several if len(others) > 1 else f"The other is {TOLD[others[0].verdict]}.")
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
    axes.set_xlim(least - room, min(most + room, max(number_range(sweep.ranked_by)[1], dots.max())))
    axes.set_yticks(range(len(shown)), [_shortened(setting.name) for setting in shown])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    which = "first" if _by_images(sweep) else "best"
    more = f" (the {len(shown)} {which} of {len(ranked)} settings)" if len(shown) < len(ranked) else ""
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
    compared, columns = _compared(sweep), _columns(sweep)
    head = [_label(column) for column in columns]
    groups = []
    for heading, named in _groups(sweep):
        rows = []
        for name, setting in named:
            cells = [_cell(column, setting) for column in columns]
            cells[1:1] = [_behind_cell(setting)] * compared
            rows.append((name, _finished(setting), cells, setting.counts))
        groups.append((heading, rows))
    matrices = [MATRIX] * _by_images(sweep)
    return render_page(
        "sweep",
        pictures,
        name=sweep.name,
        sentences=sentences(sweep),
        failed=_failed(sweep),
        shared=sweep.shared,
        settings_head=["setting", "jobs finished", *matrices, *head[:1], *["behind the best"] * compared, *head[1:]],
        groups=groups,
        matrices=bool(matrices),
        notes=_notes(sweep),
        jobs_head=["job", "setting", "seed", "status", *head],
        jobs=[(job, [_shown(column, job[column]) for column in columns]) for job in sweep.jobs.to_dict("records")],
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
    by_images, compared = _by_images(sweep), _compared(sweep)
    ranked = [sweep.ranked_by] if sweep.ranked_by and (compared or not by_images) else []
    wanted = BY_IMAGES if by_images else IN_TERMINAL
    others = [one for one in _columns(sweep) if one not in ranked and one.partition("_")[2] in wanted]
    if by_images:
        others = others[: len(BY_IMAGES)]  # of the judged part alone
    head = [*map(_label, ranked), *["behind the best"] * compared, *map(_label, others)]
    table = Table(Column("setting", overflow="fold"), "finished", *[MATRIX] * by_images, *head, title=sweep.name)
    shown = 0
    for heading, named in _groups(sweep):
        table.add_section()
        if heading and shown < MOST_IN_TERMINAL:
            table.add_row(heading)
        for name, setting in named:
            if (shown := shown + 1) > MOST_IN_TERMINAL and setting in sweep.settings:
                continue
            cells = [_matrix(setting)] * by_images + ["\n".join(_cell(column, setting)) for column in ranked]
            cells += ["\n".join(_behind_cell(setting))] * compared
            table.add_row(name, _finished(setting), *cells, *(_cell(column, setting)[0] for column in others))
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


def _by_images(sweep: Sweep) -> bool:
    return len(sweep.blocks) > 1


def _groups(sweep: Sweep) -> list[tuple[str, list[tuple[str, Setting]]]]:
    """(heading, [(name of the row, setting)]): all in one, or those of the same images, and the means below them."""
    if not _by_images(sweep):
        return [("", [(one.name, one) for one in sweep.settings])]
    blocks = [*sweep.blocks, *[sweep.means] * bool(sweep.means)]
    if any(len(block) > 1 for block in blocks):
        return [(block[0].images, [(one.within, one) for one in block]) for block in blocks]
    return [("", [(block[0].images if sweep.means else block[0].name, block[0])]) for block in blocks]


def _columns(sweep: Sweep) -> list[str]:
    """Of the numbers, the order in which they stand: what ranks comes first, or what tells datasets apart."""
    if not _by_images(sweep):
        return sweep.columns
    judged = "test" if any(one.startswith("test") for one in sweep.columns) else sweep.ranked_by.partition("_")[0]
    wanted = [sweep.ranked_by] * _compared(sweep) + [f"{judged}_{name}" for name in (*BY_IMAGES, "overkill_rate")]
    return list(dict.fromkeys([*(one for one in wanted if one in sweep.columns), *sweep.columns]))


def _matrix(setting: Setting) -> str:
    if setting.counts is None:
        return "–"
    width = max(len(str(count)) for count in setting.counts)
    passed, rejected, missed, caught = (f"{count:>{width}}" for count in setting.counts)
    return f"{passed} {rejected}\n{missed} {caught}"


def _notes(sweep: Sweep) -> list[str]:
    spread = sweep.ranked_by and any(setting.numbers[sweep.ranked_by].n > 1 for setting in sweep.settings)
    return [note for note, needed in zip(NOTES, (spread, _compared(sweep), _by_images(sweep)), strict=True) if needed]


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
    return f"{SPLITS[part]} {METRICS[name].name}" if name else METRICS[part].name


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
    return f"{setting.finished} of {setting.jobs}" + (f", {setting.again} of them again" if setting.again else "")


def _shortened(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME // 2]}…{name[-LONGEST_NAME // 2 + 1 :]}"


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _csv(table: pd.DataFrame) -> bytes:
    buffer = io.StringIO()
    table.to_csv(buffer, index=False)
    return buffer.getvalue().encode()
