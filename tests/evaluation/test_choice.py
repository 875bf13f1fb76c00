"""Which candidate is kept, and what the choice itself is worth."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from defectcls.evaluation.calibration import calibrated_loss
from defectcls.evaluation.comparison import choose, nested
from defectcls.settings import DecisionSettings
from tests.conftest import composed

CLASSES = {"sound": False, "defective": True}
TRUTH = np.arange(120) % 3 == 0


def table(skill: float | np.ndarray, seed: int = 0, truth: np.ndarray = TRUTH) -> pd.DataFrame:
    """Scores of images whose log odds differ by `skill` between the kinds, beside noise that is the same for all."""
    noise = np.random.default_rng(seed).normal(size=len(truth))
    score = 1 / (1 + np.exp(-np.where(truth, skill, -np.array(skill)) / 2 - noise))
    columns = {"path": np.arange(len(truth)).astype(str), "defective": truth, "unit": np.arange(len(truth))}
    columns |= {"label": np.where(truth, "defective", "sound"), "p_sound": 1 - score, "p_defective": score}
    return pd.DataFrame(columns | {"score": score})


@pytest.mark.parametrize(
    ("skills", "milliseconds", "kept", "simplest"),
    [
        ([2], [10], 0, 0),
        ([1, 3], [10, 99], 1, 1),  # better beyond chance, whatever it costs
        ([1, 3, 4], [10, 5, 99], 2, 2),
        ([2, 2.05], [10, 10], 0, 0),  # what may be luck is not worth a change …
        ([2, 2.05], [10, 5], 1, 1),  # … that is not cheaper
        ([2, 1.95], [10, 5], 0, 1),  # cheaper and perhaps worse: told, and not kept
        ([3, 1], [10, 1], 0, 0),
    ],
)
def test_the_default_stays_unless_another_is_better_or_cheaper(
    skills: Sequence[float], milliseconds: Sequence[float], kept: int, simplest: int
) -> None:
    tables = [table(skill) for skill in skills]
    if skills[-1] in (2.05, 1.95):  # images on which they differ otherwise, more than on the whole
        tables[-1] = table(skills[-1] + 0.4 * np.sin(np.arange(120) * 2.4))
    found = choose([[one] for one in tables], milliseconds, CLASSES)
    assert (found.kept, found.simplest) == (kept, simplest)
    losses = [calibrated_loss(one[["p_sound", "p_defective"]].to_numpy(), TRUTH.astype(int)) for one in tables]
    assert found.losses == pytest.approx(losses)
    assert found.behind[:, 0] == pytest.approx(np.array(losses) - min(losses))
    assert found.behind[np.argmin(losses)] == pytest.approx([0, 0, 0])


def test_a_difference_is_over_the_seeds_that_both_have() -> None:
    tables = [[table(2, 0), table(2, 1)], [table(3, 0)], [table(2.5, 0), table(2.5, 1)]]
    found = choose(tables, [1, 1, 1], CLASSES)
    loss = [
        [calibrated_loss(one[["p_sound", "p_defective"]].to_numpy(), TRUTH.astype(int)) for one in of] for of in tables
    ]
    assert found.losses == pytest.approx([np.mean(of) for of in loss])
    assert found.behind[:, 0] == pytest.approx([loss[0][0] - loss[1][0], 0, loss[2][0] - loss[1][0]])


def test_images_of_one_group_prove_less() -> None:
    groups = np.arange(120) // 12
    tables = [[table(2)], [table(2.6 + 0.5 * np.sin(groups * 2.4))]]  # where it is better depends on the group
    tied = [[one.assign(unit=groups)] for (one,) in tables]
    alone, found = (choose(each, [1, 1], CLASSES) for each in (tables, tied))
    assert found.behind[0, 0] == pytest.approx(alone.behind[0, 0])
    assert found.behind[0, 1] < alone.behind[0, 1]


def test_a_choice_that_only_luck_makes_is_worth_nothing() -> None:
    """Each candidate knows one half: whichever half it is chosen on, it fails on the other."""
    folds = np.arange(120) % 2
    first, second = table(np.where(folds == 0, 6, -6)), table(np.where(folds == 0, -6, 6))
    settings = DecisionSettings(**composed("dataset=synthetic")["decision"])
    found = nested([one.assign(fold=folds) for one in (first, second)], [1, 1], CLASSES, settings)
    assert found["path"].tolist() == first["path"].tolist()
    for fold, of_other in ((0, second), (1, first)):
        mine = folds == fold
        assert found["score"][mine].rank().tolist() == of_other["score"][mine].rank().tolist()
    assert roc_auc_score(found["defective"], found["score"]) < 0.05


def test_a_fold_has_no_say_in_how_it_is_judged() -> None:
    folds, settings = np.arange(120) % 5, DecisionSettings(**composed("dataset=synthetic")["decision"])
    tables = [table(skill).assign(fold=folds) for skill in (2, 2.5)]
    before = nested(tables, [1, 1], CLASSES, settings)
    swapped = [one.assign(defective=one["defective"] ^ (folds == 3)) for one in tables]
    for one in swapped:
        one["label"] = np.where(one["defective"], "defective", "sound")
    after = nested(swapped, [1, 1], CLASSES, settings)
    columns = ["path", "prediction", "p_defective"]
    pd.testing.assert_frame_equal(after[folds == 3][columns], before[folds == 3][columns])
    assert not after[folds == 2][columns].equals(before[folds == 2][columns])
