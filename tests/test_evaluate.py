"""An evaluation gives the numbers of the training run again, and honest ones on other images."""

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn import metrics as sk

from defectcls.data.verdicts import VERDICTS
from defectcls.deployment.decisions import Decisions, moment
from defectcls.deployment.predictor import load
from defectcls.errors import UserError
from defectcls.model.checkpoint import load_trained
from defectcls.training.results import provenance
from tests.conftest import Outcome, command, equal, paint, sentence, weights
from tests.deployment import exported


def evaluate(folder: Path, *arguments: str) -> Outcome:
    quick = ("inspect.heat_maps=false", "inspect.robustness=false")
    return command("evaluate", *quick, *arguments, f"hydra.run.dir={folder}")


def numbers(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def table(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "predictions.csv", keep_default_na=False, float_precision="round_trip")


def part_of(folder: Path, part: str) -> pd.DataFrame:
    return table(folder).query("split == @part").reset_index(drop=True)


@pytest.mark.parametrize("checkpoint", ["", "checkpoints/best.ckpt"])
def test_test_part_comes_out_exactly_as_in_training(finished: Path, tmp_path: Path, checkpoint: str) -> None:
    assert evaluate(tmp_path, f"checkpoint={finished / checkpoint}").code == 0
    assert numbers(tmp_path)["test"] == numbers(finished)["test"]
    pd.testing.assert_frame_equal(table(tmp_path), part_of(finished, "test"), check_exact=True)


@pytest.mark.parametrize("part", ["train", "val"])
def test_other_part_comes_out_exactly_as_in_training(finished_types: Path, tmp_path: Path, part: str) -> None:
    assert evaluate(tmp_path, f"checkpoint={finished_types}", f"part={part}").code == 0
    found = numbers(tmp_path)
    assert found[part] == numbers(finished_types)[part]
    assert "test" not in found
    pd.testing.assert_frame_equal(table(tmp_path), part_of(finished_types, part), check_exact=True)


def test_all_is_every_image_of_the_dataset(finished: Path, tmp_path: Path) -> None:
    assert evaluate(tmp_path, f"checkpoint={finished}", "part=all", "seen=keep").code == 0
    found, trained = table(tmp_path), table(finished)
    assert found["path"].tolist() == trained["path"].tolist()
    assert found["score"].to_numpy() == pytest.approx(trained["score"].to_numpy(), abs=1e-5)
    counts = sum(np.array(numbers(finished)[part]["confusion_matrix"]) for part in ("train", "val", "test"))
    assert numbers(tmp_path)["test"]["confusion_matrix"] == counts.tolist()


@pytest.mark.usefixtures("no_pictures")
def test_photos_that_were_trained_on_are_said_first_and_left_out(
    finished: Path, tiny: list[str], tmp_path: Path
) -> None:
    """The own photos under another split: what the run did not measure as its test part, it has learned from."""
    again = [*(one for one in tiny if one.startswith("dataset")), "dataset.split.test=0.6", "part=test"]
    left_out = evaluate(tmp_path / "left", f"checkpoint={finished}", *again)
    kept = evaluate(tmp_path / "kept", f"checkpoint={finished}", *again, "seen=keep")
    own, test = part_of(finished, "test"), table(tmp_path / "kept")
    seen = int((~test["path"].isin(own["path"])).sum())
    assert 0 < seen < len(test)
    found = numbers(tmp_path / "left")
    assert found["seen"] == {"n": seen, "identical": seen, "near": 0, "of": len(test), "left_out": True}
    assert found["test"]["n"] == len(test) - seen
    expected = test[test["path"].isin(own["path"])].reset_index(drop=True)
    assert table(tmp_path / "left")["path"].tolist() == expected["path"].tolist()
    assert table(tmp_path / "left")["score"].tolist() == expected["score"].tolist()
    said = f"Seen before: {seen} of {len(test)} photos, learned from or chosen on, the very file; these are "
    assert f"- {said}left out, seen=keep measures them too.\n" in left_out.out
    assert f"- {said}part of the numbers: new photos will be judged worse.\n" in kept.out
    assert numbers(tmp_path / "kept")["seen"]["left_out"] is False
    assert "seen" not in numbers(finished)


@pytest.mark.usefixtures("no_pictures")
def test_copies_of_trained_photos_in_another_folder_are_known(finished: Path, tmp_path: Path) -> None:
    """Three as they are, one of them re-encoded beside it, five that are new."""
    root = torch.load(finished / "checkpoints/best.ckpt", weights_only=True)["defectcls"]["config"]["dataset"]["root"]
    trained = part_of(finished, "train")["path"][:3].tolist()
    for number in range(5):
        paint(tmp_path / f"photos/good/new_{number}.png", (20 * number, 90, 200))
    for number, path in enumerate(trained):
        (tmp_path / f"photos/good/same_{number}.jpg").write_bytes((Path(root) / path).read_bytes())
    Image.open(Path(root) / trained[0]).save(tmp_path / "photos/good/near.png")
    photos = ("dataset=folder", f"dataset.root={tmp_path / 'photos'}", "part=all")
    done = evaluate(tmp_path / "new", f"checkpoint={finished}", *photos)
    assert done.code == 0, done.err
    assert numbers(tmp_path / "new")["seen"] == {"n": 4, "identical": 3, "near": 1, "of": 9, "left_out": True}
    assert table(tmp_path / "new")["path"].tolist() == [f"good/new_{number}.png" for number in range(5)]
    said = "Seen before: 4 of 9 photos, learned from or chosen on, the very file or, 1 of them, a near copy; these"
    assert said in done.out


@pytest.mark.usefixtures("no_pictures")
def test_parts_that_are_asked_for_are_measured_and_said(finished: Path, tmp_path: Path) -> None:
    done = evaluate(tmp_path, f"checkpoint={finished}", "part=val")
    n = len(part_of(finished, "val"))
    assert numbers(tmp_path)["seen"] == {"n": n, "identical": n, "near": 0, "of": n, "left_out": False}
    assert f"- Seen before: {n} of {n} photos, learned from or chosen on, the very file; these are part of" in done.out


def test_nothing_but_photos_that_were_trained_on(finished: Path, tmp_path: Path) -> None:
    root = torch.load(finished / "checkpoints/best.ckpt", weights_only=True)["defectcls"]["config"]["dataset"]["root"]
    (tmp_path / "photos/good").mkdir(parents=True)
    for number, path in enumerate(part_of(finished, "train")["path"][:2]):
        (tmp_path / f"photos/good/{number}.jpg").write_bytes((Path(root) / path).read_bytes())
    photos = ("dataset=folder", f"dataset.root={tmp_path / 'photos'}", "part=all")
    assert sentence(evaluate(tmp_path / "new", f"checkpoint={finished}", *photos)) == (
        "the model has learned from all 2 photos, or was chosen on them: give others by dataset=<name>, or measure "
        "these with seen=keep"
    )


def test_other_images_are_measured_with_the_classes_of_the_model(finished: Path, tmp_path: Path) -> None:
    for number in range(5):
        paint(tmp_path / f"photos/good/{number}.png", (20 * number, 90, 200))
        paint(tmp_path / f"photos/dent/{number}.png", (200, 20 * number, 30))
        paint(tmp_path / f"photos/hole/{number}.png", (10, 20, 50 * number))
    photos = ("dataset=folder", f"dataset.root={tmp_path / 'photos'}", "part=all")
    done = evaluate(tmp_path / "new", f"checkpoint={finished}", "dataset.resize=pad", "dataset.depth=12", *photos)
    assert done.code == 0
    metrics, rows = numbers(tmp_path / "new"), table(tmp_path / "new")
    assert [metrics["config"]["dataset"][key] for key in ("resize", "depth")] == [
        "squash",
        "8",
    ]  # as the images were that it learnt from
    assert metrics["elsewhere"] == {"trained_on": "synthetic", "judged_on": "folder"}
    assert "Another dataset: the model was trained on synthetic and is judged on folder" in done.out
    assert rows["path"].tolist() == [f"{name}/{n}.png" for name in ("dent", "good", "hole") for n in range(5)]
    assert rows["label"].tolist() == ["defective"] * 5 + ["sound"] * 5 + ["defective"] * 5
    assert (metrics["dataset"], metrics["class_names"]) == ("folder", ["sound", "defective"])
    found = metrics["test"]
    assert found["n"] == 15
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(rows["label"], rows["prediction"]))
    assert found["auroc"] == pytest.approx(sk.roc_auc_score(rows["defective"], rows["score"]))


