"""The audit: every fault that was planted is named, and the exit status says whether the split leaks."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from defectcls.data.findings import Finding, balance, table_of
from defectcls.errors import UserError
from defectcls.files import digest_of
from defectcls.model.head import doubt_labels
from defectcls.pages.audit import audit_page, summarise
from defectcls.pages.render import render_html
from defectcls.training import inspection
from defectcls.training.settings import AuditSettings
from tests.conftest import Outcome, command, composed, sentence


class Audit(NamedTuple):
    outcome: Outcome
    findings: pd.DataFrame
    summary: dict
    page: str

    def of(self, kind: str) -> list[tuple]:
        """Path, other and detail of the findings of one kind."""
        rows = self.findings[self.findings["kind"] == kind]
        return list(rows[["path", "other", "detail"]].itertuples(index=False, name=None))


def surface(path: Path, seed: int, side: int = 80) -> Path:
    """A rough grey surface of its own."""
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(side, side)), 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((128 + 25 * noise / noise.std()).clip(0, 255).astype(np.uint8)).convert("RGB").save(path)
    return path


def photos(root: Path, good: int = 40, bad: int = 30) -> Path:
    """Sound photos of the seeds from 0 on, defective ones of the seeds from 1000 on."""
    for number in range(good):
        surface(root / "good" / f"{number:02d}.png", number)
    for number in range(bad):
        surface(root / "bad" / f"{number:02d}.png", 1000 + number)
    return root


def audited(folder: Path, *arguments: str) -> Audit:
    """An audit without a model, unless the arguments say otherwise."""
    outcome = command("audit", "audit.wrong_labels=false", *arguments, f"hydra.run.dir={folder}")
    if outcome.code == 2:
        return Audit(outcome, pd.DataFrame(), {}, "")
    findings = pd.read_csv(folder / "audit.csv", keep_default_na=False)
    page = (folder / "audit.html").read_text(encoding="utf-8")
    return Audit(outcome, findings, json.loads((folder / "audit.json").read_text()), page)


def of_folder(root: Path, tmp_path: Path, *arguments: str) -> Audit:
    return audited(tmp_path / "run", "dataset=folder", f"dataset.root={root}", *arguments)


# --- each fault -------------------------------------------------------------------------------------------------------


def test_a_clean_set_has_no_findings(tmp_path: Path) -> None:
    found = of_folder(photos(tmp_path / "photos"), tmp_path, "evaluation=holdout")
    assert found.outcome.code == 0, found.outcome
    assert found.findings.empty
    assert found.summary["verdict"] == [
        "No image, nor a copy of it, stands on both sides of the split.",
        "Wrong labels were not looked for: audit.wrong_labels=false",
    ]
    assert found.summary["balance"] == [
        {"label": "defective", "train": 20, "val": 4, "test": 6, "all": 30},
        {"label": "sound", "train": 26, "val": 6, "test": 8, "all": 40},
    ]
    assert found.summary["versions"]["python"]


def test_every_fault_is_named_once(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos")
    (root / "bad" / "copy.png").write_bytes((root / "good" / "03.png").read_bytes())
    Image.open(root / "good" / "05.png").save(root / "good" / "again.jpg", quality=60)
    (root / "good" / "cut.jpg").write_bytes((root / "good" / "again.jpg").read_bytes()[:500])
    Image.new("RGB", (80, 80), (90, 90, 90)).save(root / "good" / "flat.png")
    for beside in ("notes.txt", "good/README", "bad/.hidden"):
        (root / beside).touch()
    found = of_folder(root, tmp_path)
    assert found.outcome.code == 0, found.outcome
    assert found.of("identical") == [("good/03.png", "bad/copy.png", "")]
    ((one, other, _),) = found.of("near_identical")
    assert {one, other} == {"good/05.png", "good/again.jpg"}
    assert [path for path, _, _ in found.of("unreadable")] == ["good/cut.jpg"]
    assert found.of("plain") == [("good/flat.png", "", "")]
    assert found.summary["counts"] == found.findings["kind"].value_counts().to_dict() | {"wrong_label": 0}
    assert found.summary["across_classes"] == 1
    copy = found.findings.iloc[0]  # the gravest first
    assert (copy["kind"], copy["label"], copy["other_label"]) == ("identical", "sound", "defective")
    assert copy["split"] == copy["other_split"] != ""
    assert "1 pair of copies or near-identical images carry different labels." in found.summary["verdict"]
    assert found.summary["left_out"] == {".txt": 1, "without suffix": 1}


@pytest.mark.slow
def test_the_split_of_the_audit_is_the_one_that_train_makes(tmp_path: Path, tiny: list[str]) -> None:
    assert command("train", *tiny, "evaluation=holdout", f"hydra.run.dir={tmp_path / 'trained'}").code == 0
    trained = pd.read_csv(tmp_path / "trained" / "predictions.csv")
    found = audited(tmp_path / "run", *tiny, "evaluation=holdout")
    assert found.outcome.code == 0, found.outcome
    counts = pd.DataFrame(found.summary["balance"])[["train", "val", "test"]].sum().to_dict()
    assert counts == trained["split"].value_counts().to_dict()


def test_of_a_set_that_train_does_not_split_the_folds_are_shown(tmp_path: Path) -> None:
    found = of_folder(photos(tmp_path / "photos"), tmp_path)
    assert found.outcome.code == 0, found.outcome
    assert found.summary["verdict"][1].startswith("train validates out of fold: ")
    folds = [f"fold {number}" for number in range(5)]
    for row, count in zip(found.summary["balance"], (30, 40), strict=True):
        assert [*row] == ["label", *folds, "all"]
        assert [row[fold] for fold in folds] == [count / 5] * 5


# --- the exit status --------------------------------------------------------------------------------------------------


def with_copies(root: Path) -> Path:
    """20 of the 40 sound photos twice: ten byte for byte, ten re-encoded."""
    photos(root)
    for number in range(20):
        source = root / "good" / f"{number:02d}.png"
        if number % 2:
            (root / "good" / f"copy_{number:02d}.png").write_bytes(source.read_bytes())
        else:
            Image.open(source).save(root / "good" / f"again_{number:02d}.jpg", quality=60)
    return root


def test_status_is_0_where_copies_stand_together_and_1_where_they_do_not(tmp_path: Path) -> None:
    root = with_copies(tmp_path / "photos")
    kept = of_folder(root, tmp_path)
    assert (kept.outcome.code, kept.summary["leaks"]) == (0, 0)
    assert "No image, nor a copy of it, stands on both sides of the split." in kept.summary["verdict"]
    leaking = of_folder(root, tmp_path, "dataset.split.together=[]")
    pairs = leaking.findings[leaking.findings["other"] != ""]
    across = int((pairs["split"] != pairs["other_split"]).sum())
    assert leaking.outcome.code == 1
    assert leaking.summary["leaks"] == across > 3
    assert (pairs["split"] != pairs["other_split"]).tolist() == [True] * across + [False] * (20 - across)
    assert leaking.summary["verdict"][0].startswith(f"Copies on both sides of the split: {across} sets; ")
    for kind in ("identical", "near_identical"):
        alone = of_folder(root, tmp_path, f"dataset.split.together=[{kind}]")
        pairs = alone.findings[alone.findings["split"] != alone.findings["other_split"]]
        assert alone.outcome.code == 1
        assert kind not in set(pairs["kind"])


@pytest.mark.slow
def test_one_class_is_still_searched_for_copies(tmp_path: Path) -> None:
    root = with_copies(tmp_path / "photos")
    for image in (root / "bad").iterdir():
        image.unlink()
    (root / "bad").rmdir()
    found = of_folder(root, tmp_path, "audit.wrong_labels=true", "model.pretrained=false")
    assert found.outcome.code == 0, found.outcome
    assert (len(found.of("identical")), len(found.of("near_identical"))) == (10, 10)
    assert found.summary["verdict"][-1].startswith("Wrong labels were not looked for: a classifier needs two classes")


def test_nothing_that_can_be_read(tmp_path: Path) -> None:
    for name in ("good", "bad"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(3):
            (tmp_path / "photos" / name / f"{number}.jpg").write_bytes(f"{name} {number}".encode())
    said = sentence(of_folder(tmp_path / "photos", tmp_path).outcome)
    assert said.startswith("6 of 6 images cannot be read: bad/0.jpg (not an image)")


def test_mistakes_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "holds no class folders" in sentence(of_folder(tmp_path / "empty", tmp_path).outcome)
    assert "does not exist" in sentence(of_folder(tmp_path / "nowhere", tmp_path).outcome)
    together = of_folder(photos(tmp_path / "photos", 3, 3), tmp_path, "dataset.split.together=[twins]").outcome
    assert sentence(together).startswith("dataset.split.together")


@pytest.mark.slow
def test_missing_weights_cost_the_wrong_labels_and_nothing_else(tmp_path: Path) -> None:
    root = with_copies(tmp_path / "photos")
    found = of_folder(root, tmp_path, "audit.wrong_labels=true", f"model.weights={tmp_path / 'nowhere'}")
    assert found.outcome.code == 0, found.outcome
    assert len(found.of("identical")) == 10
    assert found.summary["verdict"][-1].startswith("Wrong labels were not looked for: model.weights=")


# --- wrong labels -----------------------------------------------------------------------------------------------------


def test_flipped_labels_are_doubted_and_related_images_do_not_vouch_for_each_other() -> None:
    """Two clouds that hardly overlap; each point stands twice, and both copies of twelve are called wrongly."""
    rng = np.random.default_rng(0)
    truth = np.repeat([0, 1], 100)
    features = np.repeat(rng.normal(size=(200, 30)) + 1.2 * truth[:, None], 2, axis=0).astype(np.float32)
    flipped = rng.choice(200, 12, replace=False)
    called = truth.copy()
    called[flipped] = 1 - called[flipped]
    units = np.repeat(np.arange(200), 2)
    doubted, probabilities = doubt_labels(features, np.repeat(called, 2), units, folds=5, c=0.01, seed=0)
    expected, of_label = np.isin(units, flipped), probabilities[np.arange(400), np.repeat(called, 2)]
    assert expected[of_label.argsort()[:24]].mean() > 0.9
    assert (np.diff(of_label[doubted]) >= 0).all()
    assert expected[doubted].sum() >= 22
    assert (~expected[doubted]).sum() <= 2
    assert np.allclose(probabilities.sum(axis=1), 1)
    assert np.array_equal(probabilities[::2], probabilities[1::2])  # copies were in one fold


def test_a_class_that_cannot_stand_in_every_fold_is_a_sentence() -> None:
    features = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    targets = np.array([0] * 36 + [1] * 4)
    with pytest.raises(UserError, match="^audit.folds=5, but the smallest class has 4 independent images$"):
        doubt_labels(features, targets, np.arange(40), folds=5, c=0.01, seed=0)


@pytest.mark.realdata
def test_wrong_labels_that_were_planted_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of_label: list[np.ndarray] = []

    def recorded(features: np.ndarray, targets: np.ndarray, *given: Any) -> Any:
        doubted, probabilities = doubt_labels(features, targets, *given)
        of_label.extend(probabilities[np.arange(len(targets)), targets])
        return doubted, probabilities

    monkeypatch.setattr(inspection, "doubt_labels", recorded)
    knobs = ("dataset=synthetic", f"dataset.root={tmp_path}", "dataset.wrong_labels=0.05", "trainer=cpu")
    found = audited(tmp_path / "run", *knobs, "audit.wrong_labels=true")
    samples = pd.read_csv(next(tmp_path.glob("*/samples.csv")), keep_default_na=False)
    wrong = samples["defective"] != (samples["true_defect_type"] != "sound")
    paths = set(samples["path"][wrong])
    doubted = [path for path, _, _ in found.of("wrong_label")]
    assert len(paths) == 45
    ranked = np.array(sorted(samples["path"]))[np.argsort(of_label)]
    assert len(paths & set(ranked[:90])) >= 0.8 * len(paths)  # in the first tenth of all 900
    assert len(doubted) <= 90  # a tenth of all
    assert len(paths & set(doubted)) >= 0.7 * len(paths)
    assert len(paths & set(doubted[:20])) >= 16


def test_doubted_labels_are_a_table_to_go_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = photos(tmp_path / "pho tos")
    doubted = [("bad/03.png", "defective", "sound"), ("good/01.png", "sound", "defective")]  # the least credible first
    found = [Finding("wrong_label", path, suspected=other) for path, _, other in doubted]
    monkeypatch.setattr("defectcls.training.inspection.find_doubted_labels", lambda *_: found)
    said = of_folder(root, tmp_path, "audit.wrong_labels=true").summary["verdict"][-1]
    rows = pd.read_csv(tmp_path / "run/doubted.csv")
    digests = [digest_of((root / path).read_bytes()).hex() for path, _, _ in doubted]
    assert list(rows.itertuples(index=False, name=None)) == [
        (path, photo, label, other) for (path, label, other), photo in zip(doubted, digests, strict=True)
    ]
    assert said == (
        f"To look at them one by one: python -m defectcls.review model=<run> input={tmp_path}/run/doubted.csv "
        f"'root={root}'"
    )


# --- the page and the table -------------------------------------------------------------------------------------------


# Five images; 0-1 and 2-3 copies, of which the second pair straddles; 4 unused.
FIVE = pd.DataFrame(
    {
        "path": [f"{row}.png" for row in range(5)],
        "label": ["sound", "sound", "sound", "defective", "sound"],
        "split": ["train", "train", "train", "test", "unused"],
    }
)
COPIES = [
    Finding("identical", "1.png", "0.png"),
    Finding("near_identical", "4.png", "0.png"),
    Finding("identical", "3.png", "2.png"),
]


def test_table_has_the_gravest_first_and_the_splits_of_both() -> None:
    table = table_of([*COPIES, Finding("wrong_label", "0.png", detail="why")], FIVE)
    assert table.to_numpy().tolist() == [
        ["identical", "3.png", "2.png", "test", "train", "defective", "sound", ""],
        ["identical", "1.png", "0.png", "train", "train", "sound", "sound", ""],
        ["near_identical", "4.png", "0.png", "unused", "train", "sound", "sound", ""],
        ["wrong_label", "0.png", "", "train", "", "sound", "", "why"],
    ]


def test_page_shows_what_it_is_given_and_escapes_it(tmp_path: Path) -> None:
    surface(tmp_path / "3.png", 3)
    findings = table_of([*COPIES, Finding("unreadable", "5.png", detail="<b>truncated</b>")], FIVE)
    summary = summarise("walls", findings, balance(FIVE), 1, ["a note"])
    page = render_html(audit_page(summary, findings, tmp_path, "8"))
    assert page.count("data:image/jpeg;base64,") == 1  # the only file that is there
    assert page.count("no picture") == 5
    assert "Copies on both sides of the split: 1 set; " in page
    assert "a note" in page
    assert "&lt;b&gt;truncated" in page and "<b>truncated" not in page
    assert 'src="http' not in page
    assert summary["images"] == 6


# --- real photos ------------------------------------------------------------------------------------------------------


@pytest.mark.realdata
def test_copies_among_the_concrete_patches(tmp_path: Path) -> None:
    """51 sets of byte-identical files, counted by their digests alone; 52 files more than pictures."""
    root = Path(os.environ["DEFECTCLS_DATA"]) / "concrete_crack"
    contents: dict[bytes, list[str]] = {}
    for path in root.glob("*/*.jpg"):
        contents.setdefault(path.read_bytes(), []).append(path.relative_to(root).as_posix())
    expected = {frozenset(paths) for paths in contents.values() if len(paths) > 1}
    assert len(expected) == 51
    kept = audited(tmp_path / "run", "dataset=concrete_crack")
    assert kept.outcome.code == 0, kept.outcome
    assert kept.summary["counts"]["identical"] == 52
    sets: dict[str, set[str]] = {}
    for copy, first, _ in kept.of("identical"):
        sets.setdefault(first, {first}).add(copy)
    assert {frozenset(paths) for paths in sets.values()} == expected
    leaking = audited(tmp_path / "run", "dataset=concrete_crack", "dataset.split.together=[]")
    assert leaking.outcome.code == 1
    assert leaking.summary["leaks"] > 20


def test_the_verb_composes_into_valid_settings() -> None:
    assert AuditSettings(**composed("dataset=synthetic", verb="audit")).audit.wrong_labels
