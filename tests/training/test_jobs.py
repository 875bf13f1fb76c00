"""The jobs of a sweep: isolated, recorded, not run twice; and a sweep that is killed and started again."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from filelock import FileLock
from hydra._internal.hydra import Hydra

from defectcls.errors import UserError
from defectcls.training import command as commands
from defectcls.training import jobs
from defectcls.training.jobs import Task, close_sweep, read_jobs, recorded_command, run_job
from tests.conftest import Outcome, command, process, sentence

BREAKING = """
import os, signal, sys
from defectcls.data.synthetic import Synthetic

class Breaking(Synthetic):
    def list_samples(self):
        if "seed=1" in sys.argv:
            raise ValueError("the disk of the camera is broken")
        if "seed=2" in sys.argv:
            bytearray(1 << 50)
        if "seed=3" in sys.argv:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().list_samples()
"""


def job(folder: Path, number: int, status: str, **more: Any) -> None:
    """A record, and of a finished job the numbers of a run."""
    record = {"number": number, "overrides": [f"seed={number}"], "status": status, "error": None, "objective": None}
    record |= more
    (folder / str(number)).mkdir(parents=True)
    (folder / str(number) / "job.json").write_text(json.dumps(record))
    if status == "finished":
        metrics = {"val": {"auroc": 0.9}, "test": {"auroc": 0.8 + number / 100}, "seed": number}
        (folder / str(number) / "metrics.json").write_text(json.dumps(metrics))


def task(folder: Path, verb: str, config: dict[str, Any]) -> Task:
    return Task(verb, 4, folder, ["seed=4"], config, [], {"version": 1})


def statuses(folder: Path) -> dict[int, str]:
    return {one.number: one.status for one in read_jobs(folder)}


# --- one job ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that takes seconds is imported ahead."""
    monkeypatch.setattr(jobs, "IMPORTED_ONCE", [])


@pytest.mark.slow
@pytest.mark.usefixtures("light")
def test_failed_job_is_recorded_with_its_sentence_and_tried_again(tmp_path: Path) -> None:
    config = {"runs": ["a", "b"], "metrics": ["recall"], "level": 0.95, "resamples": 100, "seed": 0}
    expected = "a does not exist: give the folder of a finished run or a predictions CSV"
    for _ in range(2):
        done = run_job(task(tmp_path, "compare", config))
        assert (done["status"], done["error"]) == ("failed", expected)
        assert json.loads((tmp_path / "job.json").read_text()) == done


def test_finished_job_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs.multiprocessing, "get_context", lambda *_: pytest.fail("a process is started"))
    job(tmp_path, 4, "finished")
    assert run_job(task(tmp_path / "4", "train", {}))["status"] == "finished"


@pytest.mark.slow
def test_a_ctrl_c_while_a_job_starts_leaves_no_traceback(tmp_path: Path) -> None:
    """A terminal sends it to all processes of a command; here it comes while the log of the job is opened."""
    (tmp_path / "early.py").write_text(
        "import logging, signal\ndef handler():\n    signal.raise_signal(2)\n    return logging.NullHandler()\n"
    )
    logs = {"version": 1, "handlers": {"early": {"()": "early.handler"}}, "root": {"handlers": ["early"]}}
    done = f"jobs.run_job(jobs.Task('compare', 0, Path(), [], {{}}, [], {logs}))"
    script = f"from pathlib import Path\nfrom defectcls.training import jobs\nprint({done}['error'])\n"
    (tmp_path / "script.py").write_text(script)
    outcome = process("script", cwd=tmp_path, PYTHONPATH=f"{tmp_path}:{Path.cwd()}")
    assert outcome.out == "its process ended with 130\n"
    assert "Traceback" not in outcome.err


# --- the folder of a sweep --------------------------------------------------------------------------------------------


@pytest.fixture
def begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """`-m <arguments>` in the folder `sweep`, each job of which is finished at once, but for that of seed 1."""
    monkeypatch.chdir(tmp_path)

    def at_once(one: Task) -> dict[str, Any]:
        if "seed=1" in one.overrides:
            return one.record("failed", "no photos")
        return one.record("finished", objective=0.5)

    monkeypatch.setattr(commands, "run_job", at_once)
    return lambda *given, verb="train": command(verb, "-m", "dataset=synthetic", "hydra.sweep.dir=sweep", *given)


