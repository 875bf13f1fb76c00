"""A file at work: its graph's answers become the rows of any model, torch is not needed, and strangers are refused."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
from onnx import helper
from PIL import Image

import defectcls
from defectcls.data.images import decode
from defectcls.deployment.runtime import Metadata, predictor_of
from defectcls.errors import UserError
from tests.conftest import command
from tests.deployment.exported import DECISION, METADATA, SIZE, built, write

COLUMNS = ["path", "decision", "prediction", "score", "p_sound", "p_defective", "unlike", "cause", "error"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write(tmp_path / "model.onnx")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A dark, a middle and a bright one of the model's size; one larger, with a pattern; a black one; one of text."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, grey in (("0 dark", 51), ("1 middle", 127), ("2 bright", 204), ("4 black", 0)):
        Image.new("RGB", SIZE[::-1], (grey, grey, grey)).save(folder / f"{name}.png")
    pattern = np.random.default_rng(0).integers(0, 256, (130, 90, 3), dtype=np.uint8)
    Image.fromarray(pattern).save(folder / "3 pattern.png")
    (folder / "5 text.png").write_text("no pixels")
    return folder


def test_answers_are_rows_as_of_any_model(model: Path, photos: Path) -> None:
    predictor = defectcls.load(model)
    files = sorted(photos.iterdir())
    pattern = decode(files[3], SIZE, "squash", "8").mean(dtype=np.float64) / 255
    expected = pd.DataFrame(
        [
            [str(files[0]), "accept", "sound", 0.2, 0.8, 0.2, np.nan, "", ""],
            [str(files[1]), "review", "defective", 127 / 255, 128 / 255, 127 / 255, np.nan, "", ""],
            [str(files[2]), "reject", "defective", 0.8, 0.2, 0.8, np.nan, "", ""],
            [str(files[3]), "review", "defective", pattern, 1 - pattern, pattern, np.nan, "", ""],
            [str(files[4]), "", "", np.nan, np.nan, np.nan, np.nan, "", "the model gives no finite score"],
            [str(files[5]), "", "", np.nan, np.nan, np.nan, np.nan, "", "not an image"],
        ],
        columns=COLUMNS,
    )
    for batch_size in (1, 4, 64):
        pd.testing.assert_frame_equal(predictor.predict(files, batch_size), expected, check_dtype=False, rtol=1e-14)
    black = predictor.judge(np.zeros((1, 3, *SIZE), np.uint8))
    assert black["decision"].tolist() == ["reject"]


def test_a_file_says_what_it_is(model: Path) -> None:
    predictor = defectcls.load(model, device="cpu")
    assert (predictor.classes, predictor.image_size) == ({"sound": False, "defective": True}, SIZE)
    assert (predictor.resize, predictor.depth) == ("squash", "8")
    assert {key: predictor.decision.plain()[key] for key in DECISION} == DECISION
    own = {"model": "mean", "dataset": "photos", "version": "0.1.0", "precision": "32", "seed": 3, "heat_map": True}
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    assert predictor.about == own | {"digest": digest, "device": "cpu", "gate": None}


def test_a_deep_photo_and_one_that_is_padded(tmp_path: Path) -> None:
    deep = np.full((48, 32), 4095, np.uint16)
    predictor = defectcls.load(write(tmp_path / "model.onnx", METADATA | {"depth": "12", "resize": "pad"}))
    found = predictor.predict([deep, deep // 2])
    assert found["score"].tolist() == pytest.approx([0.5, 127 / 255 / 2], rel=1e-14)  # half of the frame is border
    assert "and depth 12 from 0 to 4,095" in predictor.predict(np.full((8, 8), 5000, np.uint16))["error"][0]


def test_heat_maps_are_an_output_of_the_file(tmp_path: Path, model: Path, photos: Path) -> None:
    files = sorted(photos.iterdir())
    maps = list(defectcls.load(model).heat_maps([files[5], files[3], files[0]]))
    assert maps[0] is None
    assert maps[1] == pytest.approx(decode(files[3], SIZE, "squash", "8").mean(0) / 255, abs=1e-6)
    assert maps[2] == pytest.approx(np.full(SIZE, 0.2), abs=1e-6)
    without = defectcls.load(write(tmp_path / "without.onnx", METADATA | {"heat_map": False}, heat_map=[]))
    assert without.predict(files[0])["score"].tolist() == [0.2]
    with pytest.raises(UserError, match="was exported without heat maps: export it with heat_map=true"):
        next(without.heat_maps([files[0]]))


# --- files that are not as they should be ---------------------------------------------------------------------------


def refused(file: Path, **options: Any) -> str:
    with pytest.raises(UserError) as error:
        defectcls.load(file, **options).predict(np.full((8, 8), 9, np.uint8))
    assert "\n" not in str(error.value)
    return str(error.value).replace(str(file), "FILE")


def test_files_of_others_and_damaged_ones(model: Path, tmp_path: Path) -> None:
    content, file = model.read_bytes(), tmp_path / "other.onnx"
    assert refused(file) == ("FILE is no .ckpt or .onnx file and no run folder with checkpoints/best.ckpt")
    for damaged in (b"", b"no model", content[: len(content) // 2], content[9:]):
        file.write_bytes(damaged)
        assert refused(file).startswith("FILE is damaged, or no ONNX file that can be computed here: ")
    assert refused(write(file, "")) == ("FILE is an ONNX file of another tool: give one that defectcls.export wrote")
    with pytest.raises(UserError, match=r"\.refused was refused by the gate of export, and decides otherwise"):
        defectcls.load(tmp_path / "model.onnx.refused")
    other = "FILE is damaged, or of another version of defectcls: "
    assert refused(write(file, "[1")).startswith(other)
    assert refused(write(file, METADATA | {"format": 2})) == f"{other}format: Input should be 1"
    assert refused(write(file, METADATA | {"classes": {"only": True}})).startswith(f"{other}classes: ")
    assert refused(write(file, METADATA | {"image_size": [10**9, 10**9]})).startswith(f"{other}image_size.0: ")
    wrong = METADATA | {"decision": DECISION | {"accept_below": 0.9}}
    assert refused(write(file, wrong)).startswith(f"{other}its decision is wrong: ")
    wrong = METADATA | {"decision": DECISION | {"evidence": None}}
    assert refused(write(file, wrong)) == f"{other}its decision has thresholds and not what they rest on"
    swapped = METADATA | {"classes": {"defective": True, "sound": False}}
    assert refused(write(file, swapped, heat_map=[])).startswith("FILE is damaged, or no ONNX file that can be ")
    assert refused(write(file, METADATA | {"classes": {"good": False, "bad": True}})).startswith(f"{other}it takes ")


@pytest.mark.parametrize("number", [-1, 3])
def test_an_answer_that_there_is_not(tmp_path: Path, number: int) -> None:
    constant = helper.make_tensor("c", onnx.TensorProto.INT64, [1], [number])
    shape = helper.make_node("Shape", ["score"], ["shape"])
    beyond = [shape, helper.make_node("ConstantOfShape", ["shape"], ["decision"], value=constant)]
    assert refused(write(tmp_path / "m.onnx", decision=beyond)) == (
        "FILE is damaged: it answers with a class or a decision that there is not"
    )


def test_one_answer_for_many_photos(tmp_path: Path) -> None:
    once = [helper.make_node("ReduceMax", ["share"], ["score"], keepdims=1)]
    predictor = defectcls.load(write(tmp_path / "m.onnx", score=[built().graph.node[4], *once]))
    with pytest.raises(UserError, match="is damaged: it does not answer once for each photo"):
        predictor.predict(np.full((2, 8, 8), 9, np.uint8)[..., None].repeat(3, 3))


def field(number: int, content: bytes) -> bytes:
    """A message within another, as protobuf writes it."""
    assert len(content) < 128
    return bytes([8 * number + 2, len(content)]) + content


@pytest.mark.parametrize("length", [b"\x08", b"\x88\x00", b"\x88\x80\x80\x00"])
def test_no_other_file_is_opened_for_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: bytes) -> None:
    """Neither as onnx writes their key nor in a longer spelling of it; ONNX Runtime itself would open the file."""
    monkeypatch.chdir(tmp_path)
    model = built()
    weights = next(one for one in model.graph.initializer if one.name == "high")
    model.graph.initializer.remove(weights)
    Path("beside.bin").write_bytes(weights.raw_data)
    weights.ClearField("raw_data")
    weights.data_location = onnx.TensorProto.EXTERNAL
    entry = b"\x0a" + length + b"location" + field(2, b"beside.bin")
    tensor = weights.SerializeToString() + field(13, entry)
    Path("model.onnx").write_bytes(model.SerializeToString() + field(7, field(5, tensor)))
    black = {"image": np.zeros((1, 8, 8, 3), np.uint8)}
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = (
        onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    )  # else it folds them, and fails
    plain = onnxruntime.InferenceSession(Path("model.onnx").read_bytes(), options)
    assert plain.run(["decision"], black)[0].tolist() == [1]
    assert refused(Path("model.onnx")) == (
        "FILE has weights in other files, and none is opened for it: give one that holds them all"
    )


def test_a_word_like_the_key_of_external_weights_is_no_harm(tmp_path: Path) -> None:
    file = write(tmp_path / "m.onnx", METADATA | {"dataset": "a location", "location": "location"})
    assert defectcls.load(file).about["location"] == "location"


def test_precision_and_device_are_those_of_the_file(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert defectcls.load(model, precision="32").about["precision"] == "32"
    assert refused(model, precision="bf16") == (
        "precision=bf16 is asked for, and FILE computes in 32, as it was exported: leave precision out"
    )
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert refused(model, device="gpu") == (
        "a gpu is asked for, and ONNX Runtime finds none here: pip install onnxruntime-gpu, or use cpu"
    )


# --- the verb, and what is imported -----------------------------------------------------------------------------------


def test_predict_by_a_file(model: Path, photos: Path, tmp_path: Path) -> None:
    given = (f"checkpoint={model}", f"input='{photos}'", "heat_maps=true", f"hydra.run.dir={tmp_path / 'run'}")
    done = command("predict", *given)
    assert done.code == 1, done.err  # the black one, and the text
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    counts = {"images": 6, "read": 4, "unreadable": 2, "accept": 1, "review": 2, "reject": 1}
    assert {key: summary[key] for key in counts} == counts
    assert (summary["model"], summary["dataset"], summary["seed"]) == ("mean", "photos", 3)
    assert summary["digest"] == hashlib.sha256(model.read_bytes()).hexdigest()
    assert (tmp_path / "run/gallery.html").read_text().count("data:image/jpeg") == 8


WITHOUT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
{code}
there = sorted({absent} & {{name.partition(".")[0] for name in sys.modules}})
assert not there, there
"""
TRAINING = {"torch", "torchvision", "torchmetrics", "lightning", "timm", "sklearn", "cleanlab", "matplotlib", "wandb"}
TRAINING |= {"threadpoolctl", "pooch", "onnx", "onnxscript", "fastapi", "sqlalchemy"}


