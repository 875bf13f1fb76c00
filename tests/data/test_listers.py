"""Every dataset's lister, on small trees: the whole table by value, and the sentence for each mistake."""

import inspect
import os
import random
import re
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from omegaconf import OmegaConf

from defectcls.config import presets
from defectcls.data import magnetic_tile, railway_components
from defectcls.data.casting import Casting
from defectcls.data.concrete_crack import ConcreteCrack
from defectcls.data.datamodule import DefectDataModule
from defectcls.data.folder import Folder
from defectcls.data.magnetic_tile import MagneticTile
from defectcls.data.mvtec import MVTec
from defectcls.data.railway import Railway
from defectcls.data.railway_components import RailwayComponents
from defectcls.data.table import Table
from defectcls.errors import UserError

DATASETS = sorted(Path(__file__).parents[2].glob("conf/dataset/*.yaml"))
CSV = "path,label\na.png,good\nb.png,dent\n"


def write(root: Path, *paths: str) -> None:
    """Empty files, in a random order: a lister decodes nothing, and the disk's order must not matter."""
    for path in random.sample(paths, len(paths)):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def samples_of(kind: type[DefectDataModule], root: Path, **options: Any) -> pd.DataFrame:
    return kind(root=root, **options).sample_table()


def rows(samples: pd.DataFrame) -> list[tuple]:
    """The table as plain rows; its columns are asserted apart."""
    return list(samples.itertuples(index=False, name=None))


