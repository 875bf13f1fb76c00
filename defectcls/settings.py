"""The types of the configuration. Every value comes from conf/: no field here has a default."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt, model_validator

Share = Annotated[float, Field(ge=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Prevalence = Annotated[float, Field(gt=0, lt=1)] | None
Size = Annotated[float, Field(gt=0, lt=1)] | PositiveInt | None
Precision = Annotated[Literal["32", "bf16", "16"], BeforeValidator(str)]  # the command line gives 32 as a number


class Settings(BaseModel):
    """Immutable; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, serialize_by_alias=True)


class OpenSettings(Settings):
    """Further keys are arguments of what the settings are of: a dataset, a loss, the Trainer, a logger."""

    model_config = ConfigDict(extra="allow")

    @property
    def further(self) -> dict[str, Any]:
        """These arguments."""
        return dict(self.model_extra or {})


class SplitSettings(Settings):
    together: list[Literal["group", "identical", "near_identical"]]
    published: bool
    train: Size
    val: Size
    test: Size
    folds: Annotated[int, Field(ge=2)] | None
    fold: Annotated[int, Field(ge=0)]
    anomalies: PositiveInt | None
    hold_out_defect_type: Annotated[str, BeforeValidator(str)] | None

    @model_validator(mode="after")
    def _one_part_takes_the_rest(self) -> "SplitSettings":
        if [self.train, self.val, self.test].count(None) > 1:
            raise ValueError("at most one of train, val and test may be null (all that is left)")
        if self.folds is not None and self.fold >= self.folds:
            raise ValueError(f"fold {self.fold} of {self.folds}: folds are numbered from 0 to {self.folds - 1}")
        if self.folds is not None and (self.anomalies or self.hold_out_defect_type):
            raise ValueError("folds test every image once, anomalies and hold_out_defect_type do not: leave one out")
        return self


class Archive(Settings):
    url: str
    sha256: str
    unpacked_gb: Positive


class DatasetSettings(OpenSettings):
    """What every dataset has; further keys are the options of its class."""

    name: str
    target: str = Field(alias="_target_")  # dotted path of the DefectDataModule
    root: Path
    source: str | None
    archive: Archive | None
    download: bool
    resize: Literal["squash", "pad"]
    depth: Annotated[
        Literal["auto", "8", "10", "12", "14", "16", "float"], BeforeValidator(str)
    ]  # the command line gives 12 as a number
    on_unreadable: Literal["error", "skip"]
    join_spellings: bool
    contradictions: Literal["error", "allow"]
    consecutive: PositiveInt | None
    prevalence: Prevalence
    cache: Annotated[
        Literal["auto", "off", "ram", "disk", "device"],
        BeforeValidator(lambda given: "off" if given is False else given),  # YAML's off
    ]
    cache_dir: Annotated[Path, AfterValidator(Path.expanduser)]
    cache_max_gb: Positive
    split: SplitSettings


class ModelSettings(Settings):
    name: str
    pretrained: bool
    weights: Path | None
    pool: str | None
    head: Literal["linear", "joined", "memory"]
    dropout: Share
    test_views: Literal[1, 2, 4, 8]


class StageSettings(Settings):
    epochs: PositiveInt | None
    steps: PositiveInt | None
    trainable: Literal["head", "all"] | Annotated[float, Field(gt=0, le=1)]
    lr_scale: Positive

    @model_validator(mode="after")
    def _epochs_or_steps(self) -> "StageSettings":
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give epochs or steps, and null for the other")
        return self


class FinetuneSettings(Settings):
    name: str
    probe: bool
    probe_c: list[Positive]
    probe_views: Annotated[int, Field(ge=0)]
    batchnorm: Literal["frozen", "train"]
    stages: dict[str, StageSettings | None]  # null takes a stage away that a preset inherits
    patience: PositiveInt | None

    @model_validator(mode="before")
    @classmethod
    def _stages_are_whole(cls, given: dict[str, Any]) -> dict[str, Any]:
        stages = given.get("stages")
        for name, stage in stages.items() if isinstance(stages, dict) else ():
            if isinstance(stage, dict) and "trainable" not in stage:
                raise ValueError(
                    f"finetune={given.get('name')} has no stage {name}, but {', '.join(stage)} of it is given: "
                    f"finetune.stages.{name}=null leaves it out"
                )
        return given

    @model_validator(mode="after")
    def _something_trains(self) -> "FinetuneSettings":
        if not self.probe and not self.active_stages:
            raise ValueError("neither a probe nor a stage: nothing would be trained")
        return self

    @property
    def active_stages(self) -> dict[str, StageSettings]:
        """The stages that are not null, in order."""
        return {name: stage for name, stage in self.stages.items() if stage is not None}


