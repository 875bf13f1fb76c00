"""Every image is tested once a repeat, by a model that never saw its group; what is finished is not done again."""

import json
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from defectcls.crossval import fold_config
from defectcls.data.reading import Images
from defectcls.evaluation.intervals import metric_intervals
from tests.conftest import command, composed, leave_pictures_out, sentence

FOLDS = ("finetune=probe", "folds=3", "repeats=2")


@pytest.fixture(scope="module")
def validated(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("crossval")
    read: list[Images] = []
    with pytest.MonkeyPatch.context() as patch:
        leave_pictures_out(patch)
        into = Images.__init__
        patch.setattr(Images, "__init__", lambda self, *given: read.append(self) or into(self, *given))
        assert command("crossval", *tiny, *FOLDS, "decision=f1", "seed=7", f"hydra.run.dir={folder}").code == 0
    assert len(read) == 1  # for all folds: a GPU would have to hold their pixels side by side
    return folder


def table(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "predictions.csv", keep_default_na=False)


def numbers(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


@pytest.mark.slow
def test_every_image_is_tested_once_a_repeat(validated: Path) -> None:
    pooled = table(validated)
    for _, rows in pooled.groupby("repeat"):
        assert len(rows) == rows["path"].nunique() == 90
        assert rows.groupby("group")["fold"].nunique().max() == 1
    first, second = (rows.set_index("path")["fold"] for _, rows in pooled.groupby("repeat"))
    assert (first != second.loc[first.index]).any()  # dealt anew


def test_pooled_predictions_are_those_of_the_folds(validated: Path) -> None:
    pooled = table(validated)
    for (repeat, fold), rows in pooled.groupby(["repeat", "fold"]):
        run = validated / f"repeat_{repeat}" / f"fold_{fold}"
        of_fold = table(run).query("split == 'test'")
        assert rows["path"].tolist() == of_fold["path"].tolist()
        assert rows["score"].to_numpy() == pytest.approx(of_fold["score"].to_numpy(), abs=0)
        assert rows["decision"].tolist() == of_fold["decision"].tolist()
        assert numbers(run)["seed"] == 7 + repeat
        assert numbers(run)["decision"]["policy"] == "f1"
        assert not (run / "report.html").exists()  # the last page shows them all


def test_numbers_are_of_all_predictions_and_of_each_fold(validated: Path) -> None:
    metrics, pooled = numbers(validated), table(validated)
    truth, flagged = pooled["defective"], pooled["prediction"] == "defective"
    assert metrics["test"]["recall"] == pytest.approx(sk.recall_score(truth, flagged))
    of_folds = [sk.roc_auc_score(rows["defective"], rows["score"]) for _, rows in pooled.groupby(["repeat", "fold"])]
    assert metrics["test"]["auroc"] == pytest.approx(np.mean(of_folds))
    low, high = metrics["test"]["intervals"]["auroc"]
    assert low < np.mean(of_folds) < high
    assert len(metrics["folds"]) == 6
    for row in metrics["folds"]:
        rows = pooled.query(f"repeat == {row['repeat']} and fold == {row['fold']}")
        assert row["auroc"] == pytest.approx(sk.roc_auc_score(rows["defective"], rows["score"]))
    assert "Fold by fold" in (validated / "report.html").read_text()


def test_repeats_narrow_no_interval_by_counting_an_image_again(validated: Path) -> None:
    metrics, pooled = numbers(validated), table(validated)
    classes = dict(zip(metrics["class_names"], metrics["defective_classes"], strict=True))
    assert metrics["test"]["intervals"]["recall"] == metric_intervals(pooled, classes)["recall"]
    as_if_new = metric_intervals(pooled.assign(unit=np.arange(len(pooled))), classes)["recall"]
    found = metrics["test"]["intervals"]["recall"]
    assert found[1] - found[0] > as_if_new[1] - as_if_new[0]


def test_repeats_are_compared_apart(validated: Path, tmp_path: Path) -> None:
    pooled = table(validated)
    better = pooled.assign(prediction=pooled["label"])
    better.to_csv(tmp_path / "better.csv", index=False)
    compared = command("compare", str(validated), str(tmp_path / "better.csv"), f"hydra.run.dir={tmp_path / 'found'}")
    assert "180 images in common" in compared.out
    found = {row["metric"]: row for row in json.loads((tmp_path / "found/compare.json").read_text())["differences"]}
    right = (pooled["prediction"] == pooled["label"]).mean()
    assert found["accuracy"]["difference"] == pytest.approx(right - 1)


@pytest.mark.slow
def test_resumed_where_it_stopped(validated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = table(validated)
    (validated / "repeat_1/fold_1/metrics.json").unlink()
    (validated / "metrics.json").unlink()
    trained: list[Path] = []
    run = import_module("defectcls.training.run").TrainingRun
    monkeypatch.setattr(
        run, "train", lambda self, train=run.train, **how: (trained.append(self.folder), train(self, **how))
    )
    assert command("crossval", f"resume={validated}").code == 0
    assert trained == [validated / "repeat_1/fold_1"]
    pd.testing.assert_frame_equal(table(validated), before)


def test_a_repeat_deals_the_folds_anew(tiny: list[str]) -> None:
    config = composed(*tiny, "folds=5", "repeats=2", verb="crossval")
    folds = [fold_config(config, repeat, fold) for repeat, fold in ((0, 0), (1, 4))]
    assert [one["dataset"]["split"]["fold"] for one in folds] == [0, 4]
    assert {one["dataset"]["split"]["folds"] for one in folds} == {5}
    assert [one["seed"] for one in folds] == [config["seed"], config["seed"] + 1]


def test_mistakes(tiny: list[str], tmp_path: Path) -> None:
    one = sentence(command("crossval", *tiny, "folds=1", f"hydra.run.dir={tmp_path}"))
    assert one == "folds=1: it has to be greater than or equal to 2"
    ddp = sentence(command("crossval", *tiny, "trainer.strategy=ddp", f"hydra.run.dir={tmp_path}"))
    assert ddp == "cross-validation trains on one device: leave trainer.strategy=auto"
