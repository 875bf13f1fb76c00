"""Accept, review or reject: thresholds on the score, chosen on validation images and kept with the model.

The words of the trade beside those of the field: escape rate = 1 - recall, overkill rate = false positive rate.
"""

import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field, TypeAdapter, ValidationError

from defectcls.errors import UserError
from defectcls.evaluation.calibration import calibrate, fit_calibration
from defectcls.evaluation.predictions import ACCEPT, PROBABILITY, REJECT, REVIEW, groups_of

if TYPE_CHECKING:
    from defectcls.settings import DecisionSettings

ABOVE_ALL = float(np.nextafter(1, 2))  # a threshold that no score reaches

Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Threshold = Annotated[float, Field(ge=0, le=ABOVE_ALL)]
Rate = Literal["escape_rate", "overkill_rate"]


@dataclass(frozen=True)
class Promise:
    """An upper bound on a rate of misjudged images, and what it rests on."""

    rate: Rate
    target: float
    confidence: float
    bound: float  # what the validation images prove, at that confidence
    kept: bool  # bound <= target
    independent: int  # validation images of this kind, or their groups
    needed: int  # how many it takes to promise the target when not one is misjudged
    grouped: bool


@dataclass(frozen=True)
class Decision:
    """How a score becomes accept (below `accept_below`), reject (from `reject_from` on), or review (in between).

    Both are None where the class decides whose probability is largest, or with a `prior` largest beside that of its
    class in there. Scores are calibrated, by `scale` and one `shift` a class (see calibration.py; () shifts nothing),
    for a share of defects of `prevalence`, that of the validation images; None where that is not known.
    """

    policy: str
    scale: Positive = 1.0
    shift: tuple[Finite, ...] = ()
    prevalence: float | None = None
    prior: tuple[Positive, ...] | None = None
    accept_below: Threshold | None = None
    reject_from: Threshold | None = None
    evidence: dict[str, Any] | None = None  # counts of validation images, and how many of them were misjudged
    promises: tuple[Promise, ...] = ()

    def __post_init__(self) -> None:
        low, high = self.accept_below, self.reject_from
        if (low is None) != (high is None) or (low is not None and high is not None and low > high):
            raise ValueError(f"it accepts below {low} and rejects from {high}, not in this order")

    @classmethod
    def from_plain(cls, values: Any, classes: int | None = None) -> "Decision":
        """What `plain` gave, from a model's file or metrics.json.

        Args:
            classes: how many the model knows; its thresholds rest on evidence, then.

        Raises:
            UserError: it is no decision, or one that makes no sense.
        """
        try:
            decision = TypeAdapter(cls).validate_python(values)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            key = "".join(f".{step}" for step in first["loc"] if isinstance(step, str) and step.isidentifier())
            raise UserError(f"its decision{key} is wrong: {first['msg']}") from error
        if classes and {len(decision.shift), len(decision.prior or ())} - {0, classes}:
            raise UserError("its decision is of other classes")
        if classes and decision.accept_below is not None and {*EVIDENCE} - {*(decision.evidence or ())}:
            raise UserError("its decision has thresholds and not what they rest on")
        return decision

    def plain(self) -> dict[str, Any]:
        """Plain values, for a checkpoint and JSON."""
        return asdict(self)


MOST_PROBABLE = Decision("argmax")
EVIDENCE = ("defective", "sound", "escapes", "false_rejects")