def sentence(function: Any, *args: Any, **options: Any) -> str:
    """What the user reads."""
    with pytest.raises(UserError) as caught:
        function(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- every dataset ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", DATASETS, ids=lambda file: file.stem)
def test_a_preset_has_the_options_of_its_class(file: Path) -> None:
    base, preset = presets("dataset_base"), presets(f"dataset/{file.stem}")
    module, name = preset["_target_"].rsplit(".", 1)
    kind = getattr(import_module(module), name)
    assert module == f"defectcls.data.{file.stem}"
    assert preset["name"] == file.stem
    assert set(preset) - set(base) == set(inspect.get_annotations(kind))
    missing = {option: "x" for option, value in preset.items() if value == "???"}
    assert kind(**missing).settings.name == file.stem
    defaults = OmegaConf.load(file).defaults
    assert "/dataset_base@_here_" in defaults
    assert any(str(key).startswith("override /augment@") for entry in defaults if entry != "_self_" for key in entry)


def test_datasets_were_found() -> None:
    assert {"casting", "concrete_crack", "folder", "mvtec", "railway", "railway_components", "table"} <= {
        file.stem for file in DATASETS
    }


# --- mvtec ------------------------------------------------------------------------------------------------------------

BOTTLE = (
    "bottle/train/good/000.png",
    "bottle/test/good/000.png",
    "bottle/test/broken_large/000.png",
    "bottle/ground_truth/broken_large/000_mask.png",
    "bottle/readme.txt",
    "bottle/license.txt",
)
SCREW = ("screw/train/good/000.png", "screw/test/defect/000.png", "screw/test/defect/001.png")
BOTTLE_ROWS = [
    (
        *("bottle/test/broken_large/000.png", True, "broken_large", "bottle", "test"),
        "bottle/ground_truth/broken_large/000_mask.png",
    ),
    ("bottle/test/good/000.png", False, "good", "bottle", "test", ""),
    ("bottle/train/good/000.png", False, "good", "bottle", "train", ""),
]
SCREW_ROWS = [
    ("screw/test/defect/000.png", True, "defect", "screw", "test", ""),
    ("screw/test/defect/001.png", True, "defect", "screw", "test", ""),
    ("screw/train/good/000.png", False, "good", "screw", "train", ""),
]


def test_mvtec(tmp_path: Path) -> None:
    write(tmp_path, *SCREW, *BOTTLE, "notes/000.png")
    samples = samples_of(MVTec, tmp_path, categories="all")
    assert samples.columns.tolist() == ["path", "defective", "defect_type", "category", "split", "mask"]
    assert rows(samples) == BOTTLE_ROWS + SCREW_ROWS
    assert rows(samples_of(MVTec, tmp_path, categories=["screw"])) == SCREW_ROWS
    assert rows(samples_of(MVTec, tmp_path, categories=["screw", "bottle", "screw"])) == BOTTLE_ROWS + SCREW_ROWS


def test_mvtec_mask_of_one_image_among_several(tmp_path: Path) -> None:
    write(tmp_path, *SCREW, "screw/ground_truth/defect/001_mask.png")
    assert [row[-1] for row in rows(samples_of(MVTec, tmp_path, categories="all"))] == [
        "",
        "screw/ground_truth/defect/001_mask.png",
        "",
    ]


def test_mvtec_unknown_category(tmp_path: Path) -> None:
    write(tmp_path, *SCREW, *BOTTLE)
    message = sentence(samples_of, MVTec, tmp_path, categories=["screw", "botle"])
    assert message == f"{tmp_path} holds bottle, screw, not 'botle', did you mean 'bottle'?"


def test_mvtec_category_not_on_disk(tmp_path: Path) -> None:
    write(tmp_path, *SCREW, *BOTTLE)
    assert sentence(samples_of, MVTec, tmp_path, categories=["pill"]).startswith(
        f"{tmp_path} holds bottle, screw, not 'pill'"
    )


@pytest.mark.parametrize(("categories", "held"), [("all", "no category"), ([], "screw")])
def test_mvtec_no_category(tmp_path: Path, categories: Any, held: str) -> None:
    write(tmp_path, *(SCREW if held == "screw" else ("photos/a.png",)))
    assert sentence(samples_of, MVTec, tmp_path, categories=categories) == f"{tmp_path} holds {held}, not ''"


def test_mvtec_missing_folder(tmp_path: Path) -> None:
    write(tmp_path, "screw/train/good/000.png")
    assert sentence(samples_of, MVTec, tmp_path, categories="all") == (
        f"'screw/test' in {tmp_path} is missing: expected <category>/{{train,test}}/<good or defect type>/<image>"
    )


@pytest.mark.parametrize("path", ["screw/test/000.png", "screw/test/defect/more/000.png"])
def test_mvtec_image_out_of_place(tmp_path: Path, path: str) -> None:
    write(tmp_path, *SCREW, path)
    message = sentence(samples_of, MVTec, tmp_path, categories="all")
    assert message.startswith(f"'{path}' in {tmp_path} is not where MVTec AD keeps an image: expected <category>/")


# --- railway ----------------------------------------------------------------------------------------------------------

RAILWAY = tuple(
    f"{split}/{name}/1.jpg" for split in ("Train", "Validation", "Test") for name in ("Defective", "Non defective")
)


def test_railway(tmp_path: Path) -> None:
    write(tmp_path, *RAILWAY)
    samples = samples_of(Railway, tmp_path)
    assert samples.columns.tolist() == ["path", "defective", "split"]
    assert rows(samples) == [
        ("Test/Defective/1.jpg", True, "test"),
        ("Test/Non defective/1.jpg", False, "test"),
        ("Train/Defective/1.jpg", True, "train"),
        ("Train/Non defective/1.jpg", False, "train"),
        ("Validation/Defective/1.jpg", True, "val"),
        ("Validation/Non defective/1.jpg", False, "val"),
    ]


@pytest.mark.parametrize("gone", RAILWAY)
def test_railway_names_the_missing_folder(tmp_path: Path, gone: str) -> None:
    write(tmp_path, *(path for path in RAILWAY if path != gone))
    expected = "expected {Train,Validation,Test}/{Defective,Non defective}/<image>"
    missing = Path(gone).parent.as_posix()
    assert sentence(samples_of, Railway, tmp_path) == f"'{missing}' in {tmp_path} is missing: {expected}"
    write(tmp_path, f"{missing}/notes.txt")
    assert (
        sentence(samples_of, Railway, tmp_path) == f"'{missing}' in {tmp_path} holds no image, only 1 .txt: {expected}"
    )


# --- railway_components -----------------------------------------------------------------------------------------------


def test_railway_components(tmp_path: Path) -> None:
    write(tmp_path, *(f"{name}/IMG_1.jpg" for name in railway_components.FOLDERS))
    samples = samples_of(RailwayComponents, tmp_path)
    assert samples.columns.tolist() == ["path", "defective", "defect_type", "category"]
    assert rows(samples) == [
        ("Damaged Crossties/IMG_1.jpg", True, "Damaged Crossties", "Crossties"),
        ("Damaged Fishplates/IMG_1.jpg", True, "Damaged Fishplates", "Fishplates"),
        ("Missing Fasteners/IMG_1.jpg", True, "Missing Fasteners", "Fasteners"),
        ("Perfect Crossties/IMG_1.jpg", False, "Perfect Crossties", "Crossties"),
        ("Perfect Fasteners/IMG_1.jpg", False, "Perfect Fasteners", "Fasteners"),
        ("Perfect Fishplates/IMG_1.jpg", False, "Perfect Fishplates", "Fishplates"),
        ("Perfect Tracks/IMG_1.jpg", False, "Perfect Tracks", "Tracks"),
    ]


def test_railway_components_missing_folder(tmp_path: Path) -> None:
    write(tmp_path, *(f"{name}/IMG_1.jpg" for name in railway_components.FOLDERS if name != "Missing Fasteners"))
    message = sentence(samples_of, RailwayComponents, tmp_path)
    assert message.startswith(f"'Missing Fasteners' in {tmp_path} is missing: expected the folders Perfect Crossties, ")


# --- magnetic_tile ----------------------------------------------------------------------------------------------------


def test_magnetic_tile(tmp_path: Path) -> None:
    """Six exposures of a tile follow one another; 601 numbers on another one begins, sound parts have no mask."""
    write(tmp_path, *(f"MT_{kind}/Imgs/exp1_num_{5000 * at}.jpg" for at, kind in enumerate(magnetic_tile.KINDS, 1)))
    write(tmp_path, "MT_Free/Imgs/exp2_num_5020.jpg", "MT_Free/Imgs/exp1_num_5000.png")
    write(
        tmp_path, "MT_Fray/Imgs/exp2_num_5620.jpg", "MT_Fray/Imgs/exp2_num_5620.png", "MT_Crack/Imgs/exp3_num_6221.jpg"
    )
    samples = samples_of(MagneticTile, tmp_path).set_index("path")
    assert len(samples) == 9
    assert samples.loc["MT_Free/Imgs/exp1_num_5000.jpg"].tolist() == [False, "Free", "0", ""]
    assert samples.loc["MT_Free/Imgs/exp2_num_5020.jpg"].tolist() == [False, "Free", "0", ""]
    assert samples.loc["MT_Fray/Imgs/exp2_num_5620.jpg"].tolist() == [
        *(True, "Fray", "0"),
        "MT_Fray/Imgs/exp2_num_5620.png",
    ]
    assert samples.loc["MT_Crack/Imgs/exp3_num_6221.jpg"].tolist() == [True, "Crack", "1", ""]
    assert samples["group"].nunique() == 7


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (
            "MT_Fray/Imgs/tile.jpg",
            "'MT_Fray/Imgs/tile.jpg' in {root} is no photo or mask of a magnetic tile: expected ",
        ),
        ("MT_Fray/Imgs/exp1_num_9.png", "mask 'MT_Fray/Imgs/exp1_num_9.png' belongs to no image in {root}: "),
    ],
)
def test_magnetic_tile_refuses(tmp_path: Path, file: str, message: str) -> None:
    write(tmp_path, *(f"MT_{kind}/Imgs/exp1_num_1.jpg" for kind in magnetic_tile.KINDS), file)
    assert sentence(samples_of, MagneticTile, tmp_path).startswith(message.format(root=tmp_path))


