"""An exported file decides as its checkpoint: pixels to the bit, decisions by the same rules, or it is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from PIL import Image

from defectcls.config import CONF_DIR, presets
from defectcls.data.images import decode, framed
from defectcls.deployment import export as module
from defectcls.deployment.graph import Deployed, Framed, traced
from defectcls.deployment.predictor import load
from defectcls.errors import UserError
from defectcls.evaluation.decision import Decision, decide
from defectcls.evaluation.predictions import predictions_table, probabilities_of, read_predictions
from defectcls.model.heatmaps import heat_maps
from defectcls.model.network import Network
from defectcls.settings import ModelSettings
from tests.conftest import Outcome, command, sentence

TWO = {"sound": False, "defective": True}
MANY = {"crack": True, "sound": False, "dirty": False, "hole": True}
REVIEWED = Decision("review", 1.7, (0.0, 0.3, -0.2, 0.1), accept_below=0.4, reject_from=0.7)
DECISIONS = [
    (TWO, Decision("recall>=0.9", 0.8, (0.0, 0.5), accept_below=0.45, reject_from=0.45)),
    (TWO, Decision("argmax")),
    (TWO, Decision("balanced", 1.2, (0.0, -0.1), prior=(0.8, 0.2))),
    (MANY, REVIEWED),
    (MANY, Decision("balanced", prior=(0.1, 0.6, 0.2, 0.1))),
]
NUMBERS = {"accept": 0, "review": 1, "reject": 2}
OF_ROUNDING = 1e-3  # of scores of networks from scratch, whose features hardly differ
TINY = "test_resnet.r160_in1k"


def network_of(name: str, head: str, classes: dict[str, bool], size: tuple[int, int], **more: Any) -> Network:
    """Of random weights, with a memory of random patches."""
    torch.manual_seed(0)
    given = presets("model/timm") | {"name": name, "head": head, "pretrained": False, "weights": None} | more
    network = Network(ModelSettings(**given), classes, size, 5 if head == "joined" else 1).eval()
    if network.joined is not None:
        network.joined.memory.bank.normal_()
        network.joined.memory.sizes.fill_(network.joined.memory.bank.shape[1] - 3)
        network.joined.weight.fill_(0.3)
    return network


def photos_of(count: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("resize", ["squash", "pad"])
@pytest.mark.parametrize("size", [(64, 96), (224, 224), (160, 96)])
@pytest.mark.parametrize(
    "shape", [(65, 95), (97, 131), (501, 333), (17, 900), (1, 1), (3, 5), (320, 96), (640, 700)], ids=str
)
def test_a_graph_resizes_as_pillow_to_the_bit(shape: tuple[int, int], size: tuple[int, int], resize: Any) -> None:
    """Smaller and larger, across and along; and of the size itself both branches are the photo."""
    graph = Framed(size, resize)
    for photos in (photos_of(2, *shape), photos_of(2, *size)):
        found = graph._resized(torch.from_numpy(photos).permute(0, 3, 1, 2))
        assert np.array_equal(found.numpy(), np.stack([framed(photo, size, resize) for photo in photos]))
    same = torch.from_numpy(photos).permute(0, 3, 1, 2)
    assert torch.equal(graph._as_they_are(same), same.float())


@pytest.mark.parametrize(("classes", "decision"), DECISIONS, ids=lambda one: getattr(one, "policy", ""))
def test_a_graph_decides_as_the_table_does(classes: dict[str, bool], decision: Decision) -> None:
    logits = torch.randn(400, len(classes), generator=torch.manual_seed(1)) * 3
    logits[7, 0], logits[8, 1], logits[9] = torch.nan, -torch.inf, torch.inf
    deployed = Deployed(network_of(TINY, "linear", classes, (32, 32)), decision, "squash")
    *likely, score, prediction, decided = (one.numpy() for one in deployed.decided(logits))
    rows = pd.DataFrame({"path": map(str, range(400))})
    expected = decide(predictions_table(rows, probabilities_of(logits.numpy()), classes), decision, classes)
    known = np.arange(400)[(np.arange(400) < 7) | (np.arange(400) > 9)]
    assert decided.tolist() == [NUMBERS[one] for one in expected["decision"]]
    assert decided[7:10].tolist() == [2, 2, 2]  # what is no number is rejected
    assert np.array([*classes])[prediction[known]].tolist() == expected["prediction"][known].tolist()
    columns = [f"p_{name}" for name in classes]
    np.testing.assert_allclose(np.stack(likely, 1)[known], expected[columns].to_numpy()[known], atol=1e-15)
    np.testing.assert_allclose(score, expected["score"], atol=1e-15)
    assert len(set(decided[known].tolist())) == (3 if decision == REVIEWED else 2)


@pytest.mark.slow
@pytest.mark.parametrize("classes", [TWO, MANY], ids=len)
def test_a_batch_at_once_is_what_its_images_are_alone(classes: dict[str, bool]) -> None:
    """The graph of a joined head takes whole batches, an image with the same bits in any batch goes piece by piece."""
    network = network_of(TINY, "joined", classes, (64, 96), levels=[0.5, 1], test_views=4)
    deployed = Deployed(network, (classes == MANY and REVIEWED) or DECISIONS[0][1], "pad", heat_map=True)
    photos = photos_of(5, 64, 96)
    program = traced(deployed, "it").module()
    *_, score, prediction, decided, heat = (one.numpy() for one in program(torch.from_numpy(photos)))
    pixels = torch.from_numpy(photos).permute(0, 3, 1, 2).contiguous()
    rows = pd.DataFrame({"path": map(str, range(5))})
    table = predictions_table(rows, probabilities_of(network.inference()(pixels).numpy()), classes)
    expected = decide(table, deployed.decision, classes)
    np.testing.assert_allclose(score, expected["score"], atol=1e-6)
    assert np.ptp(score) > 1e-5
    assert decided.tolist() == [NUMBERS[one] for one in expected["decision"]]
    assert [[*classes][one] for one in prediction] == expected["prediction"].tolist()
    np.testing.assert_allclose(heat, heat_maps(network, pixels), atol=1e-3)
    again = program(torch.from_numpy(photos_of(1, 201, 57)))
    assert [len(one) for one in again] == [1] * len(deployed.outputs)


# --- the command -----------------------------------------------------------------------------------------------------


def exported(run: Path, folder: Path, *arguments: str) -> Outcome:
    return command("export", f"checkpoint={run}", f"hydra.run.dir={folder}", *arguments)


def said(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "export.json").read_text())


def distances(unlike: pd.Series, run: Path) -> np.ndarray:
    """What they come of, in those of measured photos; of what lies beyond them all the last one."""
    kept = torch.load(run / "checkpoints/best.ckpt", weights_only=True)["defectcls"]["likeness"]
    steps = np.r_[0, kept["distances"].numpy()]
    return np.interp(unlike * len(steps), np.arange(len(steps)), steps) / steps[-1]


def files_of(run: Path) -> list[Path]:
    """All photos of a run."""
    checkpoint = torch.load(run / "checkpoints/best.ckpt", weights_only=True)
    root = Path(checkpoint["defectcls"]["config"]["dataset"]["root"])
    return [root / path for path in read_predictions(run / "predictions.csv")["path"]]


@pytest.fixture(scope="module")
def padded(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a joined head, padded photos and a decision that sends some to a person."""
    folder = tmp_path_factory.mktemp("padded")
    given = ("finetune=probe", "model.head=joined", "model.levels=[0.5,1]", "dataset.resize=pad", "image_size=[32,64]")
    assert command("train", *tiny, *given, "decision=review", f"hydra.run.dir={folder}").code == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["finished", "finished_types", "crossvalidated", "padded"])
