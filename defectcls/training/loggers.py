"""W&B, TensorBoard and MLflow: they mirror what the run folder holds, and their failure is a warning."""

import functools
import logging
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from lightning.pytorch.loggers import Logger, WandbLogger

from defectcls.errors import UserError
from defectcls.evaluation.metrics import defect_numbers
from defectcls.settings import LoggerSettings

log = logging.getLogger(__name__)

INIT_TIMEOUT_S = 15.0
GOES_ON = "logger=%s has failed, and the run goes on without it: %s"


@contextmanager
def dashboard(settings: LoggerSettings, folder: Path, config: dict[str, Any]) -> Iterator[Logger | None]:
    """The logger of one run, which ends with the block, as failed where that raises. None for `csv`: the run folder.

    Never prompts; W&B is offline when logged out. One that cannot begin is a warning and None; one that fails later
    says so once, and the run goes on without it. A resumed run continues its own W&B run: its id and group lie in the
    run folder. One that `wandb agent` starts is the run that the agent announced, in no group.

    Raises:
        UserError: the logger's package is not installed, or it knows no such argument.
    """
    logger, failed = _begin(settings, folder.resolve(), config), True
    try:
        yield logger
        failed = False
    finally:
        if isinstance(logger, WandbLogger):
            import wandb

            if wandb.run is not None:
                _tell(logger, wandb.finish, exit_code=int(failed), over=True)
        elif logger is not None:
            logger.finalize("failed" if failed else "success")


def _begin(settings: LoggerSettings, folder: Path, config: dict[str, Any]) -> Logger | None:
    if settings.name == "csv":
        return None
    try:
        logger = _build(settings, folder, config)
        getattr(logger, "experiment", None)  # starts the run: Lightning would, where nothing catches what is raised
    except ModuleNotFoundError as error:
        raise UserError(f"logger={settings.name} needs a package: pip install 'defectcls[{settings.name}]'") from error
    except Exception as error:  # whatever a dashboard raises
        if isinstance(error, TypeError) and settings.further:
            raise UserError(f"logger={settings.name} with {', '.join(settings.further)}: {error}") from error
        log.warning(GOES_ON, settings.name, " ".join(repr(error).split()))
        return None
    for name in ("log_metrics", "log_hyperparams", "save", "finalize"):
        setattr(logger, name, functools.partial(_tell, logger, getattr(logger, name)))
    return logger


def _build(settings: LoggerSettings, folder: Path, config: dict[str, Any]) -> Logger:
    run_name = "/".join(folder.parts[-3:])
    if settings.name == "wandb":
        return _wandb(settings, folder, config, run_name)
    from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger

    if settings.name == "tensorboard":
        return TensorBoardLogger(folder, **{"name": "tensorboard", "version": ""} | settings.further)
    server = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
    return MLFlowLogger(settings.project, **{"run_name": run_name, "tracking_uri": server} | settings.further)


def _tell(logger: Logger, act: Callable[..., Any], *given: Any, over: bool = False, **options: Any) -> None:
    """Whatever a dashboard raises is one warning; once it has failed it is told nothing but that the run is over."""
    failed = "failed" in vars(logger)
    if over or not failed:
        try:
            act(*given, **options)
        except Exception as error:
            vars(logger)["failed"] = True
            if not failed:
                name = type(logger).__name__.removesuffix("Logger").lower()
                log.warning(GOES_ON, name, " ".join(repr(error).split()))


def _wandb(settings: LoggerSettings, folder: Path, config: dict[str, Any], run_name: str) -> WandbLogger:
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.pop("WANDB_SERVICE", None)  # of the process that started this one: it would hold the id of a killed run
    import wandb

    logged_in = wandb.login(prompt=False, verify=False)
    mode = os.environ.get("WANDB_MODE") or ("online" if logged_in else "offline")
    identity = folder / "wandb" / "id"
    announced = os.environ.get("WANDB_RUN_ID", "") if "WANDB_SWEEP_ID" in os.environ else ""
    if announced or not identity.is_file():
        identity.parent.mkdir(parents=True, exist_ok=True)
        identity.write_text(f"{announced} " if announced else f"{secrets.token_hex(4)} {settings.group or ''}")
    run_id, _, group = identity.read_text().partition(" ")  # a group named after the time would change on resume
    given = {
        "name": run_name,
        "id": run_id,
        "save_dir": folder,
        "group": group or None,
        "offline": mode != "online",
        "resume": "allow" if mode == "online" else None,
        "config": config,
        "mode": mode,
        "settings": wandb.Settings(silent=True, console="off", init_timeout=INIT_TIMEOUT_S, x_save_requirements=False),
        **settings.model_dump(include={"project", "job_type", "tags"}),
    }
    return WandbLogger(**given | settings.further)


def log_results(logger: Logger | None, folder: Path, metrics: dict[str, Any], predictions: pd.DataFrame) -> None:
    """Test metrics and their intervals to any logger; to W&B also the confusion matrix and the page.

    Args:
        folder: that holds report.html, if there is one.
        predictions: of the test part.
    """

    def send() -> None:
        assert logger is not None
        test = defect_numbers(metrics["test"])
        numbers = {f"test/{name}": value for name, value in test.items() if isinstance(value, float | int)}
        if "val" in metrics and (auroc := defect_numbers(metrics["val"])["auroc"]) is not None:
            numbers["best/val_auroc"] = auroc  # of the checkpoint that is kept; val/auroc is that of the last epoch
        for name, interval in test["intervals"].items():
            if isinstance(interval, list):
                numbers |= {f"test/{name}_low": interval[0], f"test/{name}_high": interval[1]}
        logger.log_metrics(numbers)
        if not isinstance(logger, WandbLogger):
            return
        import wandb

        names, page = metrics["class_names"], folder / "report.html"
        positions = {name: position for position, name in enumerate(names)}
        truth, answers = (predictions[column].map(positions).tolist() for column in ("label", "prediction"))
        matrix = wandb.plot.confusion_matrix(y_true=truth, preds=answers, class_names=names)
        logger.experiment.log({"test/confusion_matrix": matrix})
        if page.is_file():
            logger.experiment.log({"report": wandb.Html(str(page), inject=False)})
        logger.experiment.summary.update(numbers)

    if logger is not None:
        _tell(logger, send)