def test_dataset_of_one_class_is_measured_without_auroc(finished: Path, tmp_path: Path) -> None:
    for number in range(4):
        paint(tmp_path / f"photos/good/{number}.png", (20 * number, 90, 200))
    photos = ("dataset=folder", f"dataset.root={tmp_path / 'photos'}", "part=all", "decision=f1")
    assert evaluate(tmp_path / "new", f"checkpoint={finished}", *photos).code == 0
    found, rejected = numbers(tmp_path / "new")["test"], table(tmp_path / "new")["prediction"] == "defective"
    assert (found["n"], found["auroc"], found["recall"]) == (4, None, None)
    assert found["overkill_rate"] == rejected.mean()


def test_classes_that_the_model_does_not_know(finished_types: Path, tmp_path: Path) -> None:
    paint(tmp_path / "photos/sound/1.png", (0, 90, 200))
    paint(tmp_path / "photos/moth hole/1.png", (200, 0, 30))
    photos = ("dataset=folder", f"dataset.root={tmp_path / 'photos'}", "dataset.sound=sound", "part=all")
    known = ", ".join(numbers(finished_types)["class_names"])
    assert sentence(evaluate(tmp_path / "new", f"checkpoint={finished_types}", *photos)) == (
        f"the model does not know the classes moth hole, only {known}"
    )


