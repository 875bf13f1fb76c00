"""What is given to be predicted: photos by name, and one sentence for each mistake."""

from pathlib import Path

import pandas as pd
import pytest

from defectcls.data.inputs import Photos, list_inputs
from defectcls.errors import UserError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Empty files: nothing here opens one."""
    for name in ("b.png", "a.JPG", "deep/er/c.tif", "deep/notes.txt", ".hidden.png", ".thumbs/d.png", "odd [1].png"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).touch()
    return tmp_path / "photos"


def test_a_folder_gives_its_images_at_any_depth_by_name(photos: Path) -> None:
    assert list_inputs(str(photos), None) == Photos(
        photos, ["a.JPG", "b.png", "deep/er/c.tif", "odd [1].png"], {".txt": 1}
    )


@pytest.mark.parametrize("name", ["b.png", "odd [1].png", "deep/notes.txt"])
def test_a_file_is_taken_whatever_it_is_called(photos: Path, name: str) -> None:
    assert list_inputs(str(photos / name), None) == Photos((photos / name).parent, [Path(name).name], {})


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("photos/*.png", ["photos/b.png", "photos/odd [1].png"]),
        ("photos/*", ["photos/a.JPG", "photos/b.png", "photos/odd [1].png"]),  # no folder
        ("photos/**/*.t*", ["photos/deep/er/c.tif", "photos/deep/notes.txt"]),
        ("photos/**/**/c.tif", ["photos/deep/er/c.tif"]),  # once
        ("photos/[ab].*", ["photos/a.JPG", "photos/b.png"]),
        ("photos/?.png", ["photos/b.png"]),
    ],
)
def test_a_pattern_gives_the_files_that_match(
    photos: Path, pattern: str, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos.parent)
    for left_behind in ("Thumbs.db", "@eaDir/b.png", "deep/__MACOSX/b.txt"):
        (photos / left_behind).parent.mkdir(exist_ok=True)
        (photos / left_behind).touch()
    assert list_inputs(pattern, None) == Photos(Path(), names, {})


def test_an_absolute_pattern_gives_absolute_names(photos: Path) -> None:
    found = list_inputs(f"{photos}/b.*", None)
    assert [found.root / name for name in found.names] == [photos / "b.png"]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_names_photos_beside_it_or_in_root(photos: Path, suffix: str) -> None:
    rows = pd.DataFrame({"label": [1, 2], "path": ["b.png", "deep\\er\\c.tif"]})
    table = photos / f"parts{suffix}"
    rows.to_csv(table) if suffix == ".csv" else rows.to_parquet(table)
    names = ["b.png", "deep/er/c.tif"]
    assert list_inputs(str(table), None) == Photos(photos, names, {})
    moved = table.rename(photos / "deep" / table.name)
    assert list_inputs(str(moved), photos) == Photos(photos, names, {})
    with pytest.raises(UserError, match=r"^no photo of .* is in .*/deep: give root=<the folder"):
        list_inputs(str(moved), None)


def test_each_mistake_is_one_sentence(photos: Path) -> None:
    (photos / "empty").mkdir()
    (photos / "bare.csv").write_text("Pfad,label\na.png,1\n")
    (photos / "none.csv").write_text("path\n")
    (photos / "twice.csv").write_text("path\na.png\na.png\n")
    (photos / "hole.csv").write_text('path,label\na.png,1\n"",2\n')
    absent = " is not there: give a photo, a folder, a pattern such as photos/*.png, or a table"
    expected = {
        "gone": f"input={photos}/gone{absent}",
        "deep/*.png": f"input={photos}/deep/*.png{absent}",
        "empty": f"the folder {photos}/empty holds no image",
        "bare.csv": f"{photos}/bare.csv needs a column 'path', it has: Pfad, label; call one of them path",
        "none.csv": f"{photos}/none.csv has no rows",
        "hole.csv": f"{photos}/hole.csv has no path in some rows (counted from 1, after the header): 2",
        "twice.csv": f"{photos}/twice.csv has photos more than once: a.png",
    }
    for given, sentence in expected.items():
        with pytest.raises(UserError) as caught:
            list_inputs(f"{photos}/{given}", None)
        assert str(caught.value) == sentence
    (photos / "empty/notes.txt").touch()
    with pytest.raises(UserError) as caught:
        list_inputs(f"{photos}/empty", None)
    assert str(caught.value) == f"the folder {photos}/empty holds no image, only 1 .txt"
    with pytest.raises(UserError) as caught:
        list_inputs(str(photos), Path("elsewhere"))
    assert str(caught.value) == f"root=elsewhere is of the paths in a table, and input={photos} is none: leave root out"