# --- casting ----------------------------------------------------------------------------------------------------------


def test_casting_photos(tmp_path: Path) -> None:
    write(tmp_path, "ok_front/cast_ok_0_1.jpeg", "def_front/cast_def_0_1.jpeg")
    samples = samples_of(Casting, tmp_path)
    assert samples.columns.tolist() == ["path", "defective"]
    assert rows(samples) == [("def_front/cast_def_0_1.jpeg", True), ("ok_front/cast_ok_0_1.jpeg", False)]


def test_casting_augmented_version_has_a_split(tmp_path: Path) -> None:
    write(
        tmp_path,
        *(f"{split}/{name}/1.jpeg" for split in ("train", "test") for name in ("ok_front", "def_front")),
    )
    samples = samples_of(Casting, tmp_path)
    assert samples.columns.tolist() == ["path", "defective", "split"]
    assert rows(samples) == [
        ("test/def_front/1.jpeg", True, "test"),
        ("test/ok_front/1.jpeg", False, "test"),
        ("train/def_front/1.jpeg", True, "train"),
        ("train/ok_front/1.jpeg", False, "train"),
    ]


LAYOUT = "{def_front,ok_front}/<image> or {train,test}/{def_front,ok_front}/<image>"


@pytest.mark.parametrize(
    ("there", "missing"),
    [("def_front/1.jpeg", "ok_front"), ("train/ok_front/1.jpeg", "train/def_front"), ("photos/1.jpeg", "def_front")],
)
def test_casting_missing_folder(tmp_path: Path, there: str, missing: str) -> None:
    write(tmp_path, there)
    assert sentence(samples_of, Casting, tmp_path) == f"'{missing}' in {tmp_path} is missing: expected {LAYOUT}"


