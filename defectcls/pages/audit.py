"""The audit's page and its words: what is wrong with a set of images, gravest first."""

from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from defectcls.data.images import Depth
from defectcls.pages.page import render_page
from defectcls.pages.pictures import thumbnail_files

KINDS = {  # in the order of the page: what each finding means
    "identical": "identical files: the same bytes under another name",
    "near_identical": "pairs of near-identical images: re-encoded, brightened, flipped or slightly shifted",
    "wrong_label": "labels that are likely wrong",
    "short_cut": "file properties that give the class away",
    "unreadable": "files that cannot be read",
    "further_pages": "files of several pages, of which only the first is looked at",
    "constant": "images without variation",
    "odd_size": "images of an unusual size",
    "odd_mode": "images of an unusual mode",
    "mask_misfit": "masks that do not fit their image",
    "few_images": "classes of few images",
    "imbalance": "lopsided classes",
}
PAIRED = ("identical", "near_identical")
SHOWN_PAIRS, SHOWN_LABELS, SHOWN_ROWS = 24, 36, 40  # on the page; audit.csv has all
THUMBNAIL = 200  # pixels


def summarise(
    name: str, samples: pd.DataFrame, findings: pd.DataFrame, balance: pd.DataFrame, leaks: int, notes: list[str]
) -> dict[str, Any]:
    """What audit.json says of the images; `verdict` is a list of sentences, gravest first.

    Args:
        samples: labelled sample table with its split.
        findings: as in audit.csv.
        balance: images by class and part.
        leaks: sets of copies and near-identical images that stand on both sides of the split.
        notes: what could not be done, and why.
    """
    counts = {kind: int((findings["kind"] == kind).sum()) for kind in KINDS}
    pairs = findings[findings["kind"].isin(PAIRED)]
    across_classes = int((pairs["label"] != pairs["other_label"]).sum())
    groups = {kind: _sets(pairs[pairs["kind"] == kind]) for kind in PAIRED}
    return {
        "dataset": name,
        "images": len(samples),
        "verdict": [*_verdict(len(samples), counts, groups, leaks, across_classes), *notes],
        "leaks": leaks,
        "across_classes": across_classes,
        "counts": counts,
        "groups": groups,
        "balance": balance.to_dict("records"),
    }


def render_audit(
    summary: dict[str, Any], findings: pd.DataFrame, balance: pd.DataFrame, root: Path, depth: Depth
) -> str:
    """The page as text; thumbnails are read from `root`."""
    by_kind = {kind: findings[findings["kind"] == kind] for kind in KINDS}
    pairs = findings[findings["kind"].isin(PAIRED)].head(SHOWN_PAIRS)
    doubted = by_kind["wrong_label"].head(SHOWN_LABELS)
    shown = pd.concat([pairs["path"], pairs["other"], doubted["path"]]).unique()
    others = {
        kind: [(row.path or row.label, row.detail) for row in rows.head(SHOWN_ROWS).itertuples()]
        for kind, rows in by_kind.items()
        if kind not in (*PAIRED, "wrong_label") and len(rows)
    }
    return render_page(
        "audit",
        {},
        thumbnails={path: thumbnail_files(root / path, THUMBNAIL, depth) for path in shown},
        summary=summary,
        kinds=KINDS,
        pairs=pairs.to_dict("records"),
        doubted=doubted.to_dict("records"),
        others=others,
        balance=(list(balance.columns), balance.to_numpy().tolist()),
    )


def print_audit(summary: dict[str, Any], folder: Path) -> None:
    """Counts, verdict and where the page lies, on stdout."""
    table = Table("", "findings", title=f"{summary['dataset']} · {summary['images']} images")
    for kind, count in summary["counts"].items():
        if count:
            table.add_row(KINDS[kind], str(count))
    console = Console(soft_wrap=True, highlight=False)
    console.print(table)
    for sentence in summary["verdict"]:
        console.print(sentence, markup=False)
    console.print(f"page: {folder / 'audit.html'}", markup=False)


def _verdict(images: int, counts: dict[str, int], groups: dict[str, int], leaks: int, across: int) -> list[str]:
    sentences = []
    if leaks:
        stand = "set of copies stands" if leaks == 1 else "sets of copies stand"
        sentences.append(f"{leaks} {stand} on both sides of the split: what is measured on it is too good.")
    elif counts["identical"] or counts["near_identical"]:
        sentences.append("No image, nor a copy of it, stands on both sides of the split.")
    if across:
        sentences.append(f"{_count(across, 'pair')} of copies or near-identical images carry different labels.")
    if counts["wrong_label"]:
        sentences.append(f"{_count(counts['wrong_label'], 'label')} of {images} may be wrong: look at them.")
    if counts["identical"]:
        copies = "copy" if counts["identical"] == 1 else "copies"
        sentences.append(f"{counts['identical']} redundant {copies} of {_count(groups['identical'], 'image')}.")
    if near := counts["near_identical"]:
        sentences.append(f"{near + groups['near_identical']} images are near-identical to another.")
    if counts["unreadable"]:
        sentences.append(f"{_count(counts['unreadable'], 'file')} of {images} cannot be read.")
    if counts["short_cut"]:
        sentences.append("A property of the files tells the classes apart: a model may learn that and not the defect.")
    return sentences or ["No copies, no leaks and no unreadable files were found."]


def _sets(pairs: pd.DataFrame) -> int:
    """How many sets the pairs tie together: they are as few as can be, so each set has one image more than pairs."""
    return pd.concat([pairs["path"], pairs["other"]]).nunique() - len(pairs)


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
