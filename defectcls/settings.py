"""The types of the configurations. Every value comes from conf/: no field here has a default."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
)
from pydantic.functional_serializers import PlainSerializer
from pydantic_core import PydanticCustomError


def _as_frame(given: Any) -> Any:
    frame = given if isinstance(given, list | tuple) else (given, given)
    if len(frame) != 2 or not all(isinstance(side, int) and side >= 32 for side in frame):
        raise PydanticCustomError("frame", "Input should be a side of 32 pixels or more, or [height,width]")
    return frame


def _as_addresses(given: Any) -> list[str]:
    addresses = [] if given is None else [str(one) for one in (given if isinstance(given, list | tuple) else [given])]
    return [*map(without_password, addresses)]


def without_password(address: str) -> str:
    if re.search("://[^/@]*:[^/]*@|[?&]password=", address):
        raise ValueError("a run keeps what is typed: leave the password to a file such as ~/.pgpass")
    return address


def _present(named: Any) -> Any:
    return {name: one for name, one in named.items() if one is not None} if isinstance(named, dict) else named


Share = Annotated[float, Field(ge=0, lt=1)]
Inside = Annotated[float, Field(gt=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Size = Inside | PositiveInt | None
_one_of_square = PlainSerializer(lambda frame: frame[0] if frame[0] == frame[1] else frame)
Frame = Annotated[tuple[int, int], BeforeValidator(_as_frame), _one_of_square]  # height and width
Several = Annotated[int, Field(ge=2)]
Text = BeforeValidator(str)  # the command line gives 32, or a folder called 2024, as a number
Present = BeforeValidator(_present)  # null takes away what a preset has under this name
Device = Literal["auto", "cpu", "gpu"]
Precision = Annotated[Literal["32", "bf16", "16"], Text]


class Settings(BaseModel):
    """Immutable; an unknown key is an error, and so are values that do not go together: `model_post_init`."""

    model_config = ConfigDict(extra="forbid", frozen=True, serialize_by_alias=True)


class OpenSettings(Settings, extra="allow"):
    """Further keys are arguments of what the settings are of: a dataset, a loss, the Trainer, a logger."""

    @property
    def further(self) -> dict[str, Any]:
        """These arguments."""
        return dict(self.model_extra or {})


class TargetSettings(OpenSettings):
    target: str = Field(alias="_target_")  # dotted path of its class


class SplitSettings(Settings):
    together: list[Literal["group", "identical", "near_identical"]]
    published: bool
    train: Size
    val: Size
    test: Size
    folds: Several | None
    fold: NonNegativeInt
    seed: NonNegativeInt | None
    anomalies: PositiveInt | None
    hold_out_defect_type: Annotated[str, Text] | None

    def model_post_init(self, _: Any) -> None:
        if [self.train, self.val, self.test].count(None) > 1:
            raise ValueError("at most one of train, val and test may be null (all that is left)")
        if self.folds is not None and self.fold >= self.folds:
            raise ValueError(f"fold {self.fold} of {self.folds}: folds are numbered from 0 to {self.folds - 1}")
        if self.folds is not None and (self.anomalies or self.hold_out_defect_type):
            raise ValueError("folds test every image once, anomalies and hold_out_defect_type do not: leave one out")


class Archive(Settings):
    url: str
    sha256: str


class DatasetSettings(TargetSettings):
    name: str
    root: Path
    source: str | None
    archive: Archive | None
    download: bool
    resize: Literal["squash", "pad"]
    depth: Annotated[Literal["auto", "8", "10", "12", "14", "16", "float"], Text]
    on_unreadable: Literal["error", "skip"]
    contradictions: Literal["error", "allow"]
    consecutive: PositiveInt | None
    verdicts: Annotated[list[str], BeforeValidator(_as_addresses)]
    cache: Literal["auto", "off"]
    cache_dir: Annotated[Path, AfterValidator(Path.expanduser)]
    cache_max_gb: Positive
    split: SplitSettings


class ModelSettings(TargetSettings):
    name: str
    pretrained: bool
    weights: Path | None
    pool: str | None
    levels: list[Annotated[float, Field(gt=0, le=1)]]
    last: bool
    head: Literal["auto", "linear", "joined", "memory"]
    test_views: Literal[1, 2, 4, 8]

    def model_post_init(self, _: Any) -> None:
        if not (self.levels or self.last):
            raise ValueError("model.last=false leaves the levels, and model.levels names none")
        if self.further and self.target == "defectcls.model.classifier.Classifier":
            raise ValueError(f"no such keys: {', '.join(self.further)}; a Classifier of your own may have them")


class StageSettings(Settings):
    epochs: PositiveInt
    trainable: Literal["head", "all"] | Annotated[float, Field(gt=0, le=1)]
    lr_scale: Positive


class FinetuneSettings(Settings):
    name: str
    probe: bool
    probe_c: list[Positive]
    probe_views: NonNegativeInt
    batchnorm: Literal["frozen", "train"]
    stages: Annotated[dict[str, StageSettings], Present]
    patience: PositiveInt | None

    def model_post_init(self, _: Any) -> None:
        if not self.probe and not self.stages:
            raise ValueError("neither a probe nor a stage: nothing would be trained")

    @property
    def solves(self) -> bool:
        """Whether the head is solved on frozen features, and nothing is trained by steps."""
        return self.probe and not self.stages


class OptimSettings(Settings):
    name: str
    lr: Positive
    weight_decay: NonNegative
    options: dict[str, Any]
    schedule: Literal["cosine", "tanh", "wsd", "constant"]
    warmup: Share
    min_lr_ratio: Share
    clip: Positive | None


class LossSettings(TargetSettings):
    class_weights: Literal["auto", "balanced", "none"]


class DecisionSettings(Settings):
    policy: Literal["balanced", "argmax", "f1", "recall", "precision", "fpr", "cost", "review"]
    target: Inside
    escape_cost: Positive
    overkill_cost: Positive
    escape_rate: Inside
    overkill_rate: Inside
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


class TrainerSettings(OpenSettings):
    accelerator: Device
    devices: PositiveInt | Literal["auto"]
    strategy: str
    precision: Annotated[Literal["auto", "32", "bf16", "16"], Text]
    compile: bool
    workers: NonNegativeInt

    def model_post_init(self, _: Any) -> None:
        if self.strategy.startswith(("fsdp", "deepspeed", "model_parallel")):
            raise ValueError(
                f"trainer.strategy={self.strategy} splits the weights of a model among processes, and evaluation and "
                "checkpoints take them whole: trainer=ddp"
            )


class LoggerSettings(OpenSettings):
    name: Literal["wandb", "tensorboard", "mlflow", "csv"]
    project: str
    group: str | None
    job_type: str
    tags: list[str]


class RecipeSettings(Settings):
    model: ModelSettings
    loss: LossSettings
    finetune: FinetuneSettings
    optim: OptimSettings
    augment: AugmentSettings


class ClassifierSettings(RecipeSettings):
    """The arguments of a classifier, as a checkpoint holds them."""

    class_weights: list[Positive] | None
    classes: Annotated[dict[str, bool], Field(min_length=2)]
    image_size: Frame
    seed: int
    members: PositiveInt


class BatchSettings(Settings):
    """What a data module has to know beside the dataset."""

    target: Literal["defect", "defect_type"]
    image_size: Frame | Literal["auto"]
    batch_size: PositiveInt
    seed: NonNegativeInt


class TrainSettings(RecipeSettings, BatchSettings):
    dataset: DatasetSettings
    decision: DecisionSettings
    trainer: TrainerSettings
    callbacks: Annotated[dict[str, TargetSettings], Present]
    logger: LoggerSettings
    inspect: InspectSettings
    imports: list[str]
    objective: str | None
    resume: Path | None
    earlier: Path | None
    evaluation: Literal["auto", "crossval", "holdout"]

    def model_post_init(self, _: Any) -> None:
        if self.evaluation == "crossval" and not self.finetune.solves:
            raise ValueError("evaluation=crossval solves a head for each fold: finetune=probe, or evaluation=holdout")
        if self.evaluation == "crossval" and self.dataset.split.train is not None:
            raise ValueError("evaluation=crossval learns from all: dataset.split.train=null, or evaluation=holdout")
        if self.model.head in ("joined", "memory") and not self.finetune.solves:
            raise ValueError("a memory is of what a frozen backbone makes of sound parts: finetune=probe")
        if self.model.head == "memory" and self.model.test_views > 1:
            raise ValueError("model.head=memory compares an image as it lies: model.test_views=1")


class RaySettings(Settings):
    address: Annotated[str, Text] | None
    num_cpus: Positive
    num_gpus: NonNegative


class TrainedSettings(Settings):
    """Where and in what a trained model computes."""

    root: Path | None
    imports: list[str]
    device: Device
    precision: Precision | None
