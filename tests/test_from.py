"""A run that goes on from an earlier one: this week's photos, and labels that have been mended."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from defectcls.evaluation.predictions import read_predictions
from tests.conftest import command, paint, sentence

pytestmark = pytest.mark.usefixtures("no_pictures")


def test_its_test_photos_stay_and_what_is_new_is_told(tiny: list[str], tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for n in range(30):
        paint(photos / "good" / f"{n}.png", (90, 120, 90 + n))
        paint(photos / "dent" / f"{n}.png", (160, 120, 90 + n))
    how = ["dataset=folder", f"dataset.root={photos}", "dataset.sound=good", *tiny[5:], "finetune=probe"]
    before, after = tmp_path / "before", tmp_path / "after"
    assert command("train", *how, f"hydra.run.dir={before}").code == 0
    old = read_predictions(before / "predictions.csv")
    tested, learned = (old["path"][old["split"] == part].tolist() for part in ("test", "train"))
    (photos / tested[0]).rename(photos / tested[0].replace("/", "/renamed_"))
    shutil.move(photos / learned[0], photos / ("good" if learned[0].startswith("dent") else "dent") / "mended.png")
    (photos / learned[1]).unlink()
    for n in range(20):
        paint(photos / ["good", "dent"][n % 2] / f"new_{n}.png", (120, 100, 3 * n))
    twin = (photos / tested[1]).with_suffix(".bmp")
    Image.open(photos / tested[1]).save(twin)  # other bytes, tied to what is tested

    outcome = command("train", *how, f"from={before}", "seed=7", f"hydra.run.dir={after}")
    assert outcome.code == 0, outcome.err
    new = read_predictions(after / "predictions.csv").set_index("photo", drop=False)
    parts = dict(zip(old["photo"], old["split"], strict=True))
    kept = [(parts[photo], part) for photo, part in new["split"].items() if photo in parts]
    assert len(kept) == 59 and all(one == other for one, other in kept)
    assert {"train", "val", "test"} == {*new["split"][~new["photo"].isin(parts)]}
    assert new.set_index("path").loc[str(twin.relative_to(photos)), "split"] == "test"
    found = json.loads((after / "metrics.json").read_text())["from"]
    assert (found["new"], found["gone"], found["tested"]) == (21, 1, len(tested))
    assert [one["path"].rpartition("/")[2] for one in found["relabelled"]] == ["mended.png"]
    assert "21 new photos, 1 are gone, 1 have another label; " in outcome.out

    table = pd.read_csv(before / "predictions.csv").drop(columns="photo")
    table.to_csv(before / "predictions.csv", index=False)
    assert "kept no digests of photos" in sentence(command("train", *how, f"from={before}"))
    wrong = command("train", *how, "dataset.root=nowhere", f"from={tmp_path}")  # told before photos are looked for
    assert "is no folder of a finished run" in sentence(wrong)
    folded = command("train", *how, f"from={after}", "dataset.split.folds=5")
    assert "from=<run> keeps the test photos of that run" in sentence(folded)


@pytest.mark.slow
def test_of_a_run_that_set_nothing_aside_nothing_stays(crossvalidated: Path, tiny: list[str], tmp_path: Path) -> None:
    outcome = command("train", *tiny, "finetune=probe", f"from={crossvalidated}", f"hydra.run.dir={tmp_path}/new")
    found = json.loads((tmp_path / "new/metrics.json").read_text())["from"]
    assert outcome.code == 0 and (found["new"], found["tested"], found["relabelled"]) == (0, 0, [])
