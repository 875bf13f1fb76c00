"""`predict` as a person types it: the table in each format, the page, the summary, the exit status, each mistake."""

import hashlib
import json
import re
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from defectcls.deployment import watching
from defectcls.deployment.checkpoints import decided
from defectcls.deployment.predictor import Predictor
from defectcls.evaluation.predictions import read_predictions
from tests.conftest import Outcome, command, paint, process, sentence

NUMBERS = ["decision", "prediction", "score", "p_sound", "p_defective"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve photos, two of them not readable."""
    root = tmp_path_factory.mktemp("new")
    for number in range(10):
        paint(root / f"photos/{number % 2}/{number}.png", (20 * number, 90, 200))
    with Image.open(root / "photos/1/9.png") as image:
        image.save(root / "photos/1/9.png", save_all=True, append_images=[Image.new("RGB", image.size)])
    (root / "photos/0/text.png").write_text("no pixels")
    (root / "photos/empty <b>.png").touch()
    for beside in ("notes.txt", "0/notes.TXT", "1/raw.cr2", "1/Thumbs.db"):
        (root / "photos" / beside).touch()
    return root / "photos"


def predict(run: Path, given: object, folder: Path, *arguments: str) -> Outcome:
    common = (f"checkpoint={run}", f"input='{given}'", "device=cpu", f"hydra.run.dir={folder}")
    return command("predict", *common, *arguments)


def table(path: Path) -> pd.DataFrame:
    numbers = dict.fromkeys(NUMBERS[2:], lambda text: float(text or "nan"))
    return pd.read_csv(path, keep_default_na=False, converters=numbers)  # exact, as pandas 2 alone is not


def test_all_photos_are_rows_and_counted(finished: Path, photos: Path, tmp_path: Path) -> None:
    outcome = predict(finished, photos, tmp_path, "batch_size=3")
    assert outcome.code == 1, outcome.err  # two could not be read
    rows, summary = table(tmp_path / "predictions.csv"), json.loads((tmp_path / "summary.json").read_text())
    names = sorted([f"{number % 2}/{number}.png" for number in range(10)] + ["0/text.png", "empty <b>.png"])
    assert rows["path"].tolist() == names
    assert rows[rows["error"] != ""][["path", "error"]].to_numpy().tolist() == [
        ["0/text.png", "not an image"],
        ["empty <b>.png", "empty file"],
    ]
    read = rows[rows["error"] == ""]
    assert rows["score"].isna().tolist() == (rows["error"] != "").tolist()
    assert {name: summary[name] for name in ("images", "read", "unreadable", "further_pages", "depth")} == {
        "images": 12,
        "read": 10,
        "unreadable": 2,
        "further_pages": 1,
        "depth": "8",
    }
    assert "files of several pages, of which only the first is looked at: 1" in outcome.err
    counts = read["decision"].value_counts()
    assert [summary[name] for name in ("accept", "review", "reject")] == [
        counts.get(name, 0) for name in ("accept", "review", "reject")
    ]
    assert summary["left_out"] == {".txt": 2, ".cr2": 1}
    assert "beside the photos: 2 .txt, 1 .cr2" in outcome.out
    assert summary["output"] == str(tmp_path / "predictions.csv")
    assert not [*tmp_path.glob("*.part")]
    page = (tmp_path / "gallery.html").read_text()
    assert page.count("<figure ") == 10
    assert "empty &lt;b&gt;.png" in page
    assert f"page: {tmp_path / 'gallery.html'}" in outcome.out
    for text in ("10 photos: ", "2 could not be read", "policy balanced", "photos per second"):
        assert text in outcome.out


def test_predictions_are_those_of_the_run_to_the_last_bit(finished: Path, tmp_path: Path) -> None:
    """Of the files in the run's own table, without a page; the table is one that `evaluate` reads."""
    trained = read_predictions(finished / "predictions.csv").query("split == 'test'").reset_index(drop=True)
    (tmp_path / "given").mkdir()
    trained[["path", "label", "defective"]].to_csv(tmp_path / "given/test.csv", index=False)
    root = torch.load(finished / "checkpoints/best.ckpt", weights_only=True)["defectcls"]["config"]["dataset"]["root"]
    outcome = predict(finished, tmp_path / "given/test.csv", tmp_path / "run", f"root={root}", "gallery=0")
    assert (outcome.code, (tmp_path / "run/gallery.html").exists()) == (0, False)
    found = table(tmp_path / "run/predictions.csv")
    assert found["path"].tolist() == trained["path"].tolist()
    pd.testing.assert_frame_equal(found[NUMBERS], trained[NUMBERS], check_exact=True, check_dtype=False)
    again = found.merge(trained[["path", "label", "defective"]])
    again.to_csv(tmp_path / "judged.csv", index=False)
    assert read_predictions(tmp_path / "judged.csv")["score"].tolist() == trained["score"].tolist()


def test_a_pattern_and_one_photo(finished: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos.parent)
    assert predict(finished, "photos/**/[0-3].png", tmp_path / "some").code == 0
    assert predict(finished, "photos/1/3.png", tmp_path / "one").code == 0
    some, one = table(tmp_path / "some/predictions.csv"), table(tmp_path / "one/predictions.csv")
    assert some["path"].tolist() == [f"photos/{number % 2}/{number}.png" for number in (0, 2, 1, 3)]
    assert one["path"].tolist() == ["3.png"]
    assert one[NUMBERS].to_numpy().tolist() == some[NUMBERS][-1:].to_numpy().tolist()
    assert (tmp_path / "some/gallery.html").read_text().count("data:image/jpeg") == 4


def test_photos_in_archives_are_judged_as_in_folders(finished: Path, photos: Path, tmp_path: Path) -> None:
    """Two of twelve cannot be read; a tar file, a folder of Parquet files, and the page with heat maps."""
    names = sorted(file.relative_to(photos).as_posix() for file in photos.rglob("*.png"))
    with tarfile.open(tmp_path / "all.tar", "w") as file:
        for name in reversed(names):
            file.add(photos / name, name)
    (tmp_path / "shards").mkdir()
    content = pd.DataFrame({"image": [(photos / name).read_bytes() for name in names]})
    for start in (0, 5):
        content[start : start + 5 + 2 * start].to_parquet(tmp_path / f"shards/{start}.parquet", row_group_size=2)
    for given, folder in ((photos, "plain"), (tmp_path / "all.tar", "tar"), (tmp_path / "shards", "parquet")):
        assert predict(finished, given, tmp_path / folder, "heat_maps=true", "gallery=3").code == 1
    plain, tar, parquet = (table(tmp_path / folder / "predictions.csv") for folder in ("plain", "tar", "parquet"))
    assert tar["path"].tolist() == [f"all.tar/{name}" for name in names]
    assert parquet["path"].tolist() == [
        f"{row // 5 and 5}.parquet/{row if row < 5 else row - 5:08d}" for row in range(12)
    ]
    for other in (tar, parquet):
        pd.testing.assert_frame_equal(other.drop(columns="path"), plain.drop(columns="path"), check_exact=True)
    pages = [(tmp_path / folder / "gallery.html").read_text() for folder in ("plain", "tar", "parquet")]
    assert {page.count("data:image/jpeg") for page in pages} == {6}


def test_heat_maps_stand_beside_the_photos_of_the_page(finished: Path, photos: Path, tmp_path: Path) -> None:
    assert predict(finished, photos, tmp_path, "heat_maps=true", "gallery=3").code == 1
    page = (tmp_path / "gallery.html").read_text()
    assert page.count("<figure ") == 3
    assert page.count("data:image/jpeg") == 6
    scores = table(tmp_path / "predictions.csv").sort_values("score", ascending=False)["path"][:3].tolist()
    assert sorted(scores, key=page.index) == scores  # highest first


def test_an_output_that_exists_is_kept_unless_told(finished: Path, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "rows.csv"
    output.write_text("precious")
    told = predict(finished, photos, tmp_path / "run", f"output={output}")
    assert sentence(told) == f"output={output} exists: give another name, or overwrite=true"
    assert output.read_text() == "precious"
    assert predict(finished, photos, tmp_path / "run", f"output={output}", "overwrite=true", "gallery=0").code == 1
    assert len(table(output)) == 12


def test_mistakes_are_told_before_anything_is_made(finished: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    watching = ("watch=true", f"output={tmp_path}/out")
    needed = "watch=true needs input=<folder>, and output=<file>.csv to remember what is predicted"
    expected = {
        (photos, "output=rows.txt"): "output=rows.txt should end in .csv",
        (tmp_path / "empty",): f"the folder {tmp_path}/empty holds no image",
        (f"{photos}/*.tif",): f"input={photos}/*.tif is not there: give a photo, a folder, a pattern such as "
        "photos/*.png, or a table",
        (photos, "root=there"): f"root=there is of the paths in a table, and input={photos} is none: leave root out",
        (photos, "gallery=0", "heat_maps=true"): "heat_maps=true shows them in the gallery: gallery=200, not 0",
        (photos, "watch=true"): needed,
        (photos, *watching[:1], f"{watching[1]}.parquet"): f"output={tmp_path}/out.parquet should end in .csv",
        ("gone", *watching[:1], f"{watching[1]}.csv"): needed,
        (photos, "device=tpu"): "device=tpu: it has to be 'auto', 'cpu' or 'gpu'",
    }
    for given, told in expected.items():
        assert sentence(predict(finished, given[0], tmp_path / "run", *map(str, given[1:]))) == told
    assert sentence(predict(tmp_path / "rum", photos, tmp_path / "run")) == (
        f"{tmp_path}/rum is no .ckpt or .onnx file and no run folder with checkpoints/best.ckpt"
    )
    assert sentence(predict(tmp_path / "empty", photos, tmp_path / "run")) == (
        f"{tmp_path}/empty is no .ckpt or .onnx file and no run folder with checkpoints/best.ckpt"
    )
    torch.save({"model": {}}, tmp_path / "other.pt")
    assert sentence(predict(tmp_path / "other.pt", photos, tmp_path / "run")) == (
        f"{tmp_path}/other.pt is a checkpoint of another tool: give one that defectcls.train wrote"
    )
    assert not (tmp_path / "run").exists()


def test_only_unreadable_photos(finished: Path, photos: Path, tmp_path: Path) -> None:
    outcome = predict(finished, photos / "0/text.png", tmp_path, "output=" + str(tmp_path / "rows.csv"))
    assert outcome.code == 1
    assert "could not be read" in outcome.out
    assert "text.png │ not an image" in " ".join(outcome.out.split())
    assert table(tmp_path / "rows.csv")["error"].tolist() == ["not an image"]


# --- files -----------------------------------------------------------------------------------------------------------


def test_what_was_written_before_a_failure_is_kept_as_a_part(
    finished: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, output = Predictor.stream, tmp_path / "out.csv"

    def failing(*given: Any) -> Iterator[pd.DataFrame]:
        yield next(whole(*given))
        raise ZeroDivisionError

    monkeypatch.setattr(Predictor, "stream", failing)
    digest = hashlib.sha256((finished / "checkpoints/best.ckpt").read_bytes()).hexdigest()
    part = tmp_path / f"out.csv.{digest[:8]}.part"
    part.write_text("of another day")
    with pytest.raises(ZeroDivisionError):
        predict(finished, photos, tmp_path / "run", f"output={output}", "batch_size=3")
    assert not output.exists()
    assert table(part)["path"].tolist() == ["0/0.png", "0/2.png", "0/4.png"]


def test_a_predict_that_was_stopped_goes_on(finished: Path, photos: Path, tmp_path: Path) -> None:
    """After a row that is torn; to the table, page and counts of one that was not. Of other photos it does not."""
    assert predict(finished, photos, tmp_path / "whole", "batch_size=3", "gallery=4").code == 1
    digest = json.loads((tmp_path / "whole/summary.json").read_text())["digest"]
    whole = (tmp_path / "whole/predictions.csv").read_bytes()
    for number, kept in enumerate((0, 300, 1100, len(whole) - 3)):
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "whole/.hydra", folder / ".hydra")
        part = folder / f"predictions.csv.{digest[:8]}.part"
        part.write_bytes(whole[:kept])
        outcome = command("predict", f"resume={folder}")
        assert outcome.code == 1
        rows = whole[:kept].count(b"\n") - 1
        assert f"has {max(rows, 0)} of 12 photos: going on after them" in outcome.err
        assert (folder / "predictions.csv").read_bytes() == whole
        assert not part.exists()
        summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("whole", str(number))]
        for name in ("images", "read", "unreadable", "accept", "reject", "unlike"):
            assert summaries[0][name] == summaries[1][name]
        pages = [(tmp_path / name / "gallery.html").read_text() for name in ("whole", str(number))]
        assert [page.count("<figure ") for page in pages] == [4, 4]
        part.write_bytes(whole[:1100].replace(b"0/2.png", b"0/3.png"))
        (folder / "predictions.csv").unlink()
        told = f"{part} is of other photos or of another version: type the command, without resume"
        assert sentence(command("predict", f"resume={folder}")) == told
        part.write_bytes(b"of another tool\n")
        assert sentence(command("predict", f"resume={folder}")) == told


def test_a_predict_that_was_killed_before_its_page_goes_on(
    finished: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert predict(finished, photos, tmp_path / "whole", "gallery=4").code == 1
    table, folder = (tmp_path / "whole/predictions.csv").read_bytes(), tmp_path / "cut"
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr("defectcls.pages.gallery.gallery_page", lambda *_: 1 / 0)
        predict(finished, photos, folder, "gallery=4")
    (folder / "predictions.csv").write_text("of another command")
    assert sentence(command("predict", f"resume={folder}")).startswith(f"output={folder}/predictions.csv exists: ")
    assert (folder / "predictions.csv").read_text() == "of another command"
    (folder / "predictions.csv").unlink()
    outcome = command("predict", f"resume={folder}")
    assert outcome.code == 1
    assert "has 12 of 12 photos: going on after them" in outcome.err
    assert (folder / "predictions.csv").read_bytes() == table
    assert (folder / "gallery.html").read_text().count("<figure ") == 4
    assert not [*folder.glob("*.part")]


def test_a_long_table_is_looked_at_in_parts(
    finished: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is said of it, and shown, is what one look at the whole gives."""
    pages, summaries = [], []
    for number, at_once in enumerate((100_000, 4, 1)):
        monkeypatch.setattr(watching, "AT_ONCE", at_once)
        predict(finished, photos, tmp_path / str(number), "gallery=4")
        page = (tmp_path / f"{number}/gallery.html").read_text()
        pages.append(re.findall(r"[01]/\w+\.png|not an image|empty file", page))
        told = json.loads((tmp_path / f"{number}/summary.json").read_text())
        summaries.append({name: told[name] for name in ("images", "read", "unreadable", "accept", "reject", "unlike")})
    assert pages[0] == pages[1] == pages[2] != []
    assert summaries[0] == summaries[1] == summaries[2]
    assert summaries[0]["unlike"]["photos"] == 10


def test_a_name_that_is_no_text_is_written_all_the_same(finished: Path, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    (folder / b"caf\xe9.png".decode(errors="surrogateescape")).write_bytes((photos / "1/3.png").read_bytes())
    assert predict(finished, folder, tmp_path / "run").code == 0
    assert table(tmp_path / "run/predictions.csv")[["path", "error"]].to_numpy().tolist() == [["caf\\udce9.png", ""]]


@pytest.mark.slow
def test_mistakes_are_told_without_torch(tmp_path: Path) -> None:
    outcome = process("defectcls.predict", "checkpoint=run", "input=photos", cwd=tmp_path, PYTHONPROFILEIMPORTTIME="1")
    assert sentence(outcome).startswith("input=photos is not there")
    assert " pandas\n" in outcome.err
    assert " torch\n" not in outcome.err


def test_a_model_without_scores_accepts_nothing(
    finished: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = lambda logits, *given: decided(np.full_like(logits, np.nan), *given)  # noqa: E731
    monkeypatch.setattr("defectcls.deployment.checkpoints.decided", without)
    outcome = predict(finished, photos, tmp_path)
    assert outcome.code == 1
    summary, rows = json.loads((tmp_path / "summary.json").read_text()), table(tmp_path / "predictions.csv")
    counts = {"images": 12, "read": 0, "accept": 0, "review": 0, "reject": 0, "unreadable": 12}
    assert {name: summary[name] for name in counts} == counts
    assert rows["decision"].tolist() == [""] * 12
    assert rows["error"].value_counts()["the model gives no finite score"] == 10
