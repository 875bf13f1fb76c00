"""Files, tables, checkpoints and machines that are not as they should be: one sentence each, and nothing lost."""

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from defectcls.model.backbone import Backbone, Look
from defectcls.model.classifier import Classifier
from defectcls.model.head import Head
from defectcls.training.run import TrainingRun
from tests.conftest import Outcome, command, equal, paint, process, sentence, weights

SMALL = (
    *("model=timm", "model.name=test_resnet.r160_in1k", "model.pretrained=false", "image_size=32", "finetune=probe"),
    *("logger=csv", "trainer=cpu", "batch_size=8"),
)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Ten photos of good parts and ten of scratched ones."""
    for number in range(10):
        paint(tmp_path / f"photos/good/{number}.png", (10 * number, 90, 200))
        paint(tmp_path / f"photos/scratch/{number}.png", (200, 10 * number, 30))
    return tmp_path / "photos"


def train(root: Path, *arguments: str) -> Outcome:
    """Train on the class folders in `root`, into the folder `run` beside it."""
    folder = root.parent / "run"
    return command("train", "dataset=folder", f"dataset.root={root}", *SMALL, f"hydra.run.dir={folder}", *arguments)


# --- images and tables ------------------------------------------------------------------------------------------------


def test_folder_is_missing(tmp_path: Path) -> None:
    text = sentence(train(tmp_path / "fotos"))
    assert text.startswith(f"the folder {tmp_path / 'fotos'} does not exist: ")
    assert text.endswith("or dataset.root=<folder>")


def test_folder_of_a_public_dataset_is_missing(tmp_path: Path) -> None:
    root = f"dataset.root={tmp_path / 'mvtec'}"
    text = sentence(command("train", "dataset=mvtec", root, *SMALL, f"hydra.run.dir={tmp_path / 'run'}"))
    for part in ("https://www.mvtec.com/", "dataset.root=<folder>", "dataset.download=true"):
        assert part in text


def test_folder_is_empty(tmp_path: Path) -> None:
    assert sentence(train(tmp_path)) == (
        f"{tmp_path} holds no class folders: expected <class>/<image> or {{train,val,test}}/<class>/<image>"
    )


def test_class_folder_is_empty(photos: Path) -> None:
    (photos / "dent").mkdir()
    assert sentence(train(photos)).startswith(f"'dent' in {photos} holds no image: expected ")


def test_only_one_class(photos: Path) -> None:
    text = (
        "a classifier needs two classes, but all 20 images are of one: sound; model.head=memory needs sound ones alone"
    )
    assert sentence(train(photos, "dataset.sound=[good,scratch]")) == text


def test_sound_class_is_misspelt(photos: Path) -> None:
    text = f"{photos} has the class folders good, scratch; not sound=godo, did you mean 'good'?"
    assert sentence(train(photos, "dataset.sound=godo")) == text


def test_class_of_one_image(photos: Path) -> None:
    paint(photos / "dent/0.png", (0, 0, 99))
    text = sentence(train(photos, "target=defect_type"))
    assert text.startswith("class 'dent' is too small to split (images: 1, independent of each other: 1)")
    assert "is left for " in text


def test_dataset_without_defect_types(tmp_path: Path) -> None:
    for number in range(5):
        paint(tmp_path / f"Negative/{number}.png", (10 * number, 90, 200))
        paint(tmp_path / f"Positive/{number}.png", (200, 10 * number, 30))
    given = ("dataset=concrete_crack", f"dataset.root={tmp_path}", "target=defect_type", *SMALL)
    text = "this dataset names no defect types: use target=defect"
    assert sentence(command("train", *given, f"hydra.run.dir={tmp_path / 'run'}")) == text


def spoil(photos: Path) -> None:
    whole = (photos / "good/0.png").read_bytes()
    (photos / "good/0.png").write_bytes(b"")
    (photos / "good/1.png").write_text("<html>404</html>")
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(photos / "scratch/0.jpg")
    data = (photos / "scratch/0.jpg").read_bytes()
    (photos / "scratch/0.jpg").write_bytes(data[: len(data) // 2])
    (photos / "scratch/1.png").write_bytes(whole[: len(whole) // 2])


def test_unreadable_images_are_counted_and_named(photos: Path) -> None:
    spoil(photos)
    text = sentence(train(photos))
    assert text.startswith(
        "4 of 21 images cannot be read: good/0.png (empty file), good/1.png (not an image), scratch/"
    )
    assert text.endswith("…; mend or delete them, or leave them out with dataset.on_unreadable=skip")


def test_unreadable_images_are_skipped_on_request_and_listed(photos: Path) -> None:
    spoil(photos)
    outcome = train(photos, "dataset.on_unreadable=skip")
    assert outcome.code == 0
    assert "4 of 21 images cannot be read: " in outcome.err
    metrics = json.loads((photos.parent / "run/metrics.json").read_text())
    unreadable = [entry["path"] for entry in metrics["unreadable"]]
    assert unreadable == ["good/0.png", "good/1.png", "scratch/0.jpg", "scratch/1.png"]
    assert all(entry["reason"] for entry in metrics["unreadable"])
    predicted = pd.read_csv(photos.parent / "run/predictions.csv")["path"].tolist()
    on_disk = [path.relative_to(photos).as_posix() for path in photos.glob("*/*")]
    assert predicted == sorted(set(on_disk) - set(unreadable))


def test_no_image_is_readable(photos: Path) -> None:
    for path in photos.glob("*/*"):
        path.write_bytes(b"")
    assert sentence(train(photos, "dataset.on_unreadable=skip")).startswith("20 of 20 images cannot be read: ")


def test_a_broken_mask_is_told_before_the_first_epoch(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ended the run after its training, which left no report."""
    rows = [f"{path.relative_to(photos)},{path.parent.name}," for path in sorted(photos.glob("*/*"))]
    (photos / "parts.csv").write_text("\n".join(["path,label,mask", *rows[:-1], rows[-1] + "mask.png", ""]))
    (photos / "mask.png").write_bytes(b"no image")
    monkeypatch.setattr(TrainingRun, "train", lambda self: pytest.fail("it trains"))
    given = (f"dataset.root={photos}", f"dataset.table={photos / 'parts.csv'}", *SMALL, "dataset.sound=[good]")
    outcome = command("train", "dataset=table", *given, f"hydra.run.dir={photos.parent / 'run'}")
    assert sentence(outcome).startswith(f"the mask {photos / 'mask.png'} cannot be read: not an image")


