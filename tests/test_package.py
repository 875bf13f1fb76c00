"""The wheel, away from its checkout: presets travel in it, and every verb starts from any folder."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import CHECKOUT, Outcome

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(CHECKOUT)]
    subprocess.run(build, check=True)
    (file,) = folder.glob("defectcls-*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but the package in it."""
    folder = tmp_path_factory.mktemp("site")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), str(wheel)]
    subprocess.run(install, check=True)
    return folder


def start(installed: Path, cwd: Path, *arguments: str) -> Outcome:
    """`python <arguments>` in `cwd`, where only the installed package can be imported."""
    environment = os.environ | {"PYTHONPATH": str(installed), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def test_wheel_holds_the_package_every_preset_and_nothing_else(wheel: Path) -> None:
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    assert all(name.startswith("defectcls/") for name in names)
    presets = {file.relative_to(CHECKOUT / "conf").as_posix() for file in CHECKOUT.glob("conf/**/*.yaml")}
    assert {name.removeprefix("defectcls/conf/") for name in names if name.endswith(".yaml")} == presets
    modules = {file.relative_to(CHECKOUT).as_posix() for file in CHECKOUT.glob("defectcls/**/*.py")}
    assert {name for name in names if name.endswith(".py")} == modules
    assert "defectcls/py.typed" in names
    assert "defectcls/pages/page.html.j2" in names


def test_presets_are_those_of_the_wheel(installed: Path, tmp_path: Path) -> None:
    code = "from defectcls.config import CONF_DIR; print(CONF_DIR)"
    assert start(installed, tmp_path, "-c", code).out.strip() == str(installed / "defectcls/conf")


def test_verbs_are_listed_and_help_answers(installed: Path, tmp_path: Path) -> None:
    listed = start(installed, tmp_path, "-m", "defectcls")
    assert (listed.code, listed.err) == (0, "")
    assert {"train", "evaluate"} <= {line.split()[0] for line in listed.out.splitlines() if line.strip()}
    shown = start(installed, tmp_path, "-m", "defectcls.train", "--help")
    assert (shown.code, shown.err) == (0, "")
    assert "batch_size: 32" in shown.out


def test_sweep_and_evaluation_run_away_from_the_checkout(installed: Path, tiny: list[str], tmp_path: Path) -> None:
    sweep = start(installed, tmp_path, "-m", "defectcls.train", "-m", *tiny, "finetune=probe", "seed=0,1")
    assert sweep.code == 0, sweep.err
    jobs = sorted(tmp_path.glob("runs/sweeps/*/*/metrics.json"))
    trained = [json.loads(file.read_text()) for file in jobs]
    assert [metrics["seed"] for metrics in trained] == [0, 1]
    assert [metrics["commit"] for metrics in trained] == [None, None]
    checkpoint = f"checkpoint={jobs[0].parent.relative_to(tmp_path)}"
    evaluation = start(installed, tmp_path, "-m", "defectcls.evaluate", checkpoint)
    assert evaluation.code == 0, evaluation.err
    (file,) = tmp_path.glob("runs/evaluate/*/metrics.json")
    assert json.loads(file.read_text())["test"] == trained[0]["test"]
