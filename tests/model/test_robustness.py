"""Corruptions against numpy, SciPy and Pillow; the table of what they cost."""

import io

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy import ndimage

from defectcls.evaluation.predictions import predictions_table
from defectcls.model.features import View
from defectcls.training.inspection import CORRUPTIONS, measure_robustness

SIDE = 100


def photos(count: int = 5) -> torch.Tensor:
    """Soft patterns with a sharp square, like a photo; no two alike."""
    noise = np.random.default_rng(0).random((count, 3, SIDE, SIDE))
    soft = ndimage.gaussian_filter(noise, (0, 0, 4, 4))
    soft = 200 * (soft - soft.min()) / np.ptp(soft)
    soft[..., 30:50, 60:80] += 50
    return torch.from_numpy(soft.astype(np.uint8))


def seen(name: str, strength: int, images: torch.Tensor) -> np.ndarray:
    change, values, _ = CORRUPTIONS[name]
    changed = change(images, values[strength - 1])
    assert (changed.dtype, changed.shape) == (torch.uint8, images.shape)
    return changed.numpy().astype(float)


@pytest.mark.parametrize(("strength", "sigma"), [(1, 0.5), (2, 1.0), (3, 2.0)])
def test_blur_is_scipys(strength: int, sigma: float) -> None:
    expected = ndimage.gaussian_filter(photos().numpy().astype(float), (0, 0, sigma, sigma), mode="mirror", truncate=3)
    assert seen("blur", strength, photos()) == pytest.approx(expected, abs=1.01)


@pytest.mark.parametrize(("strength", "deviation"), [(1, 8), (2, 16), (3, 32)])
def test_noise_has_its_deviation_in_grey_values_and_is_the_same_in_every_image(strength: int, deviation: int) -> None:
    grey = torch.full((4, 3, SIDE, SIDE), 128, dtype=torch.uint8)
    added = seen("noise", strength, grey) - 128
    assert added[0].std() == pytest.approx(deviation, rel=0.03)
    assert added.mean() == pytest.approx(0, abs=0.5)
    assert (added == added[0]).all()
    assert np.corrcoef(added[0].reshape(3, -1)) == pytest.approx(np.eye(3), abs=0.05)


@pytest.mark.parametrize(("name", "factors"), [("dark", (0.8, 0.6, 0.4)), ("bright", (1.25, 1.6, 2.2))])
def test_exposure_is_a_factor(name: str, factors: tuple[float, ...]) -> None:
    for strength, factor in enumerate(factors, 1):
        expected = np.clip(factor * photos().numpy().astype(float), 0, 255)
        assert np.abs(seen(name, strength, photos()) - expected).max() <= 1


@pytest.mark.parametrize(("strength", "quality"), [(1, 50), (2, 25), (3, 10)])
def test_jpeg_is_as_good_as_pillows_of_that_quality(strength: int, quality: int) -> None:
    """Decoders differ by a little; another quality differs by more."""
    first, buffer = photos()[0].permute(1, 2, 0).numpy(), io.BytesIO()
    Image.fromarray(first).save(buffer, "jpeg", quality=quality)
    expected = np.asarray(Image.open(buffer)).astype(float).transpose(2, 0, 1)
    assert np.abs(seen("jpeg", strength, photos())[0] - expected).mean() < 0.5


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruptions_grow_repeat_themselves_and_leave_the_images_alone(name: str) -> None:
    images = photos()
    change = [np.abs(seen(name, strength, images) - images.numpy()).mean() for strength in (1, 2, 3)]
    assert 0 < change[0] < change[1] < change[2]
    assert (seen(name, 2, images) == seen(name, 2, images)).all()
    assert torch.equal(images, photos())
    assert (seen(name, 3, images[1:2]) == seen(name, 3, images)[1]).all()  # whatever the batch


@pytest.mark.parametrize("several", [False, True])
def test_the_table_holds_the_rates_of_every_corruption(several: bool) -> None:
    """A model that calls an image defective by its brightness: 50 and 90 are sound, 110 and 200 defective."""
    brightness = np.array([50.0, 90.0, 110.0, 200.0])
    images = torch.from_numpy(brightness).to(torch.uint8)[:, None, None, None].expand(-1, 3, 16, 16).contiguous()
    classes = {"good": False, "crack": True} | ({"dent": True} if several else {})
    samples = pd.DataFrame({"path": list("abcd"), "label": ["good"] * 2 + ["crack"] * 2})
    samples["defective"] = samples["label"] == "crack"

    def predict(view: View) -> pd.DataFrame:
        score = view.change(images, []).double().mean((1, 2, 3)).numpy() / 200
        rest = np.zeros((4, len(classes) - 2))
        return predictions_table(samples, np.column_stack([1 - score, score, rest]), classes)

    table = measure_robustness(predict, classes)
    assert list(table.columns) == ["corruption", "strength", "setting", "recall", "overkill_rate", "auroc"]
    assert len(table) == 1 + 3 * len(CORRUPTIONS)
    assert table.iloc[0].tolist() == ["none", 0, "", 1.0, 0.0, 1.0]
    assert table["setting"][1:4].tolist() == ["0.5% of the side", "1.0% of the side", "2.0% of the side"]
    rates = table.set_index(["corruption", "strength"])[["recall", "overkill_rate"]]
    assert rates.loc[("dark", 3)].tolist() == [0, 0]  # 200 becomes 80
    assert rates.loc[("dark", 2)].tolist() == [0.5, 0]  # and 120
    assert rates.loc[("bright", 1)].tolist() == [1, 0.5]  # 90 becomes 112
    assert rates.loc[("bright", 3)].tolist() == [1, 1]  # 50 becomes 110
    assert (table["auroc"] == 1).all()


def test_rates_that_are_not_defined_are_nan() -> None:
    samples = pd.DataFrame({"path": ["a"], "label": ["good"], "defective": [False]})
    classes = {"good": False, "bad": True}
    table = measure_robustness(lambda view: predictions_table(samples, np.array([[0.9, 0.1]]), classes), classes)
    assert table["recall"].isna().all() and table["auroc"].isna().all()
    assert (table["overkill_rate"] == 0).all()
