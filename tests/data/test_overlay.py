"""What people say is laid over labels by the bytes of a photo; what they do not agree on is named and left alone."""

import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from defectcls.data.datamodule import DefectDataModule
from defectcls.data.folder import Folder
from defectcls.data.overlay import lay_over, read_verdicts
from defectcls.data.verdicts import STANDING, VERDICTS
from defectcls.deployment.decisions import Decisions, digest_of
from defectcls.errors import UserError
from defectcls.settings import TrainSettings
from tests.conftest import command, composed, paint, sentence

COLOURS = {"good": (90, 120, 90), "crack": (160, 60, 60), "dent": (60, 60, 160)}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, colour in COLOURS.items():
        for number in range(12):
            paint(tmp_path / "photos" / name / f"{number:02d}.png", colour)
    return tmp_path / "photos"


def digest(file: Path) -> str:
    return digest_of(file.read_bytes())


def table(file: Path, *rows: tuple[str, ...], columns: str = "photo,label") -> str:
    file.write_text("\n".join([columns, *(",".join(row) for row in rows)]) + "\n")
    return str(file)


def ready(root: Path, *verdicts: str, **options: Any) -> Folder:
    data = Folder(root=root, sound="good", image_size=32, cache_dir=root.parent / "cache", verdicts=verdicts, **options)
    data.setup()
    return data


def labels_of(data: Folder) -> dict[str, tuple[bool, str]]:
    rows = data.samples[["path", "defective", "defect_type"]].itertuples(index=False, name=None)
    return {path: (defective, kind) for path, defective, kind in rows}


