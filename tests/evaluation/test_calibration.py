import numpy as np
import pytest
import torch
import torchmetrics.functional.classification as reference
from scipy.special import softmax
from sklearn.metrics import brier_score_loss

from defectcls.evaluation.calibration import brier_score, calibrate, expected_calibration_error, fit_temperature


def draw(seed: int, n: int, classes: int, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that are too sharp by `temperature`, and truths drawn from the honest ones."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 2, (n, classes))
    truth = np.array([generator.choice(classes, p=p) for p in softmax(logits, axis=1)])
    return softmax(temperature * logits, axis=1), truth


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_a_known_temperature_is_recovered(classes: int, temperature: float) -> None:
    probabilities, truth = draw(0, 20_000, classes, temperature)
    assert fit_temperature(probabilities, truth) == pytest.approx(temperature, rel=0.03)


@pytest.mark.slow
def test_a_known_temperature_is_recovered_without_bias() -> None:
    """Over 200 validation sets of 300 images the median is right, and the spread is what the likelihood says."""
    found = np.array([fit_temperature(*draw(seed, 300, 3, 2.0)) for seed in range(200)])
    assert np.median(found) == pytest.approx(2.0, abs=0.05)
    assert np.quantile(found, [0.025, 0.975]) == pytest.approx([2.0, 2.0], rel=0.25)


def test_temperature_is_the_least_loss_on_a_grid() -> None:
    probabilities, truth = draw(1, 200, 3, 2.5)

    def loss(temperature: float) -> float:
        scaled = probabilities ** (1 / temperature)
        return -np.log(scaled[np.arange(200), truth] / scaled.sum(1)).sum()

    grid = np.geomspace(0.5, 10, 4000)
    assert fit_temperature(probabilities, truth) == pytest.approx(grid[np.argmin(list(map(loss, grid)))], rel=2e-3)


def test_temperature_stays_at_one_where_it_cannot_be_known() -> None:
    certain = np.array([[0.9, 0.1], [0.2, 0.8]])
    assert fit_temperature(certain, np.array([0, 1])) == 1
    assert fit_temperature(np.full((2, 2), np.nan), np.array([0, 1])) == 1
    assert fit_temperature(np.empty((0, 2)), np.empty(0, int)) == 1
    assert fit_temperature(certain, np.array([1, 1])) != 1


def test_calibrate_divides_the_logits_and_can_be_undone() -> None:
    logits = np.array([[1.0, -2.0, 0.5], [30.0, 0.0, -30.0]])
    probabilities = softmax(logits, axis=1)
    scaled = calibrate(probabilities, 3)
    np.testing.assert_allclose(scaled, softmax(logits / 3, axis=1), rtol=1e-12)
    np.testing.assert_allclose(calibrate(scaled, 1 / 3), probabilities, rtol=1e-12)
    assert calibrate(probabilities, 1) is probabilities


@pytest.mark.parametrize("classes", [2, 4])
def test_calibration_error_as_torchmetrics_and_brier_as_scikit_learn(classes: int) -> None:
    probabilities, truth = draw(2, 400, classes, 2)
    error = reference.multiclass_calibration_error(
        torch.from_numpy(probabilities), torch.from_numpy(truth), num_classes=classes, n_bins=15, norm="l1"
    )
    assert expected_calibration_error(probabilities, truth) == pytest.approx(
        float(error), abs=1e-6
    )  # theirs is float32
    if classes == 2:
        assert brier_score(probabilities, truth) == pytest.approx(brier_score_loss(truth, probabilities[:, 1]))
    else:
        pairs = zip(probabilities, truth, strict=True)
        by_hand = np.mean([sum((p - (c == t)) ** 2 for c, p in enumerate(row)) for row, t in pairs])
        assert brier_score(probabilities, truth) == pytest.approx(by_hand)


def test_no_image_no_number() -> None:
    nothing = np.empty((0, 2)), np.empty(0, int)
    assert np.isnan(expected_calibration_error(*nothing))
    assert np.isnan(brier_score(*nothing))
