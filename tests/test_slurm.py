"""A cluster of Slurm's own, of one controller and one node on this machine: sweeps as one array job, and `srun`."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pandas as pd
import pytest

from defectcls.files import LAST
from tests.conftest import Outcome, command, process, sentence
from tests.deployment.line import wait_until

TOOLS = ("munged", "slurmctld", "slurmd", "srun", "sbatch")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(map(shutil.which, TOOLS)) or os.geteuid() != 0,
        reason="apt-get install slurm-wlm munge; the node's daemon runs as root",
    ),
]
LIMIT_S = 900
CONFIGURATION = """
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/socket
SlurmctldPort={controller}
SlurmdPort={node}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/builtin
ReturnToService=2
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
FAILING = """
import sys
from defectcls.data.synthetic import Synthetic

class Failing(Synthetic):
    def list_samples(self):
        if "seed=1" in sys.argv:
            raise ValueError("the disk of the camera is broken")
        return super().list_samples()
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder, host = tmp_path_factory.mktemp("slurm"), socket.gethostname().partition(".")[0]
    folder.chmod(0o755)
    with socket.socket() as one, socket.socket() as other:
        for free in (one, other):
            free.bind(("127.0.0.1", 0))
        controller, node = (free.getsockname()[1] for free in (one, other))
    (folder / "state").mkdir()
    (folder / "spool").mkdir()
    (folder / "key").write_bytes(os.urandom(1024))
    (folder / "key").chmod(0o600)
    of_munge = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    places = [f"--{option}={folder / file}" for option, file in of_munge.items()]
    given = {"host": host, "folder": folder, "controller": controller, "node": node, "cores": os.cpu_count()}
    (folder / "slurm.conf").write_text(CONFIGURATION.format(**given))
    with pytest.MonkeyPatch.context() as patch, ExitStack() as ends:
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        for daemon in (["munged", "--foreground", "--force", *places], ["slurmctld", "-D"], ["slurmd", "-D"]):
            log = ends.enter_context((folder / f"{daemon[0]}.log").open("w"))
            started = subprocess.Popen(daemon, stdout=log, stderr=subprocess.STDOUT)
            ends.callback(started.wait)
            ends.callback(started.terminate)
        ready = lambda: "idle" in subprocess.run(["sinfo", "-h"], capture_output=True, text=True, check=False).stdout  # noqa: E731
        wait_until(ready, LIMIT_S)
        yield


def array(folder: Path, *arguments: str) -> list[str]:
    """The command line of a sweep."""
    launcher = ("hydra/launcher=submitit_slurm", "hydra.launcher.cpus_per_task=1")
    return ["-m", *arguments, *launcher, f"hydra.sweep.dir={folder}"]


@pytest.mark.usefixtures("cluster")
def test_an_array_of_jobs(tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that fails is shown as failed; one that Slurm puts back into its queue goes on where it was."""
    (tmp_path / "failing.py").write_text(FAILING)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path.cwd()}")
    long = ("finetune=full", "finetune.patience=null", "finetune.stages.full.epochs=40", "batch_size=8")
    given = array(tmp_path / "sweep", *tiny, *long, "dataset._target_=failing.Failing", "seed=0,1")
    with subprocess.Popen(
        [sys.executable, "-m", "defectcls.train", *given], stderr=subprocess.PIPE, text=True
    ) as sweep:
        wait_until((tmp_path / "sweep/0" / LAST).is_file, LIMIT_S)
        queue = subprocess.run(["squeue", "-h", "-o", "%i"], capture_output=True, text=True, check=True).stdout.split()
        running = next(name for name in queue if name.endswith("_0"))
        subprocess.run(["scontrol", "requeue", running], check=True)
        said = sweep.communicate(timeout=LIMIT_S)[1]
    assert sweep.returncode == 1, said
    assert "Traceback" not in said.rpartition("broken")[2]
    jobs = pd.read_csv(tmp_path / "sweep/jobs.csv")
    assert jobs["status"].tolist() == ["finished", "failed"]
    assert jobs["error"][1] == "ValueError('the disk of the camera is broken')"
    assert pd.read_csv(tmp_path / "sweep/0/metrics.csv")["epoch"].tolist() == [*range(1, 41)]
    logs = "".join(file.read_text() for file in (tmp_path / "sweep").rglob("*.err"))
    assert "requeue" in logs.lower()  # of Slurm: it was


