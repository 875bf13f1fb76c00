"""The types of the verbs' configurations, but for that of `train`, which settings.py has."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from defectcls import settings


class FindSettings(settings.Settings):
    wrong_labels: bool
    folds: settings.Several
    c: settings.Positive


class AuditSettings(settings.TrainSettings):
    audit: FindSettings


class CrossvalSettings(settings.TrainSettings):
    folds: settings.Several
    repeats: PositiveInt


class TrainedSettings(settings.Settings):
    """Where and in what a trained model computes."""

    root: Path | None
    imports: list[str]
    device: settings.Device
    precision: settings.Precision | None


class EvaluateSettings(TrainedSettings):
    checkpoint: Path | None
    predictions: Path | None
    part: Literal["train", "val", "test", "all"] | None
    augment: settings.AugmentSettings
    dataset: settings.DatasetSettings | None
    decision: settings.DecisionSettings | None
    update_checkpoint: bool
    inspect: settings.InspectSettings
    seen: Literal["leave_out", "keep"]

    def mistakes(self) -> Iterator[str]:
        if (self.checkpoint is None) == (self.predictions is None):
            yield "give checkpoint=<run folder> or predictions=<csv>, one of both"
        if self.update_checkpoint and (self.checkpoint is None or self.decision is None):
            yield "update_checkpoint=true needs checkpoint=<run folder> and decision=<policy>"


class PredictSettings(TrainedSettings):
    checkpoint: Path
    input: Annotated[str, settings.Text]
    output: Path | None
    overwrite: bool
    batch_size: PositiveInt
    gallery: Annotated[int, Field(ge=0)]
    heat_maps: bool
    watch: bool
    watch_seconds: settings.Positive

    def mistakes(self) -> Iterator[str]:
        if self.heat_maps and not self.gallery:
            yield "heat_maps=true shows them in the gallery: gallery=200, not 0"
        if self.watch and self.output is None:
            yield "watch=true needs output=<file>.csv, which remembers what has been predicted"
        if self.watch and not Path(self.input).is_dir():
            yield f"watch=true needs a folder, and input={self.input} is none"


class CompareSettings(settings.Settings):
    runs: list[Path]
    metrics: list[Literal["recall", "overkill_rate", "precision", "f1", "accuracy", "auroc", "average_precision"]]
    level: Annotated[float, Field(gt=0.5, lt=1)]
    resamples: Annotated[int, Field(ge=100)]
    seed: Annotated[int, Field(ge=0)]

    def mistakes(self) -> Iterator[str]:
        if len(self.runs) < 2:
            yield "give two or more: python -m defectcls.compare <run> <run>"
        if not self.metrics:
            yield "give metrics, such as metrics=[recall,auroc]"
