from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from defectcls.evaluation.evaluate import evaluate
from defectcls.evaluation.metrics import compute_metrics
from defectcls.evaluation.predictions import predictions_table
from defectcls.pages.blocks import Page, Photos, Picture, Section, Table
from defectcls.pages.render import print_page
from defectcls.pages.report import report_page
from defectcls.pages.wording import caveats, span, verdict

TWO = {"sound": False, "defective": True}
THREE = {"good": False, "<b>x</b>": True, "hole": True}


def predictions_from(matrix: list[list[int]], classes: dict[str, bool], **columns) -> pd.DataFrame:
    """A predictions table that has this confusion matrix."""
    pairs = [pair for pair, count in np.ndenumerate(np.array(matrix)) for _ in range(count)]
    truth, prediction = (np.array(side, int) for side in zip(*pairs, strict=True))
    names, defective = np.array([*classes]), np.array([*classes.values()])
    samples = pd.DataFrame({"path": "x.png", "label": names[truth], "defective": defective[truth], "split": "test"})
    return predictions_table(samples.assign(**columns), np.eye(len(names))[prediction] * 0.6 + 0.1, classes)


def metrics_of(classes: dict[str, bool], **matrices: list[list[int]]) -> dict:
    splits = {key: compute_metrics(predictions_from(matrix, classes), classes) for key, matrix in matrices.items()}
    return {"class_names": [*classes], "defective_classes": [*classes.values()], **splits}


FULL_RUN = {
    "dataset": "mvtec/<screw>",
    "model": "resnet18",
    "seed": 0,
    "command": "python -m defectcls.train dataset=mvtec 'name=a & b'",
    "stages": [
        {"name": "head", "epochs": 2, "best": {"val/auroc": 0.97}, "rolled_back": False},
        {"name": "full", "epochs": 9, "best": {"val/auroc": None}, "rolled_back": True},
    ],
    "seconds": {"fit": 183.24, "test": 3.0},
    "head": {"name": "joined", "bank": 10_000},
    "versions": {"torch": "2.11.0"},
    "commit": "1a2b3c",
    "hardware": "2 cores",
    "unreadable": [{"path": "a/<i>.png", "reason": "truncated"}, {"path": "b.png", "reason": "empty"}],
}


def sections(page: Page) -> dict[str, Section]:
    """Those that are shown, by title."""
    return {block.title: block for block in page.all_blocks() if isinstance(block, Section)}


def rows(page: Page, title: str) -> list[list[str]]:
    """The text of the tables in a section, with their heads."""
    tables = [block for block in sections(page)[title].content if isinstance(block, Table)]
    return [row for table in tables for row in [list(table.head), *([cell.text for cell in row] for row in table.rows)]]


def texts(page: Page) -> str:
    return " ".join(sentence for look in ("plain", "note", "code") for sentence in page.said(look))


def test_the_page_of_a_full_run():
    matrices = {"train": [[60, 0], [0, 60]], "val": [[59, 1], [0, 60]]}
    metrics = metrics_of(TWO, **matrices, test=[[57, 3], [6, 54]]) | FULL_RUN
    categories = ["nut"] * 60 + ["cap"] * 60
    predictions = predictions_from([[57, 3], [6, 54]], TWO, category=categories, defect_type="same")
    _, metrics["test"] = evaluate(predictions, None, TWO)
    history = pd.DataFrame({"epoch": [0, 1], "stage": "full", "val/loss": [1.0, 0.5], "lr": [0.1, 0.1]})
    page = report_page(metrics, predictions, history=history)

    assert page.said("verdict") == verdict(metrics)
    assert page.said("caveats") == caveats(metrics)
    numbers = {row[0]: row[1:] for row in rows(page, "The numbers")}
    interval = span("recall", metrics["test"]["intervals"]["recall"])
    assert numbers[""] == ["test", "95 % interval", "validation", "train"]
    assert numbers["images"] == ["120", "", "120", "120"]
    assert numbers["recall (share of defects caught)"] == ["90.0 %", interval, "100.0 %", "100.0 %"]
    assert numbers["escape rate (defects let through)"][::2] == ["10.0 %", "0.0 %"]
    assert numbers["overkill rate (sound images rejected)"][::2] == ["5.0 %", "1.7 %"]
    assert numbers["AUROC"][::2] == ["0.925", "0.992"]
    assert rows(page, "What was taken for what (test)") == [
        ["truth ↓, prediction →", "sound", "defective"],
        ["sound (n = 60)", "57\n95.0 %", "3\n5.0 %"],
        ["defective (n = 60)", "6\n10.0 %", "54\n90.0 %"],
    ]
    assert rows(page, "By category (test, worst first)")[1:] == [
        ["cap", "60", "60", "90.0 %", interval, "–"],  # every defect is a cap
        ["nut", "60", "0", "–", "–", "5.0 %"],
    ]
    assert not any(title.startswith("By defect type") for title in sections(page))
    made = rows(page, "How it was made")
    assert ["seconds", "fit 183.2, test 3"] in made
    assert (
        ["stages", "head kept, full rolled back"] in made
        and ["seed", "0"] in made
        and ["head", "name joined, bank 10000"] in made
    )
    assert ["a/<i>.png", "truncated"] in rows(page, "Images that could not be read")
    assert FULL_RUN["command"] in texts(page)
    pictures = {block.name: block.content[:4] for block in page.all_blocks() if isinstance(block, Picture)}
    assert pictures == dict.fromkeys(("scores", "curves"), b"\x89PNG")


