"""Runs against each other, from the command line."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from defectcls.compare import short_names
from tests.conftest import Outcome, command, sentence


def compare(folder: Path, *arguments: str) -> Outcome:
    return command("compare", *arguments, f"hydra.run.dir={folder}")


@pytest.fixture
def other(finished: Path, tmp_path: Path) -> Path:
    """A folder with a comma and a space, of a run that calls every image of the finished one sound."""
    folder = tmp_path / "all sound, always"
    folder.mkdir()
    predictions = pd.read_csv(finished / "predictions.csv", keep_default_na=False)
    answers = {"prediction": "sound", "p_sound": 0.9, "p_defective": 0.1, "score": 0.1}
    predictions.assign(**answers).to_csv(folder / "predictions.csv", index=False)
    return folder


def test_test_rows_of_two_runs_are_compared(finished: Path, other: Path, tmp_path: Path) -> None:
    outcome = compare(tmp_path / "new", str(finished), "level=0.9", str(other), "metrics=[recall,auroc]")
    assert outcome.code == 0, outcome.err
    found = json.loads((tmp_path / "new/compare.json").read_text())
    test = json.loads((finished / "metrics.json").read_text())["test"]
    names = list(found["runs"])
    assert list(found["runs"].values()) == [str(folder / "predictions.csv") for folder in (finished, other)]
    assert (found["images"], found["level"]) == (test["n"], 0.9)
    values = {(one["run"], one["metric"]): one["value"] for one in found["values"]}
    assert values == pytest.approx(
        {
            (names[0], "recall"): test["recall"],
            (names[0], "auroc"): test["auroc"],
            (names[1], "recall"): 0,
            (names[1], "auroc"): 0.5,
        }
    )
    differences = {one["metric"]: one["difference"] for one in found["differences"]}
    assert differences == pytest.approx({"recall": test["recall"], "auroc": test["auroc"] - 0.5})
    page = (tmp_path / "new/compare.html").read_text()
    assert found["verdict"]
    for line in found["verdict"]:
        assert line in outcome.out
        assert line.replace("'", "&#39;") in page
    assert f"page: {tmp_path / 'new/compare.html'}" in outcome.out


def test_a_csv_stands_for_its_run(finished: Path, other: Path, tmp_path: Path) -> None:
    table = tmp_path / "tool=3.csv"  # it exists, and so is no key
    (other / "predictions.csv").rename(table)
    outcome = compare(tmp_path / "new", str(table), str(finished), "metrics=[accuracy]")
    assert outcome.code == 0, outcome.err
    files = json.loads((tmp_path / "new/compare.json").read_text())["runs"].values()
    assert list(files) == [str(table), str(finished / "predictions.csv")]


def test_names_are_the_paths_from_where_they_part() -> None:
    def names(*paths: str) -> list[str]:
        return short_names([Path(path) for path in paths])

    first = "/runs/screw/resnet18/12-00/predictions.csv"
    assert names(first, "/runs/screw/vit/12-00/predictions.csv") == ["resnet18/12-00", "vit/12-00"]
    assert names(first, "/runs/screw/resnet18/13-00/predictions.csv") == ["12-00", "13-00"]
    assert names("/a/one.csv", "/a/one/predictions.csv") == ["one.csv", "one"]


MISTAKES = {
    (): "give two runs or more, and metrics: python -m defectcls.compare <run> <run>",
    ("{run}",): "give two runs or more, and metrics: python -m defectcls.compare <run> <run>",
    ("{run}", "{tmp}/none"): "{tmp}/none does not exist: give the folder of a finished run or a predictions CSV",
    ("{run}", "{tmp}"): "{tmp}/predictions.csv does not exist: give the folder of a finished run or a predictions CSV",
    ("{run}", "{run}/predictions.csv"): "{run}/predictions.csv is given twice: compare different runs",
    ("{run}", "{other}", "metrics=[recal]"): "'auroc' or 'average_precision'",
    ("{run}", "{other}", "level=95"): "level=95: it has to be less than 1",
}


@pytest.mark.parametrize("arguments", MISTAKES, ids=" ".join)
def test_mistake_is_one_sentence(arguments: tuple[str, ...], finished: Path, other: Path, tmp_path: Path) -> None:
    places = {"run": finished, "other": other, "tmp": tmp_path}
    outcome = compare(tmp_path / "new", *(argument.format(**places) for argument in arguments))
    assert sentence(outcome).endswith(MISTAKES[arguments].format(**places))


def test_runs_on_other_images_or_classes(finished: Path, finished_types: Path, other: Path, tmp_path: Path) -> None:
    text = sentence(compare(tmp_path / "new", str(finished), str(finished_types)))
    assert "have other classes in one than in the other" in text
    table = pd.read_csv(other / "predictions.csv", keep_default_na=False)
    table.assign(photo="0" + table["photo"].str[1:]).to_csv(other / "predictions.csv", index=False)
    assert "no image stands in all of " in sentence(compare(tmp_path / "new", str(finished), str(other)))


def test_photos_are_the_same_under_another_name_and_not_where_one_has_learned_from_them(
    finished: Path, other: Path, tmp_path: Path
) -> None:
    table = pd.read_csv(other / "predictions.csv", keep_default_na=False)
    tested = table.index[table["split"] == "test"]
    table["path"] = "new/" + table["path"]
    table.loc[tested[:3], "split"] = "train"
    before = table.loc[tested[3], "label"]
    table.loc[tested[3], "label"] = "defective" if before == "sound" else "sound"
    table["defective"] = table["label"] == "defective"
    table.to_csv(other / "predictions.csv", index=False)
    outcome = compare(tmp_path / "new", str(finished), str(other), "metrics=[accuracy]", "resamples=100")
    found = json.loads((tmp_path / "new/compare.json").read_text())
    assert (found["images"], found["seen"], found["relabelled"]) == (len(tested) - 3, 3, 1)
    assert "3 photos left out that one of them has learned from; 1 have another label" in outcome.out
    truth = pd.read_csv(finished / "predictions.csv")["label"][tested[3:]] == "sound"  # what the second calls all
    assert {one["run"]: one["value"] for one in found["values"]}[[*found["runs"]][1]] == pytest.approx(truth.mean())


def test_torch_is_not_imported(finished: Path, other: Path, tmp_path: Path) -> None:
    """Two seconds instead of eight."""
    code = (
        "import sys; from defectcls.training.command import run_verb\n"
        f"sys.argv += [{str(finished)!r}, {str(other)!r}, 'resamples=100', 'hydra.run.dir=new']\n"
        "run_verb('compare')\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
