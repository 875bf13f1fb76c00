"""Labels as other tools have them: for each how rows are written, and what rows are read.

A row has `name` (of the photo, below a folder, with forward slashes), `label`, `split` (train, val, test or ""),
`photo`, its digest, and where a model has spoken `prediction` and `score`.
"""

import json
import re
import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, unquote
from zipfile import ZipFile

import pandas as pd

from defectcls.data.overlay import read_verdicts
from defectcls.data.samples import Names, images_in
from defectcls.errors import UserError, one_line
from defectcls.evaluation.predictions import write_predictions
from defectcls.files import digest_of
from defectcls.settings import Settings
from defectcls.tables import SPLIT_NAMES, read_table, refuse

Rows = list[dict[str, Any]]
KEPT = ["name", "split", "photo"]  # beside the label, where a tool gives back what it does not know
SUFFIX = re.compile(r"\.[^./]*$")
LAYOUT = re.compile(rf"((?P<split>{'|'.join(SPLIT_NAMES)})/)?(?P<label>[^/]+)/(?P<name>.+)", re.IGNORECASE)


class LabelsSettings(Settings):
    input: str
    output: Path
    format: Literal["labelstudio", "fiftyone", "coco", "cvat", "imagefolder", "folders"]
    root: Path | None
    labels: Names | None
    overwrite: bool


def _to_label_studio(rows: Rows, *_: Path) -> Any:
    def said(label: str, **more: float) -> Rows:
        choice = {"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": [label]}}
        return [{"result": [choice], **more}] * bool(label)

    images = [{"image": f"/data/local-files/?d={quote(row['name'])}"} | {key: row[key] for key in KEPT} for row in rows]
    spoken = [said(row["prediction"], score=float(row["score"] or 0)) for row in rows]
    parts = zip(images, (said(row["label"]) for row in rows), spoken, strict=True)
    return [dict(zip(("data", "annotations", "predictions"), task, strict=True)) for task in parts]


def _from_label_studio(tasks: Any) -> Rows:
    said = [(task["data"], one) for task in tasks for one in task["annotations"] if not one.get("was_cancelled")]
    choices = [(data, label) for data, one in said for each in one["result"] for label in each["value"]["choices"]]
    return [{"name": unquote(data["image"].rpartition("?d=")[2]), **data, "label": label} for data, label in choices]


def _to_fiftyone(rows: Rows, *_: Path) -> Any:
    stems = pd.Series([SUFFIX.sub("", row["name"]) for row in rows])
    refuse(stems[stems.duplicated()], "FiftyOne knows photos without their suffix, and two would be one")
    labels = [{"label": row["label"], "attributes": {key: row[key] for key in KEPT}} for row in rows]
    return {"labels": dict(zip(stems, labels, strict=True))}


def _from_fiftyone(content: Any) -> Rows:
    classes = dict(enumerate(content.get("classes") or ()))
    said = {name: one if isinstance(one, dict) else {"label": one} for name, one in content["labels"].items()}
    known = {name: classes.get(one["label"], one["label"]) for name, one in said.items()}
    return [{"name": name, **one.get("attributes", {}), "label": known[name]} for name, one in said.items()]


def _to_coco(rows: Rows, *_: Path) -> Any:
    classes = sorted({row["label"] for row in rows})
    said = [{"id": at, "image_id": at, "category_id": classes.index(row["label"])} for at, row in enumerate(rows)]
    categories = [{"id": number, "name": name} for number, name in enumerate(classes)]
    images = [{key: row[key] for key in KEPT} | {"id": at, "file_name": row["name"]} for at, row in enumerate(rows)]
    return {"images": images, "annotations": said, "categories": categories}


def _from_coco(content: Any) -> Rows:
    images, classes = ({one["id"]: one for one in content[key]} for key in ("images", "categories"))
    said = [(images[one["image_id"]], classes[one["category_id"]]["name"]) for one in content["annotations"]]
    return [{"name": image["file_name"], **image, "label": label} for image, label in said]


def _to_cvat(rows: Rows, file: Path, _: Path) -> None:
    classes, lines = sorted({row["label"] for row in rows}), defaultdict[str, str](str)
    for row in rows:
        name = re.sub(r'(.*[\s"].*)(\.[^./]*)', r'"\1"\2', row["name"])  # as it quotes them
        lines[row["split"] or "default"] += f"{name} {classes.index(row['label'])}\n"
    with ZipFile(file, "w") as archive:
        for part, text in {"synsets": "\n".join(classes), **lines}.items():
            archive.writestr(f"{part}.txt", text)


