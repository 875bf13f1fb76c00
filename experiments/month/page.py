"""The month as a picture and tables: python experiments/month/page.py writes month.webp and README.md's tables."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))
import collect

HERE = Path(__file__).parent
SHOWN = (9, 15, 22, 30)  # days
ALARM = 0.001  # chance of a window, below which it is one


def first_after(days: pd.DataFrame, start: int, alarm: pd.Series) -> pd.Series:
    """The first day from `start` on with an alarm, a set and seed; NaN where none comes."""
    late = days[alarm & (days["day"] >= start)].groupby(["set", "seed"])["day"].min()
    return late.reindex(pd.MultiIndex.from_frame(days[["set", "seed"]].drop_duplicates()))


def share(values: pd.Series) -> str:
    """Mean and spread over seeds, in percent."""
    return f"{100 * values.mean():.1f} ± {100 * values.std():.1f}"


def table_of_alarms(days: pd.DataFrame) -> str:
    """What is told of the days, and how often it is told of nothing."""
    lines = []
    changed, harmless = (days[days["month"] == month] for month in ("changed", "harmless"))
    for name, of in changed.groupby("set", sort=False):
        same = harmless[harmless["set"] == name]
        for what in ("change", "window"):
            alarm, quiet = ((one["change"] if what == "change" else one["chance"] < ALARM) for one in (of, same))
            before = of["day"] < 10
            first = first_after(of, 10, alarm)
            when = f"{first.median():.0f} ({first.min():.0f} to {first.max():.0f})" if first.notna().any() else "–"
            cells = [name if what == "change" else "", "a change has begun" if what == "change" else "a day is unlike"]
            cells += [f"{alarm[before].sum()} of {before.sum()}", f"{quiet.sum()} of {len(same)}"]
            of_seeds = f"{quiet.groupby(same['seed']).any().sum()} of {same['seed'].nunique()}"
            lines.append([*cells, of_seeds, f"{when}, {first.notna().sum()} of {len(first)}"])
    head = ("photos", "what is told", "days 1 to 9", "days of harmless months", "harmless months with any")
    return collect.table((*head, "first told from day 10 on: median (range), months"), lines)


def table_of_audits(audited: pd.DataFrame) -> str:
    """The share of defects among the accepted: true, and as people find it by looking at some."""
    lines = []
    chosen = audited[audited["month"] == "changed"]
    for (name, first, last), of in chosen.groupby(["set", "first", "last"], sort=False):
        right, wrong = of[of["wrong"] == 0], of[of["wrong"] > 0]
        cells = [f"{name}, days {first} to {last}", f"{right['accepted'].mean():.0f}, {right['looked_at'].mean():.0f}"]
        cells += [share(right["true_escape_rate"]), share(right["true_among_accepted"])]
        for one in (right, wrong):
            low, high, true = one["share_low"], one["share_high"], one["true_among_accepted"]
            cells.append(f"{share(one['share'])} [{100 * low.mean():.1f}, {100 * high.mean():.1f}]")
            cells.append(f"{((low <= true) & (true <= high)).sum()} of {len(one)}")
        lines.append(cells)
    head = ("photos", "accepted, looked at", "true escape rate, %", "true share of defects in the accepted, %")
    head += ("by audit, people being right", "it holds the truth", "by audit, 3 % of verdicts wrong")
    return collect.table((*head, "it holds the truth "), lines)


def table_of_retraining(retrained: pd.DataFrame) -> str:
    """What verdicts restore."""
    lines = []
    for (name, verdicts), of in retrained.groupby(["set", "verdicts"], sort=False):
        if not verdicts:
            before = [of[f"before_{key}"] for key in ("auroc", "escape_rate", "overkill_rate")]
            lines.append([name, "days 1 to 9, as it was", "", f"{before[0].mean():.4f}", *map(share, before[1:]), ""])
        after = [share(of[key]) for key in ("escape_rate", "overkill_rate")]
        new = share(of["new_escape_rate"]) if of["new_escape_rate"].notna().any() else "–"
        defects = f"{of['defects'].mean():.0f}" if verdicts else ""
        lines.append(["", f"days 21 to 30, {verdicts} verdicts", defects, f"{of['auroc'].mean():.4f}", *after, new])
    head = ("photos", "judged on", "said to be defective", "AUROC", "escape rate, %", "overkill, %")
    return collect.table((*head, "escape rate of the new type, %"), lines)


def draw(found: dict[str, pd.DataFrame], file: Path) -> None:
    """A row a set: the same part on some days; what is told by day; what escapes; what verdicts restore."""
    import io

    import matplotlib as mpl
    from PIL import Image
    from replay import SETS, SIDE, Stock, photograph

    mpl.use("agg")
    from matplotlib import pyplot as plt

    days, audited, retrained = found["days"], found["audited"], found["retrained"]
    sets = [name for name in SETS if name in set(days["set"])]
    figure, axes = plt.subplots(len(sets), 4, figsize=(16, 4.4 * len(sets)), squeeze=False, layout="constrained")
    below: Any = {"fontsize": 7, "ncols": 1, "loc": "upper center", "bbox_to_anchor": (0.5, -0.18)}
    for (photos, by_day, escapes, again), name in zip(axes, sets, strict=True):
        stock = Stock(name, 0, HERE)
        row = stock.rows(3, "new" if stock.set.new else "defect")[0]
        with Image.open(stock.data.root / stock.data.samples["path"].iloc[row]) as opened:
            image = opened.convert("RGB").resize((SIDE, SIDE))
        shots = [Image.open(io.BytesIO(photograph(image, np.random.default_rng(day), day))) for day in SHOWN]
        photos.imshow(np.vstack([np.hstack([*map(np.asarray, half)]) for half in (shots[:2], shots[2:])]))
        for number, day in enumerate(SHOWN):
            place = (SIDE * (number % 2) + 8, SIDE * (number // 2) + 24)
            photos.text(*place, f"day {day}", color="white", backgroundcolor="black", fontsize=8)
        photos.set_axis_off()
        photos.set_title(name + (f": {stock.set.new}" if stock.set.new else ""))
        for month, colour in (("harmless", "tab:green"), ("changed", "tab:red")):
            of = days[(days["set"] == name) & (days["month"] == month)]
            beyond = (of["beyond"] / of["photos"]).groupby(of["day"])
            by_day.plot(beyond.mean(), color=colour, label=f"{month}: photos beyond the 99 % quantile")
            by_day.fill_between(beyond.mean().index, beyond.min(), beyond.max(), color=colour, alpha=0.15)
            told = of.groupby("day")["change"].mean()
            by_day.plot(told, ":", color=colour, label=f"{month}: months in which a change is told")
        for day in (10, 15) if stock.set.new else (10,):
            by_day.axvline(day - 0.5, color="grey", linewidth=0.8)
        by_day.set(xlabel="day", ylim=(-0.03, 1.03), title="what is told")
        by_day.legend(**below)
        of = audited[(audited["set"] == name) & (audited["month"] == "changed")]
        for wrong, colour, shift in ((0, "tab:blue", -0.1), (of["wrong"].max(), "tab:orange", 0.1)):
            mean = of[of["wrong"] == wrong].groupby("first", sort=True).mean(numeric_only=True)
            places = np.arange(len(mean)) + shift
            ends = [100 * (mean["share"] - mean["share_low"]), 100 * (mean["share_high"] - mean["share"])]
            label = f"by audit, {wrong:.0%} of verdicts wrong"
            escapes.errorbar(places, 100 * mean["share"], ends, fmt="o", color=colour, label=label, capsize=3)
        escapes.plot(np.arange(len(mean)), 100 * mean["true_among_accepted"], "kx", label="true", zorder=5)
        labels = [f"{first:.0f} to {last:.0f}" for first, last in zip(mean.index, mean["last"], strict=True)]
        escapes.set_xticks(np.arange(len(mean)), labels)
        escapes.set(xlabel="days", title="defects among the accepted, %", ylim=(0, None))
        escapes.legend(**below)
        mean = retrained[retrained["set"] == name].groupby("verdicts").mean(numeric_only=True)
        for number, colour, label in (
            ("escape_rate", "tab:red", "escape rate"),
            ("overkill_rate", "tab:blue", "overkill"),
        ):
            again.plot(np.arange(len(mean)), 100 * mean[number], "o-", color=colour, label=f"{label}, days 21 to 30")
            again.axhline(
                100 * mean[f"before_{number}"].iloc[0], color=colour, linestyle=":", label=f"{label}, days 1 to 9"
            )
        again.set_xticks(np.arange(len(mean)), mean.index.astype(str))
        again.set(xlabel="verdicts learned from", title="after training again, %", ylim=(0, None))
        again.legend(**below)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=80)
    Image.open(drawn).convert("RGB").save(file, quality=70)


def tables(found: dict[str, pd.DataFrame]) -> str:
    """Of README.md."""
    parts = (table_of_alarms(found["days"]), table_of_audits(found["audited"]))
    return "\n\n".join([*parts, table_of_retraining(found["retrained"])])


if __name__ == "__main__":
    found = {name: pd.read_csv(HERE / f"{name}.csv") for name in ("days", "audited", "retrained")}
    draw(found, HERE / "month.webp")
    readme = HERE / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition("<!-- tables -->\n")
    after = rest.partition("<!-- end of tables -->")[2]
    written = f"{before}<!-- tables -->\n\n{tables(found)}\n\n<!-- end of tables -->{after}"
    readme.write_text(written, encoding="utf-8")