def test_dataset_without_defect_types_for_a_model_of_them(finished_types: Path, tmp_path: Path) -> None:
    for number in range(2):
        paint(tmp_path / f"castings/ok_front/{number}.png", (20 * number, 90, 200))
        paint(tmp_path / f"castings/def_front/{number}.png", (200, 20 * number, 30))
    castings = ("dataset=casting", f"dataset.root={tmp_path / 'castings'}")
    text = sentence(evaluate(tmp_path / "new", f"checkpoint={finished_types}", *castings))
    assert text == "this dataset names no defect types: use target=defect"


@pytest.mark.slow
def test_own_images_are_no_other_dataset(finished: Path, tiny: list[str], tmp_path: Path) -> None:
    own = [one for one in tiny if one.startswith("dataset")]
    assert evaluate(tmp_path / "same", f"checkpoint={finished}", *own).code == 0
    assert "elsewhere" not in numbers(tmp_path / "same")
    others = evaluate(tmp_path / "other", f"checkpoint={finished}", *own, "dataset.data_seed=7")
    assert "Another dataset" in others.out


def test_run_without_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert sentence(evaluate(tmp_path / "new", f"checkpoint={tmp_path / 'run'}")) == (
        f"{tmp_path / 'run'} is no .ckpt or .onnx file and no run folder with checkpoints/best.ckpt"
    )


def test_checkpoint_that_does_not_exist(tmp_path: Path) -> None:
    assert sentence(evaluate(tmp_path / "new", f"checkpoint={tmp_path / 'rum'}")) == (
        f"{tmp_path / 'rum'} is no .ckpt or .onnx file and no run folder with checkpoints/best.ckpt"
    )


# --- what is computed, and where --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_an_evaluation_and_a_predictor_compute_the_same(finished: Path, tmp_path: Path, precision: Any) -> None:
    assert evaluate(tmp_path, f"checkpoint={finished}", f"precision={precision}", "device=cpu").code == 0
    rows, trained = table(tmp_path), part_of(finished, "test")
    predictor = load(finished, "cpu", precision)
    root = load_trained(finished, "cpu").settings.dataset.root
    found = predictor.predict([root / path for path in rows["path"]], batch_size=5)
    assert found["score"].tolist() == rows["score"].tolist()
    assert (rows["score"].tolist() == trained["score"].tolist()) == (precision == "32")
    assert rows["score"].to_numpy() == pytest.approx(trained["score"].to_numpy(), abs=0.05)
    assert numbers(tmp_path)["config"]["trainer"]["precision"] == precision


