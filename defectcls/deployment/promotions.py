"""Which version of a model is at work, and how another takes over: whole at any moment, and recorded before it does.

`<folder>/models/<name>.onnx` is at work; `<folder>/models/<name>/<digest>.onnx` is each version, and beside it the
predictions table of its run, which tells what it has seen. Neither needs torch but to bring a new one.
"""

import hashlib
import json
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from pydantic import Field

from defectcls.config import presets
from defectcls.deployment.decisions import PROMOTIONS, Decisions, moment
from defectcls.deployment.gate import ExportSettings
from defectcls.deployment.predictor import Predictor, load
from defectcls.errors import UserError
from defectcls.evaluation.comparison import compare_predictions, unseen
from defectcls.evaluation.metrics import defect_numbers
from defectcls.evaluation.predictions import read_predictions
from defectcls.files import copied_whole
from defectcls.pages.comparison import comparison_page, promotion_words
from defectcls.pages.render import write_page
from defectcls.settings import Settings, Text
from defectcls.training.results import finished_run

log = logging.getLogger(__name__)

HELD = ["recall", "overkill_rate", "auroc"]  # in what a new version may not be worse
OLD, NEW = "the model at work", "the run"
Words = Annotated[str, Text, Field(min_length=1)]


class PromoteSettings(Settings):
    run: Path | None
    back: bool
    folder: Path
    name: Annotated[str, Text, Field(pattern=r"^\w[\w.-]*$")] | None
    database: str | None
    who: Words
    why: Words
    anyway: bool
    root: Path | None
    imports: list[str]

    def model_post_init(self, _: Any) -> None:
        if (self.run is None) != self.back:
            raise ValueError("give run=<run folder>, or back=true, one of both")


class Shelf:
    """The versions of one model, `digest` of which is at work, "" where none is; so of each model in `at_work`."""

    def __init__(self, settings: PromoteSettings, decisions: Decisions) -> None:
        folder, self.decisions = settings.folder / "models", decisions
        self.at_work = found = {file.stem: _digest_of(file) for file in folder.glob("*.onnx")}
        if settings.name is None and (len(found) > 1 or not (found or settings.run)):
            raise UserError(f"{folder} holds {', '.join(sorted(found)) or 'no model'}: give name=<model>")
        self.name = settings.name or next(iter(found), "") or finished_run("run", settings.run or Path())[0]["dataset"]
        self.file, self.versions = folder / f"{self.name}.onnx", folder / self.name
        self.digest = found.get(self.name, "")

    def before(self) -> dict[str, Any]:
        """The row that puts the version before the one at work in its place; a UserError where none is known."""
        took = [row for row in self.decisions.promotions(self.at_work) if row["until"] is not None]
        mine = [row for row in took if (row["model"], row["digest"], row["undoes"]) == (self.name, self.digest, None)]
        if not mine or not (self.versions / f"{mine[-1]['before']}.onnx").is_file():
            known = f"{self.name}: no version from before {self.digest[:12]}, which is at work, is known and kept"
            raise UserError(f"{known}: run=<run folder> promotes a run, also one that was at work")
        said = f"Takes back what {mine[-1]['who']} promoted: {mine[-1]['why']}"
        return {"digest": mine[-1]["before"], "undoes": mine[-1]["id"], "run": "", "sentence": said}

    def take_over(self, row: dict[str, Any]) -> None:
        """Commit the row of a version that is on the shelf, and put it in place."""
        if self.digest and not (kept := self.versions / f"{self.digest}.onnx").is_file():  # no promotion brought it
            copied_whole(self.file, kept)
        now = {"time": moment(datetime.now(UTC)), "model": self.name, "before": self.digest}
        self.decisions.add([now | row], PROMOTIONS)
        copied_whole(self.versions / f"{row['digest']}.onnx", self.file)
        self.at_work[self.name] = self.digest = row["digest"]


def candidate(run: Path, settings: PromoteSettings, shelf: Shelf, folder: Path) -> dict[str, Any]:
    """A run, held against the model at work and against its own file, on the shelf: the row that is to be committed.

    Raises:
        UserError: it is not finished, tells other classes, is worse or not to be compared, or the gate refuses it.
    """
    from defectcls.deployment.export import export_model  # imports torch

    (metrics, rows), said, worse = finished_run("run", run), "Nothing was at work.", False
    if not metrics["test"]["n"]:
        raise UserError(f"run={run} is no folder of a finished run that was tested")
    log.info("%s is held against the model at work, then exported through the gate: that takes minutes", run)
    if shelf.digest:
        at_work = load(shelf.file, "cpu")
        classes = dict(zip(metrics["class_names"], metrics["defective_classes"], strict=True))
        ours, theirs = (metrics["dataset"], classes), (at_work.about["dataset"], at_work.classes)
        if ours != theirs:
            told = [f"{', '.join(names)} of dataset={dataset}" for dataset, names in (ours, theirs)]
            raise UserError(f"{run} tells {told[0]}, and {shelf.file} {told[1]}: give another folder or name")
        root = settings.root or Path(metrics["config"]["dataset"]["root"])
        try:
            found = _compared(rows, root, at_work, shelf)
        except UserError as error:
            said, worse = str(error), True
        else:
            behind = [one["metric"] for one in found["differences"] if one["better"] == OLD]
            ranks = defect_numbers(metrics["test"])["intervals"].get("auroc")
            guesses = ranks if ranks and ranks[0] <= 0.5 else None
            said, worse = promotion_words(found, behind, guesses), bool(behind or guesses)
            (folder / "compare.json").write_text(json.dumps(found, indent=2), encoding="utf-8")
            write_page(comparison_page(found), folder / "compare.html")
    if worse and not settings.anyway:
        raise UserError(f"{run} is not promoted. {said} anyway=true promotes it all the same")
    how = {"checkpoint": run, "root": settings.root, "heat_map": "head" in metrics}
    file, table = folder / "model.onnx", run / "predictions.csv"
    if refused := export_model(ExportSettings(**presets("export") | how), file, folder)["refused"]:
        raise UserError(f"{run} is not promoted, the gate of export refuses its file: {refused}")
    if (digest := _digest_of(file)) == shelf.digest:
        raise UserError(f"{run} is at work already")
    shelf.versions.mkdir(exist_ok=True)
    copied_whole(table, shelf.versions / f"{digest}.csv")
    copied_whole(file, shelf.versions / f"{digest}.onnx")
    return {"digest": digest, "undoes": None, "run": str(run.resolve()), "sentence": said}


def _compared(rows: pd.DataFrame, root: Path, at_work: Predictor, shelf: Shelf) -> dict[str, Any]:
    """How a run and the model at work differ on photos that neither has seen; a UserError where there are none.

    What the run of the model at work judged without having learned from it counts; what is new since then it now
    judges itself.
    """
    if not (known := shelf.versions / f"{shelf.digest}.csv").is_file():
        raise UserError(f"Nothing tells which photos {shelf.file} has learned from.")
    before = read_predictions(known)
    new = rows[(rows["split"] == "test") & ~rows["photo"].isin(before["photo"])].drop_duplicates("photo")
    judged = at_work.predict([str(root / path) for path in new["path"]]).drop(columns="path").set_index(new.index)
    asked = new[["path", "photo", "label", "defective", "split"]].join(judged[judged.pop("error") == ""], how="inner")
    tables, counts = unseen({NEW: rows, OLD: pd.concat([before, asked], ignore_index=True)})
    if tables[NEW].merge(tables[OLD], on="path").empty:
        raise UserError("There is no photo that neither it nor the model at work has seen.")
    return counts | compare_predictions(tables, HELD)


def _digest_of(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
