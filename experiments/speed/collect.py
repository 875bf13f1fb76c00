"""Write benchmarks.csv and the table in README.md: python experiments/speed/collect.py <benchmark.json> …

Without files only README.md is written anew.
"""

import json
import sys
from pathlib import Path

import pandas as pd

from defectcls.benchmarking.summary import WHAT, measured, number

HERE = Path(__file__).parent
ENDS = ("median", "low", "high")
AUROC = "test AUROC"


def rows(found: dict) -> list[dict]:
    """A benchmark.json as lines of benchmarks.csv: every contender's speed, then every ratio."""
    lines = []
    for name, entry in found["contenders"].items():
        if (result := measured(entry)) is not None:
            value, unit = result
            lines.append({"what": WHAT[name], **value._asdict(), "unit": unit, "peak_mib": entry.get("peak_mib")})
        if (auroc := (entry["rounds"] or [{}])[0].get("auroc")) is not None:
            lines.append({"what": WHAT[name], **dict.fromkeys(ENDS, auroc), "unit": AUROC})
    for key, ratio in found["ratios"].items():
        what = " / ".join(WHAT[name] for name in key.split("/"))
        lines.append({"what": what, **{end: ratio[end] for end in ENDS}, "unit": "times"})
    if share := found.get("augmentation_share"):
        percent = {end: 100 * share[end] for end in ENDS}
        lines.append({"what": "augmentation, of the bare step", **percent, "unit": "%"})
    of = {name: found[name] for name in ("dataset", "model", "image_size", "batch_size")}
    made = {name: found[name] for name in ("seed", "commit", "hardware", "command")}
    versions = {f"version_{name}": version for name, version in found["versions"].items()}
    return [of | line | made | versions for line in lines]


def table(results: pd.DataFrame) -> str:
    """Medians, with the least and the most: a column a run, a row a number."""
    runs = results.groupby(["dataset", "model"], sort=False)
    columns = {f"{dataset}, {model.split('.')[0]}": run.set_index(["what", "unit"]) for (dataset, model), run in runs}
    lines = [f"| | {' | '.join(columns)} |", f"| --- |{' --- |' * len(columns)}"]
    for what, unit in results[["what", "unit"]].drop_duplicates().itertuples(index=False):
        cells = [cell(run.loc[what, unit], unit) if (what, unit) in run.index else "–" for run in columns.values()]
        lines.append(f"| {what}{'' if unit == 'times' else f', {unit}'} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(row: pd.Series, unit: str) -> str:
    if row["low"] == row["high"]:
        return f"{row['median']:.4f}" if unit == AUROC else number(row["median"])
    return f"{number(row['median'])} ({number(row['low'])} to {number(row['high'])})"


if __name__ == "__main__":
    file, readme = HERE / "benchmarks.csv", HERE / "README.md"
    if sys.argv[1:]:
        lines = [line for path in sys.argv[1:] for line in rows(json.loads(Path(path).read_text(encoding="utf-8")))]
        pd.DataFrame(lines).to_csv(file, index=False)
    before, _, rest = readme.read_text(encoding="utf-8").partition("| | ")
    after = rest.partition("\n\n")[2]
    written = table(pd.read_csv(file))
    readme.write_text(f"{before}{written}\n\n{after}", encoding="utf-8")
    print(written)