# --- folder -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sound", ["good", ["good"]])
def test_folder(tmp_path: Path, sound: Any) -> None:
    write(tmp_path, "scratch/b.PNG", "good/cam 1/a.jpg", "good/a.jpg", "good/notes.txt", ".cache/x/a.jpg")
    samples = samples_of(Folder, tmp_path, sound=sound)
    assert samples.columns.tolist() == ["path", "defective", "defect_type"]
    assert rows(samples) == [
        ("good/a.jpg", False, "good"),
        ("good/cam 1/a.jpg", False, "good"),
        ("scratch/b.PNG", True, "scratch"),
    ]


def test_folder_with_several_sound_classes(tmp_path: Path) -> None:
    write(tmp_path, "new/1.png", "worn/1.png", "broken/1.png", "train/1.png")  # `train` among others is a class
    samples = samples_of(Folder, tmp_path, sound=["new", "worn"])
    assert rows(samples) == [
        ("broken/1.png", True, "broken"),
        ("new/1.png", False, "new"),
        ("train/1.png", True, "train"),
        ("worn/1.png", False, "worn"),
    ]


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_folder_with_published_split(tmp_path: Path, val: str) -> None:
    write(tmp_path, "train/ok/1.png", "train/dent/1.png", f"{val}/ok/2.png", "test/dent/3.png")
    samples = samples_of(Folder, tmp_path, sound="ok")
    assert samples.columns.tolist() == ["path", "defective", "defect_type", "split"]
    assert rows(samples) == [
        ("test/dent/3.png", True, "dent", "test"),
        ("train/dent/1.png", True, "dent", "train"),
        ("train/ok/1.png", False, "ok", "train"),
        (f"{val}/ok/2.png", False, "ok", "val"),
    ]


def test_folder_mistakes(tmp_path: Path) -> None:
    layout = "<class>/<image> or {train,val,test}/<class>/<image>"
    assert (
        sentence(samples_of, Folder, tmp_path, sound="good") == f"{tmp_path} holds no class folders: expected {layout}"
    )
    write(tmp_path, "good/1.png", "bad/1.png")
    assert sentence(samples_of, Folder, tmp_path, sound=["bad", "goood"]) == (
        f"{tmp_path} has the class folders bad, good; not sound=goood, did you mean 'good'?"
    )
    write(tmp_path, "lost.png", "also lost.png")
    assert sentence(samples_of, Folder, tmp_path, sound="good") == (
        f"'also lost.png' in {tmp_path} is in no class folder: expected {layout}"
    )
    write(tmp_path, "empty/notes.txt")
    assert sentence(samples_of, Folder, tmp_path, sound="good") == (
        f"'empty' in {tmp_path} holds no image, only 1 .txt: expected {layout}"
    )


