"""Photos on the disk and in memory come out as in the run that trained, to the last bit, one by one or all together."""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import defectcls
from defectcls.deployment import predictor as module
from defectcls.deployment.checkpoints import decided
from defectcls.deployment.predictor import HEAT_BATCH, Predictor, load
from defectcls.errors import UserError
from defectcls.evaluation.decision import Decision
from defectcls.evaluation.predictions import read_predictions
from defectcls.model.checkpoint import load_trained


@pytest.fixture(scope="module")
def predictor(finished: Path) -> Predictor:
    return defectcls.load(finished, device="cpu")


def judged(run: Path) -> pd.DataFrame:
    return read_predictions(run / "predictions.csv").query("split == 'test'").reset_index(drop=True)


def files(run: Path, rows: pd.DataFrame) -> list[Path]:
    root = load_trained(run, "cpu").settings.dataset.root
    return [root / path for path in rows["path"]]


@pytest.mark.parametrize("kind", ["finished", "finished_types"])
@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_predictions_are_those_of_the_run_in_any_batch_and_order(
    kind: str, batch_size: int, request: pytest.FixtureRequest
) -> None:
    """One run judged its test part from stored features, the other from pixels; one has two classes, one has many."""
    run = request.getfixturevalue(kind)
    predictor, expected = load(run, "cpu"), judged(run).sample(frac=1, random_state=batch_size)
    photos = files(run, expected)
    found = predictor.predict(photos, batch_size)
    assert found["path"].tolist() == [str(path) for path in photos]
    assert found["error"].tolist() == [""] * len(found)
    assert found.columns.tolist() == ["path", *predictor.columns[1:]]
    numbers = [column for column in predictor.columns if column not in ("path", "unlike", "cause", "error")]
    expected = expected.reset_index(drop=True)[numbers].astype({"decision": str})
    pd.testing.assert_frame_equal(found[numbers], expected, check_exact=True, check_dtype=False)


def test_who_looks_at_heat_maps_hinders_no_decision(finished: Path, predictor: Predictor) -> None:
    """A server does both at once, in threads of its own; the photos are others in each."""
    photos = files(finished, judged(finished))[:8]
    decided, heat = predictor.predict(photos[:4]), np.stack([*predictor.heat_maps(photos[4:])])
    with ThreadPoolExecutor(4) as threads:
        again = [threads.submit(predictor.predict, photos[:4]) for _ in range(8)]
        maps = [threads.submit(lambda: np.stack([*predictor.heat_maps(photos[4:])])) for _ in range(8)]
        for one in again:
            pd.testing.assert_frame_equal(one.result(), decided)
        assert all(np.array_equal(one.result(), heat) for one in maps)


def test_a_photo_alone_has_the_bits_of_many_with_forty_classes() -> None:
    """numpy adds up a row alone in another order."""
    forty = {f"class {number}": number > 10 for number in range(40)}
    decision = Decision("f1", 0.8, accept_below=0.3, reject_from=0.7)
    logits = np.random.default_rng(0).normal(0, 3, (50, 40)).astype(np.float32)
    whole = decided(logits, forty, decision)
    alone = pd.concat([decided(row[None], forty, decision) for row in logits], ignore_index=True)
    pd.testing.assert_frame_equal(alone, whole, check_exact=True)


def test_images_in_memory_are_judged_as_their_files(predictor: Predictor, finished: Path, tmp_path: Path) -> None:
    paths = files(finished, judged(finished))[:4]
    opened = [Image.open(path) for path in paths]
    arrays = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    grey = np.asarray(opened[0].convert("L"))
    Image.fromarray(grey).save(tmp_path / "grey.png")
    expected = predictor.predict([*paths, tmp_path / "grey.png"]).drop(columns="path")
    mixed = predictor.predict([str(paths[0]), opened[1], arrays[2], opened[3], grey])
    assert mixed["path"].tolist() == [str(paths[0]), "", "", "", ""]
    pd.testing.assert_frame_equal(mixed.drop(columns="path"), expected, check_exact=True)
    for many in (arrays, np.stack(arrays), iter(arrays), [opened[0], *arrays[1:]]):
        found = predictor.predict(many)
        pd.testing.assert_frame_equal(found.drop(columns="path"), expected[:4], check_exact=True)
    for one in (paths[0], str(paths[0]), opened[0], arrays[0]):
        found = predictor.predict(one)
        pd.testing.assert_frame_equal(found.drop(columns="path"), expected[:1], check_exact=True)


