"""The audit's page and its words: what is wrong with a set of images, gravest first."""

from pathlib import Path
from typing import Any

import pandas as pd

from defectcls.data.images import Depth
from defectcls.pages.blocks import Page, Photo, Photos, Table, section, text
from defectcls.pages.photos import thumbnail_files
from defectcls.pages.wording import plural

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
SHOWN = 36  # pairs, labels and rows of each kind; audit.csv has all
THUMBNAIL = 200  # pixels


def summarise(
    name: str, samples: pd.DataFrame, findings: pd.DataFrame, balance: pd.DataFrame, leaks: int, notes: list[str]
) -> dict[str, Any]:
    """What audit.json says of the images; `verdict` is a list of sentences, gravest first.

    `findings` are as in audit.csv, `balance` has images by class and part, `leaks` is the number of sets of copies and
    near-identical images that stand on both sides of the split, and `notes` say what could not be done, and why.
    """
    counts = {kind: int((findings["kind"] == kind).sum()) for kind in KINDS}
    pairs = findings[findings["kind"].isin(PAIRED)]
    across = int((pairs["label"] != pairs["other_label"]).sum())
    # the pairs that tie images together are as few as can be: each set has one image more than pairs
    tied = {kind: pairs[pairs["kind"] == kind][["path", "other"]] for kind in PAIRED}
    groups = {kind: len(set(one.to_numpy().ravel())) - len(one) for kind, one in tied.items()}
    copies, near, doubted, unreadable = (counts[kind] for kind in (*PAIRED, "wrong_label", "unreadable"))
    verdict = {
        f"{plural(leaks, 'set')} of copies {'stands' if leaks == 1 else 'stand'} on both sides of the split: what is "
        "measured on it is too good.": leaks,
        "No image, nor a copy of it, stands on both sides of the split.": not leaks and len(pairs),
        f"{plural(across, 'pair')} of copies or near-identical images carry different labels.": across,
        f"{plural(doubted, 'label')} of {len(samples)} may be wrong: look at them.": doubted,
        f"{copies} redundant {'copy' if copies == 1 else 'copies'} of {plural(groups['identical'], 'image')}.": copies,
        f"{near + groups['near_identical']} images are near-identical to another.": near,
        f"{plural(unreadable, 'file')} of {len(samples)} cannot be read.": unreadable,
        "A property of the files tells the classes apart: a model may learn that and not the defect.": counts[
            "short_cut"
        ],
    }
    said = [words for words, needed in verdict.items() if needed]
    return {
        "dataset": name,
        "images": len(samples),
        "verdict": [*(said or ["No copies, no leaks and no unreadable files were found."]), *notes],
        "leaks": leaks,
        "across_classes": across,
        "counts": counts,
        "groups": groups,
        "balance": balance.to_dict("records"),
    }


def audit_page(summary: dict[str, Any], findings: pd.DataFrame, root: Path, depth: Depth) -> Page:
    """The page; thumbnails are read from `root`."""
    counts, balance = summary["counts"], pd.DataFrame(summary["balance"])
    by_kind = {kind: findings[findings["kind"] == kind].head(SHOWN).to_dict("records") for kind in KINDS}
    pairs, doubted = findings[findings["kind"].isin(PAIRED)].head(SHOWN).to_dict("records"), by_kind["wrong_label"]
    paths = [*(row[side] for row in pairs for side in ("path", "other")), *(row["path"] for row in doubted)]
    files = thumbnail_files(paths, root, THUMBNAIL, depth)
    photos = [
        Photo(files[row["path"]], "", f"{row['label']} → {row['other_label']}", [row["detail"], row["path"]])
        for row in doubted
    ]
    across = f"Across the split first, then across classes. {_of_all(pairs, sum(counts[kind] for kind in PAIRED))}"
    credible = "Least credible first: what the image is called, and what a model that learnt from the others calls it. "
    blocks = [
        text(*summary["verdict"], look="verdict", terminal=True),
        section(
            "What was found",
            Table([(KINDS[kind], n) for kind, n in counts.items() if n], ["", "findings"], terminal=(99, 2)),
        ),
        section("Where the images stand", Table(balance.to_numpy().tolist(), balance.columns.tolist())),
        section(
            "Copies and near-identical images",
            text(across, look="note"),
            Photos([_pair(row, files) for row in pairs]),
        ),
        section(
            "Labels that are likely wrong",
            text(credible + _of_all(doubted, counts["wrong_label"]), look="note"),
            Photos(photos),
        ),
    ]
    for kind, rows in by_kind.items():
        if kind not in (*PAIRED, "wrong_label"):
            table = Table([(row["path"] or row["label"], row["detail"]) for row in rows], words=True)
            more = _of_all(rows, counts[kind]) if len(rows) < counts[kind] else ""
            blocks.append(section(KINDS[kind][0].upper() + KINDS[kind][1:], table, text(more, look="note")))
    return Page("Audit of the images", f"{summary['dataset']} · {summary['images']} images", blocks)


def _pair(row: dict[Any, Any], files: dict[str, list[bytes]]) -> Photo:
    """In what the two differ stands first, in alarm."""
    differ, alike = [], [row["kind"].replace("_", "-")]
    for one, other, both in ((row["split"], row["other_split"], "both in "), (row["label"], row["other_label"], "")):
        if one != other:
            differ.append(f"{one} and {other}")
        elif one:
            alike.append(both + one)
    names, kind = [row["path"], row["other"]], "alarm" if differ else ""
    return Photo(files[names[0]] + files[names[1]], " · ".join(differ), " · ".join(alike), names, kind)


def _of_all(rows: list[Any], count: int) -> str:
    return f"{len(rows)} of {count} are shown; audit.csv has all."
