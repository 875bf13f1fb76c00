"""The joined head: against scipy and scikit-learn on the same objective, and by hand at its limits."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from defectcls.errors import UserError
from defectcls.model.classifier import Classifier
from defectcls.model.memory import HOLD, PRIOR, Joined, image_scores, weigh
from tests.model.test_classifier import THREE, classifier


def scores(sound: int, defects: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Memory and classifier of images, in units of their own; defects stand out in both, by one and two deviations."""
    rng = np.random.default_rng(seed)
    defective = np.arange(sound + defects) >= sound
    return (rng.normal(size=(sound + defects, 2)) + defective[:, None] * [1.0, 2.0]) * [0.3, 7.0] + [4, -20], defective


def standardised(given: np.ndarray, defective: np.ndarray) -> np.ndarray:
    return (given - given[~defective].mean(0)) / given[~defective].std(0)


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("defects", [1, 7, 60])
def test_weights_are_the_minimum_of_the_held_log_loss(defects: int) -> None:
    given, defective = scores(40, defects)
    x = standardised(given, defective)

    def loss(found: np.ndarray) -> float:
        chance = expit(x @ found[:2] + found[2])
        wrong = -np.log(chance[defective]).sum() - np.log(1 - chance[~defective]).sum() * defects / 40
        return wrong + (HOLD / 2 * (found - PRIOR) ** 2).sum()

    expected = minimize(loss, [1, 1, 0], method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-12}).x
    mean, deviation, weight, bias = weigh(given, defective)
    assert [*weight, bias] == pytest.approx(expected, abs=1e-5)
    assert mean == pytest.approx(given[~defective].mean(0))
    assert deviation == pytest.approx(given[~defective].std(0))


def test_without_defects_the_weights_are_the_prior_and_one_moves_them_little() -> None:
    *_, weight, bias = weigh(*scores(40, 0))
    assert [*weight, bias] == pytest.approx(PRIOR)
    *_, weight, bias = weigh(*scores(40, 1))
    assert weight == pytest.approx(PRIOR[:2], abs=0.3)


def test_many_defects_decide_alone() -> None:
    given, defective = scores(4000, 4000)
    free = LogisticRegression(C=1e9).fit(standardised(given, defective), defective)
    *_, weight, bias = weigh(given, defective)
    assert [*weight, bias] == pytest.approx([*free.coef_[0], free.intercept_[0]], abs=0.02)
    assert abs(weight - PRIOR[:2]).max() > 0.5


def test_a_missing_score_says_nothing() -> None:
    given, defective = scores(40, 3)
    missing, mean = given.copy(), given.copy()
    missing[-1, 1], mean[-1, 1] = np.nan, given[~defective, 1].mean()
    for found, expected in zip(weigh(missing, defective), weigh(mean, defective), strict=True):
        assert found == pytest.approx(expected)


@pytest.mark.parametrize("defects", [0, 5])
def test_the_memory_alone_is_weighed_as_if_the_classifier_said_nothing(defects: int) -> None:
    given, defective = scores(40, defects)
    mean, deviation, weight, bias = weigh(given[:, :1], defective)
    if not defects:
        assert [*weight, bias] == [PRIOR[0], PRIOR[2]]
    assert mean == pytest.approx([given[~defective, 0].mean()])
    assert deviation == pytest.approx([given[~defective, 0].std()])

    def loss(found: np.ndarray) -> float:
        chance = expit((given[:, 0] - mean) / deviation * found[0] + found[1])
        wrong = -np.log(chance[defective]).sum() - np.log(1 - chance[~defective]).sum() * defects / 40
        return wrong + (HOLD[[0, 2]] / 2 * (found - PRIOR[[0, 2]]) ** 2).sum()

    expected = minimize(loss, [1, 0], method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-12}).x
    assert [*weight, bias] == pytest.approx(expected, abs=1e-5)


def test_no_weight_is_below_zero() -> None:
    given, defective = scores(300, 300)
    given[:, 1] *= -1
    *_, weight, _ = weigh(given, defective)
    assert weight[1] == 0
    assert weight[0] > 0


@pytest.mark.parametrize("kind", ["one", "alike", "not scored"])
def test_too_few_sound_images_are_a_sentence(kind: str) -> None:
    given, defective = scores(1 if kind == "one" else 5, 3)
    given[~defective] = {"one": 1.0, "alike": 1.0, "not scored": np.inf}[kind]
    with pytest.raises(UserError, match=r"^a memory has to see how sound images differ, and \d for training"):
        weigh(given, defective)


# --- the module -------------------------------------------------------------------------------------------------------


