"""What the end-to-end tests share: a user's commands, run in this process or in one of their own, and tiny data."""

import io
import logging
import os
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

# Before torch is imported, here and in every process started from here: tiny networks wait for threads, not for sums,
# and sums over one thread have one order.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("WANDB_MODE", "offline")  # no test may reach the account of whoever runs it

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf, open_dict
from PIL import Image

from defectcls.config import CONF_DIR
from defectcls.errors import FULL_ERROR
from defectcls.training.command import run_verb

FINISHED = (  # what the run `finished` does beyond the tiny one
    *("logger=wandb", "finetune.probe=true", "finetune.stages.full.epochs=2"),
    *("inspect.heat_maps=true", "inspect.robustness=true"),
)
BY_DEFAULT = ("finetune=probe", "evaluation=auto", "model.levels=[0.5,0.75,1]", "image_size=auto")
FOLDED = ("augment=texture", "inspect.heat_maps=true", "inspect.robustness=true")
CHECKOUT = Path(__file__).parents[1]
# Ray sends nothing, leaves nothing at home, and does not stand behind all other tests.
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"}


class Outcome(NamedTuple):
    """What a command left: its exit status and what it wrote."""

    code: int
    out: str
    err: str


def command(verb: str, *arguments: str) -> Outcome:
    """`python -m defectcls.<verb> <arguments>` in this process, which has torch already; a bug's exception passes."""
    out, err, root, code = io.StringIO(), io.StringIO(), logging.getLogger(), 0
    handlers, level = root.handlers[:], root.level
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", [f"defectcls.{verb}", *arguments])
        patch.setenv(FULL_ERROR, "0")
        patch.setenv("PL_GLOBAL_SEED", "0")  # so that what Lightning sets here is taken back
        try:
            run_verb(verb)
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            root.handlers[:] = handlers
            root.setLevel(level)
    return Outcome(code, out.getvalue(), err.getvalue())


def process(module: str, *arguments: str, cwd: Path, **environment: str | None) -> Outcome:
    """`python -m <module> <arguments>` in a process of its own with nothing on stdin: six seconds, if it needs torch.

    Args:
        environment: variables to set, or with None to take away.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=cwd,
        env={name: value for name, value in (os.environ | environment).items() if value is not None},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def sentence(outcome: Outcome) -> str:
    """The one sentence that a mistake of the user ends in, without a traceback."""
    assert outcome.code == 2, outcome
    assert "Traceback" not in outcome.err
    line = outcome.err.splitlines()[-1]
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


def composed(*arguments: str, verb: str = "train") -> dict[str, Any]:
    """The plain configuration that a verb would be called with."""
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        config = compose(verb, list(arguments), return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    with open_dict(config):
        del config["hydra"]
    return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # type: ignore[return-value]


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """What a checkpoint holds of the network."""
    return torch.load(checkpoint, weights_only=True)["state_dict"]


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether two state dicts hold the same bits."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def paint(path: Path, colour: tuple[int, int, int], side: int = 40) -> None:
    """An image of one colour, and of a faint texture of its own: no two are copies or near-identical."""
    path.parent.mkdir(parents=True, exist_ok=True)
    texture = np.random.default_rng(zlib.crc32("/".join(path.parts[-2:]).encode())).integers(-8, 9, (side, side, 1))
    Image.fromarray(np.clip(np.array(colour) + texture, 0, 255).astype(np.uint8)).save(path)


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or fills the cache of whoever runs it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEFECTCLS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def leave_pictures_out(patch: pytest.MonkeyPatch) -> None:
    """They are half of a tiny run's time."""
    report = import_module("defectcls.pages.report")
    patch.setattr(report, "_pictures", lambda *_: (report.Text(), report.Text()))
    patch.setattr(report, "_photos", lambda *_: report.Text())
    patch.setattr(import_module("defectcls.training.inspection"), "inspect", lambda *_: ({}, {}))


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_pictures_out(monkeypatch)


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[Any]:
    """One node of one CPU; others are added by a test."""
    without = "there is no Ray here: pip install 'defectcls[ray]'"
    cluster_utils = pytest.importorskip("ray.cluster_utils", reason=without)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in QUIET.items():
            patch.setenv(name, value)
        started = cluster_utils.Cluster(True, head_node_args={"num_cpus": 1})
        yield started
        started.shutdown()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A run of one second: 90 drawn photos, 300 thousand weights from scratch, no dashboard."""
    return [
        "dataset=synthetic",
        f"dataset.root={tmp_path_factory.mktemp('photos')}",
        "dataset.image_count=90",
        "dataset.image_side=64",
        "dataset.crops_per_photo=2",
        "model=timm",
        "model.name=test_resnet.r160_in1k",
        "model.pretrained=false",
        "finetune=probe_then_full",  # of random weights the whole network, at once
        "evaluation=holdout",
        "image_size=32",
        "trainer=cpu",
        "trainer.precision=32",
        "trainer.compile=false",
        "logger=csv",
        "logger.group=tests",  # else the second of the start
        "inspect.heat_maps=false",
        "inspect.robustness=false",
    ]


@pytest.fixture(scope="session")
def finished(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that probed, trained two epochs and was mirrored to W&B; to be read only."""
    folder = tmp_path_factory.mktemp("finished")
    assert command("train", *tiny, *FINISHED, f"hydra.run.dir={folder}").code == 0
    return folder


@pytest.fixture(scope="session")
def finished_types(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that tells the defect types apart; to be read only."""
    folder = tmp_path_factory.mktemp("types")
    arguments = ("target=defect_type", "dataset.crops_per_photo=1", "finetune=probe", f"hydra.run.dir={folder}")
    assert command("train", *tiny, *arguments).code == 0
    return folder


@pytest.fixture(scope="session")
def crossvalidated(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that sets nothing aside, as a few photos are learned from by default; to be read only."""
    folder = tmp_path_factory.mktemp("crossvalidated")
    assert command("train", *tiny, *BY_DEFAULT, *FOLDED, f"hydra.run.dir={folder}").code == 0
    return folder