def test_folder_counts_what_lies_beside_the_photos(tmp_path: Path) -> None:
    write(tmp_path, "good/1.png", "good/1.txt", "bad/deep/1.png", "bad/deep/1.cr2", "notes.txt", "good/Thumbs.db")
    assert samples_of(Folder, tmp_path, sound="good").attrs == {"left_out": {".txt": 2, ".cr2": 1}}
    write(tmp_path / "split", "Train/good/1.png", "TEST/good/1.png", "TEST/bad/1.txt", "TEST/bad/1.png", "TEST/a.csv")
    samples = samples_of(Folder, tmp_path / "split", sound="good")
    assert samples.attrs == {"left_out": {".txt": 1, ".csv": 1}}
    assert dict(zip(samples["path"], samples["split"], strict=True)) == {
        "TEST/bad/1.png": "test",
        "TEST/good/1.png": "test",
        "Train/good/1.png": "train",
    }
    write(tmp_path / "split", "TEST/lost.png")
    assert sentence(samples_of, Folder, tmp_path / "split", sound="good").startswith("'TEST/lost.png' in ")


@pytest.mark.parametrize(("sound", "name"), [("good", "Good "), ("TRUE", "true")])
def test_folder_of_a_sound_class_in_another_spelling(tmp_path: Path, sound: str, name: str) -> None:
    write(tmp_path, f"{name}/1.png", "bad/1.png")
    assert rows(samples_of(Folder, tmp_path, sound=sound)) == sorted(
        [(f"{name}/1.png", False, name), ("bad/1.png", True, "bad")]
    )


# --- table ------------------------------------------------------------------------------------------------------------


def listed(root: Path, content: str, sound: Any = ("good", "ok"), labels: list[str] | None = None) -> pd.DataFrame:
    """The samples of a CSV file beside its images a.png, b.png and c/d.png."""
    write(root, "a.png", "b.png", "c/d.png", "masks/b.png")
    (root / "parts.csv").write_text(content, encoding="utf-8")
    return samples_of(Table, root, table=root / "parts.csv", sound=list(sound), labels=labels)


def complaint(root: Path, content: str, **options: Any) -> str:
    """What the user reads, after the name of the table."""
    message = sentence(listed, root, content, **options)
    assert message.startswith(f"{root}/parts.csv ")
    return message.removeprefix(f"{root}/parts.csv ").replace(str(root), "ROOT")


def test_table_of_two_columns(tmp_path: Path) -> None:
    samples = listed(tmp_path, "\ufeffpath, label, camera\nc/d.png, good, 1\nb.png, NA, 2\n.\\a.png, 007, 2\n")
    assert samples.columns.tolist() == ["path", "defective", "defect_type"]
    assert rows(samples) == [("a.png", True, "007"), ("b.png", True, "NA"), ("c/d.png", False, "good")]


FULL = """defective,label,path,split,group,category,mask,defect_type
1,bad,b.png,validation,7,bottle,masks/b.png,dent
False,fine,a.png,test,,bottle,,
TRUE,bad,c/d.png,train,8,,,hole
"""
FULL_COLUMNS = ["path", "defective", "defect_type", "category", "group", "split", "mask"]
FULL_ROWS = [
    ("a.png", False, "fine", "bottle", "", "test", ""),
    ("b.png", True, "dent", "bottle", "7", "val", "masks/b.png"),
    ("c/d.png", True, "hole", "", "8", "train", ""),
]


def test_table_of_all_columns(tmp_path: Path) -> None:
    samples = listed(tmp_path, FULL)
    assert samples.columns.tolist() == FULL_COLUMNS
    assert rows(samples) == FULL_ROWS
    assert samples["defective"].dtype == bool