def test_many_classes_are_first_defective_against_sound(capsys: pytest.CaptureFixture[str]):
    """Of scores that are 0 or 1 the AUROC is the mean of 19/20 caught and 8/10 passed; over the classes 0.825."""
    matrix = [[8, 0, 2], [1, 5, 4], [0, 0, 10]]
    predictions = predictions_from(matrix, THREE).assign(defect_type=lambda table: table["label"])
    metrics = metrics_of(THREE, test=matrix)
    _, metrics["test"] = evaluate(predictions, None, THREE)
    page = report_page(metrics)
    assert page.title == "dataset · model"
    assert rows(page, "Class by class (test, worst first)")[1:] == [
        ["<b>x</b>", "10", "50.0 %", "100.0 %", "66.7 %"],  # images, recall, precision, F1
        ["good", "10", "80.0 %", "88.9 %", "84.2 %"],
        ["hole", "10", "100.0 %", "62.5 %", "76.9 %"],
    ]
    by_type = {row[0]: row[1:4] + row[5:] for row in rows(page, "By defect type (test, worst first)")}
    assert by_type["<b>x</b>"] == ["10", "10", "90.0 %", "–"]  # one of ten escapes as good
    numbers = {row[0]: row[1] for row in rows(page, "The numbers")}
    assert numbers["recall (share of defects caught)"] == "95.0 %"
    assert numbers["recall, mean over classes"] == "76.7 %"
    assert numbers["AUROC, defective against sound"] == "0.875"
    print_page(page, Path())
    cells = [line.strip("│ ").split() for line in capsys.readouterr().out.splitlines()]
    assert ["AUROC,", "defective", "against", "sound", "│", "0.875"] in [cell[:6] for cell in cells]


def test_evaluate_alone_tells_of_no_making():
    page = report_page(metrics_of(TWO, test=[[57, 3], [6, 54]]))
    assert rows(page, "The numbers")[0] == ["", "test", "95 % interval"]
    assert not {"How it was made", "How training went"} & {*sections(page)}


def test_the_page_of_a_cross_validation_has_every_fold_and_their_mean():
    folds = [{"repeat": 0, "fold": 0, "auroc": 0.5, "recall": None}, {"repeat": 0, "fold": 1, "auroc": 1.0}]
    page = report_page(metrics_of(TWO, test=[[60, 0], [0, 60]]) | {"folds": folds})
    assert {row[0]: row[-1] for row in rows(page, "Fold by fold")} == {
        "fold": "AUROC",
        "0 of repeat 0": "0.500",
        "1 of repeat 0": "1.000",
        "mean": "0.750",
        "standard deviation": "0.354",
    }


def test_what_goes_to_a_person_is_told():
    predictions = predictions_from([[3, 1], [1, 2]], TWO)
    predictions["decision"] = ["accept", "accept", "accept", "review", "accept", "review", "reject"]
    _, judged = evaluate(predictions, None, TWO)
    metrics = metrics_of(TWO) | {"test": judged}
    assert "A person has to look at 28.6 % of the images." in verdict(metrics)


