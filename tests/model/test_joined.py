"""The joined head: against scipy and scikit-learn on the same objective, and by hand at its limits."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import expit, logsumexp
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

TYPES = [False, True, False, True, True]  # of five classes
FOLDED = np.arange(24) % 4


def with_odds(odds: np.ndarray, sides: tuple[bool, ...] | list[bool] = (False, True)) -> np.ndarray:
    """Logits of which each defective class has these odds against each sound one."""
    return np.where(sides, odds[:, None], 0.0)


def learned(sides: list[bool] | None = None, seed: int = 0) -> tuple[Joined, torch.Tensor, torch.Tensor]:
    """In four folds, of 24 maps of which the last four have a patch of their own; and what is said out of fold."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.rand(24, 5, 4, 4, generator=generator)
    maps[20:, :, 1, 2] += 3
    joined, defective = Joined(5, sides or [False, True], 4), np.arange(24) >= 20
    odds = np.random.default_rng(seed).normal(size=24) + 2 * defective
    logits = with_odds(odds, sides or [False, True])
    return joined, maps, joined.learn(lambda: maps.split(5), logits, defective, FOLDED, 0)


def odds_of(joined: Joined, logits: torch.Tensor, remembered: torch.Tensor) -> np.ndarray:
    """By hand, float64 (images, folds)."""
    sides = joined.defective.numpy()
    classified = logsumexp(logits[..., sides].double(), 2) - logsumexp(logits[..., ~sides].double(), 2)
    scores = np.stack([remembered.double(), classified], 2)
    mean, deviation, weight, bias = (getattr(joined, name).numpy() for name in ("mean", "deviation", "weight", "bias"))
    return ((scores - mean) / deviation * weight).sum(2) + bias


@pytest.mark.parametrize("sides", [[False, True], TYPES])
def test_until_it_has_learned_it_is_the_classifier(sides: list[bool]) -> None:
    logits = torch.randn(6, 3, len(sides))
    found = Joined(5, sides, 3)(logits, torch.rand(6, 5, 4, 4))
    assert torch.allclose(found.softmax(2), logits.softmax(2), atol=1e-6)


@pytest.mark.parametrize("sides", [[False, True], [True, False], TYPES])
def test_a_side_has_the_joined_odds_and_its_classes_the_proportions_of_the_classifier(sides: list[bool]) -> None:
    joined, maps, _ = learned(sides)
    logits = 3 * torch.randn(24, 4, len(sides))
    remembered = joined.memory(maps).flatten(2).amax(2)  # 1 % of sixteen cells are one
    found = joined(logits, maps)
    assert torch.equal(found, joined.join(logits, remembered))
    chance, said, defective = found.double().softmax(2).numpy(), logits.double().softmax(2).numpy(), np.array(sides)
    assert chance[..., defective].sum(2) == pytest.approx(expit(odds_of(joined, logits, remembered)), abs=1e-5)
    for side in (defective, ~defective):
        among = [one[..., side] / one[..., side].sum(2, keepdims=True) for one in (chance, said)]
        assert among[0] == pytest.approx(among[1], abs=1e-4)
    assert torch.equal(torch.cat([joined(logits[i : i + 1], maps[i : i + 1]) for i in range(24)]), found)


def test_what_it_tells_of_itself_is_the_mean_over_members() -> None:
    joined, _, _ = learned()
    assert joined.describe() == {
        "memory": pytest.approx(joined.weight[:, 0].mean().item()),
        "classifier": pytest.approx(joined.weight[:, 1].mean().item()),
        "bank": 20 * 16,
    }


