"""Train a run and measure it."""

import logging
import time
import timeit
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import torch
from lightning.pytorch.loggers import Logger

from defectcls.config import flat
from defectcls.data.datamodule import DefectDataModule
from defectcls.data.findings import remember_seen
from defectcls.data.masks import mask_sizes
from defectcls.data.splits import PARTS
from defectcls.errors import UserError
from defectcls.evaluation.decision import MOST_PROBABLE, Decision, choose_decision, refuse_missing_kind
from defectcls.evaluation.evaluate import evaluate
from defectcls.evaluation.predictions import PROBABILITY, predictions_table, probabilities_of
from defectcls.files import written_whole
from defectcls.model.backbone import PIECE
from defectcls.model.checkpoint import completed
from defectcls.model.classifier import Classifier
from defectcls.model.features import copy_of, extract_features
from defectcls.model.head import FOLDS, fit_members, fit_probe
from defectcls.model.likeness import learn_likeness
from defectcls.model.network import Network
from defectcls.settings import TrainSettings
from defectcls.training.build import build_classifier, build_data, build_features, build_trainer, deal, with_compute
from defectcls.training.record import Record, read_checkpoint, stage_summary
from defectcls.training.results import finished_run, provenance, since_run

log = logging.getLogger(__name__)

# Keys that a run may go on with otherwise than it began: where it computes, what it stores, how it is told and judged.
MAY_CHANGE = ("resume", "logger.", "trainer.", "inspect.", "decision.", "dataset.cache")


class Run:
    """A data module, a classifier and a trainer that fit together, and the seconds that their phases took.

    `samples` is the sample table, with the size of each defect that has a mask: one that cannot be read is told now.
    """

    def __init__(
        self, settings: TrainSettings, data: DefectDataModule, classifier: Classifier, trainer: L.Trainer
    ) -> None:
        self.settings, self.data, self.classifier, self.trainer = settings, data, classifier, trainer
        self.samples = data.samples
        if "mask" in self.samples:
            sizes = mask_sizes(self.samples, data.settings.root, max(data.images.size))
            self.samples = self.samples.assign(mask_size=sizes)
        self.decision = MOST_PROBABLE
        self.predicted: dict[str, pd.DataFrame] = {}  # what `predict` says of a part
        self.out_of_fold: tuple[str, ...] = ()  # parts whose photos are judged by members that have not seen them
        self.about: dict[str, Any] = {}  # what metrics.json says beside the numbers
        self.seconds: dict[str, float] = {}
        self.images_per_second: dict[str, float] = {}

    @contextmanager
    def timed(self, phase: str, images: int = 0) -> Iterator[None]:
        """Add to `seconds`, and to `images_per_second` where images are counted."""
        start = time.perf_counter()
        yield
        self.seconds[phase] = time.perf_counter() - start
        if images:
            self.images_per_second[phase] = images / self.seconds[phase]

    def predict(self, part: str) -> pd.DataFrame:
        """Predictions table of one part, as the network has it: not calibrated, the most probable class predicted.

        Computed once.
        """
        if part not in self.predicted:
            with self.timed(f"evaluate {part}", len(self.data.part(part))):
                self.trainer.test(self.classifier, dataloaders=self.data.part_dataloader(part), verbose=False)
            self.predicted[part] = self._evaluated()
        return self.predicted[part]

    def _evaluated(self) -> pd.DataFrame:
        """Predictions table of what was evaluated last, after which Lightning has left the network on the CPU."""
        self.classifier.to(self.trainer.strategy.root_device)
        index, logits = self.classifier.evaluated
        return predictions_table(self.samples.loc[index], probabilities_of(logits), self.data.classes)

    def measure(self, parts: Sequence[str] = PARTS) -> tuple[dict[str, Any], pd.DataFrame]:
        """metrics.json and the predictions table of these parts, decided.

        Of a cross-validated run `val` has what is said out of fold, and without a part that is tested so has `test`.
        """
        if self.out_of_fold:  # what the members have learned from is told so
            parts = [part for part in parts if part != "train"]
        judged: dict[str, tuple[pd.DataFrame, dict[str, Any]]] = {}
        for part in parts:
            table = self.predict(part)
            again = part == "test" and "val" in judged and table is self.predicted["val"]
            judged[part] = judged["val"] if again else evaluate(table, self.decision, self.data.classes)
        settings, joined = self.settings, self.classifier.joined
        name = "memory" if settings.model.head == "memory" else "joined"
        metrics: dict[str, Any] = {
            "dataset": settings.dataset.name,
            "model": settings.model.name,
            **{part: numbers for part, (_, numbers) in judged.items()},
            "out_of_fold": {part: self.classifier.members for part in self.out_of_fold if part in judged},
            **self.about,
            **({} if joined is None else {"head": {"name": name} | joined.describe()}),
            "class_names": [*self.data.classes],
            "defective_classes": [*self.data.classes.values()],
            "decision": self.decision.plain(),
            "unreadable": self.data.unreadable,
            "verdicts": {key: value for key, value in self.data.overlay.items() if key != "labels"},
            "depth": self.data.settings.depth,
            "seconds": self.seconds,
            "images_per_second": self.images_per_second,
            **provenance(settings.seed, settings.model_dump(mode="json"), self.trainer.strategy.root_device),
        }
        rows = [table[table["split"] == part] for part, (table, _) in judged.items()]
        return metrics, pd.concat(rows).sort_index()

    def ms_per_photo(self) -> float:
        """What the network takes here, without reading the photo: the least of four tries."""
        photos, infer = self.data.images[np.arange(PIECE) % len(self.samples)], self.classifier.inference()
        took = min(timeit.repeat(lambda: infer(photos).cpu(), number=1, repeat=4))
        return 1000 * took / PIECE  # a CPU never infers fewer

    def close(self) -> None:
        """Let go of the other processes."""
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