def without_training(code: str, cwd: Path) -> subprocess.CompletedProcess:
    """Python code in a process to which the training stack is not installed."""
    code = WITHOUT.format(absent=TRAINING, code=code)
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_file_decides_where_torch_is_not_installed(model: Path, photos: Path, tmp_path: Path) -> None:
    judged = (
        f"import defectcls; print(defectcls.load({str(model)!r}).predict({str(photos / '2 bright.png')!r}).to_csv())"
    )
    done = without_training(judged, tmp_path)
    assert "reject,defective,0.8," in done.stdout, done.stderr
    verb = """
from defectcls.training.command import run_verb
try:
    run_verb("predict", [{}])
except SystemExit as end:
    print("exit", end.code)
"""
    given = [f"checkpoint={model}", f"input={photos}", "heat_maps=true", f"hydra.run.dir={tmp_path / 'run'}"]
    done = without_training(verb.format(", ".join(map(repr, given))), tmp_path)
    assert done.stdout.endswith("exit 1\n"), done.stderr
    assert "1 accepted, 2 for a person to look at, 1 rejected; 2 could not be read" in done.stdout
    assert (tmp_path / "run/gallery.html").is_file()
    (tmp_path / "best.ckpt").write_bytes(b"")
    checkpoint = [f"checkpoint={tmp_path / 'best.ckpt'}", given[1], f"hydra.run.dir={tmp_path / 'other'}"]
    done = without_training(verb.format(", ".join(map(repr, checkpoint))), tmp_path)
    assert done.stderr.splitlines()[-1] == "error: this needs torch: pip install 'defectcls[train]'"
    train = ["dataset=folder", f"dataset.root={photos}", f"hydra.run.dir={tmp_path / 'train'}"]
    done = without_training(verb.replace("predict", "train").format(", ".join(map(repr, train))), tmp_path)
    assert done.stderr.splitlines()[-1] == "error: this needs torch: pip install 'defectcls[train]'"