def computed_in_float16(finished: Path, file: Path) -> Path:
    """The checkpoint as a GPU without bfloat16 would have left it."""
    content = torch.load(finished / "checkpoints/best.ckpt", weights_only=True)
    content["defectcls"]["config"]["trainer"] |= {"precision": "16", "accelerator": "gpu", "devices": 4}
    torch.save(content, file)
    return file


@pytest.mark.usefixtures("no_pictures")
def test_a_run_of_a_gpu_is_measured_on_a_cpu_by_saying_so(finished: Path, tmp_path: Path) -> None:
    file = computed_in_float16(finished, tmp_path / "best.ckpt")
    here = (f"checkpoint={file}", "device=cpu")
    expected = "precision 16 is for GPUs, and this is a CPU: use precision 32 or bf16"
    assert sentence(evaluate(tmp_path / "new", *here)) == expected
    with pytest.raises(UserError) as error:
        load(file, "cpu")
    assert str(error.value) == expected
    assert sentence(evaluate(tmp_path / "new", *here, "precision=16")) == expected
    assert evaluate(tmp_path / "new", *here, "precision=32").code == 0
    assert numbers(tmp_path / "new")["test"] == numbers(finished)["test"]


def test_a_device_that_is_not_here(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    assert sentence(evaluate(tmp_path, f"checkpoint={finished}", "device=gpu")) == (
        "a gpu is asked for, and torch finds none here: use auto or cpu"
    )
    assert sentence(evaluate(tmp_path, f"checkpoint={finished}", "precision=64")) == (
        "precision=64: it has to be '32', 'bf16' or '16'"
    )


def test_metrics_name_the_device_that_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: f"GPU {device.index}")
    assert provenance(0, {}, torch.device("cuda", 1))["hardware"] == "GPU 1"
    assert provenance(0, {}, torch.device("cpu"))["hardware"].endswith(f"{torch.get_num_threads()} threads")


# --- the decision, and tables without a model -------------------------------------------------------------------------


def test_another_decision_without_training(finished: Path, tmp_path: Path) -> None:
    assert evaluate(tmp_path, f"checkpoint={finished}", "decision=recall>=0.5").code == 0
    found, validation, test = numbers(tmp_path)["decision"], part_of(finished, "val"), table(tmp_path)
    assert found["policy"] == "recall>=0.5"
    assert found["evidence"]["defective"] == validation["defective"].sum()
    trained = numbers(finished)["decision"]
    assert (found["scale"], found["shift"]) == (pytest.approx(trained["scale"]), pytest.approx(trained["shift"]))
    threshold = found["reject_from"]
    assert found["evidence"]["escapes"] == (validation["score"] < threshold)[validation["defective"]].sum()
    assert (test["decision"] == "reject").tolist() == (test["score"] >= threshold).tolist()
    assert (test["prediction"] == "defective").tolist() == (test["decision"] == "reject").tolist()
    assert test["score"].to_numpy() == pytest.approx(part_of(finished, "test")["score"].to_numpy(), abs=1e-12)


@pytest.mark.slow
def test_the_same_policy_on_the_kept_validation_images_is_the_same_decision(tiny: list[str], tmp_path: Path) -> None:
    """Promises included: images of one photo count as one in both."""
    run = ("finetune=probe", "decision=review", f"hydra.run.dir={tmp_path / 'run'}")
    assert command("train", *tiny, *run).code == 0
    assert evaluate(tmp_path / "again", f"checkpoint={tmp_path / 'run'}", "decision=review").code == 0
    trained = numbers(tmp_path / "run")["decision"]
    assert any(promise["grouped"] for promise in trained["promises"])
    assert numbers(tmp_path / "again")["decision"] == trained