class TrainingRun(Run):
    """A run that trains: from the probe through the stages to the best checkpoint.

    Args:
        data: read before, for another split; None reads what the settings say.
        fetch: weights from the hub, where they are not on this machine.
    """

    def __init__(
        self,
        settings: TrainSettings,
        folder: Path,
        logger: Logger | None,
        data: DefectDataModule | None = None,
        fetch: bool = True,
    ) -> None:
        start = time.perf_counter()
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.record = folder, Record(folder, settings.finetune.patience)
        remembered: dict[str, Any] = {}
        if self.record.last.is_file():
            remembered = read_checkpoint(self.record.last)["defectcls"]
            then = flat(completed(remembered["config"]))
            found = {name for name in ("image_size", "evaluation") if getattr(settings, name) == "auto"}
            if found:  # as it was then: photos may have come since
                settings = TrainSettings(**settings.model_dump() | {name: then[name] for name in found})
            now = flat(settings.model_dump(mode="json"))
            may_change = (*MAY_CHANGE, *["dataset.depth"] * (settings.dataset.depth == "auto"))
            for key in then | now:
                if then.get(key) != now.get(key) and not key.startswith(may_change):
                    raise UserError(
                        f"this run was begun with {key}={then.get(key)}, and now it is {now.get(key)}: leave that out "
                        f"of resume={folder}, or begin another run"
                    )
        run = settings.earlier
        earlier = None if run is None else finished_run("from", run)  # told before photos are read
        settings = with_compute(settings)
        trainer = build_trainer(settings, folder, logger, self.record)
        if data is None:
            overlay = remembered.get("overlay")  # verdicts may have come since
            data = build_data(settings, split=False, device=trainer.strategy.root_device, overlay=overlay)
        since: dict[str, Any] = {}
        if earlier is not None:
            data.kept, new = since_run(*earlier, data.samples)
            since["from"] = {"run": str(run)} | new
        evaluation = deal(settings, data, learns=True)
        judging = data.part("train" if evaluation == "crossval" else "val")
        refuse_missing_kind(settings.decision, data.samples["defective"].to_numpy(bool)[judging])
        # Without any `auto` that another machine, or other photos, would resolve otherwise.
        dataset = settings.dataset.model_copy(update={"depth": data.settings.depth})
        resolved = {"dataset": dataset, "image_size": data.image_size, "evaluation": evaluation}
        settings = settings.model_copy(update=resolved)
        self.record.about = {"config": settings.model_dump(mode="json"), "overlay": data.overlay}
        L.seed_everything(settings.seed, workers=True, verbose=False)
        classifier = build_classifier(settings, data, fetch).to(trainer.strategy.root_device)
        stages = settings.finetune.stages.values()
        if settings.finetune.probe or any(stage.trainable == "head" for stage in stages):
            with_map = classifier.joined is not None
            classifier.stored_features = build_features(settings, data, classifier.backbone, with_map)
        super().__init__(settings, data, classifier, trainer)
        self.seconds["data"], self.about = time.perf_counter() - start, since

    def train(self) -> None:
        """Probe and stages; ends with the best weights in place. Goes on from last.ckpt where there is one."""
        record, finetune = self.record, self.settings.finetune
        goes_on = record.last.is_file()
        if goes_on:
            last = read_checkpoint(record.last)["defectcls"]
            record.history, record.fitted = last["history"], last["fitted"]
        elif finetune.probe:
            self._probe()
        if finetune.stages:
            if not record.fitted:
                from_file = str(record.last) if goes_on else None
                with self.timed("fit"):
                    self.trainer.fit(self.classifier, datamodule=self.data, ckpt_path=from_file, weights_only=True)
            speeds = [row["images_per_second"] for row in record.history if "images_per_second" in row]
            self.images_per_second["fit"] = float(np.median(speeds))
        self.about["stages"] = stage_summary(record.history)
        for stage in self.about["stages"]:
            if stage["rolled_back"]:
                log.warning("stage '%s' did not better what came before it: rolled back", stage["name"])
        best = read_checkpoint(record.best)
        self.classifier.load_state_dict(best["state_dict"])
        self._choose_decision(best)

    def _probe(self) -> None:
        """Learn from what a frozen backbone makes of the images: the first candidate for the best checkpoint."""
        classifier, data, finetune, seed = self.classifier, self.data, self.settings.finetune, self.settings.seed
        rows, views, stored = data.part("train"), finetune.probe_views, classifier.stored_features
        weights, loader = classifier.hparams["class_weights"], data.part_dataloader("train")
        assert stored is not None
        joined, said, folds = classifier.joined, None, data.folds(rows, FOLDS)
        if self.settings.model.head != "memory":
            with self.timed("probe", len(rows) * (1 + views) + len(data.part("val"))):
                copies = [copy_of(number, classifier.augment, seed) for number in range(1 + views)]
                train = extract_features(stored, loader, copies)
                if classifier.members > 1:
                    tested = np.mean([extract_features(stored, loader, [way])[0] for way in classifier.ways], 0)
                    heads, said = fit_members(train, tested, folds, finetune.probe_c, weights, views)
                else:
                    val = extract_features(stored, data.part_dataloader("val"))
                    heads = [fit_probe(train, val, finetune.probe_c, weights, views)]
                classifier.head.load(*heads)
            log.info("probe: C = %g", heads[0].c)
        if joined is not None:
            with self.timed("memory", len(rows)):
                maps = lambda: (stored.look(batch)[1] for batch in loader)  # noqa: E731
                defective = np.array([*data.classes.values()])[data.targets[rows]]
                said = joined.learn(maps, said, defective, folds, seed).cpu().numpy()
            told = joined.describe()
            log.info("memory: %(bank)d patches; it weighs %(memory).2f, the classifier %(classifier).2f", told)
        if self.settings.evaluation == "crossval":
            assert said is not None
            self._judge_out_of_fold(rows, folds, said)
        else:
            self.trainer.validate(classifier, datamodule=data, verbose=False)
            validated = self._evaluated()
            if not finetune.stages:  # no other weights will be the best
                self.predicted["val"] = validated

    def _judge_out_of_fold(self, rows: np.ndarray, folds: np.ndarray, said: np.ndarray) -> None:
        """Take what members say of images that they have not seen, (rows, classes), for the validation, and for the
        test where no part is tested.
        """
        classifier, count = self.classifier, len(self.data.samples)
        classifier.folds = torch.full((count,), -1)
        classifier.folds[rows] = torch.from_numpy(folds)
        classifier.out_of_fold = torch.full((count, len(self.data.classes)), torch.nan)
        classifier.out_of_fold[rows] = torch.from_numpy(said).float()
        self.trainer.validate(classifier, dataloaders=self.data.part_dataloader("train"), verbose=False)
        classifier.out_of_fold = None
        self.out_of_fold = ("val",) if len(self.data.part("test")) else ("val", "test")
        table = self._evaluated().assign(split=self.out_of_fold[-1])
        self.predicted |= dict.fromkeys(self.out_of_fold, table)

    def _choose_decision(self, best: dict[str, Any]) -> None:
        """On the validation images; kept in the best checkpoint, with what the choice rests on."""
        validation = self.predict("val")
        self.decision = choose_decision(self.settings.decision, validation, self.data.classes)
        columns = ["label", "defective", "unit", *(PROBABILITY + name for name in self.data.classes)]
        best["defectcls"]["validation"] = validation.filter(columns).to_dict("list")
        best["defectcls"]["seen"] = remember_seen(self.data, self.classifier.folds)
        if self.trainer.is_global_zero:
            if type(self.classifier).forward is Network.forward:  # another one may look at anything
                measured = validation.drop_duplicates("unit").index.to_numpy()
                frozen = self.classifier.stored_features
                best["defectcls"] |= learn_likeness(self.classifier.backbone, frozen, self.data, measured)
            keep_decision(best, self.decision, self.record.best)


def keep_decision(content: dict[str, Any], decision: Decision, path: Path) -> None:
    """Write a checkpoint with its decision."""
    content["defectcls"]["decision"] = decision.plain()
    with written_whole(path) as unfinished:
        torch.save(content, unfinished)