def test_a_file_decides_as_its_checkpoint(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    run = request.getfixturevalue(kind)
    outcome = exported(run, tmp_path)
    assert outcome.code == 0, outcome.err
    checkpoint, file = load(run, "cpu", "32"), load(tmp_path / "model.onnx", "cpu")
    raw = [*photos_of(2, 77, 45), *photos_of(2, 32, 200)]
    for given in (files_of(run), raw):
        expected, found = checkpoint.predict(given), file.predict(given, 7)
        assert found[["path", "decision", "prediction"]].equals(expected[["path", "decision", "prediction"]])
        numbers = ["score", *(f"p_{name}" for name in checkpoint.classes)]
        np.testing.assert_allclose(found[numbers], expected[numbers], atol=OF_ROUNDING)
        near, far = (distances(one["unlike"], run) for one in (found, expected))
        other = far > 0.05  # of a photo that it has learned from rounding leaves some thousandths
        np.testing.assert_allclose(near[other], far[other], rtol=1e-5)
        assert (near[~other] < 0.05).all()
        assert (found["cause"] == expected["cause"]).mean() > 0.9  # some lie on the edge
    pixels = decode(files_of(run)[0], checkpoint.image_size, checkpoint.resize, checkpoint.depth)
    assert file.nearest(pixels) == checkpoint.nearest(pixels)
    unframed = pd.concat([file.judge(np.ascontiguousarray(one.transpose(2, 0, 1))[None]) for one in raw])
    np.testing.assert_allclose(unframed["score"], checkpoint.predict(raw)["score"], atol=OF_ROUNDING)
    about, told = file.about, said(tmp_path)
    assert (file.classes, file.decision, file.resize) == (checkpoint.classes, checkpoint.decision, checkpoint.resize)
    assert about["gate"]["flips"] == about["gate"]["flips_of_other_kinds"] == 0
    assert about["gate"]["largest_difference"] == told["tried"][0]["largest_difference"] < OF_ROUNDING
    assert about["head"] == ("linear" if kind == "finished" else "joined")
    assert about["checkpoint"] == checkpoint.about["digest"]
    assert told["seen"] == (kind == "crossvalidated")
    assert "left to itself" not in outcome.out
    assert ("the honest rates are those of the run's report" in outcome.out) == told["seen"]
    assert not [*tmp_path.glob("unfinished*")]
    content = (tmp_path / "model.onnx").read_bytes()
    assert str(Path(module.__file__).parents[2]).encode() not in content  # no place of the machine that wrote it


@pytest.mark.slow
def test_rates_of_the_file_are_those_of_the_run(finished: Path, tmp_path: Path) -> None:
    """Also of a run in bf16, where the page says that the file is held against other scores than the run's own."""
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    content = torch.load(run / "checkpoints/best.ckpt", weights_only=True)
    content["defectcls"]["config"]["trainer"]["precision"] = "bf16"
    torch.save(content, run / "checkpoints/best.ckpt")
    outcome = exported(run, tmp_path)
    assert outcome.code == 0, outcome.err
    assert "float32: left to itself it computes in bf16, as its run did" in outcome.out
    metrics, found = json.loads((finished / "metrics.json").read_text()), said(tmp_path)["tried"][0]
    for rate in ("escape_rate", "overkill_rate"):
        assert found[rate] == metrics["test"][rate]
        assert found[f"{rate}_interval"] == metrics["test"]["intervals"][rate]
    rows = read_predictions(finished / "predictions.csv")
    assert found["photos"] == (rows["split"] != "train").sum()


@pytest.mark.slow
def test_a_file_that_decides_otherwise_is_refused(
    crossvalidated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its threshold lies where half of the photos cross it; the name without .refused is never given."""
    own = load(crossvalidated, "cpu", "32")
    middle = float(own.predict(files_of(crossvalidated))["score"].median())
    tampered = Decision("recall>=0.9", own.decision.scale, own.decision.shift, accept_below=middle, reject_from=middle)

    def tampering(network: Network, decision: Decision, *given: Any, **more: Any) -> Deployed:
        return Deployed(network, tampered, *given, **more)

    monkeypatch.setattr(module, "Deployed", tampering)
    outcome = exported(crossvalidated, tmp_path)
    assert outcome.code == 1, outcome.err
    assert (tmp_path / "model.onnx.refused").is_file()
    assert not (tmp_path / "model.onnx").exists()
    assert "decisions differ" in said(tmp_path)["refused"]
    assert "Refused: " in outcome.out and "is not to be used" in outcome.out
    assert said(tmp_path)["tried"][0]["largest_difference"] < OF_ROUNDING  # scores are the same, it is the threshold


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "precision"),
    [("onnx", "int8"), ("openvino", "32"), ("openvino", "bf16"), ("onnx", "fp16"), ("torch", "32")],
)
def test_every_format_and_precision_goes_through_the_gate(
    finished: Path, tmp_path: Path, file: str, precision: str
) -> None:
    outcome = exported(finished, tmp_path, f"format={file}", f"precision={precision}")
    told = said(tmp_path)
    assert outcome.code == (told["refused"] != "")
    assert [one["precision"] for one in told["tried"]] == [*dict.fromkeys(["32", precision])]
    assert told["tried"][0]["flips"] == 0 and told["tried"][0]["refused"] == ""
    assert told["tried"][0]["largest_difference"] < OF_ROUNDING
    assert Path(told["output"]).is_file()
    if precision in ("int8", "fp16"):
        assert told["tried"][1]["megabytes"] < 0.7 * told["tried"][0]["megabytes"]
        assert told["tried"][1]["largest_difference"] > 1e-5  # it does compute otherwise
        assert "Take precision=" in outcome.out


@pytest.mark.slow
def test_a_threshold_is_chosen_again_on_the_scores_of_the_file(finished: Path, tmp_path: Path) -> None:
    outcome = exported(finished, tmp_path, "precision=int8", "rethreshold=true")
    assert outcome.code == 0, outcome.err
    file, checkpoint = load(tmp_path / "model.onnx", "cpu"), load(finished, "cpu", "32")
    assert file.decision.policy == checkpoint.decision.policy
    assert file.decision != checkpoint.decision
    root = files_of(finished)
    rows = read_predictions(finished / "predictions.csv").assign(path=root).query("split == 'val'")
    answers = file.predict([*rows["path"]])
    assert answers["score"].mean() == pytest.approx(rows["defective"].mean(), abs=0.1)  # calibrated on these


@pytest.mark.slow
def test_a_file_is_held_against_given_photos_and_has_a_heat_map(padded: Path, tmp_path: Path) -> None:
    """Nothing is known of these photos but what they show; one of them cannot be read, by either."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for number, one in enumerate(photos_of(3, 50, 70)):
        Image.fromarray(one).save(photos / f"{number}.png")
    (photos / "0 text.png").write_text("no pixels")
    outcome = exported(padded, tmp_path / "run", f"photos={photos}", "heat_map=true", f"output={tmp_path}/new/a.onnx")
    assert outcome.code == 0, outcome.err
    found = said(tmp_path / "run")["tried"][0]
    assert (found["photos"], found["flips"], found.get("escape_rate")) == (4, 0, None)
    paths, file, checkpoint = sorted(photos.iterdir()), load(tmp_path / "new/a.onnx"), load(padded, "cpu", "32")
    maps = [list(one.heat_maps(paths)) for one in (file, checkpoint)]
    assert [one is None for one in maps[0]] == [True, False, False, False]
    np.testing.assert_allclose(np.stack(maps[0][1:]), np.stack(maps[1][1:]), atol=0.02)


def test_mistakes_are_told_before_anything_is_made(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "there.onnx").touch()
    for arguments, told in {
        ("format=openvino", f"output={tmp_path}/a.onnx"): f"output={tmp_path}/a.onnx should end in .xml",
        (
            f"output={tmp_path}/there.onnx",
        ): f"output={tmp_path}/there.onnx exists: give another name, or overwrite=true",
        ("precision=bf16",): "precision=bf16 is of format=openvino",
        ("format=torch", "precision=fp16"): "precision=fp16 is of format=onnx",
        ("format=torch", "precision=int8"): "precision=int8 is of format=onnx or openvino",
        ("rethreshold=true",): "rethreshold=true is for precision=int8, fp16 or bf16, on the run's own validation "
        "photos: in float32 the scores are the checkpoint's",
        ("heat_map=true",): "heat_map=true needs a head with a memory, model.head=joined: a linear head's map is of "
        "gradients, which a file does not compute",
        ("root=gone",): "the photos of the run were in gone, which is not there: root=<folder>, or photos=<others>",
    }.items():
        assert sentence(exported(finished, tmp_path / "run", *arguments)) == told
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_alone_needs_photos(finished: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone.ckpt"
    alone.write_bytes((finished / "checkpoints/best.ckpt").read_bytes())
    told = sentence(exported(alone, tmp_path / "run"))
    assert told == f"{alone} lies in no run folder whose photos could be judged: photos=<folder>"


@pytest.mark.slow
def test_a_cross_validated_run_has_no_photos_to_choose_on(crossvalidated: Path, tmp_path: Path) -> None:
    told = sentence(exported(crossvalidated, tmp_path / "run", "precision=int8", "rethreshold=true"))
    assert told.startswith("rethreshold=true needs photos that the model has not learned from")


class Louder(Network):
    def forward(self, image: torch.Tensor, folds: torch.Tensor | None = None) -> torch.Tensor:
        return 2 * super().forward(image.flip(3), folds)


@pytest.mark.slow
def test_a_forward_of_ones_own_is_part_of_the_file() -> None:
    network = network_of(TINY, "joined", TWO, (32, 32))
    network.__class__ = Louder
    deployed = Deployed(network, DECISIONS[1][1], "squash")
    photos = torch.from_numpy(photos_of(3, 32, 32))
    expected = network.inference()(photos.permute(0, 3, 1, 2)).double().softmax(1)[:, 1]
    assert np.ptp(expected.numpy()) > 1e-5
    score = traced(deployed, "it").module()(photos)[2]
    np.testing.assert_allclose(score, expected, atol=1e-6)


class Branching(Network):
    def forward(self, image: torch.Tensor, folds: torch.Tensor | None = None) -> torch.Tensor:
        return super().forward(image, folds) * (2 if image.sum() > 0 else 1)


@pytest.mark.slow
def test_what_torch_cannot_follow_is_refused_in_a_sentence() -> None:
    network = network_of(TINY, "linear", TWO, (32, 32))
    network.__class__ = Branching
    with pytest.raises(UserError, match=r"^model.name=mine cannot be exported, as torch.export says: [^\n]+$"):
        traced(Deployed(network, DECISIONS[1][1], "squash"), "model.name=mine")


# --- every preset ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("head", ["linear", "joined"])
@pytest.mark.parametrize("preset", sorted(file.stem for file in CONF_DIR.glob("model/*.yaml") if file.stem != "timm"))
def test_every_preset_exports(preset: str, head: str, tmp_path: Path) -> None:
    given = presets("model/timm", f"model/{preset}")
    side = 56 if "patch14" in given["name"] else 64
    network = network_of(given["name"], head, TWO, (side, side), levels=given["levels"], pool=given["pool"])
    deployed = Deployed(network, DECISIONS[0][1], "squash")
    model, _ = module.as_onnx(traced(deployed, preset), deployed.outputs, preset)
    module.write(model, tmp_path / "model.onnx", {})
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for photos in (photos_of(3, side, side), photos_of(1, 2 * side + 1, side - 3)):
        pixels = torch.from_numpy(np.stack([framed(photo, (side, side), "squash") for photo in photos]))
        expected = deployed.decided(network.inference()(pixels))[-3].numpy()
        np.testing.assert_allclose(session.run(["score"], {"image": photos})[0], expected, atol=1e-5)
