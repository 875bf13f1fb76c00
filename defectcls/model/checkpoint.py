"""A checkpoint: the model, the settings of its run, and the plain values that the run has left. The file is data."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError

from defectcls.config import named
from defectcls.errors import UserError, explain
from defectcls.evaluation.decision import Decision
from defectcls.files import checkpoint_file
from defectcls.model.hardware import find_device
from defectcls.model.likeness import Likeness
from defectcls.model.network import Network
from defectcls.settings import ClassifierSettings, Device, Precision, TrainSettings

CLASSIFIER = "defectcls.model.classifier.Classifier"  # whose network is a Network


class Trained(NamedTuple):
    """What a checkpoint holds, and where it is to be computed."""

    checkpoint: Path
    network: Network  # a Classifier, if asked for, or where it is a class of one's own
    settings: TrainSettings
    about: dict[str, Any]
    decision: Decision | None  # None of a run that did not finish
    labels: dict[str, str]  # that people gave its photos, by digest
    device: torch.device


def load_trained(
    checkpoint: Path, device: Device = "auto", precision: Precision | None = None, for_trainer: bool = False
) -> Trained:
    """A run folder's best checkpoint, or a .ckpt file, to be computed on one device. The file may say what the model
    is and how it was measured, and nothing that it names is imported, called, fetched or written to.

    Args:
        precision: None computes as in training.
        for_trainer: as a Classifier; without it Lightning, which takes seconds to import, is not.

    Raises:
        UserError: no such file, none that this version of defectcls wrote, or what cannot be computed here.
    """
    file = checkpoint_file(checkpoint)
    if file.suffix.lower() == ".onnx":
        raise UserError(f"{file} is an exported file, and this takes the run that it is of: checkpoint=<run folder>")
    network, about = load_network(file, for_trainer)
    # Where it ran is not to be repeated, how it computed is.
    here: dict[str, Any] = {"accelerator": device, "devices": 1, "strategy": "auto", "workers": 0}
    here |= {} if precision is None else {"precision": precision}
    try:
        config = completed(about["config"])
        settings = TrainSettings(**config | {"trainer": config["trainer"] | here})
        decision = Decision.from_plain(about["decision"], len(network.classes)) if "decision" in about else None
        labels = {str(photo): str(label) for photo, label in about.get("overlay", {}).get("labels", {}).items()}
        if "likeness" in about:
            network.likeness = Likeness(about["likeness"], network.backbone.feature_count)
    except (ValidationError, AttributeError, TypeError, KeyError, UserError) as error:
        raise _damaged(file, error) from error
    network.backbone.precision = settings.trainer.precision  # type: ignore[assignment]  # no longer auto
    place = find_device(device, settings.trainer.precision)
    return Trained(file, network, settings, about, decision, labels, place)


def completed(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a run, with the keys that runs of before lack."""
    dataset = {"verdicts": []} | config["dataset"]
    return {"earlier": None} | config | {"dataset": dataset | {"split": {"seed": None} | dataset.get("split", {})}}


def load_network(checkpoint: Path, for_trainer: bool = False) -> tuple[Network, dict[str, Any]]:
    """The trained model, see `load_trained`, and what its run has left. Runs no code that the file might hold.

    Raises:
        UserError: not a checkpoint, of another tool or version, or with less or more in it than it takes.
    """
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the foreign bytes happen to trip over
        raise UserError(
            f"{checkpoint} is damaged, or no checkpoint of plain values; nothing in it was run ({type(error).__name__})"
        ) from error
    if not isinstance(content, dict) or "defectcls" not in content:
        raise UserError(f"{checkpoint} is a checkpoint of another tool: give one that defectcls.train wrote")
    try:
        about, parameters = content["defectcls"], content["hyper_parameters"]
        imports = ", ".join(about["config"].get("imports", ()))
        settings = ClassifierSettings(**parameters)
        if settings.model.target == CLASSIFIER and not for_trainer:
            model = Network(settings.model, settings.classes, settings.image_size, settings.members)
        else:
            from defectcls.model.classifier import Classifier

            model = named(settings.model.target, Classifier)(**parameters | {"image_size": settings.image_size})
        model.load_state_dict(content["state_dict"])
    except UserError as error:  # a class, or a model of timm's, of a module that nobody has imported
        needs = f"was trained with imports=[{imports}]" if imports else "cannot be built here"
        raise UserError(f"{checkpoint} {needs}: {error}") from error
    except (ValidationError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise _damaged(checkpoint, error) from error
    return model.eval(), about


def _damaged(file: Path, error: Exception) -> UserError:
    reason = explain(error) or f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return UserError(f"{file} is damaged, or of another version of defectcls: {reason}")
