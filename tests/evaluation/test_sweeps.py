"""The table of a sweep: which setting is the best, what chance explains, and that no job is lost."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from defectcls.evaluation.sweeps import Job, Sweep, summarise_sweep


def trained(ranked: float | None, seed: int = 0, loss: float = 0.5, **test: Any) -> dict[str, Any]:
    numbers = {"auroc": ranked, "recall": 0.9, "overkill_rate": 0.05, "f1": 0.9, "accuracy": 0.9, "f1_macro": 0.8}
    return {
        "seed": seed,
        "val": {"auroc": ranked, "loss": loss},
        "test": numbers | test,
        "seconds": {"data": 1.5, "fit": 60.0},
    }


def finished(number: int, typed: str, ranked: float | None, seed: int = 0, **numbers: Any) -> Job:
    return Job(number, (*typed.split(), f"seed={seed}"), "finished", None, trained(ranked, seed, **numbers))


def failed(number: int, typed: str, seed: int = 0, error: str = "out of memory") -> Job:
    return Job(number, (*typed.split(), f"seed={seed}"), "failed", error, None)


def two_models(good: list[float], bad: list[float]) -> Sweep:
    jobs = [finished(seed, "model=good", value, seed) for seed, value in enumerate(good)]
    jobs += [finished(10 + seed, "model=bad", value, seed) for seed, value in enumerate(bad)]
    return summarise_sweep("sweep", jobs[::-1])


def over_seeds(settings: pd.DataFrame, row: int, name: str) -> list[float]:
    """Mean, standard deviation, interval and number of seeds."""
    return settings.loc[row, [f"{name}_{part}" for part in ("mean", "std", "low", "high", "n")]].tolist()


def test_mean_spread_and_interval_are_students() -> None:
    values = [0.91, 0.95, 0.93, 0.94]
    best = over_seeds(two_models(values, [0.5]).settings, 0, "val_auroc")
    interval = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert best == pytest.approx([np.mean(values), np.std(values, ddof=1), *interval, 4])


def test_interval_of_a_share_ends_where_the_share_can() -> None:
    table = two_models([0.99, 0.8], [0.02, 0.2]).settings
    assert over_seeds(table, 0, "val_auroc")[3] == 1
    assert over_seeds(table, 1, "val_auroc")[2] == 0
    assert over_seeds(table, 1, "behind")[2] < 0


def test_difference_to_the_best_is_paired_over_common_seeds() -> None:
    good, bad = [0.91, 0.95, 0.93, 0.97], [0.89, 0.94, 0.90]  # the fourth seed is of one only
    behind = over_seeds(two_models(good, bad).settings, 1, "behind")
    paired = stats.ttest_rel(good[:3], bad).confidence_interval(0.95)
    assert behind == pytest.approx([0.02, np.std([0.02, 0.01, 0.03], ddof=1), *paired, 3])


@pytest.mark.parametrize(
    ("good", "bad", "verdict"),
    [
        ([0.90, 0.95, 0.80], [0.88, 0.931, 0.779], "worse"),  # by 0.02 in every seed, which spread by far more
        ([0.90, 0.95, 0.80], [0.95, 0.80, 0.89], "within chance"),
        ([0.90], [0.89], "chance unknown"),
        ([0.90, 0.91], [0.89, 0.90], "chance unknown"),  # the same in both seeds: no spread to judge by
        ([1.0, 1.0], [1.0, 1.0], "equal"),
    ],
)
def test_verdict_on_a_difference(good: list[float], bad: list[float], verdict: str) -> None:
    assert two_models(good, bad).settings.loc[1, "verdict"] == verdict


def test_validation_ranks_and_the_loss_where_auroc_is_equal() -> None:
    jobs = [
        finished(0, "lr=1", 0.9, loss=0.4, auroc=0.99),
        finished(1, "lr=2", 0.95, loss=0.3, auroc=0.5),
        finished(2, "lr=3", 0.95 + 1e-6, loss=0.35, auroc=0.6),
        finished(3, "lr=4", None, loss=0.1),
        failed(4, "lr=5"),
    ]
    sweep = summarise_sweep("sweep", jobs)
    assert sweep.settings["lr"].tolist() == ["2", "3", "1", "4", "5"]
    assert sweep.settings.loc[0, "test_auroc_mean"] == 0.5
    assert sweep.settings["verdict"].tolist()[3:] == ["", ""]


def test_loss_ranks_where_no_auroc_is_defined() -> None:
    jobs = [finished(n, f"lr={n}", None, seed, loss=1 - n / 10 + seed / 50) for n in range(2) for seed in range(2)]
    sweep = summarise_sweep("sweep", jobs)
    assert (sweep.ranked_by, sweep.settings.loc[0, "setting"]) == ("val_loss", "lr=1")
    assert sweep.settings.loc[1, "behind_mean"] == pytest.approx(0.1)


def test_jobs_without_validation_are_ranked_by_test_and_it_is_said() -> None:
    metrics = [{"seed": 0, "test": trained(value)["test"]} for value in (0.8, 0.9)]
    jobs = [Job(n, (f"checkpoint={n}",), "finished", None, one) for n, one in enumerate(metrics)]
    sweep = summarise_sweep("sweep", jobs)
    assert sweep.ranked_by == "test_auroc"
    assert sweep.settings.loc[0, "setting"] == "checkpoint=1"
    assert "seconds" not in sweep.columns


def test_defects_of_many_classes_count_as_one_in_all_numbers() -> None:
    """Among them the AUROC, which was that of the mean over classes, beside another in the report."""
    test = {"auroc": 0.7, "accuracy": 0.6, "f1_macro": 0.5, "per_class": {}, "defect": {"auroc": 0.9, "recall": 0.8}}
    metrics = {"seed": 0, "val": {"auroc": 0.75, "loss": 1.0, "defect": {"auroc": 0.95}}, "test": test}
    sweep = summarise_sweep("sweep", [Job(0, ("target=defect_type",), "finished", None, metrics)])
    row = sweep.jobs.iloc[0]
    assert row[["val_auroc", "test_auroc", "test_recall", "test_f1_macro"]].tolist() == [0.95, 0.9, 0.8, 0.5]


def test_names_hold_what_differs_and_the_seed_is_no_setting() -> None:
    typed = ["dataset=mvtec model=a +optim.options.betas=[0.9,0.98]", "dataset=mvtec model=b", "dataset=mvtec"]
    jobs = [finished(n, one, 0.9 - n / 10, seed) for n, one in enumerate(typed) for seed in (0, 1)]
    sweep = summarise_sweep("sweep", jobs)
    assert sweep.settings["setting"].tolist() == ["model=a, +optim.options.betas=[0.9,0.98]", "model=b", "defaults"]
    table = sweep.settings
    assert table["model"].tolist() == ["a", "b", ""]
    assert table["optim.options.betas"].tolist() == ["[0.9,0.98]", "", ""]
    assert table["jobs"].tolist() == [2, 2, 2]


def test_values_may_hold_an_equals_sign_and_a_comma() -> None:
    jobs = [finished(n, f"checkpoint='lr=1,x={n}'", 0.9) for n in range(2)]
    sweep = summarise_sweep("sweep", jobs)
    assert sweep.settings["checkpoint"].tolist() == ["'lr=1,x=0'", "'lr=1,x=1'"]
    assert len(sweep.jobs) == 2


def test_a_seed_that_ran_twice_counts_once() -> None:
    jobs = [finished(0, "model=a", 0.9, 0), finished(1, "model=a", 0.9, 0), finished(2, "model=a", 0.8, 1)]
    (setting,) = summarise_sweep("sweep", jobs).settings.to_dict("records")
    assert (setting["jobs"], setting["finished"], setting["val_auroc_n"]) == (3, 3, 2)
    assert setting["val_auroc_mean"] == pytest.approx(0.85)


def test_default_seed_is_that_of_the_run() -> None:
    by_default = Job(0, ("model=a",), "finished", None, trained(0.8, seed=0))
    sweep = summarise_sweep("sweep", [by_default, finished(1, "model=b", 0.9, 0)])
    assert sweep.settings.loc[1, "behind_n"] == 1  # of seed 0, too


@pytest.mark.parametrize("key", ["dataset", "dataset.split.fold", "target"])
def test_settings_on_other_images_are_not_compared(key: str) -> None:
    jobs = [finished(n, f"{key}={name}", 0.9 + n / 20, seed) for n, name in enumerate("ab") for seed in range(2)]
    sweep = summarise_sweep("sweep", jobs)
    assert sweep.other_images == [key]
    assert sweep.settings["setting"].tolist() == [f"{key}=a", f"{key}=b"]
    assert "verdict" not in sweep.settings


def test_worse_than_the_best_of_many_takes_more_than_worse_than_a_rival() -> None:
    """Behind by 0.02, 0.021 and 0.025: p = 0.005, and the 21 pairs of seven settings share the five in a hundred."""
    good, bad = [0.90, 0.95, 0.80], [0.88, 0.929, 0.775]
    assert stats.ttest_rel(good, bad).pvalue == pytest.approx(0.005, abs=0.001)
    assert two_models(good, bad).settings.loc[1, "verdict"] == "worse"
    jobs = [finished(seed, "lr=1", value, seed) for seed, value in enumerate(good)]
    for name in "234567":
        jobs += [finished(seed, f"lr={name}", value, seed) for seed, value in enumerate(bad)]
    sweep = summarise_sweep("sweep", jobs)
    assert sweep.settings["verdict"].tolist() == ["", *["within chance"] * 6]


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 6])
def test_equals_of_the_best_are_rarely_called_worse(seeds: int) -> None:
    """In 400 sweeps of six equal settings, at 95 %, at most 7 times in 100."""
    random, said = np.random.default_rng(0), 0
    for _ in range(400):
        drawn = random.normal(0.8, 0.01, (6, seeds))
        jobs = [finished(n, f"lr={one}", drawn[one, n], n) for one in range(6) for n in range(seeds)]
        said += "worse" in set(summarise_sweep("sweep", jobs).settings["verdict"])
    assert said <= 28
