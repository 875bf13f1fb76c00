"""The studies' results and tables: python experiments/collect.py [<study> <folder of a run, sweep or crossval> …]

With arguments the runs in the folders are added to <study>/results.csv, where a run of the same command is replaced.
Then README.md and the README.md of each study that consists of runs get their tables anew, in place of the first that
they have, be it as short as "|"; and the headers of the presets get what to expect of them.
"""

import json
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from studies import STUDIES, TITLES, Measurement, Study, text

from defectcls.evaluation.intervals import proportion_interval
from defectcls.evaluation.predictions import groups_of, read_predictions

HERE = Path(__file__).parent
SETTINGS = (
    *("preset", "photos", "model", "head", "finetune", "probe_c", "target", "image_size", "anomalies"),
    *("hold_out_defect_type", "train", "folds", "repeats", "seed"),
)
RATES = ("accuracy", "precision", "recall", "f1", "f1_macro", "auroc", "average_precision")
PRESET = re.compile(r"\bexperiment=(\S+)")
NUMBERS = {
    "test": (*RATES, "defect_auroc", "escape_rate", "overkill_rate"),
    "train": ("accuracy",),
    "val": ("accuracy", "auroc"),
}


def difference(one: Sequence[float], other: Sequence[float]) -> tuple[float, float, float]:
    """`one` less `other`, each (value, low, high) of images of its own, with its limits (Zou and Donner 2008)."""
    value = one[0] - other[0]
    low = value - math.hypot(one[0] - one[1], other[2] - other[0])
    return value, low, value + math.hypot(one[2] - one[0], other[0] - other[1])


def row(folder: Path) -> dict:
    """One run, cross-validation or judged table as a line of results.csv: settings, numbers, and how it was made."""
    files = [folder / "metrics.json", *folder.glob("repeat_*/fold_*/metrics.json")]
    metrics, *folds = (json.loads(file.read_text(encoding="utf-8")) for file in files)
    of_table = {"dataset": {"name": metrics["dataset"], "split": {}}, "model": {}, "finetune": {}}
    config, stages, seconds = metrics["config"] or of_table, metrics.get("stages", []), metrics.get("seconds", {})
    dataset, split = config["dataset"], config["dataset"]["split"]
    categories = dataset.get("categories", "all")
    preset = PRESET.search(metrics["command"])
    given = config | {
        "preset": preset and preset[1],
        "photos": " ".join([dataset["name"], *(categories if categories != "all" else [])]),
        "model": metrics["model"],
        "head": (folds or [metrics])[0].get("head", {"name": "linear" if config["model"] else None})["name"],
        "finetune": config["finetune"].get("name"),
        "probe_c": " ".join(f"{c:g}" for c in config["finetune"].get("probe_c", [])) or None,
        "seed": metrics["seed"],
        "train": split["train"] if isinstance(split.get("train"), int) else None,
        **{name: split.get(name) for name in ("anomalies", "hold_out_defect_type")},
    }
    line = {name: given.get(name) for name in SETTINGS}
    line |= {f"n_{part}": metrics[part]["n"] for part in ("train", "val", "test") if part in metrics}
    for part, names in NUMBERS.items():
        numbers = metrics.get(part, {"intervals": {}})
        values, ends = (
            {"defect_auroc": one.get("defect", one).get("auroc")} | one.get("defect", {}) | one
            for one in (numbers, numbers["intervals"])
        )
        for name in names:
            key = name if part == "test" else f"{part}_{name}"
            low, high = ends.get(name) or (None, None)
            line |= {key: values.get(name), f"{key}_low": low, f"{key}_high": high}
    if "train" in metrics:
        both = [[line[f"{name}{end}"] for end in ("", "_low", "_high")] for name in ("train_accuracy", "accuracy")]
        line |= dict(zip(("gap", "gap_low", "gap_high"), difference(*both), strict=True))
    if (folder / "predictions.csv").is_file():
        line |= ranked(read_predictions(folder / "predictions.csv"))
    if line["hold_out_defect_type"] is not None:
        line |= recalls(read_predictions(folder / "predictions.csv"), line["hold_out_defect_type"])
    return line | {
        **{f"weight_{name}": metrics.get("head", {}).get(name) for name in ("memory", "classifier")},
        "kept": next((stage["name"] for stage in reversed(stages) if not stage["rolled_back"]), None),
        "epochs": sum(stage["epochs"] for stage in stages if stage["name"] != "probe") or None,
        "seconds_fit": sum(seconds.get(phase, 0) for phase in ("probe", "memory", "fit")) or None,
        "seconds": round(sum(sum(one.get("seconds", {}).values()) for one in folds or [metrics])),
        **{name: metrics[name] for name in ("commit", "hardware")},
        **{f"version_{name}": version for name, version in metrics["versions"].items()},
        "command": metrics["command"],
    }


