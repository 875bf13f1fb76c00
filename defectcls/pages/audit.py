"""The audit's page and its words: what is wrong with a set of images, gravest first."""

from pathlib import Path
from typing import Any

import pandas as pd

from defectcls.data.images import Depth
from defectcls.pages.blocks import Page, Photo, Photos, Section, Table, Text
from defectcls.pages.photos import thumbnail_files
from defectcls.pages.wording import plural

KINDS = {  # in the order of the page: what each finding means
    "identical": "identical files: the same bytes under another name",
    "near_identical": "pairs of near-identical images: re-encoded, brightened, flipped or slightly shifted",
    "wrong_label": "labels that are likely wrong",
    "unreadable": "files that cannot be read",
    "plain": "images whose pixels are all nearly the same",
}
SHOWN = 36  # of each kind
THUMBNAIL = 200  # pixels


def summarise(name: str, findings: pd.DataFrame, balance: pd.DataFrame, leaks: int, notes: list[str]) -> dict[str, Any]:
    """What audit.json says of the images; `verdict` is a list of sentences, gravest first.

    `findings` are as in audit.csv, `balance` has images by class and part, `leaks` is the number of sets of copies and
    near-identical images that stand on both sides of the split, and `notes` say what could not be done, and why.
    """
    counts = {kind: int((findings["kind"] == kind).sum()) for kind in KINDS}
    images, pairs = int(balance["all"].sum()) + counts["unreadable"], findings[findings["other"] != ""]
    across = int((pairs["label"] != pairs["other_label"]).sum())
    verdict = {
        f"Copies on both sides of the split: {plural(leaks, 'set')}; what is measured on it is too good.": leaks,
        "No image, nor a copy of it, stands on both sides of the split.": not leaks,
        f"{plural(across, 'pair')} of copies or near-identical images carry different labels.": across,
        f"{plural(counts['wrong_label'], 'label')} of {images} may be wrong: look at them.": counts["wrong_label"],
        f"{plural(counts['unreadable'], 'file')} of {images} cannot be read.": counts["unreadable"],
    }
    return {
        "dataset": name,
        "images": images,
        "verdict": [*(words for words, needed in verdict.items() if needed), *filter(None, notes)],
        "leaks": leaks,
        "across_classes": across,
        "counts": counts,
        "balance": balance.to_dict("records"),
    }


def audit_page(summary: dict[str, Any], findings: pd.DataFrame, root: Path, depth: Depth) -> Page:
    """The page; thumbnails are read from `root`."""
    balance = pd.DataFrame(summary["balance"])
    paired, doubted = findings["other"] != "", findings["kind"] == "wrong_label"
    pairs, labels = findings[paired].head(SHOWN), findings[doubted].head(SHOWN)
    others = findings[~paired & ~doubted].groupby("kind").head(SHOWN)[["kind", "path", "detail"]]
    files = thumbnail_files([*pairs["path"], *pairs["other"], *labels["path"]], root, THUMBNAIL, depth)
    asked = [Photo(files[path], "", detail, [path]) for path, detail in labels[["path", "detail"]].to_numpy()]
    twins = []
    for row in pairs.to_dict("records"):
        one, other = f"{row['split']} {row['label']}", f"{row['other_split']} {row['other_label']}"
        words, kind = (f"both {one}", "") if one == other else (f"{one} and {other}", "alarm")
        twins.append(Photo(files[row["path"]] + files[row["other"]], "", words, [row["path"], row["other"]], kind))
    found = [(KINDS[kind], count) for kind, count in summary["counts"].items() if count]
    shown = f"The first {SHOWN} of each kind are shown below, the gravest first; audit.csv has all."
    blocks = [
        Text(*summary["verdict"], look="verdict", terminal=True),
        Section("What was found", Table(found, ["", "findings"], terminal=True), Text(shown, look="note")),
        Section("Where the images stand", Table(balance.to_numpy().tolist(), balance.columns.tolist())),
        Section("Copies and near-identical images", Photos(twins)),
        Section("Labels that are likely wrong, by a model that learnt from the others", Photos(asked)),
        Section("Other findings", Table(others.to_numpy().tolist(), ["kind", "file", "what was found"], words=True)),
    ]
    return Page("Audit of the images", f"{summary['dataset']} · {summary['images']} images", blocks)