def _from_cvat(file: Path) -> Rows:
    with ZipFile(file) as archive:  # nothing of which is unpacked
        texts = {name: archive.read(name).decode().split("\n") for name in archive.namelist() if name.endswith(".txt")}
    classes, rows = dict(enumerate(texts.pop("synsets.txt"))), []
    for part, lines in texts.items():
        for name, _, number in (line.rpartition(" ") for line in lines if line and line.rstrip() == line):
            name = re.sub('^"(.*)"', r"\1", name)
            rows.append({"split": Path(part).stem, "name": name, "label": classes[int(number)]})
    return rows


def _to_folders(rows: Rows, folder: Path, root: Path) -> None:
    refuse({row["label"] for row in rows if re.match(r"\.|.*/", row["label"])}, "labels that no folder can be called")
    refuse({row["name"] for row in rows} - {*images_in(root, "")}, f"photos that are not in root={root}")
    tables = defaultdict[Path, Rows](list)
    for row in rows:
        place, copy = folder / row["split"], f"{row['label']}/{row['name']}"
        (place / copy).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / row["name"], place / copy)
        tables[place].append({"file_name": copy, "label": row["label"]} | {key: row[key] for key in KEPT})
    for place, table in tables.items():
        write_predictions(pd.DataFrame(table), place / "metadata.csv")


def _from_folders(folder: Path) -> Rows:
    found: dict[str, Any] = {name: LAYOUT.fullmatch(name) for name in images_in(folder, "")}
    refuse((name for name, one in found.items() if one is None), "photos in no folder of a label")
    return [one.groupdict() | {"photo": digest_of((folder / name).read_bytes()).hex()} for name, one in found.items()]


def _from_imagefolder(folder: Path) -> Rows:
    rows: list[Any] = []
    for file in sorted(folder.rglob("metadata.csv")):
        at = file.parent.relative_to(folder)
        for row in read_table(file, ("file_name", "label")).to_dict("records"):
            rows.append({"name": (at / row["file_name"]).as_posix(), "split": f"{at}".partition("/")[0], **row})
    return rows


FORMATS: dict[str, tuple[str, Callable[..., Any], Callable[[Any], Rows]]] = {  # suffix ("": a folder), to it, from it
    "labelstudio": (".json", _to_label_studio, _from_label_studio),
    "fiftyone": (".json", _to_fiftyone, _from_fiftyone),
    "coco": (".json", _to_coco, _from_coco),
    "cvat": (".zip", _to_cvat, _from_cvat),
    "imagefolder": ("", _to_folders, _from_imagefolder),
    "folders": ("", _to_folders, _from_folders),
}


def read_labels(given: str, format: str | None = None, root: Path | None = None) -> pd.DataFrame:
    """The labels that a tool has given; without a format, those that `read_verdicts` takes, or of a run folder.

    Args:
        root: folder of the photos, where the tool kept no digests, or a server keeps them by these.

    Raises:
        UserError: it is damaged, of another tool, or names a photo that is not in the folder.
    """
    path = Path(given)
    if format is None:
        rows = read_verdicts(str(path / "predictions.csv") if path.is_dir() else given).rename(columns={"path": "name"})
    else:
        try:
            content = json.loads(path.read_bytes()) if FORMATS[format][0] == ".json" else path
            rows = pd.DataFrame(FORMATS[format][2](content))
        except Exception as error:  # whatever the foreign bytes happen to trip over
            raise UserError(f"input={given} is damaged, or none of format={format}: {one_line(error)}") from error
    rows = rows.reindex(columns=[*KEPT, "label", "prediction", "score"]).fillna("").astype(str)
    rows["split"] = rows["split"].str.casefold().map(SPLIT_NAMES).fillna("")
    rows = rows[rows["label"] != ""].drop_duplicates(ignore_index=True)
    if rows.empty:
        raise UserError(f"input={given} holds no labels")
    lacking, place = rows["photo"] == "", root or path
    here = images_in(place, "") if root or lacking.any() else []
    kept = {Path(name).stem: name for name in here}  # as a server keeps them, by their digests
    rows["name"] = rows["name"].where(rows["name"].isin(here), rows["photo"].map(kept).fillna(rows["name"]))
    known = pd.Series([*here, *here], [*here, *(SUFFIX.sub("", name) for name in here)], dtype=object)
    found = rows["name"].map(known[~known.index.duplicated(keep=False)])[lacking]
    refuse(rows["name"][lacking][found.isna()], f"input={given} names photos that root={place} lacks, or has twice")
    rows.loc[lacking, "name"] = found
    rows.loc[lacking, "photo"] = [digest_of((place / name).read_bytes()).hex() for name in found]
    return rows
