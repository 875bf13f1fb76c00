"""The studies' texts say what their results say, and their presets and commands are those that gave them."""

import ast
import json
import re
import runpy
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from scipy.stats import binomtest

from defectcls.config import CONF_DIR
from defectcls.settings import TrainSettings
from defectcls.training.settings import CrossvalSettings
from tests.conftest import CHECKOUT, composed

EXPERIMENTS = CHECKOUT / "experiments"
RESULTS = sorted(EXPERIMENTS.glob("*/results.csv"))
PRESETS = sorted((CONF_DIR / "experiment").glob("*.yaml"))
SETTINGS = {"train": TrainSettings, "crossval": CrossvalSettings}
ELSEWHERE = ("hydra.", "logger=", "inspect.")  # where a run writes, and what it looks at besides
Job = tuple[str, frozenset[str]]  # module, overrides in Hydra's spelling


def jobs(text: str) -> set[Job]:
    """What the commands of a text run, with sweeps taken apart; their order does not matter."""
    found = set()
    for line in text.replace("\\\n", " ").splitlines():
        if line.startswith("python -m defectcls.") and "…" not in line:
            _, _, module, *words = shlex.split(line)
            given = [word for word in words if word not in ("-m", "--multirun") and not word.startswith(ELSEWHERE)]
            given = [re.sub(r"='([^',]*)'$", r"=\1", word) for word in given]  # a recorded value may be quoted
            [batch] = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(given), None)
            found |= {(module, frozenset(overrides)) for overrides in batch}
    return found


def jobs_of_study(name: str) -> set[Job]:
    """What the README of a study names."""
    return jobs((EXPERIMENTS / name / "README.md").read_text(encoding="utf-8"))


def jobs_of_preset(preset: Path) -> set[Job]:
    """What the header of a preset names."""
    lines = [line for line in preset.read_text(encoding="utf-8").splitlines() if line.startswith("#   ")]
    assert sum("python" in line for line in lines) <= 1
    return jobs("\n".join(line.removeprefix("#   ") for line in lines))


@pytest.fixture(scope="module")
def collect() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXPERIMENTS))
        yield import_module("collect")


@pytest.mark.parametrize("script", sorted(EXPERIMENTS.rglob("*.py")), ids=lambda file: file.parent.name + file.stem)
def test_what_a_script_imports_is_there(script: Path) -> None:
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("defectcls", "benchmarks")):
            exec(compile(ast.Module([node], []), str(script), "exec"), {})


# --- one table, and a table for each study of runs --------------------------------------------------------------------


def test_table_of_studies_is_the_one_their_results_give(collect: ModuleType) -> None:
    assert f"\n\n{collect.summary()}\n" in (EXPERIMENTS / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("results", RESULTS, ids=lambda file: file.parent.name)
def test_table_of_a_study_is_the_one_its_results_give(results: Path, collect: ModuleType) -> None:
    name = results.parent.name
    if isinstance(study := collect.STUDIES.get(name), collect.Study):
        written = collect.table_of_runs(study, collect.results(name))
        assert f"\n\n{written}\n\n" in results.with_name("README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("results", RESULTS, ids=lambda file: file.parent.name)
def test_results_come_from_commands_that_the_study_names(results: Path) -> None:
    table = pd.read_csv(results, dtype={"commit": str})
    assert jobs("\n".join(table["command"])) <= jobs_of_study(results.parent.name)
    assert not table["command"].duplicated().any()


@pytest.mark.parametrize("preset", PRESETS, ids=lambda file: file.stem)
def test_header_of_a_preset_says_what_its_study_found(preset: Path, collect: ModuleType) -> None:
    lines = preset.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith("# Expected")] == collect.expected().get(preset.stem, [])


def test_difference_of_two_shares_is_newcombes(collect: ModuleType) -> None:
    """56 of 70 less 48 of 80: Newcombe 1998, table II, method 10."""
    wilson = [binomtest(hits, n).proportion_ci(method="wilson") for hits, n in ((56, 70), (48, 80))]
    shares = [(share, interval.low, interval.high) for share, interval in zip((0.8, 0.6), wilson, strict=True)]
    assert collect.difference(*shares) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)


def test_each_folder_is_a_study(collect: ModuleType) -> None:
    assert set(collect.STUDIES) == {readme.parent.name for readme in EXPERIMENTS.glob("*/README.md")}