def test_a_label_goes_with_the_bytes_and_what_is_not_agreed_on_stays(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = labels_of(ready(root))
    first = table(
        tmp_path / "first.csv",
        (digest(root / "good/00.png"), "crack"),
        (digest(root / "good/01.png"), "crack"),
        (digest(root / "crack/00.png"), "good"),  # and "" below: who cannot say does not contradict
        (digest(root / "crack/01.png").upper(), "dent"),
        (digest(root / "dent/00.png"), "dent"),  # as it was
        ("ab" * 16, "no such class"),  # of a photo that is not here
    )
    second = table(
        tmp_path / "second.csv",
        ("ann", digest(root / "good/01.png"), "dent"),
        ("bob", digest(root / "crack/00.png"), ""),
        ("bob", digest(root / "dent/01.png"), ""),
        columns="who,photo,label",
    )
    (root / "good/00.png").rename(root / "good/renamed.png")
    data = ready(root, first, second)
    plain["good/renamed.png"] = plain.pop("good/00.png")
    changed = {"good/renamed.png": (True, "crack"), "crack/00.png": (False, "good"), "crack/01.png": (True, "dent")}
    assert labels_of(data) == plain | changed
    about = data.overlay
    assert about["of"] == [first, second]
    assert (about["laid_over"], about["changed"], about["missing"]) == (4, 3, 1)
    assert about["conflicts"] == ["good/01.png"]
    assert about["labels"][digest(root / "good/renamed.png")] == "crack"
    assert "people disagree on 1 photos, which keep their label: good/01.png" in caplog.text
    assert (data.samples["label"] == np.where(data.samples["defective"], "defective", "sound")).all()
    swapped = ready(root, second, first).overlay
    assert swapped["digest"] == about["digest"]
    assert ready(root, first).overlay["digest"] != about["digest"]


def test_sound_and_defective_keep_a_type_that_is_not_wrong(root: Path, tmp_path: Path) -> None:
    said = {"good/00.png": "defective", "good/01.png": "sound", "crack/00.png": "defective", "dent/00.png": "sound"}
    overlay = table(tmp_path / "said.csv", *((digest(root / path), label) for path, label in said.items()))
    labels = labels_of(ready(root, overlay))
    assert [labels[path] for path in said] == [(True, "defective"), (False, "good"), (True, "crack"), (False, "sound")]
    with pytest.raises(
        UserError, match="crack/00.png is called 'defective', which is no class here; .*of target=defect"
    ):
        ready(root, overlay, target="defect_type")


def test_copies_of_a_photo_get_one_label_and_a_part_that_is_sound_has_no_mask() -> None:
    samples = pd.DataFrame(
        {"path": ["a", "b", "c"], "photo": ["1", "1", "2"], "defective": [True, False, True], "mask": ["m", "", "n"]}
    )
    laid, about = lay_over(samples, "defect", {"1": "sound"})
    assert laid["defective"].tolist() == [False, False, True]
    assert laid["mask"].tolist() == ["", "", "n"]
    assert (about["laid_over"], about["changed"], about["of"]) == (2, 1, [])
    assert samples["defective"].tolist() == [True, False, True]


def test_a_database_says_what_its_decisions_say(tmp_path: Path) -> None:
    """A history of forty rows: verdicts, second thoughts, and such as are taken back."""
    address, rng = f"sqlite:///{tmp_path}/decisions.sqlite", np.random.default_rng(0)
    decisions = Decisions(address)
    for number in range(40):
        row: dict[str, Any] = {"who": rng.choice(["ann", "bob"]), "photo": rng.choice(["aa", "bb", "cc"]) * 16}
        row |= {"label": rng.choice(["good", "crack", ""]), "name": f"{number}.png", "time": "", "model_digest": ""}
        undoes = number if number % 3 == 2 else None  # the row before
        decisions.add([row | {"reason": "review", "chance": None, "seconds": 1.0, "undoes": undoes}], VERDICTS)
    expected = pd.DataFrame(decisions.rows(STANDING))
    before = {file.name for file in tmp_path.iterdir()}
    for given in (address, str(tmp_path / "decisions.sqlite")):
        pd.testing.assert_frame_equal(read_verdicts(given), expected, check_dtype=False)
    assert len(expected) > 3
    assert {file.name for file in tmp_path.iterdir()} == before


def test_each_mistake_is_one_sentence(root: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.sqlite"
    with sqlite3.connect(foreign) as connection:
        connection.execute("CREATE TABLE verdicts (id INTEGER, verdict TEXT)")
    empty = tmp_path / "empty.sqlite"
    sqlite3.connect(empty).close()
    (tmp_path / "text.sqlite").write_text("no database" * 100)
    other = table(tmp_path / "other.csv", ("ab" * 16, "good"))
    one = digest(root / "good/00.png")
    for given, said in {
        str(tmp_path / "nowhere.csv"): f"table={tmp_path}/nowhere.csv is not a file",
        f"sqlite:///{tmp_path}/nowhere.sqlite": f"sqlite:///{tmp_path}/nowhere.sqlite is not there: give a database",
        "nonsense://x": "nonsense://x holds no verdicts that can be read (Can't load plugin",
        str(foreign): f"{foreign} holds no verdicts that can be read (no such column: verdicts.time): give",
        str(empty): f"{empty} holds no verdicts that can be read (no such table: verdicts): give",
        str(tmp_path / "text.sqlite"): f"{tmp_path}/text.sqlite holds no verdicts that can be read (file is not a data",
        other: f"dataset.verdicts={other}: none of 1 verdicts is on a photo of this dataset: give",
        table(
            tmp_path / "a.csv", (one, "crak")
        ): "dataset.verdicts: good/00.png is called 'crak', which is no class here, did you mean 'crack'?",
        table(tmp_path / "b.csv", (one, "x"), columns="photo,said"): f"{tmp_path}/b.csv has no column 'label': give",
        "postgresql://me:secret@host/db": "verdicts: a run keeps what is typed: leave the password to a file",
    }.items():
        with pytest.raises(UserError) as caught:
            ready(root, given)
        assert str(caught.value).startswith(said)
        assert "secret" not in str(caught.value)
    assert not (tmp_path / "nowhere.sqlite").exists()


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corrected(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[str]]:
    """A run with the labels of people over three of its own, their verdicts, and the paths of the three photos."""
    folder = tmp_path_factory.mktemp("corrected")
    data = DefectDataModule.from_settings(TrainSettings(**composed(*tiny)))
    data.prepare_data()
    data.setup()
    rows = np.flatnonzero((data.samples["split"] == "test") & ~data.samples["defective"])[:3]
    verdicts = folder / "verdicts.csv"
    table(verdicts, *((data.digests[row].hex(), "defective") for row in rows))
    outcome = command("train", *tiny, f"dataset.verdicts={verdicts}", f"hydra.run.dir={folder / 'run'}")
    assert outcome.code == 0, outcome.err
    return folder / "run", verdicts, data.samples["path"][rows].tolist()


@pytest.mark.slow
def test_a_run_remembers_the_labels_and_opens_nothing_to_measure_them_again(
    corrected: tuple[Path, Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, verdicts, paths = corrected
    trained = json.loads((run / "metrics.json").read_text())
    assert {key: trained["verdicts"][key] for key in ("of", "laid_over", "changed", "conflicts", "missing")} == {
        "of": [str(verdicts)],
        **{"laid_over": 3, "changed": 3, "conflicts": [], "missing": 0},
    }
    assert "Labels of people on 3 photos, 3 unlike the dataset's; 0 photos of theirs are not here." in (
        run / "report.html"
    ).read_text(encoding="utf-8").replace("&#39;", "'")
    monkeypatch.setattr("defectcls.data.overlay.read_verdicts", lambda one: pytest.fail(f"opened {one}"))
    outcome = command("evaluate", f"checkpoint={run}", f"hydra.run.dir={tmp_path}")
    assert outcome.code == 0, outcome.err
    again = pd.read_csv(tmp_path / "predictions.csv").set_index("path")
    assert set(again["label"].reindex(paths).dropna()) == {"defective"}
    assert json.loads((tmp_path / "metrics.json").read_text())["test"] == trained["test"]


@pytest.mark.parametrize("labels", [["sqlite:///victim.sqlite"], "victim.csv", 3])
def test_labels_that_a_stranger_remembers_are_labels_or_damage(
    corrected: tuple[Path, Path, list[str]], tmp_path: Path, labels: Any
) -> None:
    content = torch.load(corrected[0] / "checkpoints/best.ckpt", weights_only=True)
    content["defectcls"]["overlay"]["labels"] = labels
    torch.save(content, tmp_path / "best.ckpt")
    outcome = command("evaluate", f"checkpoint={tmp_path}/best.ckpt", f"hydra.run.dir={tmp_path}/new")
    assert sentence(outcome).startswith(f"{tmp_path}/best.ckpt is damaged, or of another version of defectcls")


@pytest.mark.slow
def test_a_run_that_goes_on_takes_the_verdicts_of_its_beginning_and_by_trust_alone(
    corrected: tuple[Path, Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, verdicts, _ = corrected
    run = shutil.copytree(begun, tmp_path / "run")
    before = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").unlink()
    said = sentence(command("train", f"resume={run}"))
    assert said.startswith(f"resume={run} would repeat dataset.verdicts={verdicts}, which may run code, or open what")
    monkeypatch.setattr("defectcls.data.overlay.read_verdicts", lambda one: pytest.fail(f"opened {one}"))
    outcome = command("train", f"resume={run}", "trust=true")
    assert outcome.code == 0, outcome.err
    again = json.loads((run / "metrics.json").read_text())
    assert (again["verdicts"], again["test"]) == (before["verdicts"], before["test"])