def test_parquet_table(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    write(tmp_path, "a.png", "b.png", "c/d.png")
    file = tmp_path / "parts.parquet"
    paths = pd.Series(["b.png", "a.png", "c/d.png"], index=[7, 3, 5])
    pd.DataFrame(
        {"path": paths, "label": [1, 0, 2], "group": ["x", None, "y"], "defective": [True, False, True]}
    ).to_parquet(file)
    samples = samples_of(Table, tmp_path, table=file, sound="0")
    assert samples.columns.tolist() == ["path", "defective", "defect_type", "group"]
    assert rows(samples) == [("a.png", False, "0", ""), ("b.png", True, "1", "x"), ("c/d.png", True, "2", "y")]


def test_parquet_without_a_label(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    file = tmp_path / "parts.parquet"
    pd.DataFrame({"path": ["a.png", "b.png"], "label": ["good", None]}, index=["x", "y"]).to_parquet(file)
    assert sentence(samples_of, Table, tmp_path, table=file, sound="good") == (
        f"{file} has no label in some rows (counted from 1, after the header): 2"
    )


def test_parquet_needs_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "fastparquet", None)
    file = tmp_path / "parts.parquet"
    file.touch()
    assert sentence(samples_of, Table, tmp_path, table=file, sound="ok") == (
        f"reading {file} needs pyarrow: pip install 'defectcls[table]'"
    )


def test_table_classes(tmp_path: Path) -> None:
    assert len(listed(tmp_path, CSV, labels=["good", "dent", "hole"])) == 2
    assert complaint(tmp_path, CSV + "c/d.png,dnet\n", labels=["good", "hole"]) == (
        "has labels that dataset.labels does not name: dent, dnet"
    )


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "cannot read"),
        ("path,label\n", "has no rows"),
        ("path,label\na.png,good,\nb.png,dent,\n", "cannot read"),
        ("path,labels\na.png,good\n", "needs a column 'label', it has: path, labels, did you mean 'labels'?"),
        ("Pfad,label\na.png,good\n", "needs a column 'path', it has: Pfad, label; call one of them path"),
        (
            "file,image,label\na.png,b.png,good\n",
            "needs a column 'path', it has: file, image, label; call one of them path",
        ),
        ("path,label,label\na.png,good,dent\n", "has a column twice, of which one must go: label"),
        (CSV + "../b.png,dent\n", "has paths outside root=ROOT: ../b.png"),
        (CSV + "c/../../b.png,dent\n", "has paths outside root=ROOT: ../b.png"),
        (CSV + "c/d.png\n", "has no label in some rows (counted from 1, after the header): 3"),
        (CSV + "c/d.png,\n", "has no label in some rows (counted from 1, after the header): 3"),
        (CSV + ",dent\n,dent\n", "has no path in some rows (counted from 1, after the header): 3, 4"),
        (CSV + "./a.png,good\n", "has images more than once: a.png"),
        (CSV + "c/../b.png,dent\n", "has images more than once: b.png"),
        (
            CSV + "1.png,dent\n2.png,dent\n3.png,dent\n4.png,dent\n",
            "has paths that are not in root=ROOT: 1.png, 2.png, 3.png … (4 in all)",
        ),
        (CSV + "c,dent\n", "has paths that are not in root=ROOT: c"),
        (CSV + "/a.png,dent\n", "has paths outside root=ROOT: /a.png"),
        (CSV + "D:\\a.png,dent\n", "has paths outside root=ROOT: D:/a.png"),
        ("path,label,mask\na.png,good,\nb.png,dent,no.png\n", "has masks that are not in root=ROOT: no.png"),
        (
            "path,label,split\na.png,good,holdout\nb.png,dent,\n",
            "has values of 'split' that are not train, val or test: (empty), holdout",
        ),
        (
            "path,label,defective\na.png,good,nok\nb.png,dent,1\n",
            "has values of 'defective' that are not 0, 1, true, false, yes or no: nok",
        ),
        (
            "path,label\na.png,fine\nb.png,dent\n",
            "has the labels dent, fine, none of them sound: dataset.sound=[<label>]",
        ),
    ],
)
def test_table_mistakes(tmp_path: Path, content: str, expected: str) -> None:
    if expected == "cannot read":
        assert sentence(listed, tmp_path, content).startswith(f"cannot read {tmp_path}/parts.csv as ")
    else:
        assert complaint(tmp_path, content) == expected


@pytest.mark.parametrize(
    "content",
    [
        "path;label\na.png;good\nb.png;dent\n",
        "\ufeffPath\tLABEL\na.png\tgood\nb.png\tdent\n",
        'path,"label","note; of day"\na.png,good,"1;2"\nb.png,dent,\n',
    ],
)
def test_table_of_another_tool(tmp_path: Path, content: str) -> None:
    write(tmp_path, "a.png", "b.png")
    (tmp_path / "parts.tsv").write_text(content, encoding="utf-8")
    samples = samples_of(Table, tmp_path, table=tmp_path / "parts.tsv", sound=["good"])
    assert rows(samples) == [("a.png", False, "good"), ("b.png", True, "dent")]


