"""Write README.md's table from benchmarks.csv, which `benchmarks.speed` fills: python experiments/speed/collect.py"""

from pathlib import Path

import pandas as pd

from benchmarks.results import number

HERE = Path(__file__).parent


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
        return f"{row['median']:.4f}" if unit == "test AUROC" else number(row["median"])
    return f"{number(row['median'])} ({number(row['low'])} to {number(row['high'])})"


if __name__ == "__main__":
    readme = HERE / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition("| | ")
    after = rest.partition("\n\n")[2]
    written = table(pd.read_csv(HERE / "benchmarks.csv"))
    readme.write_text(f"{before}{written}\n\n{after}", encoding="utf-8")
    print(written)
