"""What the dashboards get, read back from the files of an offline W&B run."""

import json
import os
import struct
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import wandb
from lightning.pytorch.loggers import CSVLogger
from wandb import wandb_agent
from wandb.proto.wandb_internal_pb2 import Record
from wandb.sdk.launch.sweeps.utils import load_sweep_config

from defectcls.config import CONF_DIR
from defectcls.model.classifier import Classifier
from defectcls.settings import LoggerSettings, TrainSettings
from defectcls.training import loggers
from defectcls.training.loggers import dashboard, log_results
from tests.conftest import CHECKOUT, command, composed, leave_pictures_out, process, sentence

RESULTS = ["metrics.json", "predictions.csv", "report.html"]
BLOCK = 32768  # bytes; the format is LevelDB's log: blocks of (checksum, length, kind, data), here after 7 bytes


def records(file: Path) -> Iterator[Record]:
    content, at, data = file.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if BLOCK - at % BLOCK < 7:
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        data += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(data)
            yield record
            data = b""


def finished_records(file: Path) -> list[Record]:
    """All records, once the last one is there: W&B's own process writes them, and may be late on a busy machine."""
    for _ in range(200):
        found = list(records(file))
        if any(record.WhichOneof("record_type") == "exit" for record in found):
            return found
        time.sleep(0.2)
    raise AssertionError(f"{file} was never finished: {len(found)} records")


