"""W&B, TensorBoard and MLflow: they mirror what the run folder holds, and their failure is a warning."""

import functools
import io
import logging
import math
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from lightning.pytorch.loggers import Logger, WandbLogger
from PIL import Image

from defectcls.errors import UserError
from defectcls.evaluation.metrics import defect_numbers
from defectcls.evaluation.predictions import PROBABILITY
from defectcls.evaluation.sweeps import Sweep, settings_table
from defectcls.pages.pictures import thumbnail, worth_seeing
from defectcls.settings import LoggerSettings

log = logging.getLogger(__name__)

THUMBNAIL_PX = 96
INIT_TIMEOUT_S = 15.0
GOES_ON = "logger=%s has failed, and the run goes on without it: %s"


def build_logger(settings: LoggerSettings, folder: Path, config: dict[str, Any]) -> Logger | None:
    """The logger of one run, or None for `csv`, which is always written. Never prompts; W&B is offline when logged out.

    None, after a warning, for one that cannot begin; one that fails later says so once, and the run goes on without it.
    A resumed run continues its own W&B run: its id and group lie in the run folder. One that `wandb agent` starts is
    the run that the agent announced, in no group.

    Raises:
        UserError: the logger's package is not installed.
    """
    name, folder = "/".join(folder.parts[-3:]), folder.resolve()
    try:
        built = _build(settings, folder, config, name)
    except ModuleNotFoundError as error:
        raise UserError(f"logger={settings.name} needs a package: pip install 'defectcls[{settings.name}]'") from error
    except Exception as error:  # whatever a dashboard raises
        log.warning(GOES_ON, settings.name, " ".join(repr(error).split()))
        return None
    if built is None:
        return None
    for method in ("log_metrics", "log_hyperparams", "save", "finalize"):
        setattr(built, method, _tolerated(built, getattr(built, method)))
    return built


def _build(settings: LoggerSettings, folder: Path, config: dict[str, Any], name: str) -> Logger | None:
    built: Logger | None = None
    if settings.name == "wandb":
        built = _wandb_logger(settings, folder, config, name)
    elif settings.name == "tensorboard":
        from lightning.pytorch.loggers import TensorBoardLogger

        built = TensorBoardLogger(folder, name="tensorboard", version="")
    elif settings.name == "mlflow":
        from lightning.pytorch.loggers import MLFlowLogger

        server = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        built = MLFlowLogger(settings.project, name, tracking_uri=server)
    getattr(built, "experiment", None)  # starts the run: Lightning would, where nothing catches what is raised
    return built


def _tolerated(logger: Logger, method: Callable[..., None]) -> Callable[..., None]:
    """The same, but once it has failed nothing is told to it."""

    @functools.wraps(method)
    def call(*given: Any, **options: Any) -> None:
        if "failed" not in vars(logger):
            with _tolerating(logger):
                method(*given, **options)

    return call


@contextmanager
def _tolerating(logger: Logger) -> Iterator[None]:
    """Whatever a dashboard raises is one warning."""
    try:
        yield
    except Exception as error:
        if "failed" not in vars(logger):
            name = type(logger).__name__.removesuffix("Logger").lower()
            log.warning(GOES_ON, name, " ".join(repr(error).split()))
        vars(logger)["failed"] = True


def _wandb_logger(
    settings: LoggerSettings, folder: Path, config: dict[str, Any], name: str, mode: str | None = None
) -> WandbLogger:
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.pop("WANDB_SERVICE", None)  # of the process that started this one: it would hold the id of a killed run
    import wandb

    logged_in = wandb.login(prompt=False, verify=False)
    mode = mode or os.environ.get("WANDB_MODE") or ("online" if logged_in else "offline")
    identity = folder / "wandb" / "id"
    announced = os.environ.get("WANDB_RUN_ID", "") if "WANDB_SWEEP_ID" in os.environ else ""
    if announced or not identity.is_file():
        identity.parent.mkdir(parents=True, exist_ok=True)
        identity.write_text(f"{announced} " if announced else f"{secrets.token_hex(4)} {settings.group or ''}")
    run_id, _, group = identity.read_text().partition(" ")  # a group named after the time would change on resume
    logger = WandbLogger(
        name=name,
        id=run_id,
        save_dir=folder,
        project=settings.project,
        group=group or None,
        job_type=settings.job_type,
        tags=settings.tags,
        offline=mode != "online",
        resume="allow" if mode == "online" else None,
        config=config,
        mode=mode,
        settings=wandb.Settings(silent=True, console="off", init_timeout=INIT_TIMEOUT_S),
    )
    try:
        _ = logger.experiment  # starts the run
    except wandb.errors.CommError:
        log.warning(
            "W&B cannot be reached: this run is kept offline, `wandb sync %s/offline-run-*` sends it later",
            folder / "wandb",
        )
        wandb.teardown()  # its service still holds the id
        return _wandb_logger(settings, folder, config, name, "offline")
    return logger