def test_arguments_in_the_table_are_those_of_the_runs_behind_the_number(collect: ModuleType) -> None:
    """Each run was given them all; of a sweep, one value of each."""
    for name in (name for name, study in collect.STUDIES.items() if isinstance(study, collect.Study)):
        for made_by, _, runs in collect.headlines(name):
            first = made_by.split()[0]
            verb = "train " if "=" in first or first == "-m" else ""
            given = jobs(f"python -m defectcls.{verb}{made_by}")
            for module, overrides in jobs("\n".join(runs["command"])):
                judged = module == "defectcls.evaluate"  # tables of predictions, which are not named
                assert judged or any(module == typed and overrides >= named for typed, named in given), made_by


def test_each_preset_is_in_the_table_and_its_studies_name_its_command(collect: ModuleType) -> None:
    assert set(collect.expected()) == {preset.stem for preset in PRESETS} - {"demo"}
    shown = [(made_by.split(), name) for name in collect.STUDIES for made_by, *_ in collect.headlines(name)]
    for preset in collect.expected():
        named = set().union(*(jobs_of_study(name) for words, name in shown if f"experiment={preset}" in words))
        commands = jobs_of_preset(CONF_DIR / "experiment" / f"{preset}.yaml")
        assert commands
        assert all(f"experiment={preset}" in overrides for _, overrides in commands)
        assert commands <= named


@pytest.mark.parametrize("preset", PRESETS, ids=lambda file: file.stem)
def test_command_of_a_preset_composes_into_valid_settings(preset: Path) -> None:
    commands = jobs_of_preset(preset)
    for module, overrides in {(module, given - {f"seed={seed}" for seed in range(9)}) for module, given in commands}:
        verb = module.removeprefix("defectcls.")
        SETTINGS[verb](**composed(*overrides, verb=verb))


# --- from runs to tables ----------------------------------------------------------------------------------------------


def test_numbers_over_runs(collect: ModuleType) -> None:
    runs = pd.DataFrame({"auroc": [0.9, 0.96], "auroc_low": [0.8, 0.9], "auroc_high": [0.94, 1], "f1": [None, None]})
    assert collect.text(runs, "auroc") == "0.9300 ± 0.0424 [0.8500, 0.9700]"
    assert collect.text(runs[:1], "auroc") == "0.9000 [0.8000, 0.9400]"
    assert collect.text(runs.assign(f1=[0.5, None]), "f1") == "0.5000"
    assert collect.text(runs, "f1") == collect.text(runs, "recall") == "–"
    assert collect.text(runs.rename(columns={"auroc": "gap"}), "gap") == "+0.9300 ± 0.0424"


def test_table_of_runs(collect: ModuleType) -> None:
    runs = [("screw", 1, "joined", 0, 0.8), ("screw", 1, "joined", 1, 0.9), ("screw", None, "linear", 0, 0.5)]
    table = pd.DataFrame(runs, columns=["photos", "anomalies", "head", "seed", "auroc"])
    by_head = collect.Study("", {}, "", "photos anomalies head", "auroc")
    assert collect.table_of_runs(by_head, table).splitlines()[2:] == [
        "| screw | 1 | 2 | – | 0.8500 ± 0.0707 |",
        "| screw | – | 1 | 0.5000 | – |",
    ]
    by_each = by_head._replace(by="head", shown="auroc seed")
    assert collect.table_of_runs(by_each, table).splitlines()[2:] == [
        "| joined | 2 | 0.8500 ± 0.0707 | 0.5000 ± 0.7071 |",
        "| linear | 1 | 0.5000 | 0.0000 |",
    ]
    by_seed = collect.Study("", {}, "", "head seed", "auroc recall")
    assert collect.table_of_runs(by_seed._replace(by="seed"), table[:2]) == (
        "| seed | AUROC | recall |\n| --- | --- | --- |\n| 0 | 0.8000 | – |\n| 1 | 0.9000 | – |"
    )