def test_what_a_file_says_of_likeness_is_bounded(tmp_path: Path) -> None:
    """A share beyond 1, and a photo that is not remembered; a file that only claims to compare is refused."""
    ranges = {"low": [0] * 7, "high": [9] * 7}
    measured = {"photos": 99, **ranges, "paths": ["good/1.png", "bad/2.png"]}
    answers = {"p_sound": 0.9, "p_defective": 0.1, "score": 0.1, "prediction": 0, "decision": 0}
    answers |= {"unlike": 7.5, "nearest_sound": 0, "nearest_defective": 99}

    def run(names: list[str], photos: np.ndarray) -> list[np.ndarray]:
        return [np.full(len(photos), answers.get(name, -3.0)) for name in names]

    metadata = Metadata(**METADATA | {"measured": measured})
    predictor = predictor_of(run, metadata, tmp_path, {})
    assert predictor.predict(np.zeros((1, 8, 8, 3), np.uint8))[["unlike", "cause"]].to_numpy().tolist() == [
        [1.0, "darker than any measured"]  # of five numbers that are all as low, the first
    ]
    assert predictor.nearest(np.zeros((3, *SIZE), np.uint8)) == ("good/1.png", "")
    assert "it takes and answers" in refused(write(tmp_path / "m.onnx", METADATA | {"measured": measured}))
    for wrong in ({"photos": 0}, {"low": [0] * 6}, {"high": ["nan"] * 7}, {"paths": 5}):
        file = write(tmp_path / "m.onnx", METADATA | {"measured": measured | wrong})
        assert refused(file).startswith("FILE is damaged, or of another version of defectcls: measured.")