class OptimSettings(Settings):
    name: str
    lr: Positive
    weight_decay: NonNegative
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None
    options: dict[str, Any]
    schedule: Literal["cosine", "tanh", "wsd", "constant"]
    warmup: Share
    min_lr_ratio: Share
    clip: Positive | None


class LossSettings(OpenSettings):
    target: str = Field(alias="_target_")
    class_weights: Literal["auto", "balanced", "none"] | dict[str, Positive]


class DecisionSettings(Settings):
    policy: Literal["balanced", "argmax", "f1", "recall", "precision", "fpr", "cost", "review"]
    target: Annotated[float, Field(gt=0, lt=1)]
    escape_cost: Positive
    overkill_cost: Positive
    escape_rate: Annotated[float, Field(gt=0, lt=1)]
    overkill_rate: Annotated[float, Field(gt=0, lt=1)]
    confidence: Annotated[float, Field(gt=0.5, lt=1)]
    calibrate: bool


class InspectSettings(Settings):
    heat_maps: bool
    robustness: bool
    images: PositiveInt


class AugmentSettings(Settings):
    horizontal_flip: bool
    vertical_flip: bool
    quarter_turns: bool
    rotation: NonNegative
    scale: Share
    shift: Share
    crop: Share
    brightness: Share
    contrast: Share
    saturation: Share
    hue: Annotated[float, Field(ge=0, le=0.5)]
    blur: Annotated[float, Field(ge=0, le=0.1)]
    noise: NonNegative
    mixup: NonNegative
    cutmix: NonNegative


class TrainerSettings(OpenSettings):
    accelerator: Literal["auto", "cpu", "gpu"]
    devices: PositiveInt | Literal["auto"]
    strategy: str
    precision: Annotated[
        Literal["auto", "32", "bf16", "16"], BeforeValidator(str)
    ]  # the command line gives 32 as a number
    channels_last: bool | Literal["auto"]
    compile: bool
    workers: Annotated[int, Field(ge=0)]


class LoggerSettings(OpenSettings):
    name: Literal["wandb", "tensorboard", "mlflow", "csv"]
    project: str
    group: str | None
    job_type: str
    tags: list[str]
    table_rows: PositiveInt


class CallbackSettings(OpenSettings):
    target: str = Field(alias="_target_")


class ClassifierSettings(Settings):
    """The arguments of a classifier, as a checkpoint holds them."""

    model: ModelSettings
    loss: LossSettings
    finetune: FinetuneSettings
    optim: OptimSettings
    augment: AugmentSettings
    class_weights: list[Positive] | None
    classes: Annotated[dict[str, bool], Field(min_length=2)]
    image_size: Annotated[int, Field(ge=32)]
    channels_last: bool
    seed: int


class BatchSettings(Settings):
    """What a data module has to know beside the dataset."""

    target: Literal["defect", "defect_type"]
    image_size: Annotated[int, Field(ge=32)]
    batch_size: PositiveInt
    sampler: Literal["shuffle", "balanced"]
    seed: Annotated[int, Field(ge=0)]