def test_recall_of_a_new_defect_type_at_5_overkill(collect: ModuleType) -> None:
    """Of 40 sound parts 2 may be rejected, those of 0.39 and 0.38; a defect of 0.37 is as sound as the third."""
    scores = {"good": [number / 100 for number in range(40)], "dent": [0.375, 0.37, 0.2, 0.9], "hole": [0.38, 0.1]}
    test = pd.DataFrame(
        [(kind, score) for kind, of in scores.items() for score in of], columns=["defect_type", "score"]
    )
    test = test.assign(defective=test["defect_type"] != "good", split="test")
    train = test.assign(split="train", score=1.0)
    found = collect.recalls(pd.concat([test, train], ignore_index=True), "dent")
    assert (found["recall_at_5_overkill"], found["recall_at_5_overkill_shown"]) == (0.5, 0.5)
    assert 0 < found["recall_at_5_overkill_low"] < 0.5 < found["recall_at_5_overkill_high"] < 1
    tied = test.assign(score=test["score"].clip(upper=0.37))  # all of the highest scores are one
    assert collect.recalls(tied, "dent")["recall_at_5_overkill"] == 0


@pytest.mark.slow
def test_runs_are_collected(finished: Path, tmp_path: Path, collect: ModuleType) -> None:
    """A run in parts and again; of a cross-validation the whole, and not its folds."""
    metrics = json.loads((finished / "metrics.json").read_text(encoding="utf-8"))
    test, file = metrics["test"], tmp_path / "results.csv"

    def write(folder: str, metrics: dict) -> None:
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")

    collect.collect(file, [finished])
    [line] = pd.read_csv(file, dtype={"commit": str}).to_dict("records")
    assert (line["photos"], line["finetune"], line["image_size"]) == ("synthetic", "probe_then_full", 32)
    assert (line["n_test"], line["auroc"]) == (test["n"], test["auroc"])
    assert [line["recall_low"], line["recall_high"]] == test["intervals"]["recall"]
    assert line["gap"] == metrics["train"]["accuracy"] - test["accuracy"]
    assert line["gap_low"] < line["gap"] < line["gap_high"]
    assert line["epochs"] == 2
    assert line["seconds"] == round(sum(metrics["seconds"].values()))
    assert (line.get("commit"), line["version_torch"]) == (metrics["commit"], metrics["versions"]["torch"])
    assert not {"preset", "anomalies", "folds"} & set(line)

    write("sweep/0", metrics | {"test": test | {"auroc": 0.125, "defect": {"auroc": 0.75}}})
    whole = {key: metrics[key] for key in ("dataset", "model", "test", "seed", "versions", "commit", "hardware")}
    whole["config"] = metrics["config"] | {"folds": 2, "repeats": 1}
    whole["command"] = "python -m defectcls.crossval experiment=demo folds=2"
    write("crossval", whole)
    write("crossval/repeat_0/fold_0", metrics | {"seconds": {"fit": 30}})
    write("crossval/repeat_0/fold_1", metrics | {"seconds": {"fit": 12}})
    collect.collect(file, [tmp_path / "sweep", tmp_path / "crossval"])
    lines = pd.read_csv(file, dtype={"commit": str}).set_index("command")
    assert len(lines) == 2
    assert lines.loc[metrics["command"], ["auroc", "defect_auroc"]].tolist() == [0.125, 0.75]
    of_crossval = lines.loc[whole["command"]]
    assert (of_crossval["preset"], of_crossval["folds"], of_crossval["seconds"]) == ("demo", 2, 42)


# --- studies that measured something else -----------------------------------------------------------------------------


def test_tables_of_leaks_are_those_of_its_results() -> None:
    leaks = CHECKOUT / "experiments" / "leaks"
    tables = runpy.run_path(str(leaks / "collect.py"))["tables"]
    written = tables(pd.read_csv(leaks / "splits.csv"), pd.read_csv(leaks / "differences.csv"))
    assert written in (leaks / "README.md").read_text(encoding="utf-8")


def test_tables_of_precision_are_those_of_its_results() -> None:
    study = CHECKOUT / "experiments" / "precision"
    table = runpy.run_path(str(study / "collect.py"))["table"]
    runs = pd.read_csv(study / "runs.csv", dtype={"precision": str})
    written = table(runs, pd.read_csv(study / "differences.csv"))
    assert written in (study / "README.md").read_text(encoding="utf-8")


def test_bf16_costs_no_quality() -> None:
    """The interval of the mean difference over three seeds contains zero, in accuracy and in AUROC."""
    study = CHECKOUT / "experiments" / "precision"
    mean_difference = runpy.run_path(str(study / "collect.py"))["mean_difference"]
    differences = pd.read_csv(study / "differences.csv")
    chosen = differences[differences["metric"].isin(["accuracy", "auroc"])].groupby(["dataset", "metric"])
    assert chosen.size().tolist() == [3] * 6
    for _, of_seeds in chosen:
        _, low, high = mean_difference(of_seeds)
        assert low <= 0 <= high