class OfflineRun:
    """One offline run as W&B would upload it."""

    def __init__(self, folder: Path) -> None:
        (file,) = folder.glob("*.wandb")
        self.files = folder / "files"
        self.config: dict[str, Any] = {}
        self.history: dict[str, list] = defaultdict(list)
        self.summary: dict[str, Any] = {}
        self.panels: set[str] = set()
        self.exit_code = -1
        for record in finished_records(file):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                self.run = record.run
                self._add_config(record.run.config.update)
            elif kind == "config":
                self._add_config(record.config.update)
            elif kind == "history":
                for item in record.history.item:
                    self.history["/".join(item.nested_key) or item.key].append(json.loads(item.value_json))
            elif kind == "summary":
                for item in record.summary.update:
                    self.summary["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
            elif kind == "exit":
                self.exit_code = record.exit.exit_code

    def _add_config(self, updates: Any) -> None:
        for update in updates:
            if update.nested_key[:2] == ["_wandb", "visualize"]:
                self.panels.add(update.nested_key[2])
            elif update.key:
                self.config[update.key] = json.loads(update.value_json)

    def table(self, name: str, folder: str = "test") -> pd.DataFrame:
        (file,) = (self.files / "media/table" / folder).glob(f"{name}_*.table.json")
        content = json.loads(file.read_text())
        return pd.DataFrame(content["data"], columns=content["columns"])


def offline_runs(folder: Path) -> list[OfflineRun]:
    return [OfflineRun(run) for run in sorted(folder.glob("wandb/offline-run-*"))]


@pytest.fixture(scope="module")
def logged(finished: Path) -> OfflineRun:
    (run,) = offline_runs(finished)
    return run


def test_run_is_named_grouped_and_tagged(logged: OfflineRun, finished: Path) -> None:
    run = logged.run
    assert (run.project, run.job_type, run.run_group) == ("defectcls", "train", "tests")
    assert list(run.tags) == ["synthetic", "test_resnet.r160_in1k"]
    assert run.display_name == "/".join(finished.parts[-3:])
    assert logged.exit_code == 0


def test_config_is_that_of_the_run(logged: OfflineRun, finished: Path) -> None:
    config = json.loads((finished / "metrics.json").read_text())["config"]
    config["dataset"]["depth"] = "auto"  # as it was asked for: it is resolved when the run has begun
    for key in ("dataset", "trainer", "logger", "target", "seed", "batch_size"):
        assert logged.config[key] == config[key]
    assert logged.config["optim"]["lr"] == config["optim"]["lr"]


def test_validation_of_the_probe_and_every_epoch_is_in_the_history(logged: OfflineRun, finished: Path) -> None:
    history = pd.read_csv(finished / "metrics.csv")
    for name in ("val/auroc", "val/f1", "val/precision", "val/recall", "val/loss"):
        assert logged.history[name] == pytest.approx(history[name].tolist())
    for name in ("train/loss", "train/accuracy"):
        assert logged.history[name] == pytest.approx(history[name].dropna().tolist())


def test_summary_holds_the_test_numbers(logged: OfflineRun, finished: Path) -> None:
    metrics = json.loads((finished / "metrics.json").read_text())
    for name in ("n", "accuracy", "precision", "recall", "f1", "f1_macro", "auroc", "average_precision", "escape_rate"):
        assert logged.summary[f"test/{name}"] == pytest.approx(metrics["test"][name])


def test_what_the_report_shows_is_mirrored(logged: OfflineRun, finished: Path) -> None:
    metrics = json.loads((finished / "metrics.json").read_text())
    low, high = metrics["test"]["intervals"]["recall"]
    assert (logged.summary["test/recall_low"], logged.summary["test/recall_high"]) == pytest.approx((low, high))
    (path,) = logged.history["report/path"]
    assert (logged.files / path).read_text() == (finished / "report.html").read_text()


def test_confusion_matrix_is_that_of_the_run(logged: OfflineRun, finished: Path) -> None:
    assert "test/confusion_matrix" in logged.panels
    found = logged.table("confusion_matrix_table").set_index(["Actual", "Predicted"])["nPredictions"]
    expected = json.loads((finished / "metrics.json").read_text())["test"]["confusion_matrix"]
    names = ("sound", "defective")
    assert [[found[truth, answer] for answer in names] for truth in names] == expected


@pytest.mark.slow
def test_crashed_run_ends_as_failed_and_its_resumption_goes_on_with_it(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [argument for argument in tiny if not argument.startswith("logger.group")]
    given += ["logger=wandb", "finetune=full", "finetune.stages.full.epochs=2", f"hydra.run.dir={tmp_path}"]
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        step = Classifier.training_step
        patch.setattr(Classifier, "training_step", lambda *a: step(*a) if a[0].global_step < 1 else 1 / 0)
        command("train", *given)

    assert command("train", f"resume={tmp_path}").code == 0
    crashed, resumed = sorted(offline_runs(tmp_path), key=lambda run: -run.exit_code)
    assert (crashed.exit_code, resumed.exit_code) == (1, 0)
    assert crashed.run.run_id == resumed.run.run_id != ""
    assert crashed.run.run_group == resumed.run.run_group == ""
    assert "test/accuracy" in resumed.summary
    assert "test/accuracy" not in crashed.summary


@pytest.mark.slow
def test_sweep_leaves_one_run_a_job_in_one_group(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [argument for argument in tiny if not argument.startswith("logger.group")]
    given += ["logger=wandb", "finetune=probe", "seed=0,1"]
    assert command("train", "-m", *given).code == 0
    (sweep,) = tmp_path.glob("runs/sweeps/*")
    jobs = [offline_runs(sweep / number) for number in "01"]
    assert [len(runs) for runs in jobs] == [1, 1]
    (first,), (second,) = jobs
    assert first.run.run_id != second.run.run_id
    assert first.run.run_group == second.run.run_group == f"runs/sweeps/{sweep.name}"
    assert [run.config["seed"] for run in (first, second)] == [0, 1]
    for run, number in ((first, 0), (second, 1)):
        metrics = json.loads((sweep / str(number) / "metrics.json").read_text())
        assert metrics["seed"] == number
        assert run.summary["test/auroc"] == pytest.approx(metrics["test"]["auroc"])


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "tensorboard"), ("mlflow", "mlflow")])
def test_missing_package_names_the_extra(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: str
) -> None:
    from lightning.fabric.loggers import tensorboard
    from lightning.pytorch.loggers import mlflow

    for where in (tensorboard, mlflow):
        for flag in ("_TENSORBOARD_AVAILABLE", "_TENSORBOARDX_AVAILABLE", "_MLFLOW_AVAILABLE"):
            if hasattr(where, flag):
                monkeypatch.setattr(where, flag, False)
    assert sentence(command("train", *tiny, f"logger={name}", f"hydra.run.dir={tmp_path}")) == (
        f"logger={name} needs a package: pip install 'defectcls[{module}]'"
    )


