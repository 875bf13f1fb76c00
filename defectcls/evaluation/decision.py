"""Accept, review or reject: thresholds on the score, chosen on validation images and kept with the model.

The words of the trade beside those of the field: escape rate = 1 - recall, overkill rate = false positive rate.

A promise is a bound that holds for new images of the same kind at the stated confidence, although the threshold was
chosen on the images that prove it: it is the highest threshold whose upper confidence bound stays below the target, and
a bound that falls with the threshold may be used so (risk-controlling prediction sets, Bates et al. 2021). The bound is
that of Clopper and Pearson (1934) where images are independent. Images of one group are not: there the risk is the mean
over groups of the share of their images that are misjudged, bounded after Hoeffding and Bentkus as in Bates et al.
"""

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from pydantic import TypeAdapter, ValidationError
from scipy.optimize import brentq
from scipy.special import logit
from scipy.stats import beta, binom

from defectcls.errors import UserError
from defectcls.evaluation.calibration import calibrate, fit_calibration, uncalibrate
from defectcls.evaluation.predictions import ACCEPT, PROBABILITY, REJECT, REVIEW, groups_of
from defectcls.settings import DecisionSettings

ABOVE_ALL = float(np.nextafter(1, 2))  # a threshold that no score reaches


@dataclass(frozen=True)
class Promise:
    """An upper bound on a rate of misjudged images, and what it rests on."""

    rate: str  # escape_rate | overkill_rate
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
    for a share of defects of `prevalence`; None where that is not known.
    """

    policy: str
    scale: float = 1.0
    shift: tuple[float, ...] = ()
    prevalence: float | None = None
    prior: tuple[float, ...] | None = None
    accept_below: float | None = None
    reject_from: float | None = None
    evidence: dict[str, Any] | None = None  # counts of validation images, and how many of them were misjudged
    promises: tuple[Promise, ...] = ()

    @classmethod
    def from_plain(cls, values: Any) -> "Decision":
        """What `plain` gave, from a checkpoint or metrics.json.

        Raises:
            UserError: it is no decision, or one that makes no sense.
        """
        try:
            decision = TypeAdapter(cls).validate_python(values)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            key = "".join(f".{step}" for step in first["loc"] if isinstance(step, str) and step.isidentifier())
            raise UserError(f"its decision{key} is wrong: {first['msg']}") from error
        if not 0 < decision.scale < math.inf or not np.isfinite(decision.shift).all():
            raise UserError(
                f"its decision has the scale {decision.scale:g} and the shifts {decision.shift}: all must be finite, "
                "and a scale above 0"
            )
        if any(not 0 < share < math.inf for share in decision.prior or ()):
            raise UserError(f"its decision has the shares {decision.prior} of the classes, not all above 0")
        low, high = decision.accept_below, decision.reject_from
        if (low, high) != (None, None) and (low is None or high is None or not 0 <= low <= high <= ABOVE_ALL):
            raise UserError(f"its decision accepts below {low} and rejects from {high}, not from 0 to 1 in this order")
        return decision

    def plain(self) -> dict[str, Any]:
        """Plain values, for a checkpoint and JSON."""
        return asdict(self) | {"promises": [asdict(promise) for promise in self.promises]}


MOST_PROBABLE = Decision("argmax")


def choose_decision(
    settings: DecisionSettings,
    validation: pd.DataFrame,
    class_names: list[str],
    defective_classes: list[bool],
    prevalence: float | None = None,
) -> Decision:
    """The decision of a policy.

    Args:
        validation: predictions table of validation images, not calibrated.
        prevalence: share of defects that the scores are to be for; None: that of the validation images.

    Raises:
        UserError: the policy needs sound or defective images, or both, and they are missing.
    """
    defective, sides = validation["defective"].to_numpy(bool), np.array(defective_classes, bool)
    refuse_missing_kind(settings, defective, prevalence)
    probabilities = validation[[PROBABILITY + name for name in class_names]].to_numpy()
    if not np.isfinite(probabilities).all():
        return MOST_PROBABLE
    truth = pd.Index(class_names).get_indexer(pd.Index(validation["label"]))
    if unknown := sorted(set(validation["label"][truth < 0])):
        raise UserError(f"validation images are of {unknown}, which are none of the classes {class_names}")
    step = 0.0 if prevalence is None else float(logit(prevalence) - logit(defective.mean()))
    scoring = _scoring(settings, probabilities, truth, sides, step)
    if prevalence is not None:
        scoring = replace(scoring, prevalence=prevalence)
    by_class = scoring.prior is None or sorted(defective_classes) != [False, True]
    if settings.policy == "argmax" or (settings.policy == "balanced" and by_class):
        return scoring

    scores = calibrate(probabilities, scoring.scale, scoring.shift)[:, sides].sum(1).clip(max=1)
    groups = groups_of(validation)
    escape, overkill = _Side(scores, defective, groups, -1), _Side(scores, defective, groups, 1)
    promises: tuple[Promise, ...] = ()
    if settings.policy in ("recall", "fpr"):
        side, target = (
            (escape, round(1 - settings.target, 12)) if settings.policy == "recall" else (overkill, settings.target)
        )
        threshold, promise = side.promise(target, settings.confidence)
        thresholds, promises = (threshold, threshold), (promise,)
    elif settings.policy == "review":
        low, first = escape.promise(settings.escape_rate, settings.confidence)
        high, second = overkill.promise(settings.overkill_rate, settings.confidence)
        middle = (low + high) / 2  # where both promises hold for all scores between, nobody has to look
        thresholds, promises = (low, high) if low < high else (middle, middle), (first, second)
    else:
        threshold = _best_threshold(settings, scores, defective, math.exp(step))
        if scoring.prior is not None:
            threshold = scoring.prior[defective_classes.index(True)]
        thresholds = (threshold, threshold)
    accept_below, reject_from = thresholds
    evidence = {
        "defective": int(defective.sum()),
        "sound": int((~defective).sum()),
        "escapes": int((scores < accept_below)[defective].sum()),
        "false_rejects": int((scores >= reject_from)[~defective].sum()),
    }
    chosen = replace(scoring, prior=None, accept_below=accept_below, reject_from=reject_from)
    return replace(chosen, evidence=evidence, promises=promises)


def _scoring(
    settings: DecisionSettings, probabilities: np.ndarray, truth: np.ndarray, sides: np.ndarray, step: float
) -> Decision:
    """A decision without thresholds, and a `prior` where both kinds of errors are to weigh alike.

    Such a prior is the calibrated share of each class. Where it asks more of a defective class than the network's most
    probable class does, it is lowered, so that nothing is let through that this one catches. Where the validation
    images are of one class, or of one of two kinds of classes, nothing is known.

    Args:
        sides: which classes are defective, bool (classes,).
        step: by which the log-odds of a defect are moved.
    """
    scoring, kinds = Decision(_name(settings)), len(set(sides))
    if len(set(truth)) < 2 or len(set(sides[truth])) < kinds:
        return scoring
    scale, shift = fit_calibration(probabilities, truth)
    prior = uncalibrate(calibrate(probabilities, scale, shift).mean(0), scale, shift)
    if kinds == 2:
        prior = np.where(sides, np.minimum(prior, prior[~sides].min()), prior)
    prior /= prior.sum()
    if settings.calibrate:
        share, shift = float(sides[truth].mean()), tuple((shift + step * sides).tolist())
        prior = calibrate(prior, scale, shift)
        scoring = replace(scoring, scale=scale, shift=shift, prevalence=share if kinds == 2 else None)
    return replace(scoring, prior=tuple(prior.tolist())) if settings.policy == "balanced" else scoring


def refuse_missing_kind(settings: DecisionSettings, defective: np.ndarray, prevalence: float | None = None) -> None:
    """Whether a policy can be followed on validation images, bool (images,), is known before there are scores.

    Raises:
        UserError: it, or a stated prevalence, needs sound or defective ones, and there are none.
    """
    if prevalence is not None and (defective.all() or not defective.any()):
        raise UserError(
            f"dataset.prevalence={prevalence:g} moves scores from the share of defects among validation images, which "
            f"are {'all' if defective.any() else 'none'} defective: leave it null"
        )
    needed = {"argmax": (), "balanced": (), "fpr": (False,)}.get(settings.policy, (False, True))
    for kind in set(needed) - set(defective.tolist()):
        name, other = ("defective", "fpr") if kind else ("sound", "balanced")
        raise UserError(
            f"decision={settings.policy} needs {name} validation images, and there are none: "
            f"decision={other} does without"
        )


def decide(
    predictions: pd.DataFrame, decision: Decision, class_names: list[str], defective_classes: list[bool]
) -> pd.DataFrame:
    """The table with calibrated probabilities, and `prediction` and `decision` by the decision.

    An image that is let through gets its most probable sound class, any other its most probable defective one. One
    whose probabilities are not all numbers is rejected, since nothing says that it is sound.

    Args:
        predictions: a predictions table, not calibrated.
    """
    columns = [PROBABILITY + name for name in class_names]
    probabilities = calibrate(predictions[columns].to_numpy(), decision.scale, decision.shift)
    defective, names = np.array(defective_classes, bool), np.array(class_names, dtype=object)
    scores = probabilities[:, defective].sum(1).clip(max=1)
    known = np.isfinite(probabilities).all(1)
    if decision.accept_below is None or decision.reject_from is None:
        chosen = (probabilities / np.array(decision.prior or 1.0)).argmax(1)
        verdict = np.where(defective[chosen], REJECT, ACCEPT)
    else:
        flagged = scores >= decision.accept_below
        among = np.where(flagged[:, None] == defective, probabilities, -1.0)
        chosen = among.argmax(1)
        verdict = np.where(scores >= decision.reject_from, REJECT, np.where(flagged, REVIEW, ACCEPT))
    chosen, verdict = np.where(known, chosen, defective.argmax()), np.where(known, verdict, REJECT)
    answers = {"prediction": names[chosen], "decision": verdict, "score": scores}
    return predictions.assign(**answers, **dict(zip(columns, probabilities.T, strict=True)))


def upper_bound(misjudged: float, count: int, confidence: float, grouped: bool) -> float:
    """Upper confidence bound of a risk, from the (mean) number misjudged of `count` independent images or groups."""
    if not count or misjudged >= count:
        return 1.0
    if not grouped:
        return float(beta.ppf(confidence, misjudged + 1, count - misjudged))
    mean, limit = misjudged / count, math.log(1 - confidence)

    def excess(risk: float) -> float:  # log of the p-value of this risk, above that of the confidence
        hoeffding = -count * _divergence(min(mean, risk), risk)
        bentkus = 1 + binom.logcdf(math.ceil(misjudged - 1e-9), count, risk)
        return min(hoeffding, bentkus) - limit

    return float(brentq(excess, max(mean, 1e-12), 1 - 1e-12)) if excess(1 - 1e-12) < 0 else 1.0


def images_needed(rate: float, confidence: float) -> int:
    """How many independent images, not one misjudged, prove that a rate is not exceeded."""
    return math.ceil(round(math.log(1 - confidence) / math.log1p(-rate), 9))


class _Side:
    """The defective images that a threshold lets through (direction -1), or the sound ones that it rejects (1)."""

    def __init__(self, scores: np.ndarray, defective: np.ndarray, groups: np.ndarray, direction: int) -> None:
        mine = defective if direction < 0 else ~defective
        self.rate = "escape_rate" if direction < 0 else "overkill_rate"
        self.all, self.direction = np.unique(scores), direction
        _, group, sizes = np.unique(groups[mine], return_inverse=True, return_counts=True)
        order = np.argsort(direction * -scores[mine], kind="stable")  # the first to be misjudged comes first
        self.scores = scores[mine][order]
        self.misjudged = np.cumsum(1 / sizes[group][order]).tolist()  # in images, or in groups of them
        self.independent, self.grouped = len(sizes), bool((sizes > 1).any())

    def promise(self, target: float, confidence: float) -> tuple[float, Promise]:
        """The boldest threshold whose bound keeps the target.

        Where none does, the most cautious one that costs no more of the other kind than misjudging nothing here costs.
        """

        def bound(misjudged: float) -> float:
            return upper_bound(misjudged, self.independent, confidence, self.grouped)

        allowed = bisect_right(self.misjudged, target, key=bound)
        proven = bound(self.misjudged[allowed - 1] if allowed else 0)
        needed = images_needed(target, confidence)
        kept = proven <= target
        threshold = self._threshold(allowed, halfway=kept)
        return threshold, Promise(self.rate, target, confidence, proven, kept, self.independent, needed, self.grouped)

    def _threshold(self, allowed: int, halfway: bool) -> float:
        """Misjudges the first `allowed` images; `halfway` to the next score on the cautious side, or right at it."""
        if allowed == len(self.scores):
            return ABOVE_ALL if self.direction < 0 else 0.0
        first_right = self.scores[allowed]
        position = int(np.searchsorted(self.all, first_right))
        if self.direction < 0:
            if not position:
                return float(first_right) / 2
            following = self.all[position - 1]
            return float(_between(following, first_right) if halfway else np.nextafter(following, 1))
        if position + 1 == len(self.all):
            return float(_between(first_right, ABOVE_ALL))
        following = self.all[position + 1]
        return float(_between(first_right, following) if halfway else following)


def _best_threshold(settings: DecisionSettings, scores: np.ndarray, defective: np.ndarray, odds: float) -> float:
    """The threshold with the most F1 or the least cost, or with the most recall among those of enough precision.

    A defect counts `odds` times. Of equally good ones that nearest to where it would be if the probabilities were
    right.
    """
    levels = np.unique(scores)
    thresholds = np.concatenate([[0.0], _between(levels[:-1], levels[1:]), [ABOVE_ALL]])
    caught = odds * (defective.sum() - np.searchsorted(np.sort(scores[defective]), thresholds))
    rejected = (~defective).sum() - np.searchsorted(np.sort(scores[~defective]), thresholds)
    missed = odds * defective.sum() - caught
    expected = 0.5
    if settings.policy == "f1":
        worth = 2 * caught / (2 * caught + rejected + missed)
    elif settings.policy == "cost":
        worth = -(settings.escape_cost * missed + settings.overkill_cost * rejected)
        expected = settings.overkill_cost / (settings.escape_cost + settings.overkill_cost)
    else:
        precision = np.where(caught + rejected, caught / np.maximum(caught + rejected, odds), 0)
        worth = np.where(precision >= settings.target, 1 + caught, precision)
    best = thresholds[worth >= worth.max() - 1e-12]
    return float(best[np.abs(best - expected).argmin()])


def _between(low: np.ndarray | float, high: np.ndarray | float) -> np.ndarray:
    """A threshold above `low` and not above `high`, halfway where floats allow."""
    middle = (np.asarray(low) + high) / 2
    return np.where(middle > low, middle, high)


def _divergence(mean: float, risk: float) -> float:
    """Kullback-Leibler divergence of two coins."""

    def term(p: float, q: float) -> float:
        return p * math.log(p / q) if p > 0 else 0.0

    return term(mean, risk) + term(1 - mean, 1 - risk)


def _name(settings: DecisionSettings) -> str:
    """The policy as one types it."""
    words: dict[str, Callable[[], str]] = {
        "recall": lambda: f"recall>={settings.target:g}",
        "precision": lambda: f"precision>={settings.target:g}",
        "fpr": lambda: f"fpr<={settings.target:g}",
        "cost": lambda: f"cost, an escape {settings.escape_cost:g}, a false reject {settings.overkill_cost:g}",
        "review": lambda: f"review, escape<={settings.escape_rate:g}, overkill<={settings.overkill_rate:g}",
    }
    return words.get(settings.policy, lambda: settings.policy)()