@pytest.mark.parametrize(
    "study, script",
    [("auto", "measure.py"), ("export", "measure.py"), ("finetuning", "collect.py"), ("tables", "measure.py")],
)
def test_table_is_the_one_that_what_was_measured_gives(study: str, script: str, collect: ModuleType) -> None:
    table = runpy.run_path(str(EXPERIMENTS / study / script))["table"]
    written = table(pd.read_csv(EXPERIMENTS / study / "measured.csv"))
    assert f"\n\n{written}\n\n" in (EXPERIMENTS / study / "README.md").read_text(encoding="utf-8")


def test_table_of_speed_is_the_one_its_results_give() -> None:
    study = CHECKOUT / "experiments" / "speed"
    table = runpy.run_path(str(study / "collect.py"))["table"]
    assert table(pd.read_csv(study / "benchmarks.csv")) in (study / "README.md").read_text(encoding="utf-8")


def test_table_of_predict_is_the_one_its_results_give() -> None:
    study = CHECKOUT / "experiments" / "predict"
    measured = pd.read_csv(study / "measured.csv")
    table = runpy.run_path(str(study / "measure.py"))["table"]
    assert table(measured) in (study / "README.md").read_text(encoding="utf-8")
    small = measured[measured["name"].str.contains("227 px")]
    assert (small["ratio"] >= 0.85).all()
    assert (measured["most_mib"] <= 1.1 * measured["first_mib"]).all()


def test_table_of_other_cameras_is_the_one_its_results_give() -> None:
    study = CHECKOUT / "experiments" / "other_cameras"
    table = runpy.run_path(str(study / "collect.py"))["table"]
    assert f"\n\n{table(pd.read_csv(study / 'measured.csv'))}\n\n" in (study / "README.md").read_text(encoding="utf-8")


def test_table_of_memory_is_the_one_its_results_give() -> None:
    study = CHECKOUT / "experiments" / "memory"
    measured = pd.read_csv(study / "measured.csv")
    table = runpy.run_path(str(study / "measure.py"))["table"]
    assert f"\n\n{table(measured)}\n\n" in (study / "README.md").read_text(encoding="utf-8")
    screws = measured[measured["category"] == "screw"].groupby("tool").median(numeric_only=True)
    assert screws.loc["defectcls", "image_auroc"] >= screws.loc["anomalib", "image_auroc"]


def test_tables_of_promises_are_those_of_its_results_and_no_promise_is_surely_broken_too_often() -> None:
    study = CHECKOUT / "experiments" / "promises"
    measured = pd.read_csv(study / "measured.csv")
    tables = runpy.run_path(str(study / "measure.py"))["tables"]
    assert f"\n\n{tables(measured)}\n\n" in (study / "README.md").read_text(encoding="utf-8")
    assert (measured.loc[measured["procedure"] == "crossval", "broken_low"].dropna() <= 0.05).all()


def test_table_of_labelling_is_the_one_its_results_give() -> None:
    study = EXPERIMENTS / "labelling"
    written = runpy.run_path(str(study / "measure.py"))["table"](pd.read_csv(study / "needed.csv"))
    assert f"\n\n{written}\n\n" in (study / "README.md").read_text(encoding="utf-8")


def test_labels_needed_are_read_between_the_counts() -> None:
    needed = runpy.run_path(str(EXPERIMENTS / "labelling" / "measure.py"))["needed"]
    curves = np.array([[0.4, 0.2, 0.0], [0.1, 0.0, 0.0], [0.4, 0.3, 0.1]])
    assert needed(curves, np.array([10.0, 100.0, 1000.0]), np.full(3, 0.1)) == pytest.approx([10**2.5, 10, 1000])


def test_tables_of_a_month_are_those_of_its_results() -> None:
    study = EXPERIMENTS / "month"
    found = {name: pd.read_csv(study / f"{name}.csv") for name in ("days", "audited", "retrained")}
    written = runpy.run_path(str(study / "page.py"))["tables"](found)
    assert f"\n\n{written}\n\n" in (study / "README.md").read_text(encoding="utf-8")
