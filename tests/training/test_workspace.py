"""The workspace of a W&B project: it names what runs and trials have sent, and a mistake is one sentence."""

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb
import wandb_workspaces.workspaces as ws

from defectcls.training.search import try_once
from defectcls.training.workspace import DashboardSettings, workspace
from tests.conftest import command, composed, process, sentence
from tests.deployment.conftest import free_port
from tests.training.test_loggers import OfflineRun, offline_runs

ABOUT = {
    "searched": {"optim/lr": 0.001, "augment": "gentle"},
    "objectives": {"val/recall": "maximize", "ms_per_photo": "minimize"},
}


def named(spec: Any) -> Iterator[str]:
    """Each key of a run that a workspace names: summary:<key>, config:<path>, or <key>."""
    if isinstance(spec, dict):
        for key, value in spec.items():
            if key in ("accessor", "xAxis", "yAxis", "targetKey", "groupBy") and value != "_step":
                yield value
            elif key in ("mediaKeys", "metrics"):
                yield from value
            elif key == "columnOrder":
                yield from (one for one in value if not one.startswith("run:"))
            elif key == "args":
                yield from (one["value"] for one in value if one["name"] == "tableKey")
            elif key == "sort" and isinstance(value, dict):
                yield from (one["key"]["name"] for one in value["keys"])
            yield from named(value)
    elif isinstance(spec, list):
        for one in spec:
            yield from named(one)


def sent(run: OfflineRun) -> set[str]:
    """Each key of a run, as a workspace would name it."""

    def paths(config: dict[str, Any], before: str) -> Iterator[str]:
        for key, value in config.items():
            yield f"{before}{key}"
            if isinstance(value, dict):
                yield from paths(value, f"{before}{key}.")

    config = {re.sub(r"^(\w+)", r"\1.value", path) for path in paths(run.config, "")}
    keys = {key.split("/path")[0] for key in (*run.summary, *run.history)}
    keys |= {key.rpartition("/")[0] for key in keys if key.endswith("/_type")}
    return keys | config | {f"config:{path}" for path in config} | {f"summary:{key}" for key in keys}


def test_keys_that_the_workspace_names_are_sent_by_runs_and_trials(
    finished: Path, tiny: list[str], tmp_path: Path
) -> None:
    given = ("logger=wandb", "logger.job_type=tune", "finetune=probe")
    numbers = try_once(composed(*tiny, *given), tmp_path, ABOUT)
    (trial,), (run,) = offline_runs(tmp_path), offline_runs(finished)
    assert (trial.run.job_type, trial.config["searched"]) == ("tune", ABOUT["searched"])
    assert trial.summary["best/val_recall"] == pytest.approx(numbers["val/recall"])
    of_all = workspace(DashboardSettings(project="p", entity=None, name="all"), "me", trial.config)
    keys = {*named(of_all._model.spec.model_dump(by_alias=True, exclude_none=True))}
    assert {"summary:test/recall_at_5_overkill", "config:searched.value.optim/lr", "report"} <= keys
    assert keys <= sent(run) | sent(trial), keys - sent(run) - sent(trial)


def test_workspace_of_a_project_without_a_study() -> None:
    (order,) = (
        made := workspace(DashboardSettings(project="p", entity=None, name="n"), "me", {})
    ).runset_settings.order
    assert (order.item.name, order.ascending) == ("best/val_auroc", False)
    assert [section.name for section in made.sections][1:] == ["Confusion matrices"]


def test_saved_for_the_newest_study(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    asked: list[Any] = []

    class Api:
        default_entity = "me"

        def __init__(self, timeout: int) -> None: ...

        def runs(self, *given: Any, **options: Any) -> list[Any]:
            asked.append(given)
            return [SimpleNamespace(config=ABOUT)]

    def save(self: ws.Workspace) -> ws.Workspace:
        asked.append([column.metric.name for column in self.sections[-1].panels[0].columns])
        self._internal_name = "nw-abc-v"
        return self

    monkeypatch.setattr(wandb, "login", lambda **_: True)
    monkeypatch.setattr(wandb, "Api", Api)
    monkeypatch.setattr(ws.Workspace, "save", save)
    monkeypatch.setattr("wandb_workspaces.workspaces.interface.get_app_url", lambda _: "https://wandb.ai")
    monkeypatch.setattr(ws.Workspace, "url", property(lambda self: f"{self.entity}/{self.project}"))
    outcome = command("dashboard", "project=cracks")
    assert (outcome.code, outcome.out) == (0, "me/cracks\n"), outcome.err
    columns = ["searched.optim/lr", "searched.augment", "best/val_recall", "best/ms_per_photo"]
    assert asked == [("me/cracks", {"jobType": "tune"}, "-created_at"), columns]


def test_mistakes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("HOME", "NETRC", "WANDB_CONFIG_DIR", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "nobody"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert sentence(command("dashboard")) == "project is not set: add project=<value>"
    said = sentence(command("dashboard", "project=p"))
    assert said == "nobody is logged in to W&B here: type wandb login, or set WANDB_API_KEY"
    monkeypatch.setattr(wandb, "login", lambda **_: True)

    def missing(*_: Any, **__: Any) -> None:
        raise ValueError("Could not find project me/p")

    monkeypatch.setattr(wandb, "Api", lambda **_: SimpleNamespace(default_entity="me", runs=missing))
    assert sentence(command("dashboard", "project=p")) == (
        "project=p cannot have a workspace (Could not find project me/p): "
        "project=<one that has runs>, entity=<whose it is>"
    )
    assert not list(tmp_path.rglob("*.log"))


@pytest.mark.slow
def test_no_network(tmp_path: Path) -> None:
    there = {"WANDB_API_KEY": "a" * 40, "WANDB_BASE_URL": f"http://127.0.0.1:{free_port()}", "WANDB_MODE": None}
    outcome = process("defectcls.dashboard", "project=p", cwd=tmp_path, **there)
    assert sentence(outcome).startswith("project=p cannot have a workspace (")
    assert len(outcome.err.splitlines()) == 1
