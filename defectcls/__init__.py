"""From a folder of photos to a trained, measured defect classifier: one command, or a few lines of Python.

    config = defectcls.compose("dataset=mvtec", "dataset.categories=[screw]", "finetune=full")
    data = defectcls.datamodule(config)
    model = defectcls.classifier(config, data)
    lightning.Trainer(max_epochs=3).fit(model, data)

    run = defectcls.run("train", "dataset=mvtec")
    defectcls.load(run.folder).predict(["part.png"])

What takes seconds to import is imported when it is asked for.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from defectcls.config import compose
    from defectcls.data.archive import Archive
    from defectcls.data.casting import Casting
    from defectcls.data.concrete_crack import ConcreteCrack
    from defectcls.data.datamodule import DefectDataModule
    from defectcls.data.folder import Folder
    from defectcls.data.magnetic_tile import MagneticTile
    from defectcls.data.mvtec import MVTec
    from defectcls.data.railway import Railway
    from defectcls.data.railway_components import RailwayComponents
    from defectcls.data.synthetic import Synthetic
    from defectcls.data.table import Table
    from defectcls.deployment.predictor import Predictor, load
    from defectcls.errors import UserError
    from defectcls.model.classifier import Classifier
    from defectcls.settings import TrainSettings
    from defectcls.training.command import RunFolder, run

__version__ = "0.1.0"
__all__ = ["Archive", "Casting", "Classifier", "ConcreteCrack", "DefectDataModule", "Folder", "MVTec", "MagneticTile"]
__all__ += ["Predictor", "Railway", "RailwayComponents", "RunFolder", "Synthetic", "Table", "UserError"]
__all__ += ["classifier", "compose", "datamodule", "load", "run"]
_HOMES = """
    config.compose data.archive.Archive data.casting.Casting data.concrete_crack.ConcreteCrack
    data.datamodule.DefectDataModule data.folder.Folder data.magnetic_tile.MagneticTile data.mvtec.MVTec
    data.railway.Railway data.railway_components.RailwayComponents data.synthetic.Synthetic data.table.Table
    deployment.predictor.Predictor deployment.predictor.load
    errors.UserError model.classifier.Classifier training.command.RunFolder training.command.run
"""


def __getattr__(name: str) -> Any:
    for module in (home.removesuffix(f".{name}") for home in _HOMES.split() if home.endswith(f".{name}")):
        return getattr(import_module(f"defectcls.{module}"), name)
    raise AttributeError(f"module 'defectcls' has no attribute '{name}'")


def datamodule(config: Mapping[str, Any]) -> "DefectDataModule":
    """The photos that a configuration names, as a LightningDataModule that any Trainer takes.

    Args:
        config: of `compose`, or the same as a dictionary.

    Raises:
        UserError: a value is wrong, or a part of one's own cannot be imported.
    """
    from defectcls.data.datamodule import DefectDataModule

    return DefectDataModule.from_settings(_settings(config))


def classifier(config: Mapping[str, Any], data: "DefectDataModule | None" = None) -> "Classifier":
    """The classifier that a configuration names, as a LightningModule that any Trainer takes, with pretrained weights.

    Its stages are trained; the probe on frozen features and the choice of a decision are `run`'s.

    Args:
        data: what it shall tell apart: the classes, and how many photos there are of each; None lists the
            configuration's.

    Raises:
        UserError: as `datamodule`, and without photos.
    """
    from defectcls.training.build import build_classifier, with_compute

    data = data or datamodule(config)
    data.prepare_data()
    data.setup()
    return build_classifier(with_compute(_settings(config)), data)


def _settings(config: Mapping[str, Any]) -> "TrainSettings":
    from omegaconf import OmegaConf
    from pydantic import ValidationError

    from defectcls.config import import_named, plain
    from defectcls.errors import UserError, explain
    from defectcls.settings import TrainSettings

    values = plain(config if OmegaConf.is_config(config) else OmegaConf.create(dict(config)))
    import_named(values)
    try:
        return TrainSettings(**values)
    except ValidationError as error:
        raise UserError(explain(error)) from error
