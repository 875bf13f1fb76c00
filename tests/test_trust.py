"""A checkpoint is data: nothing that it names is called, fetched, written to or deleted.

A run folder repeats a command, but what may run code takes trust."""

import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

from defectcls.config import CONF_DIR, named, shipped_dataset
from defectcls.data.datamodule import DefectDataModule
from defectcls.errors import UserError
from defectcls.model.checkpoint import load_network
from defectcls.training.command import resumed
from tests.conftest import command, sentence

SPRUNG: list[Path] = []


class Spring(DefectDataModule):
    """What a stranger would like to have made."""

    def __init__(self, **_: Any) -> None:
        SPRUNG.append(Path())
        raise AssertionError


class Victim:
    """A folder that a stranger's checkpoint takes for its cache, and a server that it takes for its archive's."""

    def __init__(self, folder: Path, address: str, requests: list[str]) -> None:
        self.folder, self.address, self.requests = folder, address, requests
        for name in ("pixels-x/x.rows", "pixels-x/x.keys", "pixels-x/lock", "hardware.json"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(f"not yours: {name}")
        self.left = self.state()

    def state(self) -> dict[str, tuple[int, bytes]]:
        files = [file for file in self.folder.rglob("*") if file.is_file()]
        return {str(file): (file.stat().st_mtime_ns, file.read_bytes()) for file in files}

    def assert_untouched(self) -> None:
        assert (SPRUNG, self.requests) == ([], [])
        assert self.state() == self.left


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Victim]:
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            self.send_error(404)

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Victim(tmp_path / "victim", f"http://127.0.0.1:{server.server_port}", requests)
        server.shutdown()


def stranger(finished: Path, victim: Victim, file: Path, **dataset: Any) -> Path:
    """The checkpoint of `finished`, with a dataset after a stranger's heart."""
    content = torch.load(finished / "checkpoints/best.ckpt", weights_only=True)
    archive = {"url": f"{victim.address}/photos.zip", "sha256": "0" * 64}
    content["defectcls"]["config"]["dataset"] |= {
        **{"cache_dir": str(victim.folder), "cache_max_gb": 1e-9, "cache": "auto", "archive": archive},
        **{"download": True, "source": "a stranger"},
        **dataset,
    }
    torch.save(content, file)
    return file


def evaluated(checkpoint: Path, folder: Path, *arguments: str) -> Any:
    return command("evaluate", f"checkpoint={checkpoint}", f"hydra.run.dir={folder}", *arguments)


@pytest.mark.parametrize(
    "target", ["tests.test_trust.Spring", "os.system", "defectcls.data.datamodule.DefectDataModule"]
)
def test_no_class_that_a_checkpoint_names_is_imported(
    finished: Path, victim: Victim, tmp_path: Path, target: str
) -> None:
    file = stranger(finished, victim, tmp_path / "best.ckpt", name="parts", _target_=target)
    assert sentence(evaluated(file, tmp_path / "new")) == (
        f"{file} was trained on 'parts', which is no dataset of this installation, and the class that it names, "
        f"{target}, is not imported: name the dataset again, dataset=<name>"
    )
    victim.assert_untouched()


def test_a_checkpoint_fetches_nothing_and_makes_no_folder(finished: Path, victim: Victim, tmp_path: Path) -> None:
    root = tmp_path / "gone/photos"
    for name, target in (("mvtec", "mvtec.MVTec"), ("synthetic", "synthetic.Synthetic")):
        target = f"defectcls.data.{target}"
        file = stranger(finished, victim, tmp_path / "best.ckpt", _target_=target, root=str(root))
        assert sentence(evaluated(file, tmp_path / "new")) == (
            f"{file} was trained on images in {root}, which does not exist: say where, "
            f"dataset={name} dataset.root=<folder>"
        )
    victim.assert_untouched()
    assert not root.parent.exists()


def test_a_checkpoint_draws_no_images_into_a_folder(finished: Path, victim: Victim, tmp_path: Path) -> None:
    root = tmp_path / "mine"
    root.mkdir()
    file = stranger(finished, victim, tmp_path / "best.ckpt", root=str(root), source=None)
    text = sentence(evaluated(file, tmp_path / "new"))
    assert text.endswith(f"does not exist: dataset=synthetic dataset.root={root} draws the images")
    assert list(root.iterdir()) == []
    victim.assert_untouched()


