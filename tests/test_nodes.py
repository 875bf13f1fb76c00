"""Two nodes, as two processes with the variables that torchrun and srun set: they measure what one does."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pandas as pd
import pytest

from defectcls.files import LAST
from tests.conftest import command, sentence, weights
from tests.deployment.line import wait_until

TWO_NODES = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=1", "+trainer.num_nodes=2")
LIMIT_S = 300


def variables(launcher: str, rank: int, port: int) -> dict[str, str]:
    """Of one process on each of two nodes."""
    if launcher == "torchrun":
        ranks = {"RANK": rank, "GROUP_RANK": rank, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 1}
        named = ranks | {"TORCHELASTIC_RUN_ID": "none", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    else:
        ranks = {"SLURM_PROCID": rank, "SLURM_NODEID": rank, "SLURM_LOCALID": 0, "SLURM_NTASKS": 2, "SLURM_NNODES": 2}
        named = ranks | {"SLURM_NTASKS_PER_NODE": 1, "SLURM_JOB_ID": 4711, "SLURM_JOB_NAME": "train"}
        named |= {"SLURM_NODELIST": "127.0.0.1", "MASTER_PORT": port}
    return {name: str(value) for name, value in named.items()}


@contextmanager
def nodes(launcher: str, folder: Path, *arguments: str) -> Iterator[list[subprocess.Popen[str]]]:
    """Both, started; ended with the block, whatever happens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = ["-m", "defectcls.train", *arguments, *TWO_NODES, f"hydra.run.dir={folder}"]
    with ExitStack() as ends:
        started = []
        for rank in (0, 1):
            log = ends.enter_context((folder.parent / f"{folder.name}-{rank}.log").open("w"))
            one = subprocess.Popen(
                [sys.executable, *given],
                env=os.environ | variables(launcher, rank, port),
                stdin=subprocess.DEVNULL,
                stderr=log,
                stdout=subprocess.DEVNULL,
                text=True,
            )
            ends.callback(one.wait)
            ends.callback(one.kill)
            started.append(one)
        yield started


def said(folder: Path, rank: int) -> str:
    return (folder.parent / f"{folder.name}-{rank}.log").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "recipe"),
    [
        ("torchrun", ("finetune=probe", "model.head=joined")),
        ("srun", ("finetune=probe", "evaluation=crossval", "dataset.split.train=null")),
    ],
)
def test_two_nodes_measure_what_one_process_does(
    tiny: list[str], tmp_path: Path, launcher: str, recipe: tuple[str, ...]
) -> None:
    """Every image once; the head, the memory and the decision are the first process's."""
    arguments = (*tiny, "batch_size=8", "dataset.split.test=17", *recipe)
    assert command("train", *arguments, f"hydra.run.dir={tmp_path / 'one'}").code == 0
    with nodes(launcher, tmp_path / "two", *arguments) as started:
        assert [one.wait(LIMIT_S) for one in started] == [0, 0], said(tmp_path / "two", 0) + said(tmp_path / "two", 1)
    one, two = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two"))
    for part in {"val", "test"} & one.keys():
        assert one[part]["n"] == two[part]["n"] == sum(map(sum, two[part]["confusion_matrix"]))
        assert one[part]["confusion_matrix"] == two[part]["confusion_matrix"]
        assert one[part]["auroc"] == pytest.approx(two[part]["auroc"])
    tables = [pd.read_csv(tmp_path / name / "predictions.csv") for name in ("one", "two")]
    assert tables[0]["path"].tolist() == tables[1]["path"].tolist()
    assert tables[1]["path"].is_unique
    assert tables[0]["score"].to_numpy() == pytest.approx(tables[1]["score"].to_numpy(), abs=1e-3)
    assert (tmp_path / "two/.hydra/overrides.yaml").is_file()
    found = [weights(tmp_path / name / "checkpoints/best.ckpt") for name in ("one", "two")]
    assert found[0].keys() == found[1].keys()


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_process_is_killed_and_the_run_goes_on(tiny: list[str], tmp_path: Path, killed: int) -> None:
    """The other ends with one sentence; the same command goes on where the run was."""
    other = 1 - killed
    folder = tmp_path / "run"
    arguments = (*tiny, "batch_size=8", "finetune=full", "finetune.patience=null", "finetune.stages.full.epochs=6")
    with nodes("torchrun", folder, *arguments) as started:
        wait_until((folder / LAST).is_file, LIMIT_S)
        started[killed].send_signal(signal.SIGKILL)
        assert started[other].wait(LIMIT_S) == 2, said(folder, other)
    told = said(folder, other).splitlines()[-1]
    assert told.startswith("error: another process of this run has ended, and said why: resume=")
    assert "Traceback" not in said(folder, other)
    done = len(pd.read_csv(folder / "metrics.csv"))
    assert 1 <= done < 6
    with nodes("torchrun", folder, *arguments) as started:
        assert [one.wait(LIMIT_S) for one in started] == [0, 0], said(folder, 0)
    history = pd.read_csv(folder / "metrics.csv")
    assert history["epoch"].tolist() == [1, 2, 3, 4, 5, 6]
    assert pd.read_csv(folder / "predictions.csv")["path"].is_unique
    metrics = json.loads((folder / "metrics.json").read_text())
    for part in ("train", "val", "test"):
        assert metrics[part]["n"] == sum(map(sum, metrics[part]["confusion_matrix"]))


@pytest.mark.slow
@pytest.mark.parametrize("several", [{"WORLD_SIZE": "2"}, {"SLURM_NTASKS": "4"}])
def test_processes_started_from_outside_need_one_folder(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch, several: dict[str, str]
) -> None:
    for name, value in several.items():
        monkeypatch.setenv(name, value)
    told = sentence(command("train", *tiny, *TWO_NODES))
    assert told == "srun and torchrun start this several times, for one folder: hydra.run.dir=runs/<a new name>"