def test_each_image_is_remembered_by_its_member_alone_and_weighed_by_those_of_the_other_folds() -> None:
    joined, maps, said = learned()
    remembered = joined.memory(maps)[np.arange(24), FOLDED].flatten(1).amax(1).numpy()
    defective, odds = np.arange(24) >= 20, np.random.default_rng(0).normal(size=24) + 2 * (np.arange(24) >= 20)
    patches = maps.flatten(2).transpose(1, 2)
    nearest = []
    for image in range(24):
        kept = ~defective & (FOLDED[image] != FOLDED)
        nearest.append(torch.cdist(patches[image], patches[torch.from_numpy(kept)].flatten(0, 1)).amin(1).numpy())
    assert remembered == pytest.approx(np.max(nearest, 1), abs=1e-4)
    for fold in range(4):
        others = fold != FOLDED
        expected = weigh(np.stack([remembered, odds], 1)[others], defective[others])
        found = [getattr(joined, name)[fold].numpy() for name in ("mean", "deviation", "weight", "bias")]
        for one, other in zip(found, expected, strict=True):
            assert one == pytest.approx(other, rel=1e-4)
    weights = [getattr(joined, name).numpy()[FOLDED] for name in ("mean", "deviation", "weight", "bias")]
    scores = (np.stack([remembered, odds], 1) - weights[0]) / weights[1] * weights[2]
    assert (said[:, 1] - said[:, 0]).numpy() == pytest.approx(scores.sum(1) + weights[3], rel=1e-3, abs=1e-3)
    medians = [np.sort(one)[7] for one in np.array(nearest)[:20]]  # of sixteen cells the lower middle, as torch has it
    assert joined.usual.item() == pytest.approx(np.sort(medians)[9], abs=1e-4)


def test_a_member_does_not_know_the_patches_of_its_fold() -> None:
    """The part of the bank that it leaves out is the only one that they are in."""
    joined, maps, _ = learned()
    changed, defective = maps.clone(), np.arange(24) >= 20
    changed[torch.from_numpy(FOLDED == 2)] *= 5
    other = Joined(5, [False, True], 4)
    other.learn(lambda: changed.split(5), with_odds(np.arange(24.0)), defective, FOLDED, 0)
    assert [torch.equal(a, b) for a, b in zip(joined.memory.bank, other.memory.bank, strict=True)] == [
        True,
        True,
        False,
        True,
    ]
    new = torch.rand(3, 5, 4, 4)
    assert torch.equal(joined.memory(new)[:, 2], other.memory(new)[:, 2])
    assert not torch.equal(joined.memory(new)[:, 1], other.memory(new)[:, 1])


def test_alone_a_memory_does_not_listen_to_the_classifier() -> None:
    _, maps, _ = learned()
    alone = Joined(5, [False, True], 4)
    alone.learn(lambda: [maps], None, np.arange(24) >= 20, FOLDED, 0)
    hottest = alone.memory(maps).flatten(2).amax(2)
    odds = (hottest - alone.mean[:, 0]) / alone.deviation[:, 0] * alone.weight[:, 0] + alone.bias
    for logits in torch.randn(2, 24, 4, 2):
        found = alone(logits, maps)
        assert (found[..., 1] - found[..., 0]).numpy() == pytest.approx(odds.numpy(), abs=1e-4)
    assert (odds[20:] > 5).all()
    assert alone.describe()["classifier"] == 0


def test_a_planted_patch_is_the_only_hot_one() -> None:
    joined, maps, _ = learned()
    heat = joined.unusual(joined.memory(maps))
    assert heat.shape == (24, 4, 4)
    assert heat[20:].flatten(1).argmax(1).tolist() == [6] * 4
    cold = heat[20:].flatten(1)[:, [cell for cell in range(16) if cell != 6]]
    assert (heat[20:, 1, 2] > 5 * cold.amax(1)).all()
    usual = (joined.memory(maps[20:]).mean(1) - heat[20:])[:, 1, 2]
    assert usual.numpy() == pytest.approx(joined.usual.item(), abs=1e-5)


# --- in a classifier --------------------------------------------------------------------------------------------------


def joining(classes: dict[str, bool] | None = None, seed: int = 0, **options: Any) -> Classifier:
    """A network of three members whose memory and heads have learned something."""
    model = classifier(classes, members=3, model={"head": "joined", **options}).eval()
    assert model.joined is not None
    torch.manual_seed(seed)
    maps, odds = torch.rand(12, 192, 2, 2), np.random.default_rng(seed).normal(size=12)
    model.joined.learn(
        lambda: [maps], with_odds(odds, [*model.classes.values()]), np.arange(12) > 8, np.arange(12) % 3, seed
    )
    torch.nn.init.normal_(model.head.linear.weight, std=0.1)
    return model


def images(count: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)


def test_a_checkpoint_holds_it_whole() -> None:
    model = joining()
    other = Classifier(**model.hparams).eval()
    assert not torch.equal(other(images()), model(images()))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(images()), model(images()))


