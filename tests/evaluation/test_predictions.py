import numpy as np
import pandas as pd
import pytest

from defectcls.errors import UserError
from defectcls.evaluation.metrics import compute_metrics
from defectcls.evaluation.predictions import (
    class_names_of,
    classes_of_table,
    folds_of,
    groups_of,
    predictions_table,
    read_predictions,
    write_predictions,
)

AWKWARD = ["NA", "a,b", 'say "x"', "two\nlines", "return\r", "null", "p_p_", "ünï ", "1", "<b>"]
AWKWARD_CLASSES = {name: place > 3 for place, name in enumerate(AWKWARD)}


def awkward_table() -> pd.DataFrame:
    generator = np.random.default_rng(0)
    samples = pd.DataFrame(
        {
            "path": [f"{name}/é.png" for name in AWKWARD],
            "label": AWKWARD,
            "defective": [False] * 4 + [True] * 6,
            "defect_type": AWKWARD,
            "group": ["", "001", "1e3", "nan", "None", "True", "-", "0x1", "7", ""],
            "split": "test",
        }
    )
    samples["unit"] = np.arange(10) // 2
    probabilities = generator.dirichlet(np.ones(10), size=10) ** 9
    return predictions_table(samples, probabilities, AWKWARD_CLASSES)


def test_prediction_is_the_most_probable_class_and_score_sums_the_defective_ones():
    samples = pd.DataFrame({"path": ["a", "b"], "label": ["good", "hole"], "defective": [False, True]}, index=[7, 3])
    table = predictions_table(
        samples, np.array([[0.4, 0.3, 0.3], [0.125, 0.25, 0.625]]), {"good": False, "crack": True, "hole": True}
    )
    assert table.columns.tolist() == [*samples, "prediction", "p_good", "p_crack", "p_hole", "score"]
    assert table["prediction"].tolist() == ["good", "hole"]
    assert table["score"].tolist() == [0.6, 0.875]
    assert table.index.tolist() == [7, 3]
    assert class_names_of(table) == ["good", "crack", "hole"]


def test_reading_restores_every_bit_and_so_every_metric(tmp_path):
    table = awkward_table()
    write_predictions(table, tmp_path / "predictions.csv")
    restored = read_predictions(tmp_path / "predictions.csv")
    pd.testing.assert_frame_equal(restored, table.astype({"unit": str}), check_exact=True)
    assert groups_of(restored).tolist() == groups_of(table).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    write_predictions(table.iloc[:0], tmp_path / "predictions.csv")
    with pytest.raises(UserError, match=r"predictions\.csv has no rows"):
        read_predictions(tmp_path / "predictions.csv")
    assert class_names_of(restored) == AWKWARD
    assert compute_metrics(restored, AWKWARD_CLASSES) == compute_metrics(table, AWKWARD_CLASSES)


def test_a_failed_write_leaves_the_former_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "predictions.csv"
    path.write_text("former")

    def full_disk(_, file, **__):
        file.write_text("half")
        raise OSError("no space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_csv", full_disk)
    with pytest.raises(OSError, match="no space left"):
        write_predictions(awkward_table(), path)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("predictions.csv", "former")]


def test_mistakes_are_named(tmp_path):
    samples = pd.DataFrame({"path": ["a"], "label": ["x"], "defective": [False], "p_value": [1.0]})
    with pytest.raises(UserError, match=": p_value$"):
        predictions_table(samples, np.array([[0.5, 0.5]]), {"x": False, "y": True})
    with pytest.raises(ValueError, match=r"\(1, 3\)"):
        predictions_table(samples.drop(columns="p_value"), np.ones((1, 3)), {"x": False, "y": True})
    samples.to_csv(tmp_path / "other.csv")
    with pytest.raises(UserError, match=r"other\.csv is no predictions table, it lacks a second class"):
        read_predictions(tmp_path / "other.csv")
    samples.drop(columns="p_value").to_csv(tmp_path / "other.csv")
    with pytest.raises(UserError, match=r"other\.csv is no predictions table, it lacks score"):
        read_predictions(tmp_path / "other.csv")
    (tmp_path / "other.csv").write_text("path,defective,score\na,perhaps,0.5\n")
    with pytest.raises(UserError, match=r"values of 'defective' that are not 0, 1, true, false, yes or no: perhaps$"):
        read_predictions(tmp_path / "other.csv")
    (tmp_path / "other.csv").write_text("path,defective,label,p_good,p_dent\na,0,Good,0.5,0.5\n")
    with pytest.raises(UserError, match=r"other\.csv has classes without a column p_<class name>: Good$"):
        read_predictions(tmp_path / "other.csv")
    with pytest.raises(UserError, match=r"none\.csv does not exist"):
        read_predictions(tmp_path / "none.csv")


