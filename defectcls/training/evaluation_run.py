"""A trained model, measured again: on its own images, or on another dataset."""

import logging
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from defectcls.config import presets, shipped_dataset
from defectcls.data.findings import find_seen
from defectcls.errors import UserError
from defectcls.evaluation.decision import MOST_PROBABLE, Decision, choose_decision
from defectcls.model.checkpoint import Trained, load_trained
from defectcls.model.classifier import Classifier
from defectcls.settings import DatasetSettings
from defectcls.training.build import build_data, build_trainer
from defectcls.training.run import Run, keep_decision
from defectcls.training.settings import EvaluateSettings

log = logging.getLogger(__name__)

# Not a checkpoint's to say:
OF_HERE = ("_target_", "source", "archive", "download", "cache", "cache_dir", "cache_max_gb", "verdicts")


class EvaluationRun(Run):
    """A trained model on one part of its own dataset, or of another, computed as it was in training."""

    def __init__(self, asked: EvaluateSettings, folder: Path) -> None:
        assert asked.checkpoint is not None
        trained = load_trained(asked.checkpoint, asked.device, asked.precision, for_trainer=True)
        own, part = trained.settings.dataset, asked.part or ("test" if asked.dataset is None else "all")
        if asked.dataset is None:
            dataset = _as_shipped(own, trained.checkpoint, asked.imports)
        else:
            dataset = asked.dataset.model_copy(update={"resize": own.resize, "depth": own.depth})
        settings, classifier = trained.settings.model_copy(update={"dataset": dataset}), trained.network
        assert isinstance(classifier, Classifier)
        overlay = {"labels": trained.labels} if asked.dataset is None and trained.labels else None
        data = build_data(settings, classifier.classes, part != "all", trained.device, overlay)
        if "seen" in trained.about and asked.dataset is None and part == "test" and not len(data.part("test")):
            data.samples["split"] = "test"  # the run set nothing aside
        super().__init__(settings, data, classifier, build_trainer(settings, folder))
        self.part = "test" if part == "all" else part
        self.decision = _decide_anew(trained, asked) if asked.decision else trained.decision or MOST_PROBABLE
        if "seen" in trained.about:
            self._leave_out_seen(trained.about["seen"], asked)
        else:
            log.warning("%s does not tell which photos it learned from: these may be among them", trained.checkpoint)
        images = [(one.name, one.root.resolve(), one.further) for one in (own, dataset)]
        if asked.dataset is not None and images[0] != images[1]:
            names = [one.name if own.name != dataset.name else f"{one.name} ({one.root})" for one in (own, dataset)]
            self.about["elsewhere"] = dict(zip(("trained_on", "judged_on"), names, strict=True))
        if not len(data.part(self.part)):
            raise UserError(
                f"no photo stands in part={part}: give others by dataset=<name>, or part=train, which it has learned "
                "from; a cross-validated run that is finished is judged out of fold by part=test"
            )

    def _leave_out_seen(self, seen: Any, asked: EvaluateSettings) -> None:
        """Say which photos the model has seen, and but for its own parts take them out; not all, which is an error.

        Where a cross-validated run has seen all, each is judged by the member that has not.
        """
        identical, near, own_test = find_seen(seen, self.data, self.part)
        folds, members = seen.get("folds"), self.classifier.members
        if folds is not None and identical.all() and self.part == "test" and asked.seen == "leave_out":
            if not (folds.shape == seen["digests"].shape[:1] and torch.isin(folds, torch.arange(members)).all()):
                raise UserError(f"{asked.checkpoint}: the folds that it remembers are damaged")
            fold_of = dict(zip(map(bytes, seen["digests"].numpy()), folds.tolist(), strict=True))
            self.classifier.folds = torch.tensor([fold_of.get(digest, -1) for digest in self.data.digests])
            self.out_of_fold = ("test",)
            return
        asked_for = asked.dataset is None and (own_test or self.part != "test")
        known, leave_out = identical | near, asked.seen == "leave_out" and not asked_for
        if leave_out and known.size and known.all():
            raise UserError(
                f"the model has learned from all {len(known)} photos, or was chosen on them: give others by "
                "dataset=<name>, or measure these with seen=keep"
            )
        if leave_out:
            self.data.samples.loc[self.data.part(self.part)[known], "split"] = "seen"
        counts = {"n": known.sum(), "identical": identical.sum(), "near": near.sum(), "of": len(known)}
        self.about["seen"] = {name: int(count) for name, count in counts.items()} | {"left_out": leave_out}


def _decide_anew(trained: Trained, asked: EvaluateSettings) -> Decision:
    """On the validation images of the run, if its checkpoint holds their predictions; kept there where asked for."""
    file, classes = trained.checkpoint, trained.network.classes
    assert asked.decision is not None
    try:
        decision = choose_decision(asked.decision, pd.DataFrame(trained.about["validation"]), classes)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{file} holds no scores of validation images: finish its run with resume=<run folder>, or it is damaged"
        ) from error
    if asked.update_checkpoint:
        keep_decision(torch.load(file, map_location="cpu", weights_only=True), decision, file)
    return decision


def _as_shipped(own: DatasetSettings, checkpoint: Path, imports: list[str]) -> DatasetSettings:
    """The dataset of a checkpoint: of the file are the values that select images, which are only read.

    Its class is one of this installation, or of the modules that the user imports.
    """
    shipped = shipped_dataset(own.target)
    if shipped is None and own.target.rpartition(".")[0] in imports:
        shipped = presets("dataset_base") | {"name": own.name, "_target_": own.target}
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