def learned(seed: int = 0) -> tuple[Joined, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    maps = torch.rand(12, 5, 4, 4, generator=generator)
    maps[10:, :, 1, 2] += 3
    joined, defective = Joined(5), np.arange(12) >= 10
    odds = np.random.default_rng(seed).normal(size=12) + 2 * defective
    joined.learn(lambda: iter(maps.split(5)), odds, defective, np.arange(12), 0)
    return joined, maps


def test_until_it_has_learned_it_is_the_classifier() -> None:
    logits = torch.randn(6, 2)
    found = Joined(5)(logits, torch.rand(6, 5, 4, 4))
    assert torch.allclose(found.softmax(1), logits.softmax(1), atol=1e-6)


def test_logits_are_the_weighed_deviations() -> None:
    joined, maps = learned()
    logits = torch.randn(12, 2)
    memory = joined.memory(maps).flatten(1).amax(1)  # 2 % of sixteen cells are one
    scores = torch.stack([memory, logits[:, 1] - logits[:, 0]], 1)
    odds = ((scores - joined.mean) / joined.deviation) @ joined.weight + joined.bias
    found = joined(logits, maps)
    assert (found[:, 0] == 0).all()
    assert found[:, 1].numpy() == pytest.approx(odds.numpy(), abs=1e-4)
    assert torch.equal(torch.cat([joined(logits[i : i + 1], maps[i : i + 1]) for i in range(12)]), found)
    assert joined.describe() == {
        "memory": joined.weight[0].item(),
        "classifier": joined.weight[1].item(),
        "bank": 10 * 16,
    }


def test_alone_a_memory_does_not_listen_to_the_classifier() -> None:
    _, maps = learned()
    alone = Joined(5)
    alone.learn(lambda: iter([maps]), None, np.arange(12) >= 10, np.arange(12), 0)
    odds = (alone.memory(maps).flatten(1).amax(1) - alone.mean[0]) / alone.deviation[0] * alone.weight[0] + alone.bias
    for logits in torch.randn(2, 12, 2):
        assert torch.equal(alone(logits, maps)[:, 1], odds)
    assert (odds[10:] > 5).all()
    assert alone.describe()["classifier"] == 0


def test_a_planted_patch_is_the_only_hot_one() -> None:
    joined, maps = learned()
    heat = joined.unusual(maps)
    assert heat.shape == (12, 4, 4)
    assert heat[10:].flatten(1).argmax(1).tolist() == [6, 6]
    cold = heat[10:].flatten(1)[:, [cell for cell in range(16) if cell != 6]]
    assert (heat[10:, 1, 2] > 5 * cold.amax(1)).all()
    assert float((joined.memory(maps[10:]) - heat[10:])[:, 1, 2].std()) == pytest.approx(
        0, abs=1e-5
    )  # usual, all alike


# --- in a classifier --------------------------------------------------------------------------------------------------


def test_a_checkpoint_holds_it_whole() -> None:
    model = classifier(model={"head": "joined"}).eval()
    assert model.joined is not None
    model.joined.learn(lambda: iter([torch.rand(4, 192, 2, 2)]), np.arange(4.0), np.arange(4) > 2, np.arange(4), 0)
    other = Classifier(**model.hparams).eval()
    image = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    assert not torch.equal(other(image), model(image))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(image), model(image))


@pytest.mark.parametrize("weight", [[0.0, 1.0], [1.0, 0.0], [2.0, 0.5]])
def test_only_the_classifier_looks_at_a_part_that_is_turned(weight: list[float]) -> None:
    """The light does not turn with the part: to the memory a turned photo is a strange one."""
    plain, turned = (classifier(model={"head": "joined", "test_views": views}).eval() for views in (1, 2))
    image = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    assert plain.joined is not None
    with torch.no_grad():
        ways = [plain.backbone.inference(with_map=True)(way) for way in (image, image.flip(3))]
        plain.joined.learn(lambda: iter([torch.rand(4, 192, 2, 2)]), np.arange(4.0), np.arange(4) > 2, np.arange(4), 0)
        plain.joined.weight.copy_(torch.tensor(weight))
        remembered = image_scores(plain.joined.memory(ways[0][1])).numpy()
        classified = np.mean([np.diff(plain.head(features).numpy())[:, 0] for features, _ in ways], 0)
        turned.load_state_dict(plain.state_dict())
        found = np.diff(turned(image).numpy())[:, 0]
    mean, deviation, bias = (getattr(plain.joined, name).numpy() for name in ("mean", "deviation", "bias"))
    terms = (remembered - mean[0]) / deviation[0], (classified - mean[1]) / deviation[1]
    assert found == pytest.approx(weight[0] * terms[0] + weight[1] * terms[1] + bias, rel=1e-3, abs=1e-4)


def test_evaluation_gives_the_same_bits_in_any_batch() -> None:
    model = classifier(model={"head": "joined", "test_views": 2}).eval()
    assert model.joined is not None
    known, sound = torch.randint(0, 100, (2, 20, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        maps = model.backbone.inference(with_map=True)(known)[1]
        odds = np.random.default_rng(0).normal(size=20)
        model.joined.learn(lambda: iter([maps]), odds, np.arange(20) > 17, np.arange(20), 0)
        plain = model(sound)
        infer = model.inference()
        whole = infer(sound)
        parts = [torch.cat([infer(part) for part in sound.split(size)]) for size in (1, 7, 16)]
    assert torch.allclose(whole, plain, atol=1e-3)
    assert all(torch.equal(part, whole) for part in parts)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"classes": THREE},
            "model.head=joined tells sound from defective, and the classes are good, crack, dent: use",
        ),
        ({"classes": {"crack": True, "dent": True}}, "model.head=joined tells sound from defective"),
        ({"name": "mvitv2_tiny"}, "this backbone has no map of the image"),
    ],
)
def test_what_it_cannot_join_is_a_sentence(options: dict[str, Any], sentence: str) -> None:
    classes = options.pop("classes", None)
    with pytest.raises(UserError, match=f"^{sentence}"):
        classifier(classes, model={"head": "joined", **options})
