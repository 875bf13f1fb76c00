"""Batches: their contract, the order of an epoch, and a sentence for whatever is wrong with the folder."""

import hashlib
import logging
import shutil
import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from defectcls.data import datamodule
from defectcls.data.batches import Part
from defectcls.data.datamodule import DefectDataModule
from defectcls.data.findings import find_faults
from defectcls.data.folder import Folder
from defectcls.data.images import decode
from defectcls.data.mvtec import MVTec
from defectcls.data.samples import samples_in
from defectcls.errors import UserError
from defectcls.settings import DatasetSettings
from tests.conftest import composed

SIDE = 32


def photos(root: Path, **folders: int) -> Path:
    """Images of random pixels, so many in each class folder."""
    for number, (name, count) in enumerate(folders.items()):
        (root / name).mkdir(parents=True)
        for image in range(count):
            rng = np.random.default_rng([number, image])
            Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(root / name / f"{image:03d}.png")
    return root


def module(root: Path, dataset_options: dict[str, Any] | None = None, **changed: Any) -> Folder:
    options = {"cache_dir": root / ".cache", "sound": "good", "batch_size": 8, "image_size": SIDE}
    return Folder(root=root, **options | {"source": "https://a.shop"} | (dataset_options or {}) | changed)


def ready(root: Path, dataset_options: dict[str, Any] | None = None, **changed: Any) -> Folder:
    data = module(root, dataset_options, **changed)
    data.prepare_data()
    data.setup()
    return data


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 good images and 20 bad ones of two kinds."""
    return photos(tmp_path_factory.mktemp("photos"), good=40, dent=10, crack=10)


# --- without a configuration ------------------------------------------------------------------------------------------


class Bolts(DefectDataModule):
    days: list[str]
    night: bool = False

    def list_samples(self) -> pd.DataFrame:
        folders = {f"{day}/{kind}": {"defective": kind == "bad"} for day in self.days for kind in ("good", "bad")}
        return samples_in(self.root, folders, "<day>/{good,bad}/<image>")


class Nuts(DefectDataModule):
    """With a constructor of its own."""

    def __init__(self, size: int = 8, **options: Any) -> None:
        super().__init__(**options)
        self.size = size


def test_what_is_not_given_is_as_conf_has_it(tmp_path: Path) -> None:
    data, config = MVTec(root=tmp_path, split={"val": 0.25}, categories=["screw"]), composed("dataset=mvtec")
    given = {"root": tmp_path, "split": config["dataset"]["split"] | {"val": 0.25}, "categories": ["screw"]}
    expected = DatasetSettings(**config["dataset"] | given)
    assert data.settings == expected
    assert [data.target, data.image_size, data.batch_size, data.seed, data.workers] == [
        *(config[name] for name in ("target", "image_size", "batch_size", "seed")),
        config["trainer"]["workers"],
    ]
    assert (data.categories, data.root, data.class_names) == (["screw"], tmp_path, [])


def test_a_dataset_of_ones_own(tmp_path: Path) -> None:
    for day in ("monday", "tuesday"):
        photos(tmp_path / day, good=12, bad=12)
    data = Bolts(root=tmp_path, days=["monday"], image_size=SIDE, batch_size=4, cache_dir=tmp_path / ".cache")
    data.prepare_data()
    data.setup("fit")
    assert (data.settings.name, data.night, data.class_names) == ("Bolts", False, ["sound", "defective"])
    assert len(data.samples) == 24
    assert next(iter(data.train_dataloader()))["image"].shape == (4, 3, SIDE, SIDE)
    assert (Nuts(root=tmp_path).size, Nuts(root=tmp_path, size=9, seed=3).seed) == (8, 3)


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        (MVTec, {"image_sise": 32}, "dataset.image_sise=32: Extra inputs are not permitted"),
        (Nuts, {"days": []}, "dataset.days=[]: Extra inputs are not permitted"),
        (Bolts, {}, "dataset.days: Field required"),
        (Bolts, {"days": "monday"}, "dataset.days=monday: it has to be a valid list"),
        (MVTec, {"batch_size": 0}, "batch_size=0: it has to be greater than 0"),
        (MVTec, {"split": {"train": None, "val": None}}, "split: at most one of train, val and test may be null"),
    ],
)
def test_each_mistake_is_one_sentence(kind: type[DefectDataModule], options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        kind(**{"root": "photos"} | options)
    assert str(caught.value).startswith(said)


# --- depth ------------------------------------------------------------------------------------------------------------


def test_a_set_of_12_bits_is_seen_on_one_scale_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each photo by the white of the set; a photo of 8 bits as it is, a brighter one than is allowed not at all."""
    caplog.set_level("INFO")
    scene = np.random.default_rng(0).integers(0, 256, (40, SIDE, SIDE))
    for number, grey in enumerate(scene):
        path = tmp_path / ("good" if number % 2 else "bad") / f"{number:02d}.png"
        path.parent.mkdir(exist_ok=True)
        share = (number + 1) / 40
        deep = np.rint(grey * share * 4095 / 255).astype(np.uint16)
        Image.fromarray(grey.astype(np.uint8) if number < 9 else deep).save(path)
    data = ready(tmp_path)
    assert data.settings.depth == "12"
    assert f"40 images, size {SIDE} x {SIDE}, depth 12" in caplog.text
    numbers = [int(Path(path).stem) for path in data.samples["path"]]
    shares = np.where(np.array(numbers) < 9, 1, (np.array(numbers) + 1) / 40)
    expected = scene[numbers] * shares[:, None, None]
    assert np.abs(data.images[np.arange(40)].numpy() - expected[:, None]).max() <= 1
    other = ready(tmp_path, {"depth": "16"})  # nothing of the other depth is taken from the cache
    assert np.abs(other.images[np.array([39])].numpy() - expected[39] / 16).max() <= 1
    with pytest.raises(UserError, match=r"cannot be read: .* depth 10 from 0 to 1,023: save it as"):
        ready(tmp_path, {"depth": "10"})


