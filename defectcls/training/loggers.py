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
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from defectcls.errors import UserError
from defectcls.evaluation.metrics import defect_numbers
from defectcls.settings import LoggerSettings

log = logging.getLogger(__name__)

AT_5, MATRIX, REPORT = "test/recall_at_5_overkill", "test/confusion_matrix", "report"  # keys of W&B
GOES_ON = "logger=%s has failed, and the run goes on without it: %r"


@contextmanager
def dashboard(settings: LoggerSettings, folder: Path, config: dict[str, Any]) -> Iterator[Logger | None]:
    """The logger of one run, which ends with the block, as failed where that raises. None for `csv`: the run folder;
    and in all processes of a run but the first.

    Never prompts; W&B is offline when logged out. One that cannot begin is a warning and None; one that fails later
    says so once, and the run goes on without it. A resumed run continues its own W&B run, whose id lies in the run
    folder. One that `wandb agent` starts is the run that the agent announced, in no group.

    Raises:
        UserError: the logger's package is not installed, or it knows no such argument.
    """
    logger, failed = None, True
    try:
        if settings.name != "csv" and not getattr(rank_zero_only, "rank", 0):
            logger = _build(settings, folder.resolve(), config)
            getattr(logger, "experiment", None)  # starts the run: Lightning would, and catch nothing that is raised
    except ModuleNotFoundError as error:
        raise UserError(f"logger={settings.name} needs a package: pip install 'defectcls[{settings.name}]'") from error
    except Exception as error:  # whatever a dashboard raises
        if isinstance(error, TypeError) and settings.further:
            raise UserError(f"logger={settings.name} with {', '.join(settings.further)}: {error}") from error
        log.warning(GOES_ON, settings.name, error)
        logger = None
    if logger is not None:
        for name in ("log_metrics", "log_hyperparams", "save", "finalize"):
            setattr(logger, name, functools.partial(_tell, logger, getattr(logger, name)))
    try:
        yield logger
        failed = False
    finally:
        if isinstance(logger, WandbLogger):
            import wandb

            _tell(logger, wandb.finish, exit_code=int(failed), over=True)
        elif logger:
            logger.finalize("failed" if failed else "success")


def _build(settings: LoggerSettings, folder: Path, config: dict[str, Any]) -> Logger:
    run_name = "/".join(folder.parts[-3:])
    if settings.name == "tensorboard":
        return TensorBoardLogger(folder, **{"name": "tensorboard", "version": ""} | settings.further)
    if settings.name == "mlflow":
        server = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        return MLFlowLogger(settings.project, **{"run_name": run_name, "tracking_uri": server} | settings.further)
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.pop("WANDB_SERVICE", None)  # of the process that started this one: it would hold the id of a killed run
    import wandb

    logged_in = wandb.login(prompt=False, verify=False)
    mode = os.environ.get("WANDB_MODE") or ("online" if logged_in else "offline")
    announced = os.environ.get("WANDB_RUN_ID") if "WANDB_SWEEP_ID" in os.environ else None
    known = folder / "wandb" / "id"
    known.parent.mkdir(parents=True, exist_ok=True)
    if announced or not known.is_file():
        known.write_text(announced or secrets.token_hex(4))
    given = {
        "name": run_name,
        "id": known.read_text(),
        "save_dir": folder,
        "group": None if announced else settings.group,
        "offline": mode != "online",
        "resume": "allow" if mode == "online" else None,
        "config": config,
        "mode": mode,
        "settings": wandb.Settings(console="off", init_timeout=15.0, x_save_requirements=False),
        **settings.model_dump(include={"project", "job_type", "tags"}),
    }
    return WandbLogger(**given | settings.further)


def _tell(logger: Logger, act: Callable[..., Any], *given: Any, over: bool = False, **options: Any) -> None:
    """Whatever a dashboard raises is one warning; once it has failed it is told nothing but that the run is over."""
    failed = "failed" in vars(logger)
    if failed and not over:
        return
    try:
        act(*given, **options)
    except Exception as error:
        vars(logger)["failed"] = True
        if not failed:
            log.warning(GOES_ON, type(logger).__name__.removesuffix("Logger").lower(), error)


def log_results(logger: Logger | None, folder: Path, metrics: dict[str, Any], predictions: pd.DataFrame) -> None:
    """Test metrics and their intervals to any logger; to W&B also the confusion matrix and the page.

    Args:
        folder: that holds report.html, if there is one.
        predictions: of the test part.
    """

    def send() -> None:
        assert logger is not None
        test, val = defect_numbers(metrics["test"]), defect_numbers(metrics.get("val", {}))
        numbers = {f"test/{name}": value for name, value in test.items() if isinstance(value, float | int)}
        for name, interval in test["intervals"].items():
            if isinstance(interval, list):
                numbers |= {f"test/{name}_low": interval[0], f"test/{name}_high": interval[1]}
        if val.get("auroc") is not None:
            numbers["best/val_auroc"] = val["auroc"]  # of the checkpoint that is kept; val/auroc is of the last epoch
        sound, defects = (predictions.loc[predictions["defective"] == kind, "score"] for kind in (False, True))
        if len(sound) and len(defects):  # a ranking's number, as AUROC is: its threshold is of no use to anybody
            numbers[AT_5] = float((defects > sound.nlargest(len(sound) // 20 + 1).iloc[-1]).mean())
        logger.log_metrics(numbers)
        if not isinstance(logger, WandbLogger):
            return
        import wandb

        names, page = metrics["class_names"], folder / "report.html"
        truth, answers = (pd.Index(names).get_indexer(predictions[key]).tolist() for key in ("label", "prediction"))
        matrix = wandb.plot.confusion_matrix(y_true=truth, preds=answers, class_names=names)
        logger.experiment.log({MATRIX: matrix})
        if page.is_file():
            logger.experiment.log({REPORT: wandb.Html(str(page), inject=False)})

    if logger is not None:
        _tell(logger, send)
