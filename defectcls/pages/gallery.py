"""The gallery: one page of predicted photos, those most likely to be defective first."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from defectcls.data.threads import map_in_threads
from defectcls.evaluation.predictions import ACCEPT, REJECT, REVIEW
from defectcls.pages.page import render_page
from defectcls.pages.pictures import thumbnail_files
from defectcls.pages.wording import decision_words, not_promised, number

HANDLED = {REJECT: "rejected", REVIEW: "for a person", ACCEPT: "accepted"}  # the worst first
THUMBNAIL = 240  # pixels; 10,000 of them make a page of 90 MB, which a browser shows within ten seconds
FACTS = ("checkpoint", "input", "date", "commit", "hardware")


def render_gallery(
    shown: pd.DataFrame, unreadable: pd.DataFrame, root: Path, summary: dict[str, Any], heat: dict[str, np.ndarray]
) -> str:
    """The page as text; thumbnails are read from `root`.

    Args:
        shown: predicted photos in the order of the page: path, decision, prediction, score.
        unreadable: path and error of photos that could not be read, all or the first of them.
        summary: what summary.json says of the whole input; its counts are of all photos, shown or not.
        heat: of paths, (side, side) from 0 to 1: what speaks for a defect.
    """
    paths = shown["path"].unique()

    def files(path: str) -> list[bytes]:
        return thumbnail_files(root / path, THUMBNAIL, summary["depth"], heat.get(path))

    return render_page(
        "gallery",
        {},
        summary=summary,
        outcome=outcome_words(summary),
        caveats=not_promised(summary["decision"]),
        decision=decision_words(summary["decision"]),
        photos=shown[["path", "decision", "prediction", "score"]].to_dict("records"),
        handled=HANDLED,
        kinds=[(each, words, count) for each, words in HANDLED.items() if (count := (shown["decision"] == each).sum())],
        telling=sorted(summary["defective_classes"]) != [False, True],  # of two the decision says which class it is
        thumbnails=dict(zip(paths, map_in_threads(files, paths), strict=True)),
        heated=bool(heat),
        score=_score,
        unreadable=list(unreadable[["path", "error"]].itertuples(index=False)),
        facts=_facts(summary),
    )


def outcome_words(summary: dict[str, Any]) -> str:
    """How many photos were accepted, rejected, left to a person, and not read: one sentence."""
    unreadable, read = summary["unreadable"], sum(summary[decision] for decision in HANDLED)
    if not read and unreadable == 1:
        return "The one photo could not be read."
    if not read:
        return f"Not one of {_photos(unreadable)} could be read." if unreadable else "There were no photos."
    review = f"{summary[REVIEW]:,} for a person to look at, " if summary[REVIEW] else ""
    failed = f"; {unreadable:,} could not be read" if unreadable else ""
    return f"{_photos(read)}: {summary[ACCEPT]:,} accepted, {review}{summary[REJECT]:,} rejected{failed}."


def _score(score: float) -> str:
    return "> 0.999" if 0.9995 <= score < 1 else "< 0.001" if 0 < score < 0.0005 else f"{score:.3f}"


def _photos(count: int) -> str:
    return f"{count:,} photo" if count == 1 else f"{count:,} photos"


def _facts(summary: dict[str, Any]) -> dict[str, Any]:
    facts = {name: summary[name] for name in FACTS}
    facts["time"] = f"{number(summary['seconds'], 1)} s, {number(summary['images_per_second'], 1)} photos per second"
    facts["versions"] = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    return {name: value for name, value in facts.items() if value not in (None, "")}
