"""What goes to another tool and back is what it was; what that tool writes itself is read, or refused in a sentence."""

import json
import sqlite3
import zipfile
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from defectcls.data.exchange import FORMATS, read_labels
from defectcls.data.folder import Folder
from defectcls.data.verdicts import VERDICTS
from defectcls.deployment.decisions import digest_of
from defectcls.errors import UserError
from defectcls.evaluation.predictions import write_predictions
from tests.conftest import Outcome, command, paint, sentence

PHOTOS = {  # by name: label and split
    "cam 1/1.png": ("good", "train"),
    "cam 2/1.png": ("Riß, groß", "train"),
    "Größe/ä ö.png": ("good", "val"),
    'say "hi", twice.png': ("Riß, groß", "test"),
    '"quoted".png': ("good", "test"),
    "it's #1; 100% [x].tar.png": ("no 'dent'", "test"),
    "plain.PNG": ("good", ""),
}


@pytest.fixture
def labels(tmp_path: Path) -> pd.DataFrame:
    """A table of labels beside its photos."""
    for number, name in enumerate(PHOTOS):
        paint(tmp_path / "photos" / name, (number * 30, 90, 120), 16)
    rows = [
        {"path": name, "photo": digest(tmp_path / "photos" / name), "label": label, "split": split}
        for name, (label, split) in PHOTOS.items()
    ]
    table = pd.DataFrame(rows).assign(prediction="good", score=["0.25"] * len(rows))
    write_predictions(table, tmp_path / "labels.csv")
    return table


def digest(file: Path) -> str:
    return digest_of(file.read_bytes())


def moved(tmp_path: Path, given: Any, output: str, tool: str, *more: str) -> Outcome:
    where = (f"input={given}", f"output={tmp_path / output}", f"format={tool}", f"hydra.run.dir={tmp_path}/job")
    return command("labels", *where, f"root={tmp_path}/photos", *more)


def by_name(table: pd.DataFrame) -> dict[str, tuple[str, ...]]:
    rows = table[["name", "label", "split", "photo"]].sort_values("name").itertuples(index=False, name=None)
    return {name: rest for name, *rest in rows}


def expected(labels: pd.DataFrame) -> dict[str, tuple[str, ...]]:
    return by_name(labels.rename(columns={"path": "name"}))


def out(tool: str) -> str:
    return f"out{FORMATS[tool][0]}"


@pytest.mark.parametrize("tool", FORMATS)
def test_there_and_back_names_labels_and_splits_are_the_same(labels: pd.DataFrame, tmp_path: Path, tool: str) -> None:
    there = moved(tmp_path, tmp_path / "labels.csv", out(tool), tool)
    assert (there.code, there.out) == (0, f"7 labels of 7 photos: {tmp_path / out(tool)}\n"), there.err
    back = moved(tmp_path, tmp_path / out(tool), "back.csv", tool)
    assert back.code == 0, back.err
    table = pd.read_csv(tmp_path / "back.csv", keep_default_na=False)
    assert list(table) == ["photo", "label", "name", "split"]
    assert by_name(table) == expected(labels)
    assert by_name(read_labels(str(tmp_path / "back.csv"))) == expected(labels)
    exists = sentence(moved(tmp_path, tmp_path / "labels.csv", out(tool), tool))
    assert exists == f"output={tmp_path / out(tool)} exists: give another name, or overwrite=true"


def test_the_folders_are_a_dataset(labels: pd.DataFrame, tmp_path: Path) -> None:
    write_predictions(labels[labels["split"] != ""], tmp_path / "labels.csv")
    assert moved(tmp_path, tmp_path / "labels.csv", "out", "folders").code == 0
    samples = Folder(root=tmp_path / "out", sound=["good"]).list_samples()
    found = dict(zip(samples["path"], zip(samples["defect_type"], samples["split"], strict=True), strict=True))
    assert found == {f"{split}/{label}/{name}": (label, split) for name, (label, split) in PHOTOS.items() if split}
    for path in found:
        assert (tmp_path / "out" / path).read_bytes() == (tmp_path / "photos" / path.split("/", 2)[2]).read_bytes()


def test_photos_that_a_server_kept_are_found_by_their_digests(labels: pd.DataFrame, tmp_path: Path) -> None:
    (kept := tmp_path / "kept/accept").mkdir(parents=True)
    for photo, path in zip(labels["photo"], labels["path"], strict=True):
        (kept / f"{photo}.png").write_bytes((tmp_path / "photos" / path).read_bytes())
    write_predictions(labels.assign(path="part.png"), tmp_path / "said.csv")  # as a camera calls them all
    sorted_ = moved(tmp_path, tmp_path / "said.csv", "week", "folders", f"root={tmp_path}/kept")
    assert sorted_.code == 0, sorted_.err
    found = {file.stem: file.parts[-3] for file in (tmp_path / "week").rglob("*.png")}
    assert found == dict(zip(labels["photo"], labels["label"], strict=True))