def test_a_folder_goes_on_with_its_own_command_alone(begin: Callable[..., Outcome]) -> None:
    assert begin("seed=0,1").code == 1
    assert statuses(Path("sweep")) == {0: "finished", 1: "failed"}
    again = begin("seed=0,1")
    assert (again.code, "no photos" in again.out) == (1, True)
    assert command("train", "resume=sweep").code == 1
    for given, verb in ((["seed=0"], "train"), (["seed=0,1"], "crossval")):
        assert sentence(begin(*given, verb=verb)) == "sweep is of another command: give hydra.sweep.dir=<new folder>"


def test_presets_beside_conf_are_part_of_a_sweep(begin: Callable[..., Outcome], tmp_path: Path) -> None:
    for name in ("mine", "more"):
        (tmp_path / name / "model").mkdir(parents=True)
    more = f"hydra.searchpath=[file://{tmp_path}/more]"
    assert begin("--config-dir", "mine", more, "seed=0,2").code == 0
    presets = f"hydra.searchpath=['file://{tmp_path}/mine','file://{tmp_path}/more']"
    assert recorded_command(tmp_path / "sweep") == ("train", [presets, "dataset=synthetic", "seed=0,2"])


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_damaged_records_of_a_sweep(tmp_path: Path, content: bytes) -> None:
    job(tmp_path, 0, "finished")
    for file in ("job.json", "metrics.json"):
        whole = (tmp_path / "0" / file).read_bytes()
        (tmp_path / "0" / file).write_bytes(content)
        with pytest.raises(UserError) as caught:
            read_jobs(tmp_path)
        assert str(caught.value) == (
            f"{tmp_path}/0/{file} is damaged: delete the folder {tmp_path}/0, and resume=<sweep folder> goes on and "
            "does the job anew"
        )
        (tmp_path / "0" / file).write_bytes(whole)
    assert statuses(tmp_path) == {0: "finished"}


def test_folder_of_other_files_is_not_written_to(begin: Callable[..., Outcome], tmp_path: Path) -> None:
    (tmp_path / "sweep" / "good").mkdir(parents=True)
    assert sentence(begin("seed=0,1")) == "sweep is of another command: give hydra.sweep.dir=<new folder>"
    assert [entry.name for entry in (tmp_path / "sweep").iterdir()] == ["good"]


def test_sweep_of_another_tool_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "theirs" / "0").mkdir(parents=True)
    (tmp_path / "theirs/0/weights.ckpt").write_bytes(b"weeks")
    recorded = {
        "hydra": {"job": {"name": "train"}, "overrides": {"hydra": [], "task": ["model=mnist,vit", "seed=1,2"]}}
    }
    (tmp_path / "theirs/multirun.yaml").write_text(json.dumps(recorded))
    assert "model has no preset 'mnist'" in sentence(command("train", "resume=theirs"))
    assert (tmp_path / "theirs/0/weights.ckpt").read_bytes() == b"weeks"


def test_running_sweep_is_not_joined(begin: Callable[..., Outcome], tmp_path: Path) -> None:
    assert begin("seed=0,2").code == 0
    with FileLock(tmp_path / "sweep/sweep.lock"):
        assert sentence(begin("seed=0,2")) == "the sweep in sweep is running: wait for it, or stop it"


def test_all_jobs_failed(begin: Callable[..., Outcome]) -> None:
    outcome = begin("seed=1", "batch_size=8,16")
    assert (outcome.code, outcome.err) == (2, "error: all 2 jobs failed, the first of them: no photos\n")


@pytest.mark.parametrize(("returned", "code"), [([0, 1], 1), ([0, 0], 0), ([1.0, None], 0)])
def test_exit_status_of_the_verb_is_that_of_its_sweep(tmp_path: Path, returned: list[Any], code: int) -> None:
    for number, one in enumerate(returned):
        job(tmp_path, number, "finished", objective=one)
    assert close_sweep(tmp_path, "predict", []) == code


