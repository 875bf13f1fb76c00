"""The studies' texts say what their results say."""

import runpy
import shlex
from pathlib import Path

import pandas as pd
import pytest

from tests.conftest import CHECKOUT

STUDIES = sorted((CHECKOUT / "experiments").glob("*/results.csv"))


def test_table_of_studies_is_the_one_their_results_give() -> None:
    collect = runpy.run_path(str(CHECKOUT / "experiments" / "collect.py"))
    assert collect["table"]() in (CHECKOUT / "experiments" / "README.md").read_text(encoding="utf-8")


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


def test_table_of_few_defects_is_the_one_its_results_give() -> None:
    study = CHECKOUT / "experiments" / "few_defects"
    table = runpy.run_path(str(study / "collect.py"))["table"]
    assert table(pd.read_csv(study / "runs.csv")) in (study / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("results", STUDIES, ids=lambda file: file.parent.name)
def test_results_come_from_the_command_that_the_study_names(results: Path) -> None:
    text = results.with_name("README.md").read_text(encoding="utf-8")
    command = shlex.split(text.split("```")[1].replace("\\\n", " "))
    seeds = [word.removeprefix("seed=").split(",") for word in command if word.startswith("seed=")]
    table = pd.read_csv(results, dtype={"seed": str})
    assert [table["seed"].tolist()] == seeds
    for seed, typed in zip(table["seed"], table["command"], strict=True):
        named = {word for word in command if word != "-m" and not word.startswith("seed=")} | {f"seed={seed}"}
        assert set(shlex.split(typed)) == named | {"-m"}