@pytest.mark.slow
def test_nobody_is_logged_in_and_nothing_asks(tiny: list[str], tmp_path: Path) -> None:
    """Nothing is on stdin, no key is anywhere: the run goes offline by itself."""
    home = {name: str(tmp_path / "home") for name in ("HOME", "NETRC", "WANDB_CONFIG_DIR", "XDG_CONFIG_HOME")}
    nobody = {"WANDB_API_KEY": None, "WANDB_MODE": None}
    folder = tmp_path / "run"
    given = (*tiny, "logger=wandb", "finetune=probe", f"hydra.run.dir={folder}")
    outcome = process("defectcls.train", *given, cwd=tmp_path, **home, **nobody)
    assert outcome.code == 0, outcome.err
    said = ("90 images", "train ", "probe: C", "memory: ")
    assert all(line.startswith(said) for line in outcome.err.splitlines()), outcome.err
    (run,) = offline_runs(folder)
    assert run.exit_code == 0
    assert run.summary["test/n"] == json.loads((folder / "metrics.json").read_text())["test"]["n"]


# --- dashboards that fail ---------------------------------------------------------------------------------------------


def failing(*_: Any, **__: Any) -> Any:
    raise ConnectionError("the server is gone")


@pytest.mark.parametrize("name", ["wandb", "mlflow", "tensorboard"])
def test_a_logger_that_cannot_begin_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    monkeypatch.setattr(loggers, "_build", failing)
    settings = WANDB.model_copy(update={"name": name})
    with dashboard(settings, tmp_path, {}) as logger:
        assert logger is None
    assert caplog.messages == [
        f"logger={name} has failed, and the run goes on without it: ConnectionError('the server is gone')"
    ]


def test_a_server_that_dies_is_told_nothing_more_after_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[float] = []

    def send(self: CSVLogger, metrics: dict[str, float], step: int | None = None) -> None:
        told.append(metrics["lr"])
        if metrics["lr"] == 2:
            raise ConnectionError("the server\nis gone")

    monkeypatch.setattr(CSVLogger, "log_metrics", send)
    monkeypatch.setattr(loggers, "_build", lambda *_: CSVLogger(tmp_path))  # stands in for any of Lightning's
    with dashboard(WANDB, tmp_path, {}) as logger:
        assert logger is not None
        for number in range(1, 5):
            logger.log_metrics({"lr": number}, number)
            logger.save()
        log_results(logger, tmp_path, {}, pd.DataFrame())
    assert told == [1, 2]
    assert caplog.messages == [
        "logger=csv has failed, and the run goes on without it: ConnectionError('the server\\nis gone')"
    ]