def log_results(
    logger: Logger | None,
    metrics: dict[str, Any],
    predictions: pd.DataFrame,
    pictures: dict[str, bytes],
    root: Path,
    table_rows: int,
) -> None:
    """Test metrics and their intervals to any logger; to W&B also what the report shows, and thumbnails."""
    if logger is None or "failed" in vars(logger):
        return
    with _tolerating(logger):
        test = defect_numbers(metrics["test"])
        numbers = {f"test/{name}": value for name, value in test.items() if isinstance(value, float | int)}
        if (auroc := defect_numbers(metrics["val"])["auroc"]) is not None:
            numbers["best/val_auroc"] = auroc  # of the checkpoint that is kept; val/auroc is that of the last epoch
        for name, interval in test["intervals"].items():
            if isinstance(interval, list):
                numbers |= {f"test/{name}_low": interval[0], f"test/{name}_high": interval[1]}
        logger.log_metrics(numbers)
        if not isinstance(logger, WandbLogger):
            return
        import wandb

        names = metrics["class_names"]
        positions = {name: position for position, name in enumerate(names)}
        truth = predictions["label"].map(positions).tolist()
        probabilities = predictions[[PROBABILITY + name for name in names]].to_numpy().tolist()
        shown = worth_seeing(predictions, names, limit=table_rows).drop(columns="split")
        shown.insert(
            0, "image", [wandb.Image(thumbnail(root / path, THUMBNAIL_PX, metrics["depth"])) for path in shown["path"]]
        )
        run = logger.experiment
        run.log(
            {
                "test/confusion_matrix": wandb.plot.confusion_matrix(
                    y_true=truth, preds=predictions["prediction"].map(positions).tolist(), class_names=names
                ),
                "test/precision_recall": wandb.plot.pr_curve(truth, probabilities, labels=names),  # type: ignore[arg-type]
                "test/roc": wandb.plot.roc_curve(truth, probabilities, labels=names),
                "test/predictions": wandb.Table(dataframe=shown),
                **{f"report/{name}": wandb.Image(Image.open(io.BytesIO(png))) for name, png in pictures.items()},
                **{
                    f"report/{name}_table": wandb.Table(dataframe=pd.DataFrame(rows))
                    for name, rows in {"robustness": metrics.get("robustness"), **metrics["test"]["breakdowns"]}.items()
                    if rows
                },
            }
        )
        run.summary.update(
            numbers | {f"baseline/{k}": v for k, v in (metrics.get("baseline") or {}).items() if isinstance(v, float)}
        )


def log_sweep(settings: LoggerSettings, folder: Path, sweep: Sweep) -> None:
    """One W&B run of a sweep's settings and jobs, in the group of its jobs; started again, the sweep continues it.

    Args:
        folder: of the sweep, as `write_sweep` left it.
    """
    if settings.name != "wandb":
        return
    of_sweep = settings.model_copy(update={"job_type": "sweep", "tags": []})
    logger, failed = build_logger(of_sweep, folder, {"sweep": sweep.name, "shared": sweep.shared}), True
    if not isinstance(logger, WandbLogger):
        return  # it could not begin
    import wandb

    try:
        run, picture = logger.experiment, folder / "sweep.png"
        tables = {"settings": settings_table(sweep), "jobs": sweep.jobs}
        pictures = {"sweep/picture": wandb.Image(Image.open(picture))} if picture.is_file() else {}
        run.log({f"sweep/{name}": wandb.Table(dataframe=table) for name, table in tables.items()} | pictures)
        statuses = {f"sweep/{status}": int(n) for status, n in sweep.jobs["status"].value_counts().items()}
        best = sweep.best
        run.summary.update(
            statuses
            | ({} if best is None else {"best/setting": best.name})
            | {
                f"best/{column}{'' if part == 'mean' else f'_{part}'}": value
                for column, number in (best.numbers if best else {}).items()
                for part, value in number._asdict().items()
                if not math.isnan(value)
            }
        )
        failed = False
    finally:
        finish(logger, failed)


def finish(logger: Logger | None, failed: bool) -> None:
    """End the run; a crash ends it as failed."""
    if isinstance(logger, WandbLogger):
        import wandb

        if wandb.run is not None:
            with _tolerating(logger):
                wandb.finish(exit_code=int(failed))
    elif logger is not None:
        logger.finalize("failed" if failed else "success")