def ranked(predictions: pd.DataFrame) -> dict[str, float]:
    """Share of the sound parts that score as high as what catches 95 % of the defects, and the most defects that can
    be caught with 94 of 100 rejected parts defective; of each repeat, and their mean.

    The threshold is one of the test part: what the scores tell apart, not how well it is chosen.
    """
    test = predictions[predictions["split"] == "test"] if "split" in predictions else predictions
    found = []
    for _, rows in test.groupby(test.get("repeat", pd.Series(0, test.index))):
        threshold = np.quantile(rows.loc[rows["defective"], "score"], 0.05, method="inverted_cdf")
        highest_first = rows.sort_values("score", ascending=False)["defective"].to_numpy(bool)
        caught, rejected = highest_first.cumsum(), np.arange(1, len(rows) + 1)
        precise = caught[caught >= 0.94 * rejected].max(initial=0) / highest_first.sum()
        found.append(((rows.loc[~rows["defective"], "score"] >= threshold).mean(), precise))
    return dict(zip(("rejected_at_95_recall", "recall_at_94_precision"), np.mean(found, 0).tolist(), strict=True))


def recalls(predictions: pd.DataFrame, held_out: str) -> dict[str, float]:
    """Of the defect type that was not shown, and of those that were, where at most 5 % of the sound parts are rejected.

    The threshold is one of the test part: what the scores tell apart, not how well it is chosen.
    """
    test = predictions[predictions["split"] == "test"].assign(group=groups_of)
    threshold = np.quantile(test.loc[~test["defective"], "score"], 0.95, method="inverted_cdf")
    new = test["defect_type"] == held_out
    line: dict[str, float] = {}
    for name, chosen in (("recall_at_5_overkill", new), ("recall_at_5_overkill_shown", ~new)):
        defects = test[test["defective"] & chosen]
        if len(defects):
            found = (defects["score"] > threshold).to_numpy()
            low, high = proportion_interval(found, defects["group"].to_numpy())
            line |= {name: float(found.mean()), f"{name}_low": low, f"{name}_high": high}
    return line


def collect(file: Path, folders: list[Path]) -> None:
    """Add the runs in `folders` to a results.csv."""
    found = [run for folder in folders for run in (folder, *folder.glob("*")) if (run / "metrics.json").is_file()]
    # As text, so that a number is written as it was, and 10 not as 10.0 where another run has none.
    lines = pd.DataFrame([row(run) for run in found]).convert_dtypes().astype("string")
    before = [pd.read_csv(file, dtype="string")] if file.is_file() else []
    together = pd.concat([lines, *before]).drop_duplicates("command").dropna(axis="columns", how="all")
    together.sort_values("command").to_csv(file, index=False)


def results(study: str) -> pd.DataFrame:
    """The runs of a study; settings that none of them has are empty."""
    found = pd.read_csv(HERE / study / "results.csv", dtype={"commit": str})
    return found.reindex(columns=[*found, *(name for name in SETTINGS if name not in found)])


def table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """In Markdown."""
    head = [TITLES.get(name, name.replace("_", " ")) for name in columns]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *lines])


def table_of_runs(study: Study, runs: pd.DataFrame) -> str:
    """The study's own table: settings, number of seeds, and numbers over them."""
    by, shown = study.by.split(), study.shown.split()
    seeds, heads = [] if "seed" in by else ["seeds"], []
    if "head" in by and len(shown) == 1:
        by.remove("head")
        heads = [head for head in ("linear", "memory", "joined") if head in set(runs["head"])]
    lines = []
    for _, rows in runs.groupby(by, dropna=False):
        settings = [
            "–" if pd.isna(value) else f"{value:{'' if isinstance(value, str) else 'g'}}" for value in rows.iloc[0][by]
        ]
        numbers = [text(rows[rows["head"] == head], shown[0]) for head in heads] or [text(rows, name) for name in shown]
        lines.append([*settings, *(str(rows["seed"].nunique()) for _ in seeds), *numbers])
    return table([*by, *seeds, *(heads or shown)], lines)