def test_results_are_on_the_disk_before_a_dashboard_is_told(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline W&B that fails with the results and once more when it is to end: exit 0, one warning, every file."""

    def send(*_: Any, **__: Any) -> None:
        assert sorted(file.name for file in tmp_path.glob("*.*")) == ["metrics.csv", *RESULTS]
        raise ConnectionError("the server is gone")

    monkeypatch.setattr(loggers, "defect_numbers", send)
    monkeypatch.setattr(wandb, "finish", failing)
    leave_pictures_out(monkeypatch)
    outcome = command("train", *tiny, "logger=wandb", "finetune=probe", f"hydra.run.dir={tmp_path}")
    assert outcome.code == 0, outcome.err
    assert outcome.err.count("has failed, and the run goes on without it") == 1
    assert json.loads((tmp_path / "metrics.json").read_text())["test"]["n"] > 0
    monkeypatch.undo()
    wandb.finish()


# --- sweeps -----------------------------------------------------------------------------------------------------------

WANDB = LoggerSettings(name="wandb", project="p", group="runs/sweeps/now", job_type="train", tags=["a"])
SWEEP_FILE = CONF_DIR / "wandb_sweep.yaml"


def test_run_that_an_agent_starts_is_the_one_it_announced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    earlier = tmp_path / "wandb" / "id"
    earlier.parent.mkdir()
    earlier.write_text("12345678")
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep0")
    monkeypatch.setenv("WANDB_RUN_ID", "announced")
    with dashboard(WANDB, tmp_path, {}):
        pass
    (run,) = offline_runs(tmp_path)
    assert (run.run.run_id, run.run.run_group) == ("announced", "")
    assert earlier.read_text() == "announced"  # for who resumes it by hand


def agent_command(values: dict[str, Any], folder: Path, patch: pytest.MonkeyPatch) -> tuple[list[str], dict[str, str]]:
    """What `wandb agent` would start for one proposal of the server, and in which environment."""
    for name, value in (("SWEEP_ID", "sweep0"), ("RUN_ID", ""), ("SWEEP_PARAM_PATH", ""), ("DIR", str(folder))):
        patch.setenv(f"WANDB_{name}", value)
    started: list[dict[str, Any]] = []
    patch.setattr(wandb_agent, "AgentProcess", lambda **given: started.append(given) or SimpleNamespace())
    file = load_sweep_config(str(SWEEP_FILE))
    assert file is not None
    agent = wandb_agent.Agent(api=None, queue=None, sweep_id="sweep0")
    agent._sweep_command = file["command"]
    proposal = {name: {"value": value} for name, value in values.items()}
    agent._command_run({"run_id": "announced", "program": file["program"], "args": proposal})
    return started[0]["command"], started[0]["env"]


def proposals() -> list[dict[str, Any]]:
    """Each value of the sweep file, and each end of a range, at least once."""
    file = load_sweep_config(str(SWEEP_FILE))
    assert file is not None
    choices = {
        name: one["values"] if "values" in one else [one["value"]] if "value" in one else [one["min"], one["max"]]
        for name, one in file["parameters"].items()
    }
    longest = max(map(len, choices.values()))
    return [{name: tried[n % len(tried)] for name, tried in choices.items()} for n in range(longest)]


def test_sweep_file_names_a_number_that_runs_send(logged: OfflineRun, finished: Path) -> None:
    file = load_sweep_config(str(SWEEP_FILE))
    assert file is not None
    assert file["metric"]["goal"] == "maximize"
    (sent,) = logged.history[file["metric"]["name"]]
    kept = json.loads((finished / "metrics.json").read_text())["val"]["auroc"]
    assert sent == logged.summary[file["metric"]["name"]] == pytest.approx(kept)


@pytest.mark.parametrize("values", proposals(), ids=lambda values: values["model"])
def test_what_an_agent_types_is_a_valid_run(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, _ = agent_command(values, tmp_path, monkeypatch)
    assert words[:4] == ["/usr/bin/env", "python", "-m", "defectcls.train"]
    settings = TrainSettings(**composed(*words[4:]))
    assert settings.optim.lr == values["optim.lr"]
    assert settings.model_dump()["image_size"] == values["image_size"]
    assert settings.seed == 0
    assert settings.logger.name == "wandb"


@pytest.mark.slow
def test_job_of_an_agent_is_its_run_and_sends_the_number(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = dict(argument.split("=", 1) for argument in (*tiny, "finetune=probe_then_full", "finetune.probe=true"))
    folder = tmp_path / "run"
    values = proposals()[0] | quick | {"logger": "wandb", "hydra.run.dir": str(folder)}
    words, environment = agent_command(values, tmp_path, monkeypatch)
    path = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(
        words,
        cwd=tmp_path,
        env=environment | {"PATH": path, "PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (run,) = offline_runs(folder)
    assert (run.run.run_id, run.run.sweep_id, run.run.run_group) == ("announced", "sweep0", "")
    kept = json.loads((folder / "metrics.json").read_text())
    assert run.summary["best/val_auroc"] == pytest.approx(kept["val"]["auroc"])
    assert run.config["optim.lr"] == kept["config"]["optim"]["lr"] == values["optim.lr"]


def test_of_many_classes_the_numbers_of_defects_are_logged() -> None:
    """As the report and the sweep's table have them: not the mean over classes under the same name."""
    logged: dict[str, float] = {}
    logger: Any = SimpleNamespace(log_metrics=logged.update)
    part = {"auroc": 0.6, "accuracy": 0.5, "defect": {"auroc": 0.9}}
    part["intervals"] = {"auroc": [0.5, 0.7], "defect": {"auroc": [0.8, 0.95]}}
    scores = [*range(40), 37.5, 36, 100, 38.5]  # of 40 sound parts two may be rejected, those of 39 and 38
    predictions = pd.DataFrame({"score": scores, "defective": [False] * 40 + [True] * 4})
    log_results(logger, Path(), {"val": part, "test": part}, predictions)
    assert logged == {
        "test/recall_at_5_overkill": 0.75,
        "test/auroc": 0.9,
        "test/auroc_low": 0.8,
        "test/auroc_high": 0.95,
        "test/accuracy": 0.5,
        "best/val_auroc": 0.9,
    }
