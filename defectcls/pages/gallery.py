"""The gallery: one page of predicted photos, those most likely to be defective first."""

from pathlib import Path
from typing import Any

import pandas as pd

from defectcls.data.samples import counted
from defectcls.evaluation.predictions import ACCEPT, REJECT, REVIEW
from defectcls.pages.blocks import Page, Photo, Photos, Section, Table, Text, making
from defectcls.pages.photos import Heat, thumbnail_files
from defectcls.pages.wording import decision_words, not_promised, number, plural, unlike_words

KINDS = {REJECT: ("alarm", "rejected"), REVIEW: ("doubt", "for a person"), ACCEPT: ("calm", "accepted")}
THUMBNAIL = 240  # pixels; 10,000 of them make a page of 90 MB, which a browser shows within ten seconds


def gallery_page(
    shown: pd.DataFrame, unreadable: pd.DataFrame, root: Path, summary: dict[str, Any], heat: Heat | None = None
) -> Page:
    """The page; thumbnails are read from `root`, and stand beside their `Heat`.

    Args:
        shown: predicted photos in the order of the page: path, decision, prediction, score, cause.
        unreadable: path and error of photos that could not be read, all or the first of them.
        summary: what summary.json says of the whole input; its counts are of all photos, shown or not.
    """
    files = thumbnail_files(shown["path"], root, THUMBNAIL, summary["depth"], heat)
    telling = sorted(summary["defective_classes"]) != [False, True]  # of two the decision says which class it is
    photos = []
    for row in shown.to_dict("records"):
        kind, title = KINDS[row["decision"]]
        told = [number(row["score"]), row["prediction"] * telling, row["cause"]]
        caption = "".join(f"· {one} " for one in told if one).strip()
        photos.append(Photo(files[row["path"]], title, caption, [row["path"]], kind))
    decision, read = summary["decision"], sum(summary[one] for one in KINDS)
    review = f"{summary[REVIEW]:,} for a person to look at, " if summary[REVIEW] else ""
    failed = f"; {summary['unreadable']:,} could not be read" if summary["unreadable"] else ""
    counts = f"{summary[ACCEPT]:,} accepted, {review}{summary[REJECT]:,} rejected{failed}"
    left_out = f"beside the photos: {counted(summary['left_out'])}" if summary["left_out"] else ""
    speed = summary["images_per_second"]  # None of watching
    took = f"{summary['seconds']:.1f} s, {speed:.1f} photos per second" if speed else ""
    hot = "Beside a photo what speaks for a defect, from nothing to its strongest point." if heat else ""
    some = f"{len(photos):,} of {read:,} photos are shown; {summary['output']} has all." if len(photos) < read else ""
    score = "What is unlike all that was measured comes first, then the highest score, the probability of a defect."
    drift, table = unlike_words(summary["unlike"]), f"table: {summary['output']}"
    calm = bool(summary["unlike"]) and not summary["unlike"]["since"]
    reasons = Table(unreadable[["path", "error"]].to_numpy().tolist(), ["path", "reason"], words=True, terminal=True)
    lost = f"Photos that could not be read ({len(unreadable)} of {summary['unreadable']:,} are shown)"
    blocks = [
        Text(f"{plural(read, 'photo')}: {counts}.", look="verdict", terminal=True),
        Text(*not_promised(decision), "" if calm else drift, look="caveats", terminal=True),
        Text(*decision_words(decision), drift if calm else "", left_out, took, table, look="note", terminal=True),
        Section("The photos", Text(some, score, hot, look="note"), Photos(photos)),
        Section(lost, reasons),
        making(summary),
    ]
    return Page(f"Predictions by {summary['model']}, trained on {summary['dataset']}", summary["input"], blocks)
