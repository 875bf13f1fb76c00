"""Sweeps and studies by tasks of Ray, whose jobs are recorded as everywhere."""

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from defectcls import __version__
from defectcls.cluster import connected, on_ray
from defectcls.errors import UserError, explain
from defectcls.files import LAST
from defectcls.settings import RaySettings
from tests.conftest import QUIET, command, process, sentence
from tests.deployment.conftest import free_port
from tests.deployment.exported import write
from tests.deployment.line import wait_until
from tests.test_slurm import FAILING

ray = pytest.importorskip("ray", reason="there is no Ray here: pip install 'defectcls[ray]'")
SHORT = ("finetune=full", "finetune.patience=null", "finetune.stages.full.epochs=1")
EPOCHS, LIMIT_S = 40, 300
LONG = (*SHORT[:-1], f"finetune.stages.full.epochs={EPOCHS}", "batch_size=8")
SWEEP = ("-m", "seed=0,1,2", "hydra/launcher=ray", "hydra.launcher.address={address}", "hydra.sweep.dir={folder}")
GRID = ("optim.lr=choice(1e-4,1e-3,1e-2)", "sampler=grid", "finalists=1", "seeds=1")
STUDY = (*GRID, "prune=false", "lease_s=5", "ray.address={address}", "workers=2", "hydra.run.dir={folder}")


