"""The sample table: what counts as an image, in which order, and how it becomes classes."""

import os
import random
from pathlib import Path

import pandas as pd
import pytest

from defectcls.data.samples import (
    classes_of,
    folders_in,
    group_consecutive,
    images_expected_in,
    images_in,
    label_samples,
    sample_table,
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


def test_suffixes_count_in_either_case_and_others_do_not(tmp_path: Path) -> None:
    touch(tmp_path, *(f"1.{kind}" for kind in ("JPG", "Tif", "pgm", "webp", "bmp", "txt", "csv", "gif")), "png")
    assert images_in(tmp_path, "") == ["1.JPG", "1.Tif", "1.bmp", "1.pgm", "1.webp"]


def test_the_order_of_the_disk_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both listings are sorted as text over the whole path, not folder by folder."""
    names = [f"{folder}/{number}.png" for folder in ("b", "a/z", "a", "c") for number in (10, 9, 1)]
    touch(tmp_path, *names)
    walked, scanned = list(os.walk(tmp_path)), list(os.scandir(tmp_path))
    for seed in range(5):
        disk = random.Random(seed)
        walk = [(where, folders, disk.sample(files, len(files))) for where, folders, files in walked]
        monkeypatch.setattr(os, "walk", lambda _, disk=disk, walk=walk: disk.sample(walk, len(walk)))
        monkeypatch.setattr(os, "scandir", lambda _, disk=disk: disk.sample(scanned, len(scanned)))
        assert images_in(tmp_path, "") == sorted(names)
        assert folders_in(tmp_path) == ["a", "b", "c"]


def test_paths_are_relative_to_the_root_not_to_the_folder(tmp_path: Path) -> None:
    touch(tmp_path, "train/good/1.png", "test/good/2.png")
    assert images_expected_in(tmp_path, "train/good", "<layout>") == ["train/good/1.png"]


@pytest.mark.parametrize(("folder", "said"), [("gone", "'gone' is missing in"), ("empty", "'empty' in")])
def test_an_expected_folder_is_there_and_holds_images(tmp_path: Path, folder: str, said: str) -> None:
    touch(tmp_path, "empty/notes.txt")
    with pytest.raises(UserError, match=f"^{said}.*: expected <class>/<image>$"):
        images_expected_in(tmp_path, folder, "<class>/<image>")


def test_table_is_in_the_order_of_paths_whatever_the_order_of_rows() -> None:
    expected = sample_table(ROWS)
    assert expected["path"].tolist() == ["a/1.png", "a/2.png", "b/1.png", "b/2.png"]
    assert expected.index.tolist() == [0, 1, 2, 3]
    for seed in range(5):
        pd.testing.assert_frame_equal(sample_table(random.Random(seed).sample(ROWS, 4)), expected)


def test_optional_columns_are_text_and_empty_where_a_row_lacks_them() -> None:
    samples = sample_table([{"path": "2", "defective": True, "group": 7}, {"path": "1", "defective": False}])
    assert samples["group"].tolist()[0] == ""
    assert isinstance(samples["group"].iloc[1], str)
    assert samples["defective"].dtype == bool


def test_no_rows_make_an_empty_table_with_the_required_columns() -> None:
    assert sample_table([]).empty
    assert set(sample_table([]).columns) == {"path", "defective"}


def test_target_defect_has_two_classes_and_class_1_is_defective() -> None:
    samples = label_samples(sample_table(ROWS), "defect")
    assert samples["label"].tolist() == ["sound", "defective", "defective", "sound"]
    assert list(classes_of(samples).items()) == [("sound", False), ("defective", True)]


def test_target_defect_type_puts_sound_classes_first_each_kind_by_name() -> None:
    samples = label_samples(sample_table(ROWS), "defect_type")
    assert samples["label"].tolist() == ["good", "dent", "crack", "polished"]
    assert list(classes_of(samples).items()) == [
        ("good", False),
        ("polished", False),
        ("crack", True),
        ("dent", True),
    ]


def test_a_class_is_either_sound_or_defective() -> None:
    samples = label_samples(sample_table([*ROWS, {**ROWS[0], "path": "c", "defective": True}]), "defect_type")
    with pytest.raises(UserError, match=r"^class 'good' is called sound for some images and defective for others$"):
        classes_of(samples)


def test_defect_types_have_to_be_named_to_be_a_target() -> None:
    nameless = sample_table([{"path": "1", "defective": True}])
    with pytest.raises(UserError, match=r"names no defect types: use target=defect$"):
        label_samples(nameless, "defect_type")


def test_consecutive_files_of_a_folder_are_a_group_where_they_have_none() -> None:
    paths = ["a/1.png", "a/2.png", "a/3.png", "b/c/1.png", "b/c/2.png", "d.png"]
    samples = pd.DataFrame({"path": paths, "defective": False})
    assert group_consecutive(samples, 2)["group"].tolist() == ["a/0", "a/0", "a/1", "b/c/0", "b/c/0", "/0"]
    own = group_consecutive(samples.assign(group=["", "part 7", "", "", "", ""]), 3)["group"].tolist()
    assert own == ["a/0", "part 7", "a/0", "b/c/0", "b/c/0", "/0"]