# --- batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", ["off", "auto"])
@pytest.mark.parametrize("resize", ["squash", "pad"])
def test_a_batch_is_uint8_images_with_targets_and_rows_of_the_sample_table(root: Path, cache: str, resize: str) -> None:
    data = ready(root, {"resize": resize, "cache": cache})
    assert data.images.place == {"off": "off", "auto": "disk"}[cache]
    seen = []
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        for batch in loader:
            assert set(batch) == {"image", "target", "index"}
            count = len(batch["index"])
            assert batch["image"].dtype == torch.uint8
            assert batch["image"].shape == (count, 3, SIDE, SIDE)
            assert batch["target"].dtype == batch["index"].dtype == torch.int64
            assert batch["target"].shape == (count,)
            for image, target, row in zip(batch["image"], batch["target"], batch["index"].tolist(), strict=True):
                assert (image.numpy() == decode(root / data.samples["path"][row], (SIDE, SIDE), resize, "8")).all()
                assert target == data.samples["defective"][row]
                assert data.samples["path"][row].startswith("good/") == (target == 0)
                seen.append(row)
    assert len(seen) == len(set(seen)) == 60 - len(data.part("train")) % 8


def test_parts_hold_every_image_once_in_the_order_of_rows(root: Path) -> None:
    data = ready(root)
    rows = {
        part: torch.cat([b["index"] for b in data.part_dataloader(part)]).tolist() for part in ("train", "val", "test")
    }
    assert sorted(row for of_part in rows.values() for row in of_part) == list(range(60))
    for part, of_part in rows.items():
        assert of_part == np.flatnonzero(data.samples["split"] == part).tolist() == data.part(part).tolist()