def test_a_column_of_paths_is_many_photos(predictor: Predictor, finished: Path) -> None:
    paths = pd.Series(list(map(str, files(finished, judged(finished))[:3])), index=[7, 8, 9])
    assert len(predictor.predict(paths)) == 3
    pd.testing.assert_frame_equal(predictor.predict(paths), predictor.predict([*paths]))


def test_a_deep_photo_is_judged_by_the_depth_of_the_model(
    predictor: Predictor, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grey = np.asarray(Image.open(files(finished, judged(finished))[0]).convert("L"))
    deep = np.rint(grey * (4095 / 255)).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    plain, refused = predictor.predict([grey] * 2), predictor.predict([deep, tmp_path / "deep.png"])
    assert refused["error"].str.contains("and depth 8 from 0 to 255: ").all()
    monkeypatch.setattr(predictor, "depth", "12")
    judged_deep = predictor.predict([deep, tmp_path / "deep.png"])
    pd.testing.assert_frame_equal(judged_deep.drop(columns="path"), plain.drop(columns="path"), check_exact=True)


def test_unreadable_photos_keep_their_place(predictor: Predictor, finished: Path, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no pixels")
    good = files(finished, judged(finished))[:2]
    found = predictor.predict([tmp_path / "gone.png", good[0], tmp_path / "text.png", good[1]], batch_size=2)
    assert found["error"].tolist()[1:] == ["", "not an image", ""]
    assert "No such file" in found["error"][0]
    assert found["decision"].eq("").tolist() == found["prediction"].eq("").tolist() == [True, False, True, False]
    assert found.filter(like="p_").isna().all(axis=1).tolist() == [True, False, True, False]
    pd.testing.assert_frame_equal(
        found.iloc[[1, 3]].reset_index(drop=True), predictor.predict(good), check_exact=True, check_dtype=False
    )
    assert predictor.predict("")["error"].str.contains("No such file").tolist() == [True]
    alone = predictor.predict(tmp_path / "text.png")
    assert (alone["error"].tolist(), alone["score"].isna().tolist()) == (["not an image"], [True])


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_has_no_finite_score_is_an_error_and_never_accepted(
    predictor: Predictor, finished: Path, monkeypatch: pytest.MonkeyPatch, wrong: float
) -> None:
    paths = files(finished, judged(finished))[:4]
    expected = predictor.predict(paths)

    def broken(logits: np.ndarray, *given: Any) -> pd.DataFrame:
        logits = logits.copy()
        logits[1, 1] = wrong  # of the defective class: -inf would be a certain 0
        rows = decided(logits, *given)
        assert rows.loc[1, "decision"] == "reject"
        return rows

    monkeypatch.setattr("defectcls.deployment.checkpoints.decided", broken)
    found = predictor.predict(paths)
    assert found["error"].tolist() == ["", "the model gives no finite score", "", ""]
    assert found.loc[1, ["decision", "prediction"]].tolist() == ["", ""]
    assert found.loc[1, ["score", "p_sound", "p_defective"]].isna().all()
    pd.testing.assert_frame_equal(found.drop(index=1), expected.drop(index=1), check_exact=True)


def test_no_photos_are_no_rows(predictor: Predictor) -> None:
    found = predictor.predict([])
    assert (len(found), found.columns.tolist()) == (0, predictor.columns)
    assert found["score"].dtype == np.float64


@pytest.mark.parametrize("images", [np.zeros((4, 4)), [None], np.zeros((2, 3, 8, 8), np.uint8)])
def test_what_is_no_photo_is_refused(predictor: Predictor, images: object) -> None:
    with pytest.raises(UserError, match="is no photo: give"):
        predictor.predict(images)  # type: ignore[arg-type]


def test_streaming_reads_only_so_far_ahead(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounded in bytes: of large photos fewer wait."""
    monkeypatch.setattr(module, "AHEAD_BYTES", 10 * 3 * math.prod(predictor.image_size))
    asked = 0

    def photos() -> Iterator[np.ndarray]:
        nonlocal asked
        while asked < 100:
            asked += 1
            yield np.zeros((8, 8, 3), np.uint8)

    tables, seen = predictor.stream(photos(), 4), 0
    for table in tables:
        seen += len(table)
        assert asked <= seen + 10 + 4
    assert seen == 100


def test_heat_maps_are_those_of_the_photos(predictor: Predictor, finished: Path, tmp_path: Path) -> None:
    paths = files(finished, judged(finished))[:3]
    (tmp_path / "text.png").write_text("no pixels")
    maps = list(predictor.heat_maps([paths[0], tmp_path / "text.png", paths[1], paths[2]]))
    assert [one is None for one in maps] == [False, True, False, False]
    for path, one in zip(paths, [maps[0], *maps[2:]], strict=True):
        (alone,) = predictor.heat_maps([path])
        assert alone is not None and one is not None
        assert one.shape == predictor.image_size
        assert one == pytest.approx(alone, abs=1e-4)


def test_heat_maps_of_many_photos_are_not_in_memory_together(predictor: Predictor) -> None:
    asked: list[int] = []
    photos = (asked.append(number) or np.zeros((8, 8, 3), np.uint8) for number in range(200))  # type: ignore[func-returns-value]
    for number, _ in enumerate(predictor.heat_maps(photos)):
        assert len(asked) <= number + 3 * HEAT_BATCH
    assert len(asked) == 200


def test_a_run_that_did_not_finish_takes_the_most_probable_class(
    finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = torch.load(finished / "checkpoints/best.ckpt", weights_only=True)
    del content["defectcls"]["decision"]
    torch.save(content, tmp_path / "best.ckpt")
    found = load(tmp_path / "best.ckpt", "cpu")
    assert "of a run that did not finish" in caplog.text
    rows = found.predict(files(finished, judged(finished)))
    expected = np.where(rows["p_defective"] > rows["p_sound"], "reject", "accept")
    assert rows["decision"].tolist() == expected.tolist()


# --- how unlike photos are what the model was measured on -------------------------------------------------------------


@pytest.mark.slow
def test_photos_that_it_learned_from_are_near_and_dark_ones_are_told(crossvalidated: Path, tmp_path: Path) -> None:
    predictor, rows = load(crossvalidated, "cpu"), judged(crossvalidated)
    photos = files(crossvalidated, rows)
    found = predictor.predict(photos)
    assert found["unlike"].max() < 0.1  # each is its own nearest one
    assert set(found["cause"]) == {""}
    pixels = predictor.read(photos[0]).pixels
    assert pixels is not None
    own, other = predictor.nearest(pixels)[:: -1 if rows["defective"][0] else 1]
    assert own == rows["path"][0]
    assert rows.set_index("path")["defective"][other] != rows["defective"][0]
    dark = [np.asarray(Image.open(path).convert("RGB")) // 3 for path in photos]
    found = predictor.predict(dark)
    assert found["unlike"].min() > 0.9
    assert set(found["cause"]) == {"darker than any measured"}
    small = predictor.predict([np.asarray(Image.open(path).resize((8, 8))) for path in photos[:8]])
    assert {"smaller than any measured", "more blurred than any measured"} & set(small["cause"])


def test_unlike_of_photos_new_to_it_is_spread_evenly(finished: Path) -> None:
    """Of the test part, of a few dozen photos."""
    found = load(finished, "cpu").predict(files(finished, judged(finished)))
    assert 0.25 < found["unlike"].mean() < 0.75


def test_a_model_that_knows_nothing_of_what_it_was_measured_on(finished: Path, tmp_path: Path) -> None:
    content = torch.load(finished / "checkpoints/best.ckpt", weights_only=True)
    del content["defectcls"]["likeness"]
    torch.save(content, tmp_path / "best.ckpt")
    predictor, photos = load(tmp_path / "best.ckpt", "cpu"), files(finished, judged(finished))[:3]
    found = predictor.predict(photos)
    whole = load(finished, "cpu").predict(photos)
    pd.testing.assert_frame_equal(found.drop(columns="unlike"), whole.drop(columns="unlike"), check_exact=True)
    assert found["unlike"].isna().all()
    assert predictor.nearest(np.zeros((3, *predictor.image_size), np.uint8)) == ("", "")


def test_a_likeness_that_does_not_fit_is_told_as_damage(finished: Path, tmp_path: Path) -> None:
    content = torch.load(finished / "checkpoints/best.ckpt", weights_only=True)
    kept = content["defectcls"]["likeness"]
    for wrong in ({}, {"bank": [1]}, {"bank": kept["bank"][:1]}, {"measured": {}}, {"distances": None}):
        content["defectcls"]["likeness"] = kept | wrong if wrong else None
        torch.save(content, tmp_path / "best.ckpt")
        with pytest.raises(UserError, match=r"best.ckpt is damaged, or of another version of defectcls: [^\n]*$"):
            load(tmp_path / "best.ckpt", "cpu")