def headlines(name: str) -> list[tuple[str, str, pd.DataFrame]]:
    """Preset, numbers and the rows that they are of, of one study."""
    study = STUDIES[name]
    if not (HERE / name / study.file).is_file():
        return []
    if isinstance(study, Measurement):
        measured = pd.read_csv(HERE / name / study.file, dtype={"commit": str})
        return [(study.made_by, study.headline(measured), measured.reindex(columns=["commit", "hardware"]))]
    chosen = [(made_by, results(name).query(query)) for made_by, query in study.rows.items()]
    numbers = study.headline.split()
    return [
        (made_by, ", ".join(f"{TITLES.get(name, name)} {text(rows, name)}" for name in numbers), rows)
        for made_by, rows in chosen
        if len(rows)
    ]


def each(values: pd.Series) -> str:
    """The different ones."""
    return ", ".join(values.dropna().unique())


def cost(rows: pd.DataFrame) -> str:
    """Runs, and what one took."""
    hardware = each(rows["hardware"])
    seconds = rows["seconds"].median() if "seconds" in rows else 0
    return f"{len(rows)} × {seconds:.0f} s, {hardware}" if seconds else hardware


def summary() -> str:
    """The table of README.md: a line for each study, or for each preset of one."""
    lines = [
        [f"[{name}]({name})", study.question, numbers, f"`{made_by}`", each(rows["commit"]), cost(rows)]
        for name, study in STUDIES.items()
        for made_by, numbers, rows in headlines(name)
    ]
    return table(["study", "question", "headline", "preset", "commit", "runs"], lines)


def first_page() -> str:
    """The table of the project's README: what others report, and what the last preset of the study reaches."""
    lines = [
        [f"[{name}](experiments/{name}/README.md)", study.question, study.published, numbers, f"`{made_by}`"]
        for name, study in STUDIES.items()
        if isinstance(study, Study) and study.published
        for made_by, numbers, _ in headlines(name)[-1:]
    ]
    return table(["study", "question", "others report", "measured here", "preset"], lines)


def expected() -> dict[str, list[str]]:
    """What the header of each preset says of the results to expect, a line for each study that it is in."""
    lines: dict[str, list[str]] = {}
    for name in STUDIES:
        for made_by, numbers, rows in headlines(name):
            if preset := PRESET.search(made_by):
                changed = " ".join(PRESET.sub("", made_by).split())
                line = f"# Expected (experiments/{name}): {changed}{': ' * bool(changed)}{numbers}; {cost(rows)}."
                lines.setdefault(preset[1], []).append(line)
    return lines


def put(table: str, readme: Path) -> None:
    """In place of the first table of a text."""
    before = readme.read_text(encoding="utf-8")
    after, count = re.subn(r"(^\|.*\n)+", lambda _: f"{table}\n", before, count=1, flags=re.MULTILINE)
    if not count:
        raise SystemExit(f"{readme} has no table to replace: write | on a line where it is to stand")
    readme.write_text(after, encoding="utf-8")


def put_expected(lines: list[str], preset: Path) -> None:
    """At the end of a preset's header."""
    kept = [line for line in preset.read_text(encoding="utf-8").splitlines() if not line.startswith("# Expected")]
    start = kept.index("defaults:")
    header = kept[:start] if kept[start - 1] == "#" else [*kept[:start], "#"]
    preset.write_text("\n".join([*header, *lines, *kept[start:]]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:]:
        collect(HERE / sys.argv[1] / "results.csv", [Path(folder) for folder in sys.argv[2:]])
    for name, study in STUDIES.items():
        if isinstance(study, Study) and (HERE / name / study.file).is_file():
            put(table_of_runs(study, results(name)), HERE / name / "README.md")
    put(summary(), HERE / "README.md")
    put(first_page(), HERE.parent / "README.md")
    print(summary())
    for preset, lines in expected().items():
        put_expected(lines, HERE.parent / "conf" / "experiment" / f"{preset}.yaml")