def test_decision_is_kept_in_the_checkpoint(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run/checkpoints"
    run.mkdir(parents=True)
    (run / "best.ckpt").write_bytes((finished / "checkpoints/best.ckpt").read_bytes())
    again = (f"checkpoint={tmp_path / 'run'}",)
    assert evaluate(tmp_path / "1", *again, "decision=f1", "update_checkpoint=true").code == 0
    assert evaluate(tmp_path / "2", *again).code == 0
    assert numbers(tmp_path / "1")["decision"] == numbers(tmp_path / "2")["decision"]
    assert numbers(tmp_path / "2")["decision"]["policy"] == "f1"
    assert equal(weights(run / "best.ckpt"), weights(finished / "checkpoints/best.ckpt"))


@pytest.mark.parametrize("damaged", ["", {"label": ["sound"], "defective": [False, True]}])
def test_a_decision_is_chosen_on_a_table_of_validation_images(finished: Path, tmp_path: Path, damaged: Any) -> None:
    content = torch.load(finished / "checkpoints/best.ckpt", weights_only=True)
    content["defectcls"]["validation"] = damaged
    torch.save(content, tmp_path / "best.ckpt")
    text = sentence(evaluate(tmp_path / "new", f"checkpoint={tmp_path / 'best.ckpt'}", "decision=f1"))
    assert text.startswith(f"{tmp_path / 'best.ckpt'} holds no scores of validation images: finish its run")


def test_predictions_of_a_run_give_its_numbers_again(finished: Path, tmp_path: Path) -> None:
    assert evaluate(tmp_path, f"predictions={finished / 'predictions.csv'}").code == 0
    for part in ("train", "val", "test"):
        found, trained = numbers(tmp_path)[part], numbers(finished)[part]
        assert found == trained


def test_predictions_are_decided_anew_on_their_validation_rows(finished: Path, tmp_path: Path) -> None:
    again = (f"predictions={finished / 'predictions.csv'}", "decision=fpr<=0.5", "part=test")
    assert evaluate(tmp_path, *again).code == 0
    metrics, test = numbers(tmp_path), table(tmp_path)
    assert "val" not in metrics
    assert metrics["decision"]["promises"][0]["rate"] == "overkill_rate"
    assert (test["decision"] == "reject").tolist() == (test["score"] >= metrics["decision"]["reject_from"]).tolist()


def test_table_of_another_tool(tmp_path: Path) -> None:
    rows = pd.DataFrame({"path": list("abcd"), "defective": [0, 0, 1, 1], "score": [0.1, 0.6, 0.4, 0.9]})
    rows.to_csv(tmp_path / "other.csv", index=False)
    assert evaluate(tmp_path / "new", f"predictions={tmp_path / 'other.csv'}").code == 0
    found = numbers(tmp_path / "new")["test"]
    assert (found["recall"], found["overkill_rate"], found["auroc"]) == (0.5, 0.5, 0.75)
    assert "other" in (tmp_path / "new/report.html").read_text()
    decided = evaluate(tmp_path / "decided", f"predictions={tmp_path / 'other.csv'}", "decision=f1")
    assert sentence(decided).startswith("decision=f1 needs sound images to be chosen on, and there are none")
    trained = evaluate(tmp_path / "part", f"predictions={tmp_path / 'other.csv'}", "part=train")
    assert sentence(trained) == f"{tmp_path / 'other.csv'} has no row with split train"


def test_report_looks_inside(finished: Path) -> None:
    """Heat maps are scored on the masks of the test part, and every disturbance is measured."""
    metrics, test = numbers(finished), part_of(finished, "test")
    assert metrics["localisation"]["n"] == (test["mask"] != "").sum()
    assert 0 < metrics["localisation"]["chance"] < 0.5
    clean, *disturbed = metrics["robustness"]
    assert (clean["corruption"], clean["strength"]) == ("none", 0)
    assert clean["recall"] == pytest.approx(metrics["test"]["recall"])
    assert len({(row["corruption"], row["strength"]) for row in disturbed}) == 15
    sizes = metrics["test"]["breakdowns"]["mask_size"]
    assert sum(row["n"] for row in sizes) == len(test)


@pytest.mark.parametrize(
    ("score", "said"),
    [
        ("80", " has scores that are not from 0 (sound) to 1 (defective): b"),
        ("", ": score is missing in row 2 (after the header); it must be a number"),
    ],
)
def test_score_that_is_no_probability(tmp_path: Path, score: str, said: str) -> None:
    (tmp_path / "other.csv").write_text(f"path,defective,score\na,0,0.5\nb,1,{score}\n")
    outcome = evaluate(tmp_path / "new", f"predictions={tmp_path / 'other.csv'}")
    assert sentence(outcome) == f"{tmp_path / 'other.csv'}{said}"


def test_threshold_is_in_the_scores_of_the_table(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    truth = generator.random(400) < 0.5
    rows = pd.DataFrame(
        {"path": np.arange(400).astype(str), "defective": truth.astype(int), "split": ["val", "test"] * 200}
    )
    rows["score"] = 1 / (1 + np.exp(-8 * (truth - 0.5) - 6 * generator.normal(size=400)))
    rows.to_csv(tmp_path / "other.csv", index=False)
    assert evaluate(tmp_path / "new", f"predictions={tmp_path / 'other.csv'}", "decision=f1", "part=test").code == 0
    decided, threshold = table(tmp_path / "new"), numbers(tmp_path / "new")["decision"]["reject_from"]
    assert decided["score"].to_numpy() == pytest.approx(rows["score"][rows["split"] == "test"].to_numpy(), abs=0)
    assert ((decided["score"] >= threshold) == (decided["decision"] == "reject")).all()


def test_what_people_say_of_accepted_photos_is_the_escape_rate_as_it_is_now(tmp_path: Path) -> None:
    model, store = exported.write(tmp_path / "mean.onnx"), Decisions(f"sqlite:///{tmp_path}/decisions.sqlite")
    row = {"time": moment(datetime.now(UTC)), "source": "http", "model": "mean", "prediction": "", "error": ""}
    row |= {"seconds": 0.1, "unlike": None, "cause": "", "model_digest": load(model).about["digest"]}
    photos = [hashlib.blake2b(bytes([n]), digest_size=16).hexdigest() for n in range(220)]
    scores, kinds = np.r_[np.full(200, 0.0), np.full(20, 0.9)], ["accept"] * 200 + ["reject"] * 20
    each = zip(photos, scores, kinds, strict=True)
    store.add([row | {"name": p, "photo": p, "score": s, "decision": d} for p, s, d in each])
    store.add([row | {"name": "x", "photo": "other", "score": 0.1, "decision": "accept", "model_digest": "before"}])
    said = {"time": row["time"], "who": "ann", "name": "", "model_digest": "", "seconds": 1.0, "undoes": None}
    for n in (*range(50), *range(200, 220)):
        label, chance = ("defective" if n < 1 or n >= 204 else "sound"), (0.25 if n < 200 else None)
        store.add([said | {"photo": photos[n], "label": label, "reason": "audit", "chance": chance}], VERDICTS)
    store.add([said | {"photo": photos[1], "label": "defective", "reason": "", "chance": 0.25, "who": "bob"}], VERDICTS)
    outcome = evaluate(tmp_path / "now", f"checkpoint={model}", f"audited={tmp_path}/decisions.sqlite")
    assert outcome.code == 0, outcome.err
    found = json.loads((tmp_path / "now/audited.json").read_text())
    assert (found["accepted"], found["looked_at"], found["escapes"], found["disputed"]) == (200, 50, 2, 1)
    assert (found["share"], found["caught"], found["escape_rate"]) == pytest.approx((0.04, 16, 8 / 24))
    assert found["more"] is None and len(pd.read_csv(tmp_path / "now/plan.csv")) == 0
    assert "50 of 200 accepted photos were drawn and looked at, 2 are defective: of all accepted 4.0 %" in outcome.out

    store.add([said | {"photo": photos[2], "label": "sond", "reason": "", "chance": None}], VERDICTS)
    wrong = ("has the label 'sond', which is no class of the model, did you mean 'sound'?", f"checkpoint={model}")
    wrong = (*wrong, f"audited={tmp_path}/decisions.sqlite")
    none = ("none.sqlite is not there", f"checkpoint={model}", "audited=none.sqlite")
    needs = ("needs checkpoint=", "predictions=none.csv", "audited=none.sqlite")
    other = exported.write(tmp_path / "other.onnx", exported.METADATA | {"seed": 4})
    late = ("has no decision of this model", f"checkpoint={other}", f"audited={tmp_path}/decisions.sqlite")
    for told, *arguments in (wrong, none, needs, late):
        assert told in sentence(evaluate(tmp_path / "wrong", *arguments))