def test_table_values_in_other_words(tmp_path: Path) -> None:
    samples = listed(
        tmp_path, "path,label,Defective,SPLIT\na.png,x,No,Train\nb.png,y,1.0,TEST\nc/d.png,y,YES,Validation\n"
    )
    assert samples["defective"].tolist() == [False, True, True]
    assert samples["split"].tolist() == ["train", "test", "val"]
    assert listed(tmp_path, "path,label\na.png,GOOD \nb.png,dent\n")["defective"].tolist() == [False, True]
    assert listed(tmp_path, CSV, sound=("GOOD",), labels=["Good", "dent"])["defective"].tolist() == [False, True]


def test_table_file_mistakes(tmp_path: Path) -> None:
    options: dict[str, Any] = {"sound": "ok"}
    file = tmp_path / "parts.xlsx"
    assert sentence(samples_of, Table, tmp_path, table=file, **options) == f"table={file} is not a file"
    file.write_bytes(b"PK\x03\x04\x14\0\x08\0\xb5\x8c")
    message = sentence(samples_of, Table, tmp_path, table=file, **options)
    assert message.startswith(f"cannot read {file} as Parquet or as CSV in UTF-8: ")
    (tmp_path / "ragged.csv").write_text("path,label\na.png,ok\nb.png,ok,1\n")
    assert re.search(
        "ragged.csv .*line 3", sentence(samples_of, Table, tmp_path, table=tmp_path / "ragged.csv", **options)
    )
    (tmp_path / "no.parquet").write_text("PAR")
    assert "cannot read" in sentence(samples_of, Table, tmp_path, table=tmp_path / "no.parquet", **options)


# --- the images at hand -----------------------------------------------------------------------------------------------


def data(name: str) -> Path:
    return Path(os.environ["DEFECTCLS_DATA"]) / name


@pytest.mark.realdata
def test_real_concrete_crack() -> None:
    samples = samples_of(ConcreteCrack, data("concrete_crack"))
    assert Counter(samples["defective"]) == {True: 4000, False: 4000}


@pytest.mark.realdata
def test_real_mvtec() -> None:
    samples = samples_of(MVTec, data("mvtec"), categories=["bottle", "screw"])
    assert Counter(zip(samples["category"], samples["split"], samples["defect_type"], strict=True)) == {
        ("bottle", "train", "good"): 209,
        ("bottle", "test", "good"): 20,
        ("bottle", "test", "broken_large"): 20,
        ("bottle", "test", "broken_small"): 22,
        ("bottle", "test", "contamination"): 21,
        ("screw", "train", "good"): 320,
        ("screw", "test", "good"): 41,
        ("screw", "test", "defect"): 119,
    }
    with_mask = samples["mask"] != ""
    assert with_mask.tolist() == (samples["defective"] & (samples["category"] == "bottle")).tolist()
    assert all((data("mvtec") / mask).is_file() for mask in samples["mask"][with_mask])


@pytest.mark.realdata
def test_real_casting() -> None:
    assert Counter(samples_of(Casting, data("casting"))["defective"]) == {True: 781, False: 519}


@pytest.mark.realdata
def test_real_magnetic_tile() -> None:
    samples = samples_of(MagneticTile, data("magnetic_tile"))
    kinds = {"Free": 952, "Blowhole": 115, "Break": 85, "Crack": 57, "Fray": 32, "Uneven": 103}
    assert Counter(samples["defect_type"]) == kinds
    assert ((samples["mask"] != "") == samples["defective"]).all()
    assert samples["group"].nunique() == 132


@pytest.mark.realdata
def test_real_railway_components() -> None:
    samples = samples_of(RailwayComponents, data("railway_components"))
    assert Counter(samples["defective"]) == {False: 545, True: 313}
    assert Counter(samples["defect_type"]) == {
        "Damaged Crossties": 112,
        "Damaged Fishplates": 104,
        "Missing Fasteners": 97,
        "Perfect Crossties": 110,
        "Perfect Fasteners": 160,
        "Perfect Fishplates": 151,
        "Perfect Tracks": 124,
    }