def test_what_another_tool_leaves_out_follows_from_the_rest(tmp_path):
    path = tmp_path / "other.csv"
    path.write_text("path,defective,score\na.png,0,0.25\nb.png,1,0.75\nc.png,1,0.5\n")
    table = read_predictions(path)
    assert table["label"].tolist() == ["sound", "defective", "defective"]
    assert table["prediction"].tolist() == ["sound", "defective", "sound"]  # of equals the first
    assert table[["p_sound", "p_defective"]].to_numpy().tolist() == [[0.75, 0.25], [0.25, 0.75], [0.5, 0.5]]
    assert classes_of_table(table) == {"sound": False, "defective": True}

    path.write_text("path,defective,label,p_good,p_dent,p_hole\na,false,good,0.5,0.2,0.3\nb,true,dent,0.1,0.3,0.6\n")
    table = read_predictions(path)
    assert table["prediction"].tolist() == ["good", "hole"]
    assert table["score"].tolist() == [0.2, 0.3]  # no image tells that a hole is a defect
    assert classes_of_table(table.assign(score=[0.5, 0.9])) == {"good": False, "dent": True, "hole": True}


def test_rounding_never_lifts_a_score_above_one():
    samples = pd.DataFrame({"path": ["a"], "label": ["good"], "defective": [False]})
    tenths = np.array([[0.0, *[0.1] * 8, 0.2000000001]])
    table = predictions_table(samples, tenths, {name: name != "good" for name in ("good", *"abcdefghi")})
    assert table["score"].tolist() == [1]


OTHER = "path,defective,score,split\n" + "".join(
    f"{number}.png,{number % 4 == 0},{0.9 if number % 4 == 0 else 0.1},val\n" for number in range(16)
)


def test_an_image_that_stands_there_twice_is_an_error(tmp_path):
    """It would prove twice as much."""
    (tmp_path / "other.csv").write_text(OTHER + "3.png,False,0.1,val\n4.png,False,0.9,val\n")
    with pytest.raises(UserError, match=r"judges the same image more than once: 3.png, 4.png$"):
        read_predictions(tmp_path / "other.csv")


def test_repeats_of_a_cross_validation_judge_an_image_anew(tmp_path):
    text = "path,defective,score,repeat\na.png,0,0.1,0\na.png,0,0.2,1\nb.png,1,0.9,0\nb.png,1,0.9,1\n"
    (tmp_path / "other.csv").write_text(text)
    table = read_predictions(tmp_path / "other.csv")
    assert table["score"].tolist() == [0.1, 0.2, 0.9, 0.9]
    assert folds_of(table.assign(fold="0")).tolist() == [0, 1, 0, 1]
    (tmp_path / "other.csv").write_text(text + "b.png,1,0.8,1\n")
    with pytest.raises(UserError, match="more than once: b.png$"):
        read_predictions(tmp_path / "other.csv")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("b.png,1,0.2,,a", "p_x is missing in row 2 (after the header); it must be a number"),
        ("b.png,1,nan,0.2,a", "p_y is 'nan' in row 2 (after the header); it must be a number"),
        ("b.png,1,-inf,0.2,a", "p_y is '-inf' in row 2 (after the header); it must be a number"),
        ("b.png,1,93 %,0.2,a", "p_y is '93 %' in row 2 (after the header); it must be a number"),
        ("b.png,1,0.9,1e999,a", "p_x is '1e999' in row 2 (after the header); it must be a number"),
    ],
)
def test_what_is_no_number_is_shown_with_its_row(tmp_path, row, said):
    (tmp_path / "other.csv").write_text(f"path,defective,p_y,p_x,label\na.png,0,0.5,0.5,b\n{row}\n")
    with pytest.raises(UserError) as caught:
        read_predictions(tmp_path / "other.csv")
    assert str(caught.value) == f"{tmp_path / 'other.csv'}: {said}"


def test_a_table_with_semicolons_and_words_in_any_case(tmp_path):
    text = "\ufeffPath;defective;score;split\nprüf/1.png;yes;0.93;Train\nprüf/2.png;No;1e-3;TEST\nc;1.0;1;validation\n"
    (tmp_path / "excel.csv").write_text(text, encoding="utf-8")
    table = read_predictions(tmp_path / "excel.csv")
    assert table["path"].tolist() == ["prüf/1.png", "prüf/2.png", "c"]
    assert table["score"].tolist() == [0.93, 0.001, 1.0]
    assert table["defective"].tolist() == [True, False, True]
    assert table["split"].tolist() == ["train", "test", "val"]
    (tmp_path / "excel.csv").write_text(text.replace("TEST", "holdout"), encoding="utf-8")
    with pytest.raises(UserError, match="values of 'split' that are not train, val or test: holdout$"):
        read_predictions(tmp_path / "excel.csv")
    (tmp_path / "excel.csv").write_text("path,score,defective,Score\na,0.5,0,0.6\n")
    with pytest.raises(UserError, match="has a column twice, of which one must go: score$"):
        read_predictions(tmp_path / "excel.csv")


def test_images_without_a_group_are_by_themselves():
    table = pd.DataFrame({"group": ["b", "", "a", "", "b"]}, index=[9, 8, 7, 6, 5])
    assert groups_of(table).tolist() == [0, 1, 2, 3, 0]
    assert groups_of(table.assign(unit=["1", "1", "2", "", "1"])).tolist() == [0, 0, 1, 2, 0]
    assert groups_of(table[[]]).tolist() == [0, 1, 2, 3, 4]
