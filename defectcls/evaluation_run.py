"""A trained model, measured again: on its own images, or on another dataset."""

import json
import logging
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from defectcls.build import build_data, build_trainer, device_of
from defectcls.data.listing import fetch, list_samples
from defectcls.data.samples import classes_of, label_samples
from defectcls.errors import UserError
from defectcls.evaluation.decision import Decision, choose_decision
from defectcls.evaluation.metrics import defect_numbers
from defectcls.prediction.predictor import load_trained
from defectcls.results import provenance
from defectcls.run import Run, keep_decision
from defectcls.settings import DatasetSettings, EvaluateSettings, TrainSettings

log = logging.getLogger(__name__)


class EvaluationRun(Run):
    """A trained model on one part of its own dataset, or of another, computed as it was in training."""

    def __init__(self, settings: EvaluateSettings, folder: Path) -> None:
        assert settings.checkpoint is not None
        self.part = settings.part or ("test" if settings.dataset is None else "all")
        checkpoint, classifier, trained, about = load_trained(settings.checkpoint)
        own = trained.dataset
        if own.cache == "device":  # of the machine that it was trained on
            own = own.model_copy(update={"cache": "auto"})
        dataset = own if settings.dataset is None else settings.dataset.model_copy(update={"resize": own.resize})
        self.trained = trained.model_copy(update={"dataset": dataset})
        if self.part in ("train", "all") and _share_images(dataset, own):
            log.warning("these images are, or hold, the ones that the model learnt from: new ones it will judge worse")
        if settings.dataset is not None and trained.target == "defect_type":
            _refuse_other_classes(dataset, trained, list(classifier.classes))
        device = device_of(self.trained.trainer)
        data = build_data(self.trained, classifier.classes, split=self.part != "all", device=device)
        super().__init__(data, classifier, build_trainer(self.trained.trainer, folder, None, []))
        if settings.decision is not None:
            if "validation" not in about:
                raise UserError(f"{checkpoint} is of a run that did not finish: resume=<run folder> finishes it")
            validation = pd.DataFrame(about["validation"])
            self.decision = choose_decision(settings.decision, validation, *self.classes, dataset.prevalence)
            if settings.update_checkpoint:
                content = torch.load(checkpoint, map_location="cpu", weights_only=True)
                keep_decision(content, self.decision, checkpoint)
        elif "decision" in about:
            self.decision = Decision.from_plain(about["decision"])
        self.elsewhere = {} if _images(dataset) == _images(own) else {"elsewhere": self._elsewhere(own, checkpoint)}

    def _elsewhere(self, own: DatasetSettings, checkpoint: Path) -> dict[str, Any]:
        """What metrics.json says of the dataset that the model was trained on, and of its `test` part where known."""
        here = self.trained.dataset
        names = [_dataset_name(own, here), _dataset_name(here, own)]
        file, known = checkpoint.parent.parent / "metrics.json", {}
        if checkpoint.parent.name == "checkpoints" and file.is_file():  # else it is no file of this run
            known = json.loads(file.read_text(encoding="utf-8"))
        test = known.get("test", {})
        if test and known.get("decision") != json.loads(json.dumps(self.decision.plain())):
            found = defect_numbers(test)  # of which all but the AUROC are of another threshold
            auroc = {"auroc": found["intervals"].get("auroc")}
            test = {"n": test["n"], "auroc": found["auroc"], "intervals": auroc}
        return {"trained_on": names[0], "judged_on": names[1], "test": test}

    def measure(self) -> tuple[dict[str, Any], pd.DataFrame]:
        """metrics.json and the predictions table of the part."""
        part = "test" if self.part == "all" else self.part
        predictions, numbers = self.judge(part)
        metrics = {
            "dataset": self.trained.dataset.name,
            "model": self.trained.model.name,
            part: numbers,
            **self.elsewhere,
            **self.describe(),
            **provenance(self.trained.seed, self.trained.model_dump(mode="json")),
        }
        return metrics, predictions


def _images(dataset: DatasetSettings) -> tuple[Any, ...]:
    """What says which images a dataset has."""
    return dataset.name, dataset.root.resolve(), dataset.model_extra


def _categories(dataset: DatasetSettings) -> list[str]:
    """The categories that were chosen; empty for all."""
    chosen = (dataset.model_extra or {}).get("categories")
    return chosen if isinstance(chosen, list) else []


def _dataset_name(dataset: DatasetSettings, beside: DatasetSettings) -> str:
    """Its name, and what tells it from another one."""
    told = [_listed(_categories(dataset))]
    if dataset.name == beside.name:
        options, others = dataset.model_extra or {}, beside.model_extra or {}
        told = [f"{key}: {_listed(value)}" for key, value in options.items() if value != others.get(key)]
        told += [str(dataset.root)] if dataset.root.resolve() != beside.root.resolve() else []
    return f"{dataset.name} ({', '.join(told)})" if any(told) else dataset.name


def _listed(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _share_images(one: DatasetSettings, other: DatasetSettings) -> bool:
    chosen = [set(_categories(dataset)) for dataset in (one, other)]
    return one.root.resolve() == other.root.resolve() and not (all(chosen) and chosen[0].isdisjoint(chosen[1]))


def _refuse_other_classes(dataset: DatasetSettings, trained: TrainSettings, known: list[str]) -> None:
    """Before the images are read.

    Raises:
        UserError: a class that the model does not know.
    """
    fetch(dataset)
    samples = list_samples(dataset)
    if "defect_type" not in samples:
        found = "no defect types"
    else:
        names = list(classes_of(label_samples(samples, "defect_type")))
        if set(names) <= set(known):
            return
        found = ", ".join(names)
    again = f"python -m defectcls.train dataset={trained.dataset.name} target=defect"
    raise UserError(
        f"the classes do not match: the model knows {', '.join(known)}, and {dataset.name} has {found}; a model of "
        f"sound and defective can be judged on both: {again}"
    )