def choose_decision(settings: "DecisionSettings", validation: pd.DataFrame, classes: dict[str, bool]) -> Decision:
    """The decision of a policy, from the predictions table of validation images, not calibrated.

    Raises:
        UserError: the policy needs sound or defective images, or both, and they are missing.
    """
    defective, sides = validation["defective"].to_numpy(bool), np.array([*classes.values()])
    refuse_missing_kind(settings, defective)
    probabilities = validation[[PROBABILITY + name for name in classes]].to_numpy()
    if not np.isfinite(probabilities).all():
        return MOST_PROBABLE
    scoring = _scoring(settings, probabilities, pd.Index([*classes]).get_indexer(pd.Index(validation["label"])), sides)
    by_class = scoring.prior is None or sorted(sides) != [False, True]
    if settings.policy == "argmax" or (settings.policy == "balanced" and by_class):
        return scoring

    scores = calibrate(probabilities, scoring.scale, scoring.shift)[:, sides].sum(1).clip(max=1)
    rates: dict[str, dict[Rate, float]] = {
        "recall": {"escape_rate": round(1 - settings.target, 12)},
        "fpr": {"overkill_rate": settings.target},
        "review": {"escape_rate": settings.escape_rate, "overkill_rate": settings.overkill_rate},
    }
    promised = rates.get(settings.policy, {})
    groups = groups_of(validation)
    found = [_promise(rate, scores, defective, groups, most, settings.confidence) for rate, most in promised.items()]
    if found:
        low, high = found[0][0], found[-1][0]
        if low > high:  # both promises hold for all scores between: nobody has to look
            low = high = (low + high) / 2
    elif scoring.prior is not None:
        low = high = scoring.prior[int(sides.argmax())]
    else:
        low = high = _best_threshold(settings, scores, defective)
    counts = defective.sum(), (~defective).sum(), (scores < low)[defective].sum(), (scores >= high)[~defective].sum()
    evidence = dict(zip(EVIDENCE, map(int, counts), strict=True))
    promises = tuple(one for _, one in found)
    return replace(scoring, prior=None, accept_below=low, reject_from=high, evidence=evidence, promises=promises)


def _scoring(settings: "DecisionSettings", probabilities: np.ndarray, truth: np.ndarray, sides: np.ndarray) -> Decision:
    """A decision without thresholds, and a `prior`, the mean of each probability, where all classes weigh alike.

    `truth` is the class of each image (images,), `sides` which classes are defective. Where the images are of one
    class, or of one of two kinds of classes, nothing is known.
    """
    sign = {"recall": ">=", "precision": ">=", "fpr": "<="}.get(settings.policy)
    scoring, kinds = Decision(settings.policy + (f"{sign}{settings.target:g}" if sign else "")), len(set(sides))
    if len(set(truth)) < 2 or len(set(sides[truth])) < kinds:
        return scoring
    scale, shift = fit_calibration(probabilities, truth)
    prior = calibrate(probabilities, scale, shift).mean(0)
    if settings.calibrate:
        share = float(sides[truth].mean()) if kinds == 2 else None
        scoring = replace(scoring, scale=scale, shift=shift, prevalence=share)
    else:
        prior = calibrate(prior, 1 / scale, -np.array(shift) / scale)
    return replace(scoring, prior=tuple(prior.tolist())) if settings.policy == "balanced" else scoring


def refuse_missing_kind(settings: "DecisionSettings", defective: np.ndarray) -> None:
    """Whether a policy can be followed on validation images, bool (images,), is known before there are scores.

    Raises:
        UserError: it needs sound or defective ones, and there are none.
    """
    needed = {"argmax": set(), "balanced": set(), "fpr": {False}}.get(settings.policy, {False, True})
    if missing := needed - {*defective.tolist()}:
        raise UserError(
            f"decision={settings.policy} needs {'defective' if missing == {True} else 'sound'} images to be chosen "
            "on, and there are none: decision=fpr needs sound ones alone, decision=balanced neither"
        )


def decide(predictions: pd.DataFrame, decision: Decision, classes: dict[str, bool]) -> pd.DataFrame:
    """The uncalibrated table with calibrated probabilities, and `prediction` and `decision` by the decision.

    An image that is let through gets its most probable sound class, any other its most probable defective one. One
    whose probabilities are not all numbers is rejected, since nothing says that it is sound.
    """
    columns = [PROBABILITY + name for name in classes]
    probabilities = calibrate(predictions[columns].to_numpy(), decision.scale, decision.shift)
    defective, weighed = np.array([*classes.values()]), probabilities / np.array(decision.prior or 1.0)
    scores, unknown = probabilities[:, defective].sum(1).clip(max=1), ~np.isfinite(probabilities).all(1)
    if decision.accept_below is None or decision.reject_from is None:
        flagged = rejected = defective[weighed.argmax(1)] | unknown
    else:
        flagged, rejected = ((scores >= start) | unknown for start in (decision.accept_below, decision.reject_from))
    chosen = np.where(flagged[:, None] == defective, weighed, -1.0).argmax(1)
    answers = {"prediction": np.array([*classes], dtype=object)[chosen], "score": scores}
    answers["decision"] = np.where(rejected, REJECT, np.where(flagged, REVIEW, ACCEPT))
    return predictions.assign(**answers, **dict(zip(columns, probabilities.T, strict=True)))


