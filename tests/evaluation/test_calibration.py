import numpy as np
import pytest
from scipy.special import expit, logit, softmax
from sklearn.calibration import _SigmoidCalibration

from defectcls.evaluation.calibration import (
    calibrate,
    calibrated_loss,
    fit_calibration,
)


def of_two(log_odds: np.ndarray | list) -> np.ndarray:
    """Probabilities of two classes, (images, 2)."""
    return softmax(np.column_stack([np.zeros(len(log_odds)), log_odds]), axis=1)


def draw(prevalence: float, slope: float, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Log-odds of a network that was taught a balanced world and is off by `slope`, and the truth of a real one."""
    generator = np.random.default_rng(seed)
    truth = (generator.random(n) < prevalence).astype(int)
    return 2 * generator.normal(2.0 * truth - 1, 1) / slope, truth  # two unit normals at -1 and 1: log-odds are 2x


@pytest.mark.parametrize("slope", [0.4, 1.0, 3.0])
@pytest.mark.parametrize("prevalence", [0.5, 0.1, 0.02])
def test_slope_and_prevalence_are_recovered(prevalence: float, slope: float) -> None:
    """Within three standard errors of logistic regression's slope, 2 / sqrt(defects) at most."""
    log_odds, truth = draw(prevalence, slope, 20_000, 0)
    scale, shift = fit_calibration(of_two(log_odds), truth)
    defects = truth.sum()
    assert scale == pytest.approx(slope, rel=2 / np.sqrt(defects))
    assert shift[1] - shift[0] == pytest.approx(logit(prevalence), abs=5 / np.sqrt(defects))
    scores = calibrate(of_two(log_odds), scale, shift)[:, 1]
    assert scores.mean() == pytest.approx(truth.mean(), abs=1e-3)
    right = expit(slope * log_odds + logit(prevalence))
    assert np.abs(scores - right).mean() < 0.1 * prevalence


def test_scale_is_platts_as_scikit_learn_fits_it() -> None:
    log_odds, truth = draw(0.2, 1.5, 150, 3)
    theirs = _SigmoidCalibration().fit(log_odds, truth)
    scale, shift = fit_calibration(of_two(log_odds), truth)
    assert scale == pytest.approx(-theirs.a_, rel=1e-3)
    assert shift[1] - shift[0] == pytest.approx(-theirs.b_, rel=1e-3)


def test_platts_example_by_hand() -> None:
    """Two images a class, all alike: the scores can only be Platt's targets, 3/4 and 1/4, with log-odds of ± log 3."""
    scale, shift = fit_calibration(of_two([-1.0, -1.0, 1.0, 1.0]), np.array([0, 0, 1, 1]))
    assert scale == pytest.approx(np.log(3), rel=1e-5)
    assert shift[1] - shift[0] == pytest.approx(0, abs=1e-6)
    # three sound and one defective: targets 1/5 and 2/3, log-odds -log 4 and log 2, their slope (log 8) / 2
    scale, shift = fit_calibration(of_two([-1.0, -1.0, -1.0, 1.0]), np.array([0, 0, 0, 1]))
    assert scale == pytest.approx(np.log(8) / 2, rel=1e-5)
    odds = np.array([-1, 1]) * scale + shift[1] - shift[0]
    assert expit(odds) == pytest.approx([1 / 5, 2 / 3], rel=1e-5)


@pytest.mark.parametrize("wrong", [0, 1])
def test_a_perfect_validation_part_is_calibrated_by_the_same_rule(wrong: int) -> None:
    """However far apart the scores are, they do not get sharper than so few images can tell."""
    log_odds, truth = np.r_[np.linspace(-60, -40, 30), np.linspace(40, 60, 30)], np.repeat([0, 1], 30)
    truth[:wrong] = 1
    scale, _ = fit_calibration(of_two(log_odds), truth)
    assert 0.05 <= scale < 0.15  # Platt's targets of 30 images are 1/32 and 31/32: 3.4 at 50, and not below 1/20


def test_many_classes_each_have_their_share() -> None:
    generator = np.random.default_rng(0)
    logits, log_shares = generator.normal(0, 2, (20_000, 4)), np.log([0.6, 0.3, 0.07, 0.03])
    truth = np.array([generator.choice(4, p=p) for p in softmax(logits + log_shares, axis=1)])
    scale, shift = fit_calibration(softmax(logits / 0.5, axis=1), truth)
    assert scale == pytest.approx(0.5, rel=0.03)
    assert np.array(shift) - np.mean(shift) == pytest.approx(log_shares - log_shares.mean(), abs=0.1)
    means = calibrate(softmax(logits / 0.5, axis=1), scale, shift).mean(0)
    assert means == pytest.approx(np.bincount(truth) / len(truth), abs=1e-3)
    fewer = truth != 2  # a class that validation does not have keeps a small share, and the others theirs
    of_fewer = softmax(logits[fewer] / 0.5, axis=1)
    means = calibrate(of_fewer, *fit_calibration(of_fewer, truth[fewer])).mean(0)
    assert 0 < means[2] < 1e-3
    assert means == pytest.approx(np.bincount(truth[fewer], minlength=4) / fewer.sum(), abs=1e-3)


def test_nothing_is_calibrated_where_nothing_is_known() -> None:
    certain = np.array([[0.9, 0.1], [0.2, 0.8]])
    for unknown in ((certain, [1, 1]), (np.full((2, 2), np.nan), [0, 1]), (np.empty((0, 2)), [])):
        assert fit_calibration(unknown[0], np.array(unknown[1], int)) == (1, (0, 0))
    assert calibrate(certain, 1.0, (0.0, 0.0)) is certain
    assert fit_calibration(of_two([2.0, 1.0, -1.0, -2.0]), np.array([0, 0, 1, 1]))[0] == pytest.approx(1 / 20)


def test_calibrate_can_be_undone() -> None:
    logits, shift = np.array([[1.0, -2.0, 0.5], [30.0, 0.0, -30.0]]), (0.5, -1.0, 3.0)
    probabilities = softmax(logits, axis=1)
    calibrated = calibrate(probabilities, 0.3, shift)
    np.testing.assert_allclose(calibrated, softmax(0.3 * logits + shift, axis=1), rtol=1e-12)
    np.testing.assert_allclose(calibrate(calibrated, 1 / 0.3, -np.array(shift) / 0.3), probabilities, rtol=1e-12)


# --- one criterion for all epochs -------------------------------------------------------------------------------------


def entropy(images: int, classes: int = 2) -> float:
    """Of Platt's targets of a class of so many images: what no evaluation can be below."""
    targets = np.array([images + 1, *[1] * (classes - 1)]) / (images + classes)
    return -float(targets @ np.log(targets))


def test_a_perfect_epoch_is_better_than_one_with_errors_at_equal_confidence() -> None:
    """The temperature was 1 for the first and fitted for the second, which won."""
    truth, sign = np.repeat([0, 1], [70, 30]), np.repeat([-1.0, 1.0], [70, 30])
    noise = np.random.default_rng(0).gamma(8, 1 / 8, 100)
    wrong = np.where(np.arange(100) % 20 == 3, -1, 1)  # five of a hundred
    perfect, five_errors = (of_two(0.85 * sign * noise * w) for w in (1, wrong))
    assert calibrated_loss(perfect, truth) < calibrated_loss(five_errors, truth)
    assert (entropy(70) + entropy(30)) / 2 < calibrated_loss(perfect, truth)


@pytest.mark.parametrize("classes", [2, 4])
def test_the_criterion_knows_no_scale_or_shift_of_the_logits(classes: int) -> None:
    generator = np.random.default_rng(1)
    truth = generator.integers(classes, size=200)
    logits = generator.normal(0, 1, (200, classes)) + 1.5 * np.eye(classes)[truth]
    expected = calibrated_loss(softmax(logits, axis=1), truth)
    for scale, shift in ((0.01, 0.0), (20, 0.0), (3, np.arange(classes))):
        assert calibrated_loss(softmax(scale * logits + shift, axis=1), truth) == pytest.approx(expected, abs=1e-6)


def test_the_criterion_is_bounded_at_perfection_and_weighs_classes_alike() -> None:
    truth = np.repeat([0, 1], [90, 10])
    same = np.where(truth, 1.0, -1.0)
    assert calibrated_loss(of_two(same), truth) == pytest.approx((entropy(90) + entropy(10)) / 2, abs=1e-8)
    assert calibrated_loss(of_two(100 * same), truth) == pytest.approx((entropy(90) + entropy(10)) / 2, abs=1e-8)
    mean = (91 / 92 + 1 / 12) / 2  # target of sound, classes weighing alike: all that is left where nothing is known
    nothing = -mean * np.log(mean) - (1 - mean) * np.log(1 - mean)
    assert calibrated_loss(np.full((100, 2), 0.5), truth) == pytest.approx(nothing, abs=1e-8)
    # by hand: scores that are alike within a class, of which one in ten of the rare one is with the others
    mixed = np.r_[np.full(90, -1.0), np.full(9, 1.0), -1.0]
    sound, rare = 91 / 92, 11 / 12  # Platt's targets
    low = (sound + 0.1 * (1 - rare)) / 1.1  # the mean target of those at -1, classes weighing alike
    loss = -(1.1 * (low * np.log(low) + (1 - low) * np.log(1 - low)) - 0.9 * entropy(10)) / 2
    assert calibrated_loss(of_two(mixed), truth) == pytest.approx(loss, abs=1e-8)


def test_the_criterion_of_one_class_is_its_loss() -> None:
    assert calibrated_loss(np.array([[0.9, 0.1], [0.6, 0.4]]), np.array([0, 0])) == pytest.approx(
        -(np.log(0.9) + np.log(0.6)) / 2
    )
    assert np.isnan(calibrated_loss(np.array([[np.nan, 0.1]]), np.array([0])))
    assert np.isnan(calibrated_loss(np.empty((0, 2)), np.empty(0, int)))
