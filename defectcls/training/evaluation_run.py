"""A trained model, measured again: on its own images, or on another dataset."""

import json
import logging
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from defectcls.config import shipped_datasets
from defectcls.data.findings import find_seen
from defectcls.errors import UserError
from defectcls.evaluation.decision import MOST_PROBABLE, Decision, choose_decision
from defectcls.evaluation.evaluate import evaluate
from defectcls.evaluation.predictions import PROBABILITY
from defectcls.files import read_json
from defectcls.model.checkpoint import load_trained
from defectcls.pages.caveats import seen_words
from defectcls.settings import DatasetSettings
from defectcls.training.build import build_data, build_trainer
from defectcls.training.provenance import provenance
from defectcls.training.run import Run, keep_decision
from defectcls.verb_settings import EvaluateSettings

log = logging.getLogger(__name__)

OF_HERE = ("_target_", "source", "archive", "download", "cache", "cache_dir", "cache_max_gb")  # not a checkpoint's


class EvaluationRun(Run):
    """A trained model on one part of its own dataset, or of another, computed as it was in training."""

    def __init__(self, settings: EvaluateSettings, folder: Path) -> None:
        assert settings.checkpoint is not None
        trained = load_trained(settings.checkpoint, settings.device, settings.precision)
        self.checkpoint, self.about, own = trained.checkpoint, trained.about, trained.settings.dataset
        asked = settings.part or ("test" if settings.dataset is None else "all")
        if settings.dataset is None:
            dataset = _as_shipped(own, self.checkpoint)
        else:
            dataset = settings.dataset.model_copy(update={"resize": own.resize, "depth": own.depth})
        self.settings, classifier = trained.settings.model_copy(update={"dataset": dataset}), trained.classifier
        data = build_data(self.settings, classifier.classes, split=asked != "all", device=trained.device)
        super().__init__(data, classifier, build_trainer(self.settings, folder))
        self.part = "test" if asked == "all" else asked
        self.decision = trained.decision or MOST_PROBABLE
        if settings.decision is not None:
            self.decision = self._decide_anew(settings)
        self.seen = self._leave_out_seen(settings, asked)
        same = settings.dataset is None or _images(dataset) == _images(own)
        self.elsewhere = {} if same else {"elsewhere": self._elsewhere(own)}

    def measure(self) -> tuple[dict[str, Any], pd.DataFrame]:
        """metrics.json and the predictions table of the part."""
        predictions, numbers = evaluate(self.predict(self.part), self.decision, self.data.classes)
        metrics = {
            "dataset": self.settings.dataset.name,
            "model": self.settings.model.name,
            self.part: numbers,
            **self.seen,
            **self.elsewhere,
            **self.describe(),
            **provenance(self.settings.seed, self.settings.model_dump(mode="json"), self.trainer.strategy.root_device),
        }
        return metrics, predictions

    def _decide_anew(self, settings: EvaluateSettings) -> Decision:
        """On the validation images of the run, whose predictions its checkpoint holds; kept there where asked for.

        Raises:
            UserError: it holds none.
        """
        assert settings.decision is not None
        if "validation" not in self.about:
            raise UserError(f"{self.checkpoint} is of a run that did not finish: resume=<run folder> finishes it")
        try:
            validation = pd.DataFrame(self.about["validation"])
            probabilities = validation[[PROBABILITY + name for name in self.data.classes]].to_numpy(float)
            of_classes = (validation["label"].map(self.data.classes) == validation["defective"]).all()
            whole = bool(of_classes and ((probabilities >= 0) & (probabilities <= 1)).all())
        except (ValueError, TypeError, KeyError):
            whole = False
        if not whole:
            raise UserError(f"{self.checkpoint} is damaged: its validation images are no table of its classes' scores")
        decision = choose_decision(settings.decision, validation, self.data.classes, settings.prevalence)
        if settings.update_checkpoint:
            keep_decision(torch.load(self.checkpoint, map_location="cpu", weights_only=True), decision, self.checkpoint)
        return decision

    def _leave_out_seen(self, settings: EvaluateSettings, asked: str) -> dict[str, Any]:
        """What metrics.json says of photos that the model has seen; but for its own parts they are taken out.

        Raises:
            UserError: no other photo is left.
        """
        if "seen" not in self.about:
            log.warning("%s does not tell which photos it learned from: these may be among them", self.checkpoint)
            return {}
        identical, near, own_test = find_seen(self.about["seen"], self.data, self.part)
        asked_for = settings.dataset is None and (own_test or asked in ("train", "val"))
        known, leave_out = identical | near, settings.seen == "leave_out" and not asked_for
        if leave_out and known.size and known.all():
            raise UserError(
                f"the model has learned from all {len(known)} photos, or was chosen on them: give others by "
                "dataset=<name>, or measure these with seen=keep"
            )
        if leave_out:
            self.data.samples.loc[self.data.part(self.part)[known], "split"] = "seen"
        counts = {"n": known.sum(), "identical": identical.sum(), "near": near.sum(), "of": len(known)}
        seen = {name: int(count) for name, count in counts.items()} | {"left_out": leave_out}
        for words in seen_words(seen):
            log.warning("%s", words)
        return {"seen": seen}

    def _elsewhere(self, own: DatasetSettings) -> dict[str, Any]:
        """What metrics.json says of the dataset that the model was trained on, and of its `test` part, judged alike."""
        file = self.checkpoint.parent.parent / "metrics.json"
        test: dict[str, Any] = {}
        if self.checkpoint.parent.name == "checkpoints" and file.is_file():  # else it is no file of this run
            try:
                known = read_json(file, "the run's own test images are not compared with", ("test", "decision"))
                test = known["test"] if known["decision"] == json.loads(json.dumps(self.decision.plain())) else {}
            except UserError as error:
                log.warning("%s", error)
        here = self.settings.dataset
        return {"trained_on": _name_beside(own, here), "judged_on": _name_beside(here, own), "test": test}


def _images(dataset: DatasetSettings) -> tuple[Any, ...]:
    """What says which images a dataset has."""
    return dataset.name, dataset.root.resolve(), dataset.further


def _name_beside(dataset: DatasetSettings, other: DatasetSettings) -> str:
    """A dataset's name; beside one of the same name with the options, or the folder, that tell the two apart."""
    if dataset.name != other.name:
        return dataset.name
    differing = {key: value for key, value in dataset.further.items() if value != other.further.get(key)}
    told = [f"{key}: {', '.join(map(str, v)) if isinstance(v, list) else v}" for key, v in differing.items()]
    return f"{dataset.name} ({', '.join(told) or dataset.root})"


def _as_shipped(own: DatasetSettings, checkpoint: Path) -> DatasetSettings:
    """The dataset of a checkpoint: of the file are the values that select images, which are only read.

    Raises:
        UserError: it is no dataset of conf/.
    """
    shipped = shipped_datasets().get(own.target)
    if shipped is None:
        raise UserError(
            f"{checkpoint} was trained on '{own.name}', which is no dataset of this installation, and the class "
            f"that it names, {own.target}, is not imported: name the dataset again, dataset=<name>"
        )
    if not own.root.is_dir():
        again = f"dataset={shipped['name']} dataset.root=<folder>"
        raise UserError(f"{checkpoint} was trained on images in {own.root}, which does not exist: say where, {again}")
    log.info("images from %s, as the checkpoint says", own.root)
    update = {key: shipped[key] for key in OF_HERE} | ({"draw": False} if "draw" in shipped else {})
    return DatasetSettings(**own.model_dump() | update)
