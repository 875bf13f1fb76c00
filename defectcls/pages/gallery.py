"""The gallery: one page of predicted photos, those most likely to be defective first."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from defectcls.data.samples import counted
from defectcls.evaluation.predictions import ACCEPT, REJECT, REVIEW
from defectcls.pages.blocks import Page, Photo, Photos, Section, Table, Text
from defectcls.pages.photos import thumbnail_files
from defectcls.pages.wording import decision_words, not_promised, number, plural

KINDS = {REJECT: "alarm", REVIEW: "doubt", ACCEPT: "calm"}
WORDS = {"alarm": "rejected", "doubt": "for a person", "calm": "accepted"}  # the worst first
THUMBNAIL = 240  # pixels; 10,000 of them make a page of 90 MB, which a browser shows within ten seconds
TOLD = 3  # photos that could not be judged, in the terminal; the table has all


def gallery_page(
    shown: pd.DataFrame,
    unreadable: pd.DataFrame,
    root: Path,
    summary: dict[str, Any],
    heat: dict[str, np.ndarray] | None = None,
) -> Page:
    """The page; thumbnails are read from `root`.

    Args:
        shown: predicted photos in the order of the page: path, decision, prediction, score.
        unreadable: path and error of photos that could not be read, all or the first of them.
        summary: what summary.json says of the whole input; its counts are of all photos, shown or not.
        heat: of paths, (side, side) from 0 to 1: what speaks for a defect.
    """
    files = thumbnail_files(shown["path"], root, THUMBNAIL, summary["depth"], heat)
    telling = sorted(summary["defective_classes"]) != [False, True]  # of two the decision says which class it is
    photos = [
        Photo(
            files[row["path"]],
            WORDS[KINDS[row["decision"]]],
            f"· {_score(row['score'])}" + f" · {row['prediction']}" * telling,
            [row["path"]],
            KINDS[row["decision"]],
        )
        for row in shown.to_dict("records")
    ]
    read = sum(summary[decision] for decision in KINDS)
    note = "The score is the probability of being defective."
    if len(photos) < read:
        more = f"{len(photos):,} of {read:,} photos are shown, the highest scores first"
        note = f"{more}; {summary['output']} has all. {note}"
    if heat:
        note += " Beside a photo where the model sees what speaks for a defect, each map from nothing to its own "
        note += "strongest point."
    failed = list(unreadable[["path", "error"]].itertuples(index=False, name=None))
    more = f"{len(failed)} of {summary['unreadable']:,} are shown; {summary['output']} has all."
    facts = {name: summary[name] for name in ("checkpoint", "input", "date", "commit", "hardware")}
    if speed := summary["images_per_second"]:  # none where a folder was watched
        facts["speed"] = f"{number(summary['seconds'], 1)} s, {number(speed, 1)} photos per second"
    facts["versions"] = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    made = [(name, value) for name, value in facts.items() if value not in (None, "")]
    told = [f"beside the photos: {counted(summary['left_out'])}"] if summary["left_out"] else []
    told += [*([facts["speed"]] if speed else []), f"table: {summary['output']}"]
    return Page(
        f"Predictions by {summary['model']}, trained on {summary['dataset']}",
        summary["input"],
        [
            Text([outcome_words(summary)], "verdict", terminal=True),
            Text(not_promised(summary["decision"]), "caveats", terminal=True),
            Text([*decision_words(summary["decision"]), *told], "note", terminal=True),
            Section([Text([note], "note"), Photos(photos, WORDS)], "The photos, highest scores first"),
            Section(
                [
                    Text([more] if len(failed) < summary["unreadable"] else [], "note"),
                    Table(failed, ["path", "reason"], words=True, terminal=(TOLD, 2)),
                ],
                "Photos that could not be read",
            ),
            Section([Table(made, words=True), Text([summary["command"]], "code")], "How it was made", folded=True),
        ],
        broad=True,
    )


def outcome_words(summary: dict[str, Any]) -> str:
    """How many photos were accepted, rejected, left to a person, and not read: one sentence."""
    unreadable, read = summary["unreadable"], sum(summary[decision] for decision in KINDS)
    if not read:
        return f"{plural(unreadable, 'photo')} could not be read." if unreadable else "There were no photos."
    review = f"{summary[REVIEW]:,} for a person to look at, " if summary[REVIEW] else ""
    failed = f"; {unreadable:,} could not be read" if unreadable else ""
    return f"{plural(read, 'photo')}: {summary[ACCEPT]:,} accepted, {review}{summary[REJECT]:,} rejected{failed}."


def _score(score: float) -> str:
    return "> 0.999" if 0.9995 <= score < 1 else "< 0.001" if 0 < score < 0.0005 else f"{score:.3f}"
