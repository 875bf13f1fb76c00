"""The sample table: what counts as an image, in which order, and how it becomes classes."""

import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from defectcls.data.samples import (
    IMAGE_SUFFIXES,
    classes_of,
    counted,
    folded,
    folders_in,
    group_consecutive,
    images_in,
    in_order,
    label_samples,
    samples_in,
)
from defectcls.errors import UserError

ROWS = [
    {"path": "a/1.png", "defective": False, "defect_type": "good"},
    {"path": "a/2.png", "defective": True, "defect_type": "dent"},
    {"path": "b/1.png", "defective": True, "defect_type": "crack"},
    {"path": "b/2.png", "defective": False, "defect_type": "polished"},
]


def touch(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def test_hidden_files_and_folders_are_no_images(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png", "a/.2.png", "a/._1.png", "a/.thumbs/3.png", ".git/4.png", "b/5.png")
    assert images_in(tmp_path, "") == ["a/1.png", "b/5.png"]
    assert folders_in(tmp_path) == ["a", "b"]


def test_what_systems_and_tools_leave_behind_is_no_image_no_class_and_not_counted(tmp_path: Path) -> None:
    left = ("__MACOSX", "$RECYCLE.BIN", "System Volume Information", "@eaDir", "#recycle", "lost+found", "__pycache__")
    touch(tmp_path, "a/1.png", "a/Thumbs.db", "a/DESKTOP.INI", *(f"{name}/1.png" for name in left))
    touch(tmp_path, *(f"a/{name}/x.csv" for name in (*left, ".ipynb_checkpoints", ".@__thumb")))
    left_out = Counter[str]()
    assert images_in(tmp_path, "", left_out) == ["a/1.png"]
    assert left_out == {}
    assert folders_in(tmp_path) == ["a"]


def test_what_pillow_reads_counts_as_an_image_and_all_else_is_counted_by_suffix(tmp_path: Path) -> None:
    kinds = ("JPG", "Tif", "pgm", "webp", "bmp", "gif", "jfif", "jpe", "avif", "jp2", "mpo", "heic", "tga", "PNM")
    touch(tmp_path, *(f"1.{kind}" for kind in kinds), "txt", "deep/a.TXT", "b.txt", "c.csv", "d.psd", "e.pdf", "f.eps")
    left_out = Counter({".csv": 1})
    assert images_in(tmp_path, "", left_out) == sorted(f"1.{kind}" for kind in kinds)
    assert left_out == {".txt": 2, ".csv": 2, ".psd": 1, ".pdf": 1, ".eps": 1, "without suffix": 1}
    assert counted({f".{number:03d}": 1 for number in range(20)}).endswith(", 1 .007")
    assert counted({".txt": 3, ".csv": 40}) == "40 .csv, 3 .txt"


def test_every_suffix_is_one_that_pillow_opens_or_has_a_plug_in_for() -> None:
    Image.init()
    opened = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    assert IMAGE_SUFFIXES - opened <= {".heic", ".heif", ".avif", ".mpo"}  # a Pillow may be built without AVIF
    assert IMAGE_SUFFIXES.isdisjoint({".eps", ".ps", ".pdf", ".psd", ".svg", ".wmf", ".emf", ".mpg", ".h5"})


def test_a_linked_folder_is_followed_once_and_no_link_leads_round_and_round(tmp_path: Path) -> None:
    touch(tmp_path, "good/1.png", "elsewhere/2.png", "elsewhere/deep/3.png")
    for link, target in (("good/a", "elsewhere"), ("good/b", "elsewhere"), ("good/c", "good"), ("elsewhere/up", "")):
        (tmp_path / link).symlink_to(tmp_path / target)
    assert images_in(tmp_path, "good") == ["good/1.png", "good/a/2.png", "good/a/deep/3.png"]
    (tmp_path / "bad").symlink_to(tmp_path / "good")  # under another class once more: the same bytes tell of it
    assert folders_in(tmp_path) == ["bad", "elsewhere", "good"]
    assert images_in(tmp_path, "bad") == ["bad/1.png", "bad/a/2.png", "bad/a/deep/3.png"]


def test_a_folder_that_cannot_be_read_is_no_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "good/1.png", "good/locked/2.png")
    scan = os.scandir

    def locked(path: str) -> Any:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", locked)
    with pytest.raises(UserError, match=r"^the folder .*/good/locked cannot be read: Permission denied$"):
        images_in(tmp_path, "")
    assert images_in(tmp_path, "gone") == []


def test_the_order_of_the_disk_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both listings are sorted as text over the whole path, not folder by folder."""
    names = [f"{folder}/{number}.png" for folder in ("b", "a/z", "a", "c") for number in (10, 9, 1)]
    touch(tmp_path, *names)
    walked, scanned = list(os.walk(tmp_path)), list(os.scandir(tmp_path))
    for seed in range(5):
        disk = random.Random(seed)
        walk = [(where, folders, disk.sample(files, len(files))) for where, folders, files in walked]
        monkeypatch.setattr(os, "walk", lambda *_, disk=disk, walk=walk, **__: disk.sample(walk, len(walk)))
        monkeypatch.setattr(os, "scandir", lambda _, disk=disk: disk.sample(scanned, len(scanned)))
        assert images_in(tmp_path, "") == sorted(names)
        assert folders_in(tmp_path) == ["a", "b", "c"]


def test_images_of_folders_have_the_columns_of_their_folder(tmp_path: Path) -> None:
    touch(tmp_path, "train/good/1.png", "test/good/2.png")
    touch(tmp_path, "train/good/notes.txt")
    folders = {"train/good": {"split": "train", "defective": False}, "test/good": {"split": "test", "defective": True}}
    samples = samples_in(tmp_path, folders, "<layout>")
    assert samples.to_dict("list") == {
        **{"path": ["train/good/1.png", "test/good/2.png"], "split": ["train", "test"]},
        "defective": [False, True],
    }
    assert samples.attrs == {"left_out": {".txt": 1}}


@pytest.mark.parametrize(
    ("folder", "said"), [("gone", "in .* is missing"), ("empty", "in .* holds no image, only 1 .txt")]
)
def test_an_expected_folder_is_there_and_holds_images(tmp_path: Path, folder: str, said: str) -> None:
    touch(tmp_path, "empty/notes.txt")
    with pytest.raises(UserError, match=f"^'{folder}' {said}.*: expected <class>/<image>$"):
        samples_in(tmp_path, {folder: {}}, "<class>/<image>")


def test_table_is_in_the_order_of_paths_whatever_the_order_of_rows() -> None:
    expected = in_order(pd.DataFrame(ROWS))
    assert expected["path"].tolist() == ["a/1.png", "a/2.png", "b/1.png", "b/2.png"]
    assert expected.index.tolist() == [0, 1, 2, 3]
    for seed in range(5):
        pd.testing.assert_frame_equal(in_order(pd.DataFrame(random.Random(seed).sample(ROWS, 4))), expected)


def test_optional_columns_are_text_and_empty_where_a_row_lacks_them() -> None:
    rows = pd.DataFrame([{"path": "2", "defective": True, "group": 7}, {"path": "1", "defective": False}])
    samples = in_order(rows.assign(category=pd.Categorical(["screw", None])))
    assert samples["category"].tolist() == ["", "screw"]
    assert samples["group"].tolist()[0] == ""
    assert isinstance(samples["group"].iloc[1], str)
    assert samples["defective"].dtype == bool


def test_target_defect_has_two_classes_and_class_1_is_defective() -> None:
    samples = label_samples(in_order(pd.DataFrame(ROWS)), "defect")
    assert samples["label"].tolist() == ["sound", "defective", "defective", "sound"]
    assert list(classes_of(samples).items()) == [("sound", False), ("defective", True)]


def test_target_defect_type_puts_sound_classes_first_each_kind_by_name() -> None:
    samples = label_samples(in_order(pd.DataFrame(ROWS)), "defect_type")
    assert samples["label"].tolist() == ["good", "dent", "crack", "polished"]
    assert list(classes_of(samples).items()) == [
        ("good", False),
        ("polished", False),
        ("crack", True),
        ("dent", True),
    ]


def test_a_class_is_either_sound_or_defective() -> None:
    samples = label_samples(in_order(pd.DataFrame([*ROWS, {**ROWS[0], "path": "c", "defective": True}])), "defect_type")
    with pytest.raises(UserError, match=r"^class 'good' is called sound for some images and defective for others$"):
        classes_of(samples)


def test_defect_types_have_to_be_named_to_be_a_target() -> None:
    nameless = in_order(pd.DataFrame([{"path": "1", "defective": True}]))
    with pytest.raises(UserError, match=r"names no defect types: use target=defect$"):
        label_samples(nameless, "defect_type")


def test_consecutive_files_of_a_folder_are_a_group_where_they_have_none() -> None:
    paths = ["a/1.png", "a/2.png", "a/3.png", "b/c/1.png", "b/c/2.png", "d.png"]
    samples = pd.DataFrame({"path": paths, "defective": False})
    assert group_consecutive(samples, 2)["group"].tolist() == ["a/0", "a/0", "a/1", "b/c/0", "b/c/0", "/0"]
    own = group_consecutive(samples.assign(group=["", "part 7", "", "", "", ""]), 3)["group"].tolist()
    assert own == ["a/0", "part 7", "a/0", "b/c/0", "b/c/0", "/0"]


def test_consecutive_files_are_counted_in_natural_order() -> None:
    """Unpadded numbers in the order of text would be 1, 10, 11, 2, 3 …: photo 2 is 1's neighbour, and 10 is not."""
    names = [f"cam/{number}.png" for number in range(1, 12)] + ["cam/B_9.png", "cam/B_10.png", "cam/B_10b.png"]
    samples = in_order(pd.DataFrame({"path": names, "defective": False}))
    groups = group_consecutive(samples, 4).set_index("path")["group"]
    expected = {f"cam/{number}.png": f"cam/{(number - 1) // 4}" for number in range(1, 12)}
    expected |= {"cam/B_9.png": "cam/2", "cam/B_10.png": "cam/3", "cam/B_10b.png": "cam/3"}
    assert groups.to_dict() == expected


@pytest.mark.parametrize("other", ["Good", "GOOD", "good ", " good", "good\xa0"])
def test_names_that_differ_in_case_and_space_alone_are_one(other: str) -> None:
    assert folded(other) == folded("good")


def test_spelling_knows_accents_and_inner_space_and_keeps_the_rest_apart() -> None:
    assert folded("Gro\u00dfe  Delle") == folded("grosse delle")
    assert folded("caf\u00e9") == folded("cafe\u0301") != folded("cafe")
    assert len({folded(name) for name in ("1", "01", "a-b", "a_b", "a b", "ab", "")}) == 7