@pytest.mark.usefixtures("no_pictures")
def test_images_are_read_where_a_checkpoint_says_and_kept_where_the_user_says(
    finished: Path, victim: Victim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEFECTCLS_CACHE", str(tmp_path / "mine"))
    file = stranger(finished, victim, tmp_path / "best.ckpt")
    outcome = evaluated(file, tmp_path / "new")
    assert outcome.code == 0, outcome.err
    root = torch.load(file, weights_only=True)["defectcls"]["config"]["dataset"]["root"]
    assert f"images from {root}, as the checkpoint says" in outcome.err
    victim.assert_untouched()
    assert list((tmp_path / "mine").glob("pixels-*/*.rows"))
    predicted, trained = (
        pd.read_csv(folder / "predictions.csv").query("split == 'test'") for folder in (tmp_path / "new", finished)
    )
    assert predicted["score"].tolist() == trained["score"].tolist()


@pytest.mark.parametrize("name", ["hf-hub:timm/resnet18.a1_in1k", "hf_hub/resnet18", "local-dir:/tmp", "resnet18.x:y"])
def test_a_model_is_one_of_timm_s_own(
    finished: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """timm would fetch or read what some names point to."""
    content = torch.load(finished / "checkpoints/best.ckpt", weights_only=True)
    content["hyper_parameters"]["model"]["name"] = name
    torch.save(content, tmp_path / "best.ckpt")
    monkeypatch.setattr("timm.create_model", lambda *_, **__: pytest.fail("asked timm for it"))
    with pytest.raises(UserError, match=r"timm has no (model|weights) "):
        load_network(tmp_path / "best.ckpt")


def test_every_shipped_dataset_is_known_by_its_class() -> None:
    for file in CONF_DIR.glob("dataset/*.yaml"):
        preset = shipped_dataset(yaml.safe_load(file.read_text())["_target_"])
        assert preset is not None
        assert (preset["name"], preset["on_unreadable"]) == (file.stem, "error")  # its own, and dataset_base's


# --- resume -----------------------------------------------------------------------------------------------------------

CODE = [
    "hydra.callbacks.x._target_=os.system",
    "+hydra.callbacks={x: {_target_: os.system}}",
    "hydra.searchpath=['file:///tmp/theirs']",
    "hydra/launcher=theirs",
    "dataset._target_=os.system",
    "dataset.verdicts=postgresql://theirs/labels",
    "candidates=['++dataset.verdicts=theirs.sqlite']",
    "'dataset={_target_: os.system}'",
    "+optim.x={_target_: os.system}",
    "--config-dir=/tmp/theirs",
    "-cd",
    "--experimental-rerun=/tmp/theirs",
    "dataset=../../tmp/theirs",  # Hydra does look there
    "+dataset@dataset.x=../../tmp/theirs",
]


def record(overrides: list[str]) -> str:
    """As Hydra keeps them."""
    return yaml.safe_dump({"hydra": {"job": {"name": "train"}, "overrides": {"hydra": [], "task": overrides}}})


@pytest.mark.parametrize("override", CODE)
def test_what_may_run_code_is_trusted_or_refused(tmp_path: Path, override: str) -> None:
    (tmp_path / "run/.hydra").mkdir(parents=True)
    (tmp_path / "sweep").mkdir()
    recorded = ["dataset=synthetic", "dataset.root=../photos", override, "seed=1"]
    for file in ("run/.hydra/hydra.yaml", "sweep/multirun.yaml"):
        (tmp_path / file).write_text(record(recorded))
    for kind in ("run", "sweep"):
        resume = f"resume={tmp_path / kind}"
        text = sentence(command("train", resume))
        assert text.startswith(
            f"{resume} would repeat {override}, which may run code, or open what you did not "
            "name: add trust=true if you trust the folder"
        )
        repeated, sweeps = resumed("train", [resume, "trust=true"])
        assert sweeps == (kind == "sweep")
        assert sorted(set(repeated) & set(recorded)) == sorted(recorded)


def test_a_run_that_names_no_code_needs_no_trust(tmp_path: Path) -> None:
    (tmp_path / ".hydra").mkdir()
    recorded = ["dataset=folder", "dataset.root=../photos", "dataset.sound=[good]", "model=timm", "+model.x=-1"]
    (tmp_path / ".hydra/hydra.yaml").write_text(record(recorded))
    assert resumed("train", [f"resume={tmp_path}", "seed=2"])[0][:5] == recorded


# --- classes that a checkpoint names ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("os.system", "os has no Module system"),
        ("torch.hub.load", "torch.hub has no Module load"),
        ("torch.nn.CrossEntropyLos", "torch.nn has no Module CrossEntropyLos, did you mean 'CrossEntropyLoss'?"),
        ("antigravity.fly", "antigravity.fly is of a module that is not imported: imports=[antigravity], or "),
        ("system", "system is of a module that is not imported: "),
    ],
)
def test_nothing_but_a_class_of_the_right_kind_is_taken_and_nothing_imported(path: str, text: str) -> None:
    with pytest.raises(UserError) as caught:
        named(path, torch.nn.Module)
    assert str(caught.value).startswith(text)
    assert "antigravity" not in sys.modules