def test_wherever_images_are_kept_the_batches_are_the_same(root: Path) -> None:
    loaders = [ready(root, {"cache": cache}).train_dataloader() for cache in ("auto", "off", "auto")]
    loaders.append(ready(root, {"cache": "off"}, workers=2).train_dataloader())
    for batches in zip(*loaders, strict=True):
        for batch in batches[1:]:
            assert all(torch.equal(batch[key], batches[0][key]) for key in ("image", "target", "index"))


def test_workers_decode_only_what_is_not_kept(root: Path) -> None:
    assert ready(root, workers=2).train_dataloader().num_workers == 0
    assert ready(root, {"cache": "off"}, workers=2).train_dataloader().num_workers == 2


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_changes_ends_the_epoch_with_its_name(tmp_path: Path, workers: int) -> None:
    photos(tmp_path, good=20, dent=20)
    data = ready(tmp_path, {"cache": "off"}, test_all=True, workers=workers)
    (tmp_path / "good" / "005.png").write_bytes(b"what")
    with pytest.raises(UserError, match=f"^{tmp_path}/good/005.png has changed since the start of this run: [^\\n]*$"):
        list(data.test_dataloader())


@pytest.mark.slow
def test_near_twins_are_not_sought_among_unreadable_images(tmp_path: Path) -> None:
    photos(tmp_path, good=20, dent=20)
    (tmp_path / "good" / "005.png").write_bytes(b"what")
    with pytest.raises(UserError, match=r"^1 of 40 images cannot be read: good/005.png \(not an image\); mend"):
        ready(tmp_path, {"cache": "off"})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("cache_max_gb", [1, 1e-6])
def test_on_a_gpu_images_are_kept_there(root: Path, cache_max_gb: float) -> None:
    """Through the file on the disk, and where that may not be."""
    options = {"cache_max_gb": cache_max_gb, "cache_dir": root / f".cache_{cache_max_gb}"}
    data, plain = ready(root, options, device=torch.device("cuda:0")), ready(root)
    assert data.images.pixels.is_cuda
    assert len(list((root / f".cache_{cache_max_gb}").glob("pixels-*/*.rows"))) == (cache_max_gb == 1)
    for batch, expected in zip(data.train_dataloader(), plain.train_dataloader(), strict=True):
        assert {name: batch[name].is_cuda for name in batch} == {"image": True, "target": True, "index": False}
        assert all(torch.equal(batch[name].cpu(), expected[name]) for name in expected)


def test_every_row_has_the_digest_of_its_content(root: Path) -> None:
    data = ready(root)
    contents = [(root / path).read_bytes() for path in data.samples["path"]]
    assert data.digests == [hashlib.blake2b(content, digest_size=16).digest() for content in contents]


def test_defect_types_are_classes_of_their_own(root: Path) -> None:
    data = ready(root, target="defect_type")
    assert data.classes == {"good": False, "crack": True, "dent": True}
    assert Counter(data.targets.tolist()) == {0: 40, 1: 10, 2: 10}
    names = list(data.classes)
    assert [names[target] for target in data.targets] == data.samples["label"].tolist()
    assert data.samples["path"].str.split("/").str[0].tolist() == data.samples["label"].tolist()