def test_a_model_s_word_is_a_pre_annotation_of_label_studio(labels: pd.DataFrame, tmp_path: Path) -> None:
    assert moved(tmp_path, tmp_path / "labels.csv", "tasks.json", "labelstudio").code == 0
    task = json.loads((tmp_path / "tasks.json").read_text())[1]
    choice = {"from_name": "label", "to_name": "image", "type": "choices"}
    assert task == {
        "data": {
            "image": "/data/local-files/?d=cam%202/1.png",
            **{"name": "cam 2/1.png", "split": "train", "photo": labels["photo"][1]},
        },
        "annotations": [{"result": [choice | {"value": {"choices": ["Riß, groß"]}}]}],
        "predictions": [{"result": [choice | {"value": {"choices": ["good"]}}], "score": 0.25}],
    }


def test_what_stands_in_a_database_goes_out(labels: pd.DataFrame, tmp_path: Path) -> None:
    from defectcls.deployment.decisions import Decisions
    from tests.deployment.test_decisions import verdict

    decisions = Decisions(f"sqlite:///{tmp_path}/rows.sqlite")
    said = [("ann", 0, "good"), ("bob", 0, "good"), ("ann", 1, "x"), ("ann", 1, "crack"), ("ann", 2, "")]
    for who, row, label in said:
        decisions.add([verdict(who=who, photo=labels["photo"][row], name=labels["path"][row], label=label)], VERDICTS)
    assert moved(tmp_path, tmp_path / "rows.sqlite", "coco.json", "coco").code == 0
    content = json.loads((tmp_path / "coco.json").read_text())
    names = {one["id"]: one["name"] for one in content["categories"]}
    files = {one["id"]: one["file_name"] for one in content["images"]}
    told = {files[one["image_id"]]: names[one["category_id"]] for one in content["annotations"]}
    assert told == {"cam 1/1.png": "good", "cam 2/1.png": "crack"}


# --- what the tools write themselves ----------------------------------------------------------------------------------


def zipped(file: Path, **members: str) -> Path:
    with zipfile.ZipFile(file, "w") as archive:
        for name, text in members.items():
            archive.writestr(f"{name}.txt", text)
    return file


def written(file: Path, content: Any) -> Path:
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def test_exports_of_the_tools(labels: pd.DataFrame, tmp_path: Path) -> None:
    """Without our columns: photos are known by their names below the root, without a suffix where the tool drops it."""
    result = {"type": "choices", "value": {"choices": ["good"]}}
    annotated = [
        {"data": {"image": "/data/local-files/?d=cam%201/1.png"}, "annotations": [{"result": [result]}]},
        {
            "data": {"image": "/data/local-files/?d=plain.PNG"},
            "annotations": [{"result": [result], "was_cancelled": True}, {"result": []}],
        },
    ]
    of_fiftyone = {"classes": ["dent", "good"], "labels": {"cam 1/1": 1, "plain": None}}
    of_coco = {
        "images": [{"id": 7, "file_name": "cam 1/1.png", "width": 16, "height": 16}, {"id": 8, "file_name": "x.png"}],
        "categories": [{"id": 3, "name": "good", "supercategory": ""}],
        "annotations": [{"id": n, "image_id": 7, "category_id": 3, "bbox": [0, 0, n, 1]} for n in (1, 2)],
    }
    cvat = zipped(tmp_path / "cvat.zip", synsets="dent\ngood\n", default='"cam 1/1".png 1\nplain.PNG \n')
    for tool, given in {
        "labelstudio": written(tmp_path / "ls.json", annotated),
        "fiftyone": written(tmp_path / "fo.json", of_fiftyone),
        "coco": written(tmp_path / "coco.json", of_coco),
        "cvat": cvat,
    }.items():
        back = moved(tmp_path, given, f"{tool}.csv", tool, "labels=[dent,good]")
        assert back.code == 0, back.err
        table = pd.read_csv(tmp_path / f"{tool}.csv", keep_default_na=False)
        assert by_name(table) == {"cam 1/1.png": ["good", "", labels["photo"][0]]}