def test_labels_of_a_table_outside_its_classes(photos: Path) -> None:
    rows = [f"{path.relative_to(photos)},{path.parent.name}" for path in sorted(photos.glob("*/*"))]
    table = photos / "parts.csv"
    table.write_text("\n".join(["path,label", *rows, ""]).replace("scratch/3.png,scratch", "scratch/3.png,scrach"))
    given = (f"dataset.root={photos}", f"dataset.table={table}", "dataset.labels=[good,scratch]", *SMALL)
    outcome = command("train", "dataset=table", *given, f"hydra.run.dir={photos.parent / 'run'}")
    assert sentence(outcome) == f"{table} has labels that dataset.labels does not name: scrach"


def test_split_asks_for_more_than_there_is(photos: Path) -> None:
    text = sentence(train(photos, "evaluation=holdout", "dataset.split.train=9", "dataset.split.test=5"))
    assert "fewer than dataset.split asks for" in text
    assert text.endswith(": train=9, val=0.15, test=5")


# --- models and checkpoints -------------------------------------------------------------------------------------------


def test_unknown_model(photos: Path) -> None:
    text = "timm has no model 'mobilnetv2_100', did you mean 'mobilenetv2_100'?"
    assert sentence(train(photos, "model.name=mobilnetv2_100")) == text
    text = "timm has no model 'resnet18.a1_in1m', did you mean 'resnet18.a1_in1k'?"
    assert sentence(train(photos, "model.name=resnet18.a1_in1m")) == text


def test_pooling_that_a_model_cannot_do(photos: Path) -> None:
    text = sentence(train(photos, "model.name=test_vit.r160_in1k", "model.pool=catavgmax"))
    assert text.startswith("model.name=test_vit.r160_in1k cannot be built with model.pool=catavgmax and ")


def test_weights_of_another_model(photos: Path, tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "other.pth")
    given = ("model.pretrained=true", f"model.weights={tmp_path / 'other.pth'}")
    assert sentence(train(photos, *given)).startswith(f"{tmp_path / 'other.pth'} ")
    missing = sentence(train(photos, "model.pretrained=true", f"model.weights={tmp_path / 'none.pth'}"))
    assert missing == f"model.weights={tmp_path / 'none.pth'} does not exist: give a weights file or a folder of them"


def evaluate(checkpoint: Path) -> Outcome:
    return command("evaluate", f"checkpoint={checkpoint}", f"hydra.run.dir={checkpoint.parent / 'evaluated'}")