def test_sweep_that_cannot_be_composed_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "did you mean 'seed'" in sentence(command("train", "-m", "dataset=synthetic", "sed=0,1"))
    assert list(tmp_path.glob("runs/sweeps/*")) == []


# --- whole sweeps -----------------------------------------------------------------------------------------------------


def sweep(tiny: list[str], folder: Path, *arguments: str) -> Outcome:
    environment = {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}
    return process("defectcls.train", "-m", *tiny, "finetune.probe=false", *arguments, cwd=folder, **environment)


@pytest.mark.slow
def test_two_of_twelve_jobs_fail_and_ten_finish(tiny: list[str], tmp_path: Path) -> None:
    (tmp_path / "breaking.py").write_text(BREAKING)
    seeds = "seed=" + ",".join(map(str, range(12)))
    outcome = sweep(tiny, tmp_path, "dataset._target_=breaking.Breaking", seeds)
    assert outcome.code == 1
    (folder,) = tmp_path.glob("runs/sweeps/*")
    errors = {one.number: one.error for one in read_jobs(folder) if one.status == "failed"}
    assert errors == {
        1: "ValueError('the disk of the camera is broken')",
        2: "this machine's memory is full: end what else takes it, or lower batch_size or image_size (MemoryError)",
        3: "its process was killed, as Linux does when memory runs out",
    }
    assert sum(status == "finished" for status in statuses(folder).values()) == 9
    table = pd.read_csv(folder / "jobs.csv").set_index("job")
    assert table["error"].dropna().to_dict() == errors
    for number, error in errors.items():
        assert f"error in job {number}: {error}" in outcome.err
        assert error in (folder / "sweep.html").read_text().replace("&#39;", "'")