def test_a_left_over_training_batch_is_dropped_and_a_small_set_is_not(root: Path) -> None:
    """BatchNorm cannot train on one image; a set smaller than a batch would otherwise give no step at all."""
    data = ready(root)
    assert len(data.part("train")) % 8 != 0
    assert [len(batch["index"]) for batch in data.train_dataloader()] == [8] * (len(data.part("train")) // 8)
    data.batch_size = 1000
    assert [len(batch["index"]) for batch in data.train_dataloader()] == [len(data.part("train"))]


def test_a_second_setup_changes_nothing(root: Path) -> None:
    data = ready(root)
    samples, images = data.samples, data.images
    data.setup("fit")
    assert data.samples is samples
    assert data.images is images


def test_copies_stand_in_one_part(tmp_path: Path) -> None:
    photos(tmp_path, good=20, dent=20)
    content = (tmp_path / "good" / "000.png").read_bytes()
    for number in (3, 11, 17):
        (tmp_path / "good" / f"{number:03d}.png").write_bytes(content)
    for seed in range(5):
        samples = ready(tmp_path, seed=seed).samples.set_index("path")["split"]
        assert samples[[f"good/{number:03d}.png" for number in (0, 3, 11, 17)]].nunique() == 1


def test_copies_count_as_one_where_nothing_is_split_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    photos(tmp_path, good=20, dent=20)
    for number in (3, 11):
        shutil.copy(tmp_path / "good" / "000.png", tmp_path / "good" / f"{number:03d}.png")
    with caplog.at_level(logging.INFO):
        units = ready(tmp_path, test_all=True).samples.set_index("path")["unit"]
    assert units[["good/000.png", "good/003.png", "good/011.png"]].nunique() == 1
    assert units.nunique() == 38
    told = "identical to another: 3 images; those that are tied count as one"
    assert told in caplog.messages
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert ready(tmp_path, {"split": {"together": []}}, test_all=True).samples["unit"].nunique() == 40
    assert told not in caplog.messages  # where the user wants them apart


@pytest.mark.parametrize("link", [False, True])
def test_the_same_photo_under_two_labels_is_refused_or_allowed_aloud(
    tmp_path: Path, link: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    photos(tmp_path, good=20, dent=20)
    for number in (3, 4):
        other = tmp_path / "dent" / f"{number + 90}.png"
        if link:
            other.symlink_to(tmp_path / "good" / f"{number:03d}.png")
        else:
            other.write_bytes((tmp_path / "good" / f"{number:03d}.png").read_bytes())
    (tmp_path / "dent" / "notes.txt").touch()
    said = "dent/93.png (defective) and good/003.png (sound) hold the same bytes under different labels"
    with pytest.raises(UserError) as caught:
        ready(tmp_path)
    assert str(caught.value) == (f"{said}: delete the wrong ones, or dataset.contradictions=allow")
    assert "beside the photos: 1 .txt" in caplog.messages
    assert len(ready(tmp_path, {"contradictions": "allow"}).samples) == 42
    assert f"{said}; taken as they are" in caplog.messages


def test_copies_of_one_label_or_of_two_types_of_defect_are_no_contradiction(tmp_path: Path) -> None:
    photos(tmp_path, good=20, dent=20, hole=20)
    (tmp_path / "dent/000.png").write_bytes((tmp_path / "hole/000.png").read_bytes())
    (tmp_path / "good/000.png").write_bytes((tmp_path / "good/001.png").read_bytes())
    assert len(ready(tmp_path).samples) == 60
    with pytest.raises(UserError, match=r"^dent/000.png \(dent\) and hole/000.png \(hole\) hold the same bytes"):
        ready(tmp_path, target="defect_type")


# --- what a trained model asks for ------------------------------------------------------------------------------------


def test_without_a_split_all_images_are_tested(root: Path) -> None:
    data = ready(root, test_all=True)
    assert data.part("test").tolist() == list(range(60))
    assert len(data.part("train")) == len(data.part("val")) == 0


def test_given_classes_keep_their_order_and_may_be_absent_from_the_data(root: Path) -> None:
    known = {"good": False, "dent": True, "rust": True, "crack": True}
    data = ready(root, target="defect_type", classes=known, test_all=True)
    assert data.classes == known
    assert Counter(data.targets.tolist()) == {0: 40, 1: 10, 3: 10}


def test_one_class_alone_is_enough_for_a_trained_model(tmp_path: Path) -> None:
    data = ready(photos(tmp_path, good=5), classes={"sound": False, "defective": True}, test_all=True)
    assert data.targets.tolist() == [0] * 5


def test_classes_that_a_model_does_not_know_are_named(root: Path) -> None:
    with pytest.raises(UserError, match=r"^the model does not know the classes crack, only good, dent$"):
        ready(root, target="defect_type", classes={"good": False, "dent": True}, test_all=True)


# --- sentences --------------------------------------------------------------------------------------------------------


def test_one_class_alone_cannot_be_learned(tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"^a classifier needs two classes, but all 5 images are of one: sound; model.head=memory ",
    ):
        ready(photos(tmp_path, good=5))


class Nothing(DefectDataModule):
    def list_samples(self) -> pd.DataFrame:
        return pd.DataFrame({"path": [], "defective": []})


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^the folder {tmp_path} holds no images of 'Nothing'$"):
        Nothing(root=tmp_path).setup()


def test_a_missing_root_says_where_to_get_the_data(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    with pytest.raises(UserError) as caught:
        module(gone).prepare_data()
    assert str(caught.value) == (
        f"the folder {gone} does not exist: get it from https://a.shop, or dataset.root=<folder>"
    )


def test_a_missing_root_with_a_known_archive_says_that_it_can_be_fetched(tmp_path: Path) -> None:
    archive = {"url": "https://127.0.0.1/a.zip", "sha256": "0" * 64}
    with pytest.raises(UserError, match=r"dataset.root=<folder>, or dataset.download=true$"):
        module(tmp_path / "gone", {"archive": archive}).prepare_data()


def test_download_fetches_a_missing_root_and_leaves_a_present_one_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[tuple] = []
    monkeypatch.setattr(datamodule, "fetch_archive", lambda *arguments: fetched.append(arguments))
    options = {"archive": {"url": "https://127.0.0.1/a.zip", "sha256": "0" * 64}, "download": True}
    module(tmp_path, options).prepare_data()
    assert fetched == []
    module(tmp_path / "gone", options).prepare_data()
    assert fetched == [("https://127.0.0.1/a.zip", "0" * 64, tmp_path / "gone")]


def test_a_dataset_that_is_made_on_first_use_needs_no_root(tmp_path: Path) -> None:
    module(tmp_path / "a" / "b", {"source": None}).prepare_data()
    assert (tmp_path / "a" / "b").is_dir()


def test_unreadable_images_are_counted_and_the_first_three_named(tmp_path: Path) -> None:
    photos(tmp_path, good=20, dent=20)
    for number in range(5):
        (tmp_path / "good" / f"{number:03d}.png").write_bytes(b"")
    with pytest.raises(UserError) as caught:
        ready(tmp_path)
    assert str(caught.value) == (
        "5 of 40 images cannot be read: good/000.png (empty file), good/001.png (empty file), good/002.png "
        "(empty file) …; mend or delete them, or leave them out with dataset.on_unreadable=skip"
    )


@pytest.mark.parametrize("cache", ["off", "auto"])
def test_skipped_images_are_reported_and_the_others_stay_with_their_rows(
    tmp_path: Path, cache: str, caplog: pytest.LogCaptureFixture
) -> None:
    photos(tmp_path, good=20, dent=20)
    (tmp_path / "dent" / "004.png").write_bytes(b"")
    (tmp_path / "good" / "007.png").write_bytes(b"what")
    options = {"on_unreadable": "skip", "cache": cache}
    data = ready(tmp_path, options)
    if cache == "disk":  # once more, from the file
        data = ready(tmp_path, options)
    assert data.unreadable == [
        {"path": "dent/004.png", "reason": "empty file"},
        {"path": "good/007.png", "reason": "not an image"},
    ]
    assert "2 of 40 images cannot be read" in caplog.text
    assert len(data.samples) == 38
    assert data.samples.index.tolist() == list(range(38))
    content = (tmp_path / data.samples["path"][37]).read_bytes()
    assert data.digests[37] == hashlib.blake2b(content, digest_size=16).digest()
    assert not data.samples["path"].isin(["dent/004.png", "good/007.png"]).any()
    for batch in data.test_dataloader():
        for image, row in zip(batch["image"], batch["index"].tolist(), strict=True):
            assert (image.numpy() == decode(tmp_path / data.samples["path"][row], (SIDE, SIDE), "squash", "8")).all()


def test_a_folder_without_one_readable_image_cannot_be_skipped(tmp_path: Path) -> None:
    photos(tmp_path, good=2, dent=2)
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="4 of 4 images cannot be read"):
        ready(tmp_path, {"on_unreadable": "skip"})


def with_twins(root: Path, seed: int = 0) -> Path:
    """30 rough surfaces of two classes, and of ten of the good ones a copy saved at a low quality."""
    for name, count in (("good", 20), ("dent", 10)):
        (root / name).mkdir(parents=True)
        for number in range(count):
            noise = np.random.default_rng([seed, count, number]).normal(size=(24, 24))
            image = Image.fromarray((128 + 40 * np.clip(noise, -3, 3)).astype(np.uint8)).resize((96, 96))
            image.save(root / name / f"{number:02d}.png")
            if number % 2 == 0 and name == "good":
                image.save(root / name / f"{number:02d}_again.jpg", quality=60)
    return root


def straddling(data: DefectDataModule) -> int:
    """How many images stand in another part than their re-encoded copy."""
    origin = data.samples["path"].str.replace(r"(_again)?\.\w+$", "", regex=True)
    return int((data.samples.groupby(origin)["split"].nunique() > 1).sum())


def test_near_identical_images_stay_in_one_part_unless_told_otherwise(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    root = with_twins(tmp_path / "photos")
    for seed in range(3):
        assert straddling(ready(root, seed=seed)) == 0
    assert "near-identical to another: 20 images" in caplog.text
    caplog.clear()
    alone = {"split": {"together": ["group", "identical"]}}
    assert sum(straddling(ready(root, alone, seed=seed)) for seed in range(3)) > 0
    assert "near-identical" not in caplog.text


@pytest.mark.slow
def test_copies_and_groups_are_kept_together_only_where_asked_for(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", good=30, dent=30)
    for image in (root / "good").glob("00?.png"):
        (root / "good" / f"copy_of_{image.name}").write_bytes(image.read_bytes())

    def apart(together: list[str]) -> int:
        found = 0
        for seed in range(3):
            samples = ready(root, {"split": {"together": together}}, seed=seed).samples
            name = samples["path"].str.replace("copy_of_", "")
            found += int((samples.groupby(name)["split"].nunique() > 1).sum())
        return found

    assert apart(["identical"]) == 0
    assert apart([]) > 0


def test_where_nothing_is_kept_no_file_is_made(tmp_path: Path) -> None:
    options = {"cache": "off", "cache_dir": tmp_path / "cache"}
    photos(tmp_path / "photos", good=12, bad=12)
    data = ready(tmp_path / "photos", options)
    assert len(data.samples) == 24
    assert find_faults(data)[0] == []
    assert not (tmp_path / "cache").exists()


def test_a_near_twin_across_a_published_split_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for seed, part in enumerate(("train", "val", "test")):
        with_twins(tmp_path / part, seed)
    with Image.open(tmp_path / "train" / "good" / "01.png") as image:
        image.save(tmp_path / "test" / "good" / "new.jpg", quality=60)
    ready(tmp_path)
    assert "the published split leaks: 1 groups" in caplog.text


def test_a_published_split_that_leaks_is_kept_and_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for part in ("train", "val", "test"):
        photos(tmp_path / part, good=4, dent=4)
    data = ready(tmp_path)
    assert "the published split leaks: 8 groups" in caplog.text
    assert (data.samples["path"].str.split("/").str[0] == data.samples["split"]).all()
    caplog.clear()
    ready(tmp_path, {"split": {"published": False, "val": 0.25, "test": 0.25}})
    assert "leaks" not in caplog.text


def test_the_same_images_are_dealt_again_from_the_published_split(tmp_path: Path) -> None:
    for seed, part in enumerate(("train", "val", "test")):
        with_twins(tmp_path / part, seed)
    data = ready(tmp_path)
    published = data.samples["split"].tolist()
    data.deal(data.settings.split.model_copy(update={"folds": 3}), seed=1)
    assert data.samples["split"].tolist() != published
    data.deal(data.settings.split.model_copy(update={"folds": None}), seed=1)
    assert data.samples["split"].tolist() == published
    assert ready(tmp_path, seed=1).samples.equals(data.samples)


# --- the order of an epoch --------------------------------------------------------------------------------------------


def order(data: DefectDataModule, epoch: int) -> list[int]:
    """Of the training images."""
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    torch.rand(epoch + 3)  # the global generator does not matter
    return list(loader.sampler)


def test_an_epoch_is_a_permutation_that_is_a_function_of_seed_and_epoch_alone(root: Path) -> None:
    of_seed = [ready(root, seed=seed) for seed in range(3)]
    orders = [order(data, epoch) for data in of_seed for epoch in range(3)]
    count = len(of_seed[0].part("train"))
    assert all(sorted(one) == list(range(count)) != one for one in orders)
    assert len({tuple(one) for one in orders}) == 9
    assert order(ready(root, seed=1), 2) == order(of_seed[1], 2)


def test_loaders_deal_to_the_processes_of_the_trainer(root: Path) -> None:
    """Two processes see different images, together all of the part, with the padding told by its index."""
    data = ready(root)
    count = len(data.part("test"))
    indices = []
    for rank in (0, 1):
        strategy = SimpleNamespace(root_device=torch.device("cpu"))
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2, strategy=strategy)  # type: ignore[assignment]
        indices.append(torch.cat([batch["index"] for batch in data.test_dataloader()]).tolist())
    assert len(indices[0]) == len(indices[1]) == -(-count // 2)
    assert sorted({*indices[0], *indices[1]}) == data.part("test").tolist()


def test_batches_for_a_gpu_are_gathered_ahead_in_a_thread(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same ones; what cannot be read is raised, and who leaves early leaves no thread behind."""
    data = ready(root, batch_size=4)
    expected = [batch["index"].tolist() for batch in data.val_dataloader()]
    assert len(expected) > 1
    strategy = SimpleNamespace(root_device=torch.device("cuda", 0))
    data.trainer = SimpleNamespace(global_rank=0, world_size=1, strategy=strategy)  # type: ignore[assignment]
    loader = data.val_dataloader()
    assert loader.pin_memory
    threads = []
    original = Part.__getitems__
    note = lambda part, rows: threads.append(threading.current_thread()) or original(part, rows)  # noqa: E731
    monkeypatch.setattr(Part, "__getitems__", note)
    assert [batch["index"].tolist() for batch in loader] == expected
    assert len(set(threads)) == 1
    assert threads[0] is not threading.current_thread()
    next(iter(loader))
    monkeypatch.setattr(Part, "__getitems__", lambda *_: UserError("changed"))
    with pytest.raises(UserError, match="changed"):
        next(iter(loader))
    assert not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize("together", [["group", "identical", "near_identical"], []])
def test_a_unit_is_what_is_not_independent_whatever_the_split_ignores(tmp_path: Path, together: list[str]) -> None:
    root = photos(tmp_path, good=40, dent=20)
    (root / "good" / "copy.png").write_bytes(sorted((root / "good").glob("*.png"))[0].read_bytes())
    data = ready(root, {"consecutive": 2, "split": {"together": together}})
    samples = data.samples
    of_copy = samples.set_index("path")["unit"]["good/copy.png"]
    for _, rows in samples.groupby("group"):
        assert rows["unit"].nunique() == 1
    groups = samples["group"][samples["unit"] == of_copy].nunique()
    assert groups == (2 if together else 1)  # tied to the group of its original, where copies were looked for