class Intruder:
    """Leaves a file where it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable, tuple]:
        return Path.touch, (self.file,)


def test_code_in_a_checkpoint_does_not_run(finished: Path, tmp_path: Path) -> None:
    content = torch.load(finished / "checkpoints/best.ckpt", weights_only=True)
    torch.save(content | {"extra": Intruder(tmp_path / "broken in")}, tmp_path / "evil.ckpt")
    text = sentence(evaluate(tmp_path / "evil.ckpt"))
    assert text.startswith(
        f"{tmp_path / 'evil.ckpt'} is damaged, or no checkpoint of plain values; nothing in it was run"
    )
    assert not (tmp_path / "broken in").exists()
    torch.load(tmp_path / "evil.ckpt", weights_only=False)
    assert (tmp_path / "broken in").exists()  # or the test tests nothing


def test_damaged_checkpoint(finished: Path, tmp_path: Path) -> None:
    whole = (finished / "checkpoints/best.ckpt").read_bytes()
    for name, content in {"empty": b"", "half": whole[: len(whole) // 2], "text": b"hello"}.items():
        (tmp_path / f"{name}.ckpt").write_bytes(content)
        text = f"{tmp_path / name}.ckpt is damaged, or no checkpoint of plain values; nothing in it was run"
        assert sentence(evaluate(tmp_path / f"{name}.ckpt")).startswith(text)


def test_checkpoint_of_another_tool(tmp_path: Path) -> None:
    for number, content in enumerate(({"state_dict": {}}, {"fc.weight": torch.zeros(2, 3)}, torch.zeros(3))):
        file = tmp_path / f"{number}.ckpt"
        torch.save(content, file)
        text = f"{file} is a checkpoint of another tool: give one that defectcls.train wrote"
        assert sentence(evaluate(file)) == text


# --- the machine ------------------------------------------------------------------------------------------------------

NO_SPACE = "no space left on the disk; what was written is kept: make room, then resume={folder} goes on"
FULL = ("finetune=full", "finetune.stages.full.epochs=2")


@pytest.mark.slow
def test_disk_is_full_while_a_checkpoint_is_written(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second epoch does not fit; what the first one left is whole, and the run goes on once there is room."""
    saved, earlier = [], {}

    def save(content: Any, file: Any, *_: Any, **__: Any) -> None:
        saved.append(file)
        if len(saved) > 2:
            earlier.update(weights(photos.parent / "run/checkpoints/last.ckpt"))
            raise OSError(errno.ENOSPC, "No space left on device")
        write(content, file)

    write = torch.save
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", save)
        text = sentence(train(photos, *FULL, "finetune.probe=true"))
    folder = photos.parent / "run"
    assert text == NO_SPACE.format(folder=folder)
    assert sorted(file.name for file in (folder / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    assert equal(weights(folder / "checkpoints/last.ckpt"), earlier)
    assert command("train", f"resume={folder}").code == 0


def test_disk_is_really_full(photos: Path) -> None:
    """/dev/full takes nothing: the one file of a run that is written in place."""
    (photos.parent / "run").mkdir()
    (photos.parent / "run/metrics.csv").symlink_to("/dev/full")
    text = sentence(train(photos, *FULL))
    assert text == NO_SPACE.format(folder=photos.parent / "run")


def test_loss_that_is_not_finite(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = Classifier.forward
    monkeypatch.setattr(Classifier, "forward", lambda self, image: forward(self, image) * float("nan"))
    assert sentence(train(photos, *FULL)) == ("the loss is nan at step 0: lower optim.lr, or try trainer.precision=32")


def test_learning_rate_that_blows_up(photos: Path) -> None:
    text = sentence(train(photos, *FULL, "optim.lr=1e30", "trainer.precision=32"))
    assert text.startswith("the loss is nan at step ")


MEMORY = {
    "gpu": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nSee documentation"),
    "cpu": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 99999 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "windows": RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
}


@pytest.mark.parametrize("kind", ["gpu", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("cpu", "windows"))])
def test_batch_that_does_not_fit_into_memory(photos: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    def forward(*_: Any) -> None:
        raise MEMORY[kind]

    monkeypatch.setattr(Head, "forward", forward)
    first_line, whose = str(MEMORY[kind]).splitlines()[0], "the GPU's" if kind == "gpu" else "this machine's"
    assert sentence(train(photos)) == (
        f"{whose} memory is full: end what else takes it, or lower batch_size or image_size ({first_line})"
    )


def test_features_that_are_not_finite(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEFECTCLS_CACHE", str(tmp_path))  # where no earlier run has left its own
    plain = Backbone.inference

    def infinite(self: Backbone, with_map: bool = False) -> Look:
        look = plain(self, with_map)
        return lambda image: tuple(one * float("inf") for one in look(image))

    monkeypatch.setattr(Backbone, "inference", infinite)
    text = "the backbone's features are not finite: try trainer.precision=32, or other weights"
    assert sentence(train(photos)) == text


def test_bug_keeps_its_traceback(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(*_: Any) -> float:
        return 1 / 0

    monkeypatch.setattr(Head, "forward", forward)
    with pytest.raises(ZeroDivisionError) as caught:
        train(photos)
    assert caught.traceback[-1].name == "forward"


# --- the terminal -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_terminal_shows_one_sentence_and_no_traceback(photos: Path) -> None:
    (photos / "good/0.png").write_bytes(b"")
    given = ("dataset=folder", f"dataset.root={photos}", *SMALL)
    assert process("defectcls.train", *given, cwd=photos.parent) == (
        2,
        "",
        "error: 1 of 20 images cannot be read: good/0.png (empty file); mend or delete them, or leave them out with "
        "dataset.on_unreadable=skip\n",
    )


# --- settings that only a run can check -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        ("optim.name=adamww", "did you mean 'adamw'?"),
        ("+optim.options.momentun=0.9", "momentun"),
        (
            "trainer.precision=16",
            "precision 16 is for GPUs, and this is a CPU: use precision 32 or bf16",
        ),
        ("trainer.accelerator=gpu", "a gpu is asked for, and torch finds none here: use auto or cpu"),
    ],
)
def test_settings_are_refused_before_the_first_epoch(
    photos: Path, argument: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert text in sentence(train(photos, argument))
    assert not (photos.parent / "run" / "checkpoints").exists()
