"""A trained model, measured again: on its own images, or on another dataset."""

import json
import logging
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from defectcls.config import parse, shipped_datasets
from defectcls.data.datamodule import DefectDataModule
from defectcls.data.samples import classes_of, label_samples
from defectcls.data.seen import find_seen
from defectcls.errors import UserError
from defectcls.evaluation.decision import choose_decision
from defectcls.evaluation.metrics import defect_numbers
from defectcls.evaluation.predictions import PROBABILITY
from defectcls.model.checkpoint import load_trained
from defectcls.pages.caveats import seen_words
from defectcls.settings import DatasetSettings, TrainSettings
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
        self.part = settings.part or ("test" if settings.dataset is None else "all")
        checkpoint, classifier, trained, about, decision, device = load_trained(
            settings.checkpoint, settings.device, settings.precision
        )
        own = trained.dataset
        if settings.dataset is None:
            dataset = _as_shipped(own, checkpoint)
        else:
            dataset = settings.dataset.model_copy(update={"resize": own.resize, "depth": own.depth})
        self.trained = trained.model_copy(update={"dataset": dataset})
        if settings.dataset is not None and trained.target == "defect_type":
            _refuse_other_classes(dataset, trained, list(classifier.classes))
        data = build_data(self.trained, classifier.classes, split=self.part != "all", device=device)
        super().__init__(data, classifier, build_trainer(self.trained.trainer, folder, None, []))
        self.seen = self._leave_out_seen(settings, about, checkpoint)
        if settings.decision is not None:
            if "validation" not in about:
                raise UserError(f"{checkpoint} is of a run that did not finish: resume=<run folder> finishes it")
            validation = _validation(about["validation"], classifier.classes, checkpoint)
            self.decision = choose_decision(settings.decision, validation, *self.classes, settings.prevalence)
            if settings.update_checkpoint:
                content = torch.load(checkpoint, map_location="cpu", weights_only=True)
                keep_decision(content, self.decision, checkpoint)
        elif decision is not None:
            self.decision = decision
        same = settings.dataset is None or _images(dataset) == _images(own)
        self.elsewhere = {} if same else {"elsewhere": self._elsewhere(own, checkpoint)}

    def _leave_out_seen(self, settings: EvaluateSettings, about: dict[str, Any], checkpoint: Path) -> dict[str, Any]:
        """What metrics.json says of photos that the model has seen; but for its own parts they are taken out.

        Raises:
            UserError: no other photo is left.
        """
        if "seen" not in about:
            log.warning("%s does not tell which photos its model has learned from: these may be among them", checkpoint)
            return {}
        part = "test" if self.part == "all" else self.part
        identical, near, own_test = find_seen(about["seen"], self.data, part)
        asked_for = settings.dataset is None and (own_test or self.part in ("train", "val"))
        known, leave_out = identical | near, settings.seen == "leave_out" and not asked_for
        if leave_out and known.size and known.all():
            raise UserError(
                f"the model has learned from all {len(known)} photos, or was chosen on them: give others by "
                "dataset=<name>, or measure these with seen=keep"
            )
        if leave_out:
            self.data.samples.loc[self.data.part(part)[known], "split"] = "seen"
        counts = {"n": known.sum(), "identical": identical.sum(), "near": near.sum(), "of": len(known)}
        seen = {name: int(count) for name, count in counts.items()} | {"left_out": leave_out}
        for words in seen_words(seen):
            log.warning("%s", words)
        return {"seen": seen}

    def _elsewhere(self, own: DatasetSettings, checkpoint: Path) -> dict[str, Any]:
        """What metrics.json says of the dataset that the model was trained on, and of its `test` part where known."""
        here = self.trained.dataset
        names = [_dataset_name(own, here), _dataset_name(here, own)]
        file, test = checkpoint.parent.parent / "metrics.json", {}
        if checkpoint.parent.name == "checkpoints" and file.is_file():  # else it is no file of this run
            try:
                known = json.loads(file.read_text(encoding="utf-8"))
                test = known.get("test", {})
                if test and known.get("decision") != json.loads(json.dumps(self.decision.plain())):
                    found = defect_numbers(test)  # of which all but the AUROC are of another threshold
                    auroc = {"auroc": found["intervals"].get("auroc")}
                    test = {"n": test["n"], "auroc": found["auroc"], "intervals": auroc}
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                log.warning("%s is damaged: the run's own test images are not compared with (%r)", file, error)
                test = {}
        return {"trained_on": names[0], "judged_on": names[1], "test": test}

    def measure(self) -> tuple[dict[str, Any], pd.DataFrame]:
        """metrics.json and the predictions table of the part."""
        part = "test" if self.part == "all" else self.part
        predictions, numbers = self.judge(part)
        metrics = {
            "dataset": self.trained.dataset.name,
            "model": self.trained.model.name,
            part: numbers,
            **self.seen,
            **self.elsewhere,
            **self.describe(),
            **provenance(self.trained.seed, self.trained.model_dump(mode="json"), self.trainer.strategy.root_device),
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
    return parse(DatasetSettings, own.model_dump() | update)


def _validation(values: Any, classes: dict[str, bool], checkpoint: Path) -> pd.DataFrame:
    """The predictions of the validation images that a checkpoint holds.

    Raises:
        UserError: they are none.
    """
    try:
        validation = pd.DataFrame(values)
        right = (validation["label"].map(classes) == validation["defective"]).all()
        probabilities = validation[[PROBABILITY + name for name in classes]].to_numpy(float)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{checkpoint} is damaged: its validation images are no table ({error})") from error
    if not right or not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise UserError(f"{checkpoint} is damaged: its validation images have other classes, or no probabilities")
    return validation


def _refuse_other_classes(dataset: DatasetSettings, trained: TrainSettings, known: list[str]) -> None:
    """Before the images are read.

    Raises:
        UserError: a class that the model does not know.
    """
    data = DefectDataModule.from_settings(trained.model_copy(update={"dataset": dataset}))
    data.prepare_data()
    samples = data.sample_table()
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