def _best_threshold(settings: "DecisionSettings", scores: np.ndarray, defective: np.ndarray) -> float:
    """The threshold with the most F1 or the least cost, or with the most recall among those of enough precision.

    Of equally good ones the lowest, which lets the least through.
    """
    levels = np.unique(scores)
    thresholds = np.concatenate([[0.0], between(levels[:-1], levels[1:]), [ABOVE_ALL]])
    missed = np.searchsorted(np.sort(scores[defective]), thresholds)
    rejected = (~defective).sum() - np.searchsorted(np.sort(scores[~defective]), thresholds)
    caught = defective.sum() - missed
    if settings.policy == "f1":
        worth = 2 * caught / (2 * caught + rejected + missed)
    elif settings.policy == "cost":
        worth = -(settings.escape_cost * missed + settings.overkill_cost * rejected)
    else:
        precision = caught / np.maximum(caught + rejected, 1)
        worth = np.where(precision >= settings.target, 1 + caught, precision)
    return float(thresholds[worth.argmax()])


def _promise(
    rate: Rate, scores: np.ndarray, defective: np.ndarray, groups: np.ndarray, target: float, confidence: float
) -> tuple[float, Promise]:
    """The boldest threshold whose bound keeps the target; where none does, one that misjudges none of these images.

    The bound, that of Clopper and Pearson (1934), holds although the threshold was chosen on the images that prove it,
    since it falls with the threshold (risk-controlling prediction sets, Bates et al. 2021). Of groups it bounds the
    share of which any image is misjudged, which is never below the mean over groups of their images' share.

    Of a fixed model and fresh images it is exact. Of scores out of fold and the mean of the members it is approximate:
    proven there (cross-conformal prediction, Vovk 2015; CV+, Barber et al. 2021) is a mean rate, over draws of the
    images, within twice the target. experiments/promises shows by simulation how often it is broken.
    """
    from scipy.special import betaincinv

    escapes = rate == "escape_rate"
    mine = defective if escapes else ~defective
    of_groups = pd.Series(scores[mine]).groupby(groups[mine])  # each is misjudged with the first of its images
    hardest = np.sort(of_groups.min()) if escapes else np.sort(of_groups.max())[::-1]
    independent = len(hardest)
    misjudged = np.arange(independent)
    bounds = np.append(betaincinv(misjudged + 1, independent - misjudged, confidence), 1.0)
    allowed = max(0, int(np.searchsorted(bounds, target, side="right")) - 1)
    bound, grouped = float(bounds[allowed]), bool(independent < mine.sum())
    needed = math.ceil(round(math.log(1 - confidence) / math.log1p(-target), 9))
    found = Promise(rate, target, confidence, bound, bound <= target, independent, needed, grouped)
    if allowed == independent:
        return ABOVE_ALL if escapes else 0.0, found
    # Between the first that is judged right and the next score of all on the cautious side.
    low = high = hardest[allowed]
    if escapes:
        low = scores[scores < high].max(initial=0.0)
    else:
        high = scores[scores > low].min(initial=ABOVE_ALL)
    return float(between(low, high)), found


def between(low: np.ndarray | float, high: np.ndarray | float) -> np.ndarray:
    """A threshold above `low` and not above `high`, halfway where floats allow."""
    middle = (np.asarray(low) + high) / 2
    return np.where(middle > low, middle, high)
