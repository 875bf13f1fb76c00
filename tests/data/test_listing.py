"""From settings to the sample table: names that differ in spelling alone, and names that are no text."""

import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from defectcls.data.folder import Folder
from defectcls.data.table import Table
from defectcls.errors import UserError
from tests.data.test_listers import samples_of, write


def listed(root: Path, **changed: Any) -> pd.DataFrame:
    return samples_of(Folder, root, **{"sound": "good"} | changed)


def sentence(root: Path, **changed: Any) -> str:
    with pytest.raises(UserError) as caught:
        listed(root, **changed)
    return str(caught.value)


def test_folders_that_differ_in_spelling_alone_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "good/1.png", "good/2.png", "Good /1.png", "bad/1.png")
    said = "the names 'Good ' (1 images) and 'good' (2 images) differ in spelling alone: rename them"
    assert sentence(tmp_path) == said


def test_spellings_of_the_parts_of_a_split_are_one_class_too(tmp_path: Path) -> None:
    write(tmp_path, "train/Good/1.png", "train/bad/1.png", "test/good/1.png", "test/bad/1.png")
    assert sentence(tmp_path, sound=["Good"]).startswith("the names 'Good' (1 images) and 'good' (1 images) differ")


def test_spellings_in_a_table(tmp_path: Path) -> None:
    """What a table calls `good`, `Good ` and `GOOD`, and the category `Left` and `left`."""
    write(tmp_path, "1.png", "2.png", "3.png", "4.png")
    (tmp_path / "a.csv").write_text("path;label\n1.png;good\n2.png;scratch\n3.png;Good \n4.png;GOOD\n")
    (tmp_path / "b.csv").write_text("path,label,category\n1.png,good,Left\n2.png,scratch,left\n")
    with pytest.raises(UserError, match=r"'GOOD' \(1 images\) and 'Good ' \(1 images\) and 'good' \(1 images\) differ"):
        samples_of(Table, tmp_path, table=tmp_path / "a.csv")
    with pytest.raises(UserError, match=r"^the names 'Left' \(1 images\) and"):
        samples_of(Table, tmp_path, table=tmp_path / "b.csv")


@pytest.mark.parametrize(("sound", "name"), [(0, "0"), (True, "true"), (float("nan"), "nan"), (1.0, "1.0")])
def test_sound_may_be_what_yaml_takes_for_no_text(tmp_path: Path, sound: Any, name: str) -> None:
    write(tmp_path, f"{name}/1.png", "bad/1.png")
    for given in (sound, [sound]):
        samples = listed(tmp_path, sound=given)
        assert dict(zip(samples["defect_type"], samples["defective"], strict=True)) == {name: False, "bad": True}


def test_a_file_name_that_is_no_text_is_shown_and_refused(tmp_path: Path) -> None:
    write(tmp_path, "good/1.png", "bad/1.png")
    for name in (b"caf\xe9.png", b"caf\xe8.png"):
        Path(os.fsdecode(os.fsencode(tmp_path / "bad") + b"/" + name)).touch()
    said = rf"the file name 'bad/caf\udce8.png' in {tmp_path} is no UTF-8: rename it"
    assert sentence(tmp_path) == said
    Path(os.fsdecode(os.fsencode(tmp_path / "good") + b"/1.\xe9xt")).touch()
    for name in (b"caf\xe9.png", b"caf\xe8.png"):
        Path(os.fsdecode(os.fsencode(tmp_path / "bad") + b"/" + name)).unlink()
    assert listed(tmp_path).attrs["left_out"] == {r".\udce9xt": 1}  # can be printed and written
