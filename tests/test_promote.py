"""A run takes over from the model at work, or not; what is told of it is what happened."""

import hashlib
import itertools
import json
import multiprocessing
import random
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from defectcls.deployment import promotions
from defectcls.deployment.decisions import Decisions, digest_of
from defectcls.deployment.line import Model
from defectcls.deployment.predictor import load
from defectcls.deployment.promotions import PromoteSettings, Shelf
from defectcls.evaluation.predictions import write_predictions
from defectcls.files import locked
from tests.conftest import Outcome, command, sentence
from tests.deployment import exported
from tests.deployment.line import wait_until
from tests.deployment.test_serve import KEPT, Server


def sha(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


class Plant:
    """A folder of a server, and runs whose photos are grey: `exported` takes the light ones for defective."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.photos, self.serving = folder, folder / "photos", folder / "serving"
        self.file, self.refused = self.serving / "models/tile.onnx", ""
        self.photos.mkdir()

    def run(self, name: str, numbers: range, learned: int = 0, wrong: float = 0.0, **more: Any) -> Path:
        """Its photos are 2n, sound and dark, and 2n + 1, defective and light; it errs on a share of those it tests."""
        (run := self.folder / name).mkdir()
        rows = []
        for n in numbers:
            if not (file := self.photos / f"{n}.png").exists():
                grey = np.random.default_rng(n).integers(0, 20, (8, 8)).astype(np.uint8) + 200 * (n % 2) + 20
                Image.fromarray(grey.astype(np.uint8)).save(file)
            hit = n % 2 if np.random.default_rng(n).random() >= wrong else 1 - n % 2
            row = {"path": file.name, "photo": digest_of(file.read_bytes()), "label": ["sound", "defective"][n % 2]}
            row |= {"defective": bool(n % 2), "split": "train" if n - numbers[0] < learned else "test"}
            row |= {"prediction": ["sound", "defective"][hit], "decision": ["accept", "reject"][hit]}
            rows.append(row | {"p_sound": 0.9 - 0.8 * hit, "p_defective": 0.1 + 0.8 * hit, "score": 0.1 + 0.8 * hit})
        write_predictions(pd.DataFrame(rows), run / "predictions.csv")
        metrics = {"dataset": "photos", "model": "mean", "seed": 0, "class_names": ["sound", "defective"]}
        metrics |= {"defective_classes": [False, True], "test": {"n": len(rows) - learned}}
        metrics |= {"config": {"dataset": {"root": str(self.photos)}}} | more
        (run / "metrics.json").write_text(json.dumps(metrics))
        return run

    def export(self, settings: Any, output: Path, folder: Path) -> dict[str, Any]:
        """In place of `export_model`."""
        exported.write(output, exported.METADATA | {"model": settings.checkpoint.name})
        return {"refused": self.refused}

    def promote(self, *arguments: str) -> Outcome:
        given = (f"folder={self.serving}", "who=ann", "why=because", f"hydra.run.dir={self.folder}/job")
        return command("promote", *given, "name=tile", *arguments)

    def rows(self) -> list[tuple[str, str | None]]:
        """Of each promotion the run and until when it was at work."""
        rows = Decisions(f"sqlite:///{self.serving}/decisions.sqlite").promotions({"tile": sha(self.file)})
        return [(Path(row["run"]).name, row["until"] and "later" if row["until"] else row["until"]) for row in rows]

    @property
    def at_work(self) -> str:
        return load(self.file).about["model"]


@pytest.fixture
def plant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plant:
    made = Plant(tmp_path)
    monkeypatch.setattr("defectcls.deployment.export.export_model", made.export)
    return made


def test_a_run_takes_over_and_goes_again(plant: Plant) -> None:
    first, second = plant.run("first", range(60), 20), plant.run("second", range(20, 90))
    assert plant.promote(f"run={first}").code == 0 and plant.at_work == "first"
    outcome = plant.promote(f"run={second}")
    assert outcome.code == 0 and plant.at_work == "second" and "second is held against" in outcome.err
    found = json.loads((plant.folder / "job/compare.json").read_text())
    assert found["images"] == 70  # 40 that both tested, and 30 of today that the file at work judged now
    assert (
        "On 70 photos that neither had learned from: the run and the model at work: no difference is shown"
        in outcome.out
    )
    assert plant.rows() == [("first", "later"), ("second", "")]
    assert plant.promote("back=true").code == 0 and plant.at_work == "first"
    page = (plant.serving / "history.html").read_text()
    assert "Takes back what ann promoted: because" in page and page.count("at work</td>") == 1
    assert "tile: no version from before " in sentence(plant.promote("back=true"))
    assert plant.rows() == [("first", "later"), ("second", "later"), ("", "")]


def test_one_that_is_worse_beyond_chance_is_refused_unless_told(plant: Plant) -> None:
    good, bad = plant.run("good", range(100)), plant.run("bad", range(40, 140), wrong=0.4)
    plant.promote(f"run={good}")
    told = sentence(plant.promote(f"run={bad}"))
    assert "bad is not promoted. Worse beyond chance in recall, overkill rate, AUROC. On 100 photos" in told
    assert plant.at_work == "good" and plant.rows() == [("good", "")]
    assert plant.promote(f"run={bad}", "anyway=true").code == 0
    assert plant.at_work == "bad" and "Worse beyond chance" in (plant.serving / "history.html").read_text()


def test_one_that_guesses_or_calls_photos_otherwise_is_told(plant: Plant) -> None:
    plant.promote(f"run={plant.run('good', range(100))}")
    guesses = plant.run("guesses", range(100), test={"n": 100, "intervals": {"auroc": [0.4, 0.7]}})
    told = sentence(plant.promote(f"run={guesses}"))
    assert "guesses is not promoted. Not surely better than chance: its AUROC is 0.400 to 0.700. On 100" in told
    table = pd.read_csv(guesses / "predictions.csv")
    table.loc[:4, ["label", "defective"]] = table.loc[5:9, ["label", "defective"]].to_numpy()
    differ = int((table["label"] != pd.read_csv(guesses / "predictions.csv")["label"]).sum())
    table.to_csv(guesses / "predictions.csv", index=False)
    told = sentence(plant.promote(f"run={guesses}"))
    assert differ and f"100 photos that neither had learned from, of which it calls {differ} otherwise: " in told


def test_photos_that_either_has_learned_from_are_no_proof(plant: Plant) -> None:
    plant.promote(f"run={plant.run('first', range(60), learned=60 - 2)}")
    told = sentence(plant.promote(f"run={plant.run('second', range(58))}"))
    assert "There is no photo that neither it nor the model at work has seen." in told


def test_mistakes_leave_what_is_at_work(plant: Plant) -> None:
    first = plant.run("first", range(20))
    assert plant.promote(f"run={first}").code == 0
    before = plant.file.read_bytes()
    tested = {"test": {"n": 0}}
    wrong = {
        "run={tmp}": "is no folder of a finished run that was tested",
        f"run={plant.run('untested', range(20), **tested)}": "is no folder of a finished run that was tested",
        f"run={plant.run('other', range(20), defective_classes=[True, False])}": "give another folder or name",
        f"run={plant.run('elsewhere', range(20), dataset='screws')}": "sound, defective of dataset=screws, and",
        f"run={first}": "first is at work already",
        f"run={first} back=true": "give run=<run folder>, or back=true, one of both",
    }
    for typed, told in wrong.items():
        assert told in sentence(plant.promote(*typed.format(tmp=plant.folder).split())), typed
    old = plant.run("old", range(20))
    pd.read_csv(old / "predictions.csv").drop(columns="photo").to_csv(old / "predictions.csv", index=False)
    assert "old is of a version that kept no digests" in sentence(plant.promote(f"run={old}"))
    plant.refused = "it decides otherwise"
    told = sentence(plant.promote(f"run={plant.run('odd', range(20))}"))
    assert told.endswith("odd is not promoted, the gate of export refuses its file: it decides otherwise")
    with locked(plant.serving / "models/promote.lock", ""):
        assert "another promotion is under way" in sentence(plant.promote("back=true"))
    assert plant.file.read_bytes() == before and plant.rows() == [("first", "")]


def test_a_file_that_no_promotion_brought_is_kept_and_not_compared(plant: Plant) -> None:
    plant.file.parent.mkdir(parents=True)
    exported.write(plant.file, exported.METADATA | {"model": "by hand"})
    run = plant.run("first", range(20))
    assert "Nothing tells which photos" in sentence(plant.promote(f"run={run}"))
    assert plant.promote(f"run={run}", "anyway=true").code == 0
    assert plant.promote("back=true").code == 0 and plant.at_work == "by hand"


def test_a_promotion_that_was_cut_off_is_told_so(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = plant.run("first", range(20)), plant.run("second", range(30))
    plant.promote(f"run={first}")
    whole = promotions.copied_whole

    def cut(source: Path, path: Path) -> None:
        if path == plant.file:
            raise KeyboardInterrupt
        whole(source, path)

    monkeypatch.setattr(promotions, "copied_whole", cut)
    with pytest.raises(KeyboardInterrupt):
        plant.promote(f"run={second}")
    monkeypatch.setattr(promotions, "copied_whole", whole)
    assert plant.at_work == "first" and plant.rows() == [("first", ""), ("second", None)]
    assert plant.promote(f"run={second}").code == 0
    assert plant.rows() == [("first", "later"), ("second", None), ("second", "")]
    assert "never at work: it was interrupted" in (plant.serving / "history.html").read_text()
    assert plant.promote("back=true").code == 0 and plant.at_work == "first"


def rotate(serving: Path, digests: list[str]) -> None:
    """Promote one after the other, until somebody ends it."""
    said = {"who": "ann", "why": "so", "undoes": None, "run": "", "sentence": ""}
    given = {"run": None, "back": True, "folder": serving, "name": "tile", "database": None, "who": "ann", "why": "so"}
    settings = PromoteSettings(**given, anyway=False, root=None, imports=[])
    decisions = Decisions(f"sqlite:///{serving}/decisions.sqlite")
    while True:
        shelf = Shelf(settings, decisions)
        shelf.take_over(said | {"digest": digests[(digests.index(shelf.digest) + 1) % len(digests)]})


@pytest.mark.slow
def test_power_lost_at_a_hundred_moments_leaves_a_whole_model_and_a_true_record(tmp_path: Path) -> None:
    (shelf := tmp_path / "models/tile").mkdir(parents=True)
    written = [exported.write(shelf / f"{n}.onnx", exported.METADATA | {"model": "x" * 10**n}) for n in (1, 6, 5)]
    digests = [sha(file.rename(shelf / f"{sha(file)}.onnx")) for file in written]
    file = tmp_path / "models/tile.onnx"
    file.write_bytes((shelf / f"{digests[0]}.onnx").read_bytes())
    read = partial(load, device="cpu")
    model, decisions = Model("tile", file, read, 8, 0), Decisions(f"sqlite:///{tmp_path}/decisions.sqlite")
    decisions._engine.dispose()  # not to be shared with who is killed
    seen, generator, rounds = set(), random.Random(0), 0
    # On a busy machine a hundred may end before each version has been at work, and one was cut off before its file.
    while rounds < 100 or (rounds < 2000 and not {*digests, True, False} <= seen):
        rounds += 1
        killed = multiprocessing.get_context("fork").Process(target=rotate, args=(tmp_path, digests), daemon=True)
        killed.start()
        end = time.monotonic() + generator.uniform(0.02, 0.2)
        while time.monotonic() < end:
            model.look()
            assert not model.problem and model.predictor.about["digest"] in digests
        killed.kill()
        killed.join()
        now = sha(file)
        assert now in digests
        model.look(), model.look()
        assert model.predictor.about["digest"] == now and not model.problem
        rows = decisions.promotions({"tile": now})
        assert [row["digest"] for row in rows if row["until"] == ""] in ([], [now])
        took = [row for row in rows if row["until"] is not None]
        assert all(one["digest"] == other["before"] for one, other in itertools.pairwise(took))
        assert not took or took[-1]["digest"] == now
        seen |= {now, *(row["until"] is None for row in rows)}
        decisions._engine.dispose()
    assert {*digests, True, False} <= seen  # some were cut off between the record and the file


@pytest.mark.slow
def test_a_real_run_is_exported_and_served(finished: Path, crossvalidated: Path, tmp_path: Path) -> None:
    """Of a run that set photos aside, and one that judged all out of fold."""
    folder = tmp_path / KEPT
    given = (f"folder='{folder}'", "who=ann", "name=tile")
    for run, why in ((finished, "first"), (crossvalidated, "second")):
        outcome = command(
            "promote", *given, f"run={run}", f"why={why}", "anyway=true", f"hydra.run.dir={tmp_path}/{why}"
        )
        assert outcome.code == 0, outcome.err
    found = json.loads((tmp_path / "second/compare.json").read_text())
    tested = pd.read_csv(finished / "predictions.csv")["split"].eq("test").sum()
    assert (found["images"], found["seen"]) == (tested, 90 - tested)
    server = Server(tmp_path)
    try:
        assert [*server.client.get("/health").json()["models"]] == ["tile"]
        at_work = server.client.get("/model").json()["about"]["digest"]
        assert command("promote", *given, "back=true", "why=no", f"hydra.run.dir={tmp_path}/back").code == 0
        now = wait_until(lambda: (found := server.client.get("/model").json()["about"]["digest"]) != at_work and found)
        assert now == sha(folder / "models/tile.onnx")
        assert "second" in server.client.get("/history").text
    finally:
        server.kill()