@pytest.mark.parametrize("head", ["linear", "joined"])
@pytest.mark.parametrize("classes", [None, THREE])
def test_an_image_of_a_fold_is_judged_by_its_member_and_another_by_the_mean_of_all(
    classes: dict[str, bool] | None, head: str
) -> None:
    model = classifier(classes, members=3) if head == "linear" else joining(classes)
    torch.nn.init.normal_(model.eval().head.linear.weight, std=0.1)
    with torch.no_grad():
        features, maps = model.backbone.inference(with_map=True)(images())
        members = model.head(features).unflatten(1, (3, -1))
        if model.joined is not None:
            members = model.joined(members, maps)
        found = model(images(), torch.tensor([0, 2, -1, 1, 1, -1]))
        expected = torch.stack([members[0, 0], members[1, 2], members[2].mean(0), *members[3:5, 1], members[5].mean(0)])
        assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4)
        assert torch.allclose(model(images()), members.mean(1), rtol=1e-3, atol=1e-4)
        assert torch.equal(model.judge([(features, maps)], torch.full((6,), -1)), model.judge([(features, maps)], None))
    assert (members[:, 0] - members[:, 1]).abs().max() > 0.01  # else the data would not tell


@pytest.mark.parametrize("weight", [[0.0, 1.0], [1.0, 0.0], [2.0, 0.5]])
def test_only_the_classifier_looks_at_a_part_that_is_turned(weight: list[float]) -> None:
    """The light does not turn with the part: to the memory a turned photo is a strange one."""
    plain, turned = joining(), joining(test_views=2)
    assert plain.joined is not None
    plain.joined.weight.copy_(torch.tensor(weight).repeat(3, 1))
    turned.load_state_dict(plain.state_dict())
    with torch.no_grad():
        ways = [plain.backbone.inference(with_map=True)(way) for way in (images(), images().flip(3))]
        logits = torch.stack([plain.head(features) for features, _ in ways]).mean(0).unflatten(1, (3, 2))
        remembered = image_scores(plain.joined.memory(ways[0][1]))
        found = np.diff(turned(images()).numpy())[:, 0]
    assert found == pytest.approx(odds_of(plain.joined, logits, remembered).mean(1), rel=1e-3, abs=1e-3)


@pytest.mark.slow
def test_evaluation_gives_the_same_bits_in_any_batch() -> None:
    model, given = joining(test_views=2), images(20)
    folds = torch.arange(20) % 4 - 1
    with torch.no_grad():
        infer = model.inference()
        for some in ([], [folds]):
            whole = infer(given, *some)
            assert torch.allclose(whole, model(given, *some), rtol=1e-3, atol=1e-3)
            for size in (1, 7, 16):
                pieces = zip(given.split(size), *(one.split(size) for one in some), strict=True)
                assert torch.equal(torch.cat([infer(*piece) for piece in pieces]), whole)


@pytest.mark.parametrize(
    ("classes", "members", "joins"),
    [(None, 3, True), (THREE, 3, True), (None, 1, False), ({"crack": True, "dent": True}, 3, False)],
)
def test_left_to_the_package_members_are_joined_with_a_memory(
    classes: dict[str, bool] | None, members: int, joins: bool
) -> None:
    assert (classifier(classes, members=members).joined is not None) is joins


def test_left_to_the_package_a_backbone_without_a_map_is_linear() -> None:
    assert classifier(members=3, model={"name": "mvitv2_tiny"}).joined is None


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"classes": THREE, "head": "memory"},
            "model.head=memory tells sound from defective, and the classes are good, crack, dent: use target=defect",
        ),
        ({"classes": {"crack": True, "dent": True}}, "model.head=joined tells sound from defective"),
        ({"name": "mvitv2_tiny"}, "this backbone has no map of the image"),
    ],
)
def test_what_it_cannot_join_is_a_sentence(options: dict[str, Any], sentence: str) -> None:
    classes = options.pop("classes", None)
    with pytest.raises(UserError, match=f"^{sentence}"):
        classifier(classes, members=3, model={"head": "joined", **options})


@pytest.mark.parametrize("head", ["joined", "memory"])
def test_one_member_alone_would_remember_nothing(head: str) -> None:
    with pytest.raises(UserError, match=f"^model.head={head} remembers .*: give members=5$"):
        classifier(members=1, model={"head": head})