def test_robustness_is_a_table():
    found: list[dict[str, Any]] = [
        {"corruption": "none", "strength": 0, "setting": "", "recall": 0.9, "overkill_rate": 0.02}
    ]
    for strength in (1, 2):
        found += [
            {"corruption": "blur", "setting": f"{strength} %", "recall": 0.9 - 0.2 * strength, "overkill_rate": 0}
        ]
        found += [{"corruption": "dark", "setting": f"x {strength}", "recall": None, "overkill_rate": 0.3 * strength}]
        for row in found[-2:]:
            row["strength"] = strength
    metrics = metrics_of(TWO, test=[[60, 0], [0, 60]]) | {"robustness": found, "robustness_images": 4}
    page = report_page(metrics)
    (table,) = [
        one for one in sections(page)["When the camera is worse (test, 4 images)"].content if isinstance(one, Table)
    ]
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["none ", "90.0 %", "2.0 %"],
        ["blur 1 %", "70.0 %", "0.0 %"],
        ["dark x 1", "–", "30.0 %"],
        ["blur 2 %", "50.0 %", "0.0 %"],
        ["dark x 2", "–", "60.0 %"],
    ]
    said = "When the camera is worse, recall falls from 90.0 % to 50.0 % (blur 2 %)"
    assert caveats(metrics) == [
        f"{said} and overkill rate rises from 2.0 % to 60.0 % (dark x 2), of 4 images that were tried."
    ]
    assert caveats(metrics | {"robustness": [row for row in found if row["corruption"] != "dark"]}) == [
        f"{said}, of 4 images that were tried."
    ]
    assert caveats(metrics | {"robustness": found[:2]}) == []  # 20 points


def test_what_was_tried_says_its_units():
    row = {"difference": 0.02, "low": 0.01, "high": 0.03, "loss": 0.3, "auroc": 0.9, "seeds": 1, "seconds": 9.0}
    tried = [row | {"overrides": "default", "ms_per_photo": 4.2}]
    found = {"tried": tried, "kept": "default", "simplest": "default", "skipped": {}}
    head, default = rows(report_page(metrics_of(TWO, test=[[60, 0], [0, 60]]) | {"auto": found}), "What was tried")[:2]
    assert dict(zip(head, default, strict=True)) == {
        **{"settings": "default", "loss (nats)": "0.300", "behind (nats)": "+0.020 [+0.010 to +0.030]"},
        **{"AUROC": "0.900", "seeds": "1", "seconds": "9", "ms a photo": "4.2"},
    }


def test_errors_stand_beside_what_speaks_for_a_defect(tmp_path: Path):
    samples = pd.DataFrame({"label": ["defective", "defective", "sound", "sound"]})
    samples["path"] = [f"{number}.png" for number in range(4)]
    scores = np.array([0.1, 0.9, 0.8, 0.3])
    predictions = predictions_table(
        samples.assign(defective=samples["label"] == "defective"), np.column_stack([1 - scores, scores]), TWO
    )
    for path in predictions["path"][:3]:
        Image.new("L", (8, 8), 100).save(tmp_path / path)
    looked = {"heat_maps": "HiResCAM", "localisation": {"n": 7, "hit": 0.5, "chance": 0.125}}
    metrics = metrics_of(TWO) | {"test": evaluate(predictions, None, TWO)[1]} | looked
    page = report_page(metrics, predictions, tmp_path, heat={"0.png": np.ones((4, 4))})
    (errors,) = [block.content for block in page.all_blocks() if isinstance(block, Photos)]
    assert [(photo.names, photo.kind, photo.title, len(photo.files)) for photo in errors] == [
        (["0.png"], "alarm", "score 0.1", 2),
        (["2.png"], "doubt", "score 0.8", 1),
    ]
    assert errors[0].caption == "defective → sound, to which it gives 90.0 %"
    assert "On 7 defective images" in texts(page) and "50.0 %" in texts(page) and "12.5 %" in texts(page)


def test_another_dataset_is_said_first():
    metrics = metrics_of(TWO, test=[[50, 50], [30, 10]])
    metrics["elsewhere"] = {"trained_on": "cracks", "judged_on": "<b>nuts</b>"}
    assert caveats(metrics)[0].startswith("Another dataset: the model was trained on cracks and is judged on <b>nuts")