class TrainSettings(BatchSettings):
    dataset: DatasetSettings
    model: ModelSettings
    finetune: FinetuneSettings
    optim: OptimSettings
    loss: LossSettings
    augment: AugmentSettings
    decision: DecisionSettings
    trainer: TrainerSettings
    callbacks: dict[str, CallbackSettings | None]  # null takes one away that a preset has
    logger: LoggerSettings
    inspect: InspectSettings
    imports: list[str]
    objective: str | None
    resume: Path | None

    @model_validator(mode="after")
    def _one_thing_is_asked_for_once(self) -> "TrainSettings":
        if self.sampler == "balanced" and self.loss.class_weights == "balanced":
            raise ValueError(
                "sampler=balanced and loss.class_weights=balanced both make all classes weigh alike, and together the "
                "rare ones outweigh the others: loss.class_weights=auto, or sampler=shuffle"
            )
        if self.dataset.prevalence is not None and not self.decision.calibrate:
            raise ValueError(
                f"dataset.prevalence={self.dataset.prevalence:g} moves calibrated scores: decision.calibrate=true, or "
                "dataset.prevalence=null"
            )
        return self

    @model_validator(mode="after")
    def _a_memory_is_of_a_frozen_backbone(self) -> "TrainSettings":
        if self.model.head != "linear" and (not self.finetune.probe or self.finetune.active_stages):
            head = self.model.head
            raise ValueError(f"model.head={head} remembers what a frozen backbone makes of sound parts: finetune=probe")
        if self.model.head == "memory" and self.model.test_views > 1:
            raise ValueError("model.head=memory compares an image as it lies: model.test_views=1")
        return self


class FindSettings(Settings):
    wrong_labels: bool
    folds: Annotated[int, Field(ge=2)]
    c: Positive


class AuditSettings(TrainSettings):
    audit: FindSettings


class CrossvalSettings(TrainSettings):
    folds: Annotated[int, Field(ge=2)]
    repeats: PositiveInt


class EvaluateSettings(Settings):
    checkpoint: Path | None
    predictions: Path | None
    part: Literal["train", "val", "test", "all"] | None
    augment: AugmentSettings
    dataset: DatasetSettings | None
    decision: DecisionSettings | None
    update_checkpoint: bool
    inspect: InspectSettings
    root: Path | None
    imports: list[str]
    device: Literal["auto", "cpu", "gpu"]
    precision: Precision | None
    seen: Literal["leave_out", "keep"]
    prevalence: Prevalence

    @model_validator(mode="after")
    def _one_of_both(self) -> "EvaluateSettings":
        if (self.checkpoint is None) == (self.predictions is None):
            raise ValueError("give checkpoint=<run folder> or predictions=<csv>, one of both")
        if self.dataset is not None and self.dataset.prevalence is not None:
            raise ValueError("dataset.prevalence is of training: here it is prevalence=<share>, with decision=<policy>")
        if self.prevalence is not None and (self.decision is None or not self.decision.calibrate):
            raise ValueError(
                f"prevalence={self.prevalence:g} is for scores that are calibrated anew: add decision=<policy>, with "
                "decision.calibrate=true"
            )
        if self.update_checkpoint and (self.checkpoint is None or self.decision is None):
            raise ValueError("update_checkpoint=true needs checkpoint=<run folder> and decision=<policy>")
        return self


class PredictSettings(Settings):
    checkpoint: Path
    input: Annotated[str, BeforeValidator(str)]  # the command line gives a folder called 2024 as a number
    root: Path | None
    output: Path | None
    overwrite: bool
    batch_size: PositiveInt
    gallery: Annotated[int, Field(ge=0)]
    heat_maps: bool
    watch: bool
    watch_seconds: Positive
    watch_patience: NonNegative
    imports: list[str]
    device: Literal["auto", "cpu", "gpu"]
    precision: Precision | None

    @model_validator(mode="after")
    def _go_together(self) -> "PredictSettings":
        if self.heat_maps and not self.gallery:
            raise ValueError("heat_maps=true shows them in the gallery: gallery=200, not 0")
        if self.watch and self.output is None:
            raise ValueError("watch=true needs output=<file>.csv, which remembers what has been predicted")
        if self.watch and not Path(self.input).is_dir():
            raise ValueError(f"watch=true needs a folder, and input={self.input} is none")
        return self


class CompareSettings(Settings):
    runs: list[Path]
    metrics: list[Literal["recall", "overkill_rate", "precision", "f1", "accuracy", "auroc", "average_precision"]]
    level: Annotated[float, Field(gt=0.5, lt=1)]
    resamples: Annotated[int, Field(ge=100)]
    seed: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _something_to_compare(self) -> "CompareSettings":
        if len(self.runs) < 2:
            raise ValueError("give two or more: python -m defectcls.compare <run> <run>")
        if not self.metrics:
            raise ValueError("give metrics, such as metrics=[recall,auroc]")
        return self