@pytest.mark.usefixtures("cluster")
def test_a_typo_is_told_before_a_job_is_queued(tiny: list[str], tmp_path: Path) -> None:
    outcome: Outcome = process("defectcls.train", *array(tmp_path / "sweep", *tiny, "optim.lrr=1,2"), cwd=Path.cwd())
    assert sentence(outcome) == "unknown key 'optim.lrr' in optim, did you mean 'lr'?"
    assert not (tmp_path / "sweep").exists()


@pytest.mark.usefixtures("cluster")
def test_a_study_by_an_array(tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tasks do its trials, each once, though one of them is cancelled; the best is judged."""
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    study = tmp_path / "study"
    given = [*tiny, "finetune=full", "finetune.patience=null", "finetune.stages.full.epochs=10", "prune=false"]
    given += ["optim.lr=1e-4,1e-3", "batch_size=8,16", "sampler=grid", "finalists=1", "seeds=2", "lease_s=5"]
    given += [f"hydra.run.dir={study}", "slurm=--array=0-1 --cpus-per-task=1 --partition=all"]
    with subprocess.Popen(
        [sys.executable, "-m", "defectcls.tune", *given], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as tune:
        wait_until(
            lambda: tune.poll() is not None or len([*study.glob("trials/*/0/checkpoints/last.ckpt")]) > 1, LIMIT_S
        )
        assert tune.poll() is None, tune.communicate()
        queue = subprocess.run(["squeue", "-h", "-o", "%i"], capture_output=True, text=True, check=True).stdout.split()
        subprocess.run(["scancel", queue[0]], check=True)
        out, err = tune.communicate(timeout=LIMIT_S)
    assert tune.returncode == 0, err
    summary = json.loads((study / "study.json").read_text())
    trials = pd.DataFrame(summary["trials"])
    assert sorted(trials["repeat"]) == [0, 0, 0, 0, 1] and set(trials["state"]) == {"complete"}
    points = trials[trials["repeat"] == 0]
    assert {(float(lr), int(size)) for lr, size in zip(points["optim.lr"], points["batch_size"], strict=True)} == {
        *((lr, size) for lr in (1e-4, 1e-3) for size in (8, 16))
    }
    tested = json.loads((study / f"trials/{summary['best']}/0/metrics.json").read_text())["test"]
    assert summary["test"] == tested
    assert "On photos that no trial saw:" in out
    logs = "".join(file.read_text() for file in study.glob("slurm-*.log"))
    assert "CANCELLED" in logs

    refused = command("tune", *given[:-2], f"hydra.run.dir={tmp_path / 'refused'}", "slurm=--partition=none")
    assert sentence(refused).startswith("Slurm does not take the job (sbatch: error: invalid partition specified: none")


@pytest.mark.usefixtures("cluster")
def test_processes_of_srun(tiny: list[str], tmp_path: Path) -> None:
    """Two tasks of a node measure what one process does."""
    arguments = (*tiny, "batch_size=8", "finetune=probe", "dataset.split.test=17")
    assert command("train", *arguments, f"hydra.run.dir={tmp_path / 'one'}").code == 0
    tasks = ["srun", "--ntasks=2", "--ntasks-per-node=2", "--overcommit", sys.executable, "-m", "defectcls.train"]
    two = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", f"hydra.run.dir={tmp_path / 'two'}")
    done = subprocess.run([*tasks, *arguments, *two], capture_output=True, text=True, check=False, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr
    one, both = (json.loads((tmp_path / name / "metrics.json").read_text())["test"] for name in ("one", "two"))
    assert one["n"] == both["n"]
    assert one["confusion_matrix"] == both["confusion_matrix"]
    assert pd.read_csv(tmp_path / "two/predictions.csv")["path"].is_unique
