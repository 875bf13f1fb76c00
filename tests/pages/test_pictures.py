import subprocess
import sys

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from defectcls.evaluation.predictions import predictions_table
from defectcls.pages.pictures import (
    RIGHT,
    WRONG,
    overlay,
    plot_confusion_matrix,
    plot_curves,
    plot_errors,
    plot_predictions,
    plot_reliability,
    plot_robustness,
    plot_scores,
    png,
    thumbnail,
    worst_errors,
    worth_seeing,
)

TWO = ["sound", "defective"]


def predictions_of(truth: list[int], scores: list[float], **columns) -> pd.DataFrame:
    samples = pd.DataFrame(
        {
            "path": [f"{index}.png" for index in range(len(truth))],
            "label": np.array(TWO)[truth],
            "defective": np.array(truth, bool),
            **columns,
        }
    )
    return predictions_table(samples, np.column_stack([1 - np.array(scores), scores]), TWO, [False, True])


@pytest.mark.parametrize("size", [2, 3, 15])
def test_cells_hold_counts_and_row_percent(size):
    names = [r"$\frac$ 5", "good", *(f"a class with quite a long name {index}" for index in range(size - 2))]
    matrix = np.zeros((size, size), int)
    matrix[0, :2] = 1, 3
    matrix[1, 1] = 7
    figure = plot_confusion_matrix(matrix, names)
    (axes,) = figure.axes
    cells = {text.get_position(): text.get_text() for text in axes.texts}
    digits = ".0" if size <= 3 else ""
    assert len(cells) == size * size
    assert cells[0, 0] == f"1\n25{digits} %"
    assert cells[1, 0] == f"3\n75{digits} %"  # row 0 is the truth, column 1 the prediction
    assert cells[0, 1] == "0"
    assert cells[1, 1] == f"7\n100{digits} %"
    assert [label.get_text() for label in axes.get_yticklabels()][:2] == [r"$\frac$ 5  (n = 4)", "good  (n = 7)"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("prediction", "truth")
    image = axes.images[0].get_array()
    assert image[0, 1, 0] > image[0, 1, 2]  # an error is reddish
    assert image[1, 1, 0] < image[1, 1, 2]  # a hit is bluish
    assert png(figure, 40).startswith(b"\x89PNG")


def test_curves_draw_each_series_where_it_has_numbers():
    nan = np.nan
    history = pd.DataFrame(
        {
            "epoch": [0, 1, 2, 3],
            "stage": ["probe", "head", "full", "full"],
            "train/loss": [nan, 0.6, 0.4, 0.3],
            "val/loss": [0.5, 0.45, 0.4, 0.35],
            "train/accuracy": [nan] * 4,
            "val/accuracy": [0.7, 0.8, 0.85, 0.9],
            "lr": [nan, 1e-3, 1e-4, 5e-5],
        }
    )
    figure = plot_curves(history)
    drawn = {line.get_label(): line.get_xydata().tolist() for axes in figure.axes for line in axes.get_lines()}
    assert drawn["train/loss"] == [[1, 0.6], [2, 0.4], [3, 0.3]]
    assert drawn["val/loss"][0] == [0, 0.5]
    assert drawn["val/accuracy"] == [[0, 0.7], [1, 0.8], [2, 0.85], [3, 0.9]]
    assert "train/accuracy" not in drawn and "val/auroc" not in drawn
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss (nats)", "accuracy, AUROC", "learning rate"]
    names = [(text.get_text(), text.get_position()[0]) for text in figure.axes[0].texts]
    assert names == [("probe", -0.5), ("head", 0.5), ("full", 1.5)]
    assert png(figure, 40).startswith(b"\x89PNG")


def test_curves_of_the_probe_alone():
    figure = plot_curves(pd.DataFrame({"epoch": [0], "stage": ["probe"], "val/loss": [0.5], "train/loss": [np.nan]}))
    (axes,) = figure.axes
    assert [line.get_label() for line in axes.get_lines()] == ["val/loss"]
    left, right = axes.get_xlim()
    assert [tick for tick in axes.get_xticks() if left <= tick <= right] == [0]
    assert png(figure, 40).startswith(b"\x89PNG")


def test_wrong_ones_come_first_then_the_least_certain():
    predictions = predictions_of([0, 1, 1, 0, 1, 0], [0.4, 0.99, 0.1, 0.8, 0.6, 0.2])
    assert worth_seeing(predictions, TWO)["path"].tolist() == ["2.png", "3.png", "0.png", "4.png", "5.png", "1.png"]
    assert worth_seeing(predictions, TWO, limit=3)["path"].tolist() == ["2.png", "3.png", "0.png"]


def test_only_test_images_are_shown_where_there_are_any():
    predictions = predictions_of([0, 1, 0], [0.9, 0.9, 0.2], split=["train", "test", "test"])
    assert worth_seeing(predictions, TWO)["path"].tolist() == ["2.png", "1.png"]
    assert len(worth_seeing(predictions.assign(split="val"), TWO)) == 3


def test_tiles_tell_truth_prediction_and_what_could_not_be_read(tmp_path):
    Image.new("RGB", (40, 20), "red").save(tmp_path / "0.png")
    (tmp_path / "1.png").write_bytes(b"no image")
    figure = plot_predictions(predictions_of([0, 1, 1], [0.25, 0.2, 0.9]), tmp_path, TWO, "8")
    first, second, third = figure.axes
    assert [tile.get_title() for tile in (first, second, third)] == [
        "defective → sound\n✗ 80%",
        "sound → sound\n✓ 75%",
        "defective → defective\n✓ 90%",
    ]
    frames = [to_hex(tile.spines["left"].get_edgecolor()).upper() for tile in (first, second, third)]
    assert frames == [WRONG, RIGHT, RIGHT]
    assert first.texts[0].get_text() == "1.png\nnot an image"
    assert third.texts[0].get_text() == "2.png\nNo such file or directory"
    assert second.images[0].get_array()[0, 0].tolist() == [255, 0, 0]
    assert second.images[0].get_extent() == [0, 1, 0.25, 0.75]  # twice as wide as high, centred
    assert png(figure, 40).startswith(b"\x89PNG")


def test_no_predictions_are_an_empty_picture(tmp_path):
    figure = plot_predictions(predictions_of([], []), tmp_path, TWO, "8")
    assert not any(axes.images or axes.axison for axes in figure.axes)


def test_a_thumbnail_is_as_dark_as_the_network_sees_it_and_upright(tmp_path):
    """255 x 1,000 / 4,095 is 62.3; where no model tells the depth, 3,000 says that it was 12 bits."""
    Image.fromarray(np.array([[1000, 1000], [3000, 2000]], np.uint16)).save(tmp_path / "deep.png")
    for depth, shown in {"12": [[62, 62], [187, 125]], "16": [[4, 4], [12, 8]], "auto": [[62, 62], [187, 125]]}.items():
        assert np.asarray(thumbnail(tmp_path / "deep.png", 8, depth))[..., 0].tolist() == shown
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    Image.new("L", (400, 200)).save(tmp_path / "turned.jpg", exif=exif)
    assert thumbnail(tmp_path / "turned.jpg", 100, "8").size == (50, 100)


def test_the_look_stays_inside(tmp_path):
    before = dict(matplotlib.rcParams)
    plot_confusion_matrix([[1, 0], [0, 1]], TWO)
    plot_predictions(predictions_of([0], [0.1]), tmp_path, TWO, "8")
    assert dict(matplotlib.rcParams) == before


def test_evaluation_needs_neither_torch_nor_pyplot():
    code = (
        "import sys, defectcls.pages.report, defectcls.pages.pictures;"
        "print(sorted({'torch', 'hydra', 'matplotlib.pyplot'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_an_overlay_is_the_grey_photo_where_it_is_cold_and_still_shows_it_where_it_is_hot():
    photo = Image.new("RGB", (40, 20), (100, 100, 100))
    photo.paste((200, 200, 200), (0, 0, 40, 10))  # the upper half is brighter
    heat = np.zeros((8, 8), np.float32)
    heat[:, 4:] = 1
    tinted = np.asarray(overlay(photo, heat)).astype(int)
    assert tinted.shape == (20, 40, 3)
    assert tinted[5, 2].tolist() == [200, 200, 200]
    assert tinted[15, 2].tolist() == [100, 100, 100]
    yellow = 255 * np.array(matplotlib.colormaps["viridis"](1.0)[:3])
    assert tinted[5, 37] == pytest.approx(0.4 * 200 + 0.6 * yellow, abs=1)
    assert (tinted[5, 37] - tinted[15, 37]).tolist() == [40, 40, 40]
    coloured = Image.new("RGB", (4, 4), (255, 0, 0))
    assert len(set(overlay(coloured, np.zeros((4, 4))).getpixel((0, 0)))) == 1


def test_robustness_is_two_tables_that_redden_with_the_errors():
    table = pd.DataFrame(
        [
            ("none", 0, 0.9, 0.02),
            *[("blur", strength, 0.9 - 0.2 * strength, 0.02) for strength in (1, 2, 3)],
            *[("noise", strength, np.nan, 0.3 * strength) for strength in (1, 2, 3)],
        ],
        columns=["corruption", "strength", "recall", "overkill_rate"],
    )
    figure = plot_robustness(table)
    recall, overkill = figure.axes
    assert recall.get_title() == "recall\nclean: 90.0 %"
    assert overkill.get_title() == "overkill rate\nclean: 2.0 %"
    cells = [{text.get_position(): text.get_text() for text in axes.texts} for axes in (recall, overkill)]
    assert [cells[0][column, 0] for column in range(3)] == ["70.0 %", "50.0 %", "30.0 %"]
    assert cells[0][1, 1] == "–"
    assert [cells[1][column, 1] for column in range(3)] == ["30.0 %", "60.0 %", "90.0 %"]
    assert [label.get_text() for label in recall.get_yticklabels()] == ["blur", "noise"]
    assert [label.get_text() for label in recall.get_xticklabels()] == ["1", "2", "3"]
    blue = recall.images[0].get_array()[..., 2]
    assert blue[0, 0] > blue[0, 1] > blue[0, 2]  # the lower the recall the redder
    assert blue[1, 0] == pytest.approx(1)  # undefined is white
    assert np.diff(overkill.images[0].get_array()[1, :, 2]).max() < 0
    assert png(figure, 40).startswith(b"\x89PNG")


def test_scores_are_counted_on_both_sides_of_the_thresholds():
    predictions = predictions_of([0, 0, 0, 1, 1], [0.1, 0.2, 0.6, 0.4, 0.9])
    figure = plot_scores(predictions, 0.3, 0.5)
    above, below = figure.axes
    sound, defective = (patch.get_data().values for patch in above.patches[:2])
    assert (sound.sum(), defective.sum()) == (3, -2)  # defective ones downwards
    escape, overkill = (line.get_xydata() for line in below.lines[:2])

    def at(line, score):
        return line[np.searchsorted(line[:, 0], np.log(score / (1 - score))), 1]

    assert [at(escape, score) for score in (0.3, 0.5, 0.95)] == [0, 0.5, 1]
    assert [at(overkill, score) for score in (0.05, 0.15, 0.5, 0.7)] == pytest.approx([1, 2 / 3, 1 / 3, 0])
    marks = sorted(line.get_xdata()[0] for line in above.lines[1:])
    assert marks == pytest.approx([np.log(3 / 7), 0])


def test_scores_of_one_kind_without_a_decision():
    assert len(plot_scores(predictions_of([0, 0], [0.0, 1.0]), None, None).axes[1].lines) == 1


def test_reliability_is_the_share_of_defects_in_each_bin():
    scores = np.array([0.05, 0.05, 0.05, 0.05, 0.95, 0.95])
    figure = plot_reliability({"before": 1 - scores, "after": scores}, np.array([0, 0, 0, 1, 1, 1], bool))
    after, before = (container.lines[0].get_xydata().tolist() for container in figure.axes[0].containers)
    assert after == [pytest.approx([0.05, 0.25]), pytest.approx([0.95, 1.0])]
    assert before == [pytest.approx([0.05, 1.0]), pytest.approx([0.95, 0.25])]


def test_worst_errors_are_the_most_confident_of_either_kind():
    predictions = predictions_of([1, 1, 1, 0, 0, 0], [0.4, 0.1, 0.9, 0.6, 0.8, 0.2])
    errors = worst_errors(predictions, TWO, [False, True])
    assert errors["escapes"]["path"].tolist() == ["1.png", "0.png"]
    assert errors["false rejects"]["path"].tolist() == ["4.png", "3.png"]
    reviewed = predictions.assign(decision=["review"] * 6)
    assert errors["escapes"].equals(worst_errors(reviewed, TWO, [False, True])["escapes"].drop(columns="decision"))
    assert worst_errors(reviewed, TWO, [False, True])["false rejects"].empty
    assert len(worst_errors(predictions, TWO, [False, True], limit=1)["escapes"]) == 1


def test_errors_stand_beside_what_speaks_for_a_defect(tmp_path):
    for name in ("0", "1"):
        Image.new("L", (8, 8), 100).save(tmp_path / f"{name}.png")
    predictions = predictions_of([1, 1, 0], [0.4, 0.1, 0.6])  # 2.png is missing
    figure = plot_errors(worst_errors(predictions, TWO, [False, True]), tmp_path, {"1.png": np.ones((4, 4))}, "8")
    escapes, rejects = figure.subfigs
    assert escapes.get_suptitle() == "escapes (2 shown)"
    first, heat, second, none = escapes.axes[:4]
    assert first.get_title(loc="left") == "1.png\ndefective, score 0.1"
    assert [len(axes.images) for axes in (first, heat, second, none)] == [1, 1, 1, 0]
    assert rejects.axes[0].texts[0].get_text() == "No such file or directory"