@pytest.mark.parametrize(
    ("verb", "address", "reason"),
    [
        ("train", "127.0.0.1:{port}", "[Errno 111] Connection refused"),
        ("predict", "ray://127.0.0.1:{port}", "[Errno 111] Connection refused"),
        ("train", ":", "[Errno -2] Name or service not known"),
        ("tune", "foo", "Invalid address format: foo"),
    ],
)
def test_address_at_which_there_is_none(
    tiny: list[str], tmp_path: Path, verb: str, address: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told in one sentence, and nothing is left."""
    (photos := tmp_path / "photos").mkdir()
    Image.new("L", (8, 8)).save(photos / "0.png")
    model, address = write(tmp_path / "model.onnx"), address.format(port=free_port())
    given = {
        "train": (*tiny, "-m", "seed=0,1", "hydra/launcher=ray", f"hydra.launcher.address={address}"),
        "tune": (*tiny, "optim.lr=choice(1e-4,1e-3)", f"ray.address={address}"),
        "predict": (f"checkpoint={model}", f"input={photos}", "output=out", f"ray.address={address}"),
    }
    monkeypatch.chdir(tmp_path)
    told = sentence(command(verb, *given[verb]))
    assert told.startswith(f"address={address} cannot be used ({reason}): auto is this machine's Ray (ray start), ")
    assert {one for one in tmp_path.rglob("*") if one.is_file()} == {model, photos / "0.png"}
    assert not (tmp_path / "out").exists()


def test_a_task_that_is_lost_is_no_bug() -> None:
    told = "Ray has lost a task (The worker died unexpectedly while executing this task. "
    assert explain(ray.exceptions.WorkerCrashedError(), "resume=study goes on").startswith(told)
    assert explain(ray.exceptions.RayTaskError("f", "Traceback …", ValueError()).as_instanceof_cause()) is None


@pytest.mark.slow
def test_nodes_of_other_versions(ray_cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = RaySettings(address=ray_cluster.address, num_cpus=1, num_gpus=0)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)  # it goes along
    for code, found in (("__version__ = '0.0.9'", "'0.0.9'"), ("raise ModuleNotFoundError(name=__name__)", "None")):
        package = tmp_path / found / "defectcls.py"
        package.parent.mkdir()
        package.write_text(code)
        other = ray_cluster.add_node(num_cpus=1, env_vars={"PYTHONPATH": str(package.parent)})
        with pytest.raises(UserError) as told:
            on_ray(print, [()], settings)
        nodes = f"on other nodes {{'{socket.gethostname()}': {found}}}"
        assert str(told.value) == f"defectcls is {__version__} here, and {nodes}: install the same there"
        ray_cluster.remove_node(other)
    on_ray(print, [()], settings)
    monkeypatch.setattr("ray._private.utils.compute_version_info", lambda: ("1.0", "3.9.1"))
    told = "Version mismatch: .* Ray: 1.0 Python: 3.9.1.*: .* another of the same Ray and Python, "
    with pytest.raises(UserError, match=told):
        on_ray(print, [()], settings)


@pytest.mark.slow
def test_what_is_waited_for_is_told(ray_cluster: Any, caplog: pytest.LogCaptureFixture) -> None:
    for gpus in (0, 1):
        with connected(RaySettings(address=ray_cluster.address, num_cpus=0.5, num_gpus=gpus)):
            pass
    assert caplog.messages == ["waiting for a node with num_cpus=0.5 and num_gpus=1: Ray has none"]


@pytest.mark.slow
def test_a_sweep_with_a_job_that_fails(tiny: list[str], tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(FAILING)
    launcher = ("hydra/launcher=ray", "hydra.launcher.address=local", "hydra.sweep.dir=sweep")
    given = ("-m", *tiny, *SHORT, "dataset._target_=failing.Failing", "seed=0,1,2")
    path = f"{Path.cwd()}:{tmp_path}"
    outcome = process("defectcls.train", *given, *launcher, cwd=tmp_path, PYTHONPATH=path, **QUIET)
    assert outcome.code == 1, outcome.err
    jobs = pd.read_csv(tmp_path / "sweep/jobs.csv")
    assert jobs["seed"].tolist() == [0, 1, 2]
    assert jobs["status"].tolist() == ["finished", "failed", "finished"]
    assert jobs["error"][1] == "ValueError('the disk of the camera is broken')"
    alone = command("train", *tiny, *SHORT, "seed=2", f"hydra.run.dir={tmp_path / 'alone'}")
    assert alone.code == 0
    numbers = [json.loads((tmp_path / name / "metrics.json").read_text())["test"] for name in ("sweep/2", "alone")]
    assert numbers[0] == numbers[1]


@pytest.mark.slow
def test_a_study_by_two_tasks(tiny: list[str], tmp_path: Path) -> None:
    given = (*tiny, *SHORT, *GRID)
    place = ("ray.address=local", "workers=2", "hydra.run.dir=study")
    outcome = process("defectcls.tune", *given, *place, cwd=tmp_path, PYTHONPATH=str(Path.cwd()), **QUIET)
    assert outcome.code == 0, outcome.err
    trials = pd.DataFrame(json.loads((tmp_path / "study/study.json").read_text())["trials"])
    assert sorted(map(float, trials["optim.lr"])) == [1e-4, 1e-3, 1e-2]
    assert set(trials["state"]) == {"complete"}
    assert sorted(one.name for one in (tmp_path / "study/trials").iterdir()) == ["0", "1", "2"]


def epochs(job: Path) -> list[int]:
    """Those of which metrics.csv tells."""
    file = job / "metrics.csv"
    return pd.read_csv(file)["epoch"].tolist() if file.is_file() and file.stat().st_size else []


def job_on(raylet: int) -> tuple[int, Path] | None:
    """Which process of a node does which job: it holds the lock of the folder. None before there is a checkpoint."""
    children = subprocess.run(["ps", "--ppid", f"{raylet}", "-o", "pid="], capture_output=True, text=True).stdout
    for pid in children.split():
        with suppress(OSError):  # a file is closed meanwhile
            for lock in (file.readlink() for file in Path(f"/proc/{pid}/fd").iterdir()):
                if lock.name == "job.lock" and (lock.parent / LAST).is_file():
                    return int(pid), lock.parent
    return None


@pytest.mark.slow
@pytest.mark.parametrize(("verb", "given"), [("train", SWEEP), ("tune", STUDY)])
def test_a_process_and_then_its_node_are_killed(
    ray_cluster: Any, tiny: list[str], tmp_path: Path, verb: str, given: tuple[str, ...]
) -> None:
    """Each of three jobs is finished once, and goes on after the epochs that it has."""
    folder, finished, known = tmp_path / "all", dict[Path, int](), dict[Path, int]()
    node = ray_cluster.add_node(num_cpus=1, node_ip_address="127.0.0.2")
    raylet = node.all_processes["raylet"][0].process.pid
    place = [word.format(address=ray_cluster.address, folder=folder) for word in given]
    command_line = [sys.executable, "-m", f"defectcls.{verb}", *tiny, *LONG, *place]

    def ended() -> bool:
        for file in folder.glob("**/job.json"):
            if json.loads(file.read_text())["status"] == "finished":
                finished.setdefault(file, file.stat().st_mtime_ns)
        return begun.poll() is not None

    def further() -> Any:
        """The process of a job on the node that has made more epochs than when the last one there was killed."""
        at = job_on(raylet)
        assert not ended(), (tmp_path / "log").read_text()
        return at if at is not None and known.get(at[1], 0) < len(epochs(at[1])) < EPOCHS else None

    with (tmp_path / "log").open("w") as log, subprocess.Popen(command_line, stdout=log, stderr=log) as begun:
        try:
            pid, job = wait_until(further, LIMIT_S)
            os.kill(pid, signal.SIGKILL)
            known[job] = len(epochs(job))
            wait_until(further, LIMIT_S)
            ray_cluster.remove_node(node, allow_graceful=False)
            wait_until(ended, LIMIT_S)
        finally:
            begun.kill()
    assert begun.returncode == 0, (tmp_path / "log").read_text()
    assert ended() and len(finished) == 3
    assert {file: file.stat().st_mtime_ns for file in finished} == finished  # none was done again
    assert [epochs(file.parent) for file in finished] == [[*range(1, EPOCHS + 1)]] * 3