def test_a_hugging_face_folder_of_another_s(tmp_path: Path) -> None:
    for name in ("train/a/1.png", "test/1.png"):
        paint(tmp_path / "hf" / name, (9, 9, 9))
    written(tmp_path / "hf/train/metadata.csv", "file_name,label\na/1.png,good\n")
    written(tmp_path / "hf/test/metadata.csv", "file_name,label,photo\n1.png,dent,\n")
    table = read_labels(str(tmp_path / "hf"), "imagefolder")
    assert by_name(table) == {
        "test/1.png": ["dent", "test", digest(tmp_path / "hf/test/1.png")],
        "train/a/1.png": ["good", "train", digest(tmp_path / "hf/train/a/1.png")],
    }


def test_each_mistake_is_one_sentence(labels: pd.DataFrame, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"not of the photos")
    (tmp_path / "no zip.zip").write_bytes(b"PK\3\4 cut off")
    (tmp_path / "flat").mkdir()
    paint(tmp_path / "flat/1.png", (1, 1, 1))
    sqlite3.connect(tmp_path / "other.sqlite").close()
    task = {"data": {"image": "?d=../secret.png"}, "annotations": [{"result": [{"value": {"choices": ["good"]}}]}]}
    escaped = written(tmp_path / "escape.json", [task])
    paint(tmp_path / "photos/twin.png", (1, 1, 1))
    paint(tmp_path / "photos/twin.bmp", (1, 1, 1))
    twins = written(tmp_path / "twins.json", {"labels": {"twin": "good"}})
    plain = written(tmp_path / "plain.json", [task | {"data": {"image": "?d=plain.PNG"}}])
    for tool, given, more, said in (
        (
            "labelstudio",
            escaped,
            (),
            f"input={escaped} names photos that root={tmp_path}/photos lacks, or has twice: ../s",
        ),
        ("labelstudio", plain, ("labels=[dent]",), f"input={plain} has labels that labels= does not name: good"),
        (
            "labelstudio",
            written(tmp_path / "cut.json", '[{"data"'),
            (),
            f"input={tmp_path}/cut.json is damaged, or none",
        ),
        ("fiftyone", twins, (), f"input={twins} names photos that root={tmp_path}/photos lacks, or has twice: twin"),
        ("coco", plain, (), f"input={plain} is damaged, or none of format=coco: list indices must be"),
        ("coco", written(tmp_path / "deep.json", "[" * 99999), (), f"input={tmp_path}/deep.json is damaged, or none"),
        (
            "fiftyone",
            written(tmp_path / "none.json", {"labels": {}}),
            (),
            f"input={tmp_path}/none.json holds no labels",
        ),
        (
            "cvat",
            tmp_path / "no zip.zip",
            (),
            f"input={tmp_path}/no zip.zip is damaged, or none of format=cvat: File is",
        ),
        (
            "cvat",
            zipped(tmp_path / "x.zip", synsets="a", train="x.png 1"),
            (),
            f"input={tmp_path}/x.zip is damaged, or",
        ),
        (
            "cvat",
            zipped(tmp_path / "y.zip", train="x.png 1"),
            (),
            f"input={tmp_path}/y.zip is damaged, or none of format",
        ),
        (
            "folders",
            tmp_path / "flat",
            (),
            f"input={tmp_path}/flat is damaged, or none of format=folders: photos in no",
        ),
        ("imagefolder", tmp_path / "flat", (), f"input={tmp_path}/flat holds no labels"),
    ):
        assert sentence(moved(tmp_path, given, "back.csv", tool, *more)).startswith(said)
    assert not (tmp_path / "back.csv").exists()
    twice = pd.concat([labels, labels[:1].assign(label="dent")])
    for tool, table, said in (
        ("coco", twice, f"input={tmp_path}/labels.csv has more than one label of: cam 1/1.png"),
        ("folders", labels.assign(label="../../x"), "labels that no folder can be called: ../../x"),
        ("folders", labels.assign(path="../" + labels["path"]), f"photos that are not in root={tmp_path}/photos: ../"),
        (
            "fiftyone",
            labels.replace({"path": {"plain.PNG": "cam 1/1.jpg"}}),
            "FiftyOne knows photos without their suffix",
        ),
    ):
        write_predictions(table, tmp_path / "labels.csv")
        assert sentence(moved(tmp_path, tmp_path / "labels.csv", out(tool), tool)).startswith(said)
        assert not (tmp_path / out(tool)).exists()
    said = sentence(moved(tmp_path, tmp_path / "other.sqlite", "x.json", "coco"))
    assert said.startswith(f"{tmp_path}/other.sqlite holds no verdicts that can be read")
    with pytest.raises(UserError, match=r"tasks\.txt should end in \.json"):
        raise UserError(sentence(moved(tmp_path, tmp_path / "labels.csv", "tasks.txt", "coco")))
