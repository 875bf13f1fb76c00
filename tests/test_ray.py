"""Sweeps and studies by tasks of Ray, whose jobs are recorded as everywhere."""

import json
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest

from tests.conftest import command, process, sentence
from tests.deployment.conftest import free_port
from tests.test_slurm import FAILING

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="there is no Ray here: pip install 'defectcls[ray]'")
# Nothing is sent, nothing left at home; and what Ray does does not stand behind all other tests.
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"}
SHORT = ("finetune=full", "finetune.patience=null", "finetune.stages.full.epochs=1")


def test_cluster_that_does_not_answer(tiny: list[str], tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    place = ("hydra/launcher=ray", f"hydra.launcher.address={address}", f"hydra.sweep.dir={tmp_path / 'sweep'}")
    told = sentence(command("train", "-m", *tiny, "seed=0,1", *place))
    assert told.startswith(f"no Ray answers at address={address} ([Errno 111] Connection refused): ")


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
    given = (*tiny, *SHORT, "optim.lr=choice(1e-4,1e-3,1e-2)", "sampler=grid", "finalists=1", "seeds=1")
    place = ("ray.address=local", "workers=2", "hydra.run.dir=study")
    outcome = process("defectcls.tune", *given, *place, cwd=tmp_path, PYTHONPATH=str(Path.cwd()), **QUIET)
    assert outcome.code == 0, outcome.err
    trials = pd.DataFrame(json.loads((tmp_path / "study/study.json").read_text())["trials"])
    assert sorted(map(float, trials["optim.lr"])) == [1e-4, 1e-3, 1e-2]
    assert set(trials["state"]) == {"complete"}
    assert sorted(one.name for one in (tmp_path / "study/trials").iterdir()) == ["0", "1", "2"]
