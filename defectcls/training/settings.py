"""What verbs take that search, train several times or evaluate, beside what a run is made of; it imports no torch."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, Field, PositiveInt

from defectcls.settings import (
    AugmentSettings,
    DatasetSettings,
    DecisionSettings,
    Inside,
    InspectSettings,
    Positive,
    RaySettings,
    Settings,
    Several,
    Text,
    TrainedSettings,
    TrainSettings,
    without_password,
)


class FindSettings(Settings):
    wrong_labels: bool
    folds: Several
    c: Positive


class AuditSettings(TrainSettings):
    audit: FindSettings


class CrossvalSettings(TrainSettings):
    folds: Several
    repeats: PositiveInt


class AutoSettings(TrainSettings):
    minutes: Positive
    repeats: PositiveInt
    candidates: Annotated[list[str], Field(min_length=1)]
    evaluation: Literal["crossval"]


class TuneSettings(TrainSettings):
    n_trials: PositiveInt
    space: dict[str, Annotated[str, Text]]
    sampler: Literal["tpe", "gp", "random", "grid"]
    objectives: Annotated[list[str], Field(min_length=1)]
    prune: bool
    finalists: PositiveInt
    seeds: PositiveInt
    study: Annotated[str, Text]
    storage: Annotated[str, AfterValidator(without_password)] | None
    lease_s: Positive
    ray: RaySettings
    workers: PositiveInt
    slurm: Annotated[str, Text] | None


class EvaluateSettings(TrainedSettings):
    checkpoint: Path | None
    predictions: Path | None
    audited: Annotated[str, Text] | None
    since: AwareDatetime
    at_most: Inside
    part: Literal["train", "val", "test", "all"] | None
    augment: AugmentSettings
    dataset: DatasetSettings | None
    decision: DecisionSettings | None
    update_checkpoint: bool
    inspect: InspectSettings
    seen: Literal["leave_out", "keep"]

    def model_post_init(self, _: Any) -> None:
        if (self.checkpoint is None) == (self.predictions is None):
            raise ValueError("give checkpoint=<run folder> or predictions=<csv>, one of both")
        if self.audited is not None and self.checkpoint is None:
            raise ValueError("audited=<database> needs checkpoint=<the .onnx file or run that accepted the photos>")
        if self.update_checkpoint and (self.checkpoint is None or self.decision is None):
            raise ValueError("update_checkpoint=true needs checkpoint=<run folder> and decision=<policy>")