@pytest.mark.slow
def test_killed_sweep_goes_on_where_it_was(tiny: list[str], tmp_path: Path) -> None:
    import wandb

    wandb.init(mode="offline", dir=tmp_path).finish()  # as in a notebook that logs: its service outlives the sweep
    given = (*tiny, "finetune.probe=false", "logger=wandb", "optim.lr=0.001,0.0003", "seed=0,1,2")
    whole = [sys.executable, "-m", "defectcls.train", "-m", *given]
    with (tmp_path / "log").open("wb") as log:
        started = subprocess.Popen(whole, cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    while len(list(tmp_path.glob("runs/sweeps/*/*/metrics.json"))) < 2:
        time.sleep(0.2)
        assert started.poll() is None, (tmp_path / "log").read_text()
    time.sleep(1)
    started.kill()
    started.wait()
    (folder,) = tmp_path.glob("runs/sweeps/*")
    finished = {file: file.stat().st_mtime_ns for file in folder.glob("*/metrics.json")}
    assert 2 <= len(finished) < 6
    outcome = process("defectcls.train", f"resume={folder}", cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    assert list(tmp_path.glob("runs/sweeps/*")) == [folder]
    assert {file: file.stat().st_mtime_ns for file in finished} == finished
    assert statuses(folder) == dict.fromkeys(range(6), "finished")
    ids = [{run.name.rpartition("-")[2] for run in folder.glob(f"{number}/wandb/offline-run-*")} for number in range(6)]
    assert [len(of_job) for of_job in ids] == [1] * 6
    assert len(set.union(*ids)) == 6
    table = pd.read_csv(folder / "sweep.csv")
    assert table["finished"].tolist() == [3, 3]
    tests = [json.loads(file.read_text())["test"]["auroc"] for file in folder.glob("*/metrics.json")]
    assert table["test_auroc_mean"].mean() == pytest.approx(sum(tests) / 6)


@pytest.mark.slow
def test_stopped_sweep_ends_its_job_and_dashboard_and_goes_on(tiny: list[str], tmp_path: Path) -> None:
    from tests.training.test_loggers import offline_runs

    given = (*tiny, "finetune.probe=false", "logger=wandb", "finetune.stages.full.epochs=40", "seed=0,1")
    whole = [sys.executable, "-m", "defectcls.train", "-m", *given, "finetune.patience=null"]
    begun = subprocess.Popen(whole, cwd=tmp_path, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("runs/sweeps/*/0/checkpoints/last.ckpt")):
        time.sleep(0.05)
        assert begun.poll() is None
    begun.terminate()
    _, err = begun.communicate()
    (folder,) = tmp_path.glob("runs/sweeps/*")
    assert begun.returncode == 143
    assert err.endswith(f"stopped by SIGTERM: resume={folder.relative_to(tmp_path)} goes on\n")
    assert statuses(folder) == {0: "unfinished"}
    assert [run.exit_code for run in offline_runs(folder / "0")] == [1]
    assert process("defectcls.train", f"resume={folder}", cwd=tmp_path).code == 0
    assert statuses(folder) == {0: "finished", 1: "finished"}


def test_a_job_that_the_cluster_has_lost_is_told(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the table, in which it is not finished."""

    class LostError(Exception):
        pass

    LostError.__module__ = "submitit.core.utils"

    def launch(*_: Any) -> None:
        job(tmp_path / "sweep", 0, "finished")
        job(tmp_path / "sweep", 1, "unfinished")
        raise LostError("Job 17_1 not found, state NODE_FAIL")

    monkeypatch.setattr(Hydra, "multirun", launch)
    outcome = command("train", "-m", *tiny, "seed=0,1", f"hydra.sweep.dir={tmp_path / 'sweep'}")
    assert outcome.code == 1
    told = "the cluster has lost a job (Job 17_1 not found, state NODE_FAIL)"
    assert outcome.err == f"error: {told}: resume={tmp_path / 'sweep'} does what is not finished\n"
    assert "job 1 unfinished" in outcome.out


@pytest.mark.parametrize(("cluster", "waits"), [(True, True), (False, False)])
def test_a_job_that_slurm_ends_is_not_failed_before_slurm_has_ended_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: bool, waits: bool
) -> None:
    """It may be on its way back into the queue."""
    slept: list[float] = []
    monkeypatch.setattr(jobs.time, "sleep", lambda seconds: slept.append(seconds))
    ended = SimpleNamespace(start=lambda: None, join=lambda: None, exitcode=143)
    context = SimpleNamespace(set_forkserver_preload=lambda _: None, Process=lambda **_: ended)
    monkeypatch.setattr(jobs.multiprocessing, "get_context", lambda *_: context)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    if cluster:
        monkeypatch.setenv("SLURM_JOB_ID", "17")
    done = run_job(task(tmp_path, "train", {}))
    assert slept == [jobs.SLURM_KILLS_S] * waits
    assert (done["status"], done["error"]) == ("failed", "its process ended with 143")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_other_launchers_do_the_same_jobs(tiny: list[str], tmp_path: Path, launcher: str) -> None:
    pytest.importorskip(f"hydra_plugins.hydra_{launcher.partition('_')[0]}_launcher")
    outcomes = [
        sweep(tiny, tmp_path, "seed=0,1", f"hydra.sweep.dir={name}", f"hydra/launcher={name}")
        for name in ("basic", launcher)
    ]
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes[1].err
    for number in "01":
        own, other = (
            json.loads((tmp_path / name / number / "metrics.json").read_text()) for name in ("basic", launcher)
        )
        assert own["test"] == other["test"]
        assert own["command"].replace("basic", launcher) == other["command"]


@pytest.mark.slow
def test_recorded_sweep_is_resumed_by_its_folder(tiny: list[str], tmp_path: Path) -> None:
    assert sweep(tiny, tmp_path, "seed=0,1", "finetune.stages.full.epochs=1").code == 0
    (folder,) = tmp_path.glob("runs/sweeps/*")
    (folder / "1" / "metrics.json").unlink()
    (folder / "1" / "job.json").unlink()
    assert process("defectcls.train", f"resume={folder.relative_to(tmp_path)}", cwd=tmp_path).code == 0
    assert statuses(folder) == {0: "finished", 1: "finished"}
