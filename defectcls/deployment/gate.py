"""Whether an exported file decides as its checkpoint does: asked in a process of its own, which has no torch.

That process is this module, `python -m defectcls.deployment.gate <file> <folder>`: it judges the photos that the folder
names and leaves there what it found.
"""

import io
import pickle
import subprocess
import sys
import timeit
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from PIL import ExifTags, Image

from defectcls.data.images import Photo
from defectcls.deployment.predictor import Predictor, Read, load
from defectcls.deployment.runtime import HEAT_MAP, PROPERTY, Metadata, outputs_of, predictor_of
from defectcls.errors import UserError
from defectcls.evaluation.decision import Decision
from defectcls.evaluation.intervals import proportion_interval
from defectcls.evaluation.metrics import plain
from defectcls.evaluation.predictions import ACCEPT, PROBABILITY, REJECT, groups_of
from defectcls.settings import Settings, Text

ROUNDING = 1e-3  # of a score, no more is excused: float32 leaves 1e-5 open, and more where features hardly differ
BATCH, ALONE = 7, 21  # photos a step, and so many of them once more one by one
TIMED = 16  # photos at once, three times: the fastest counts
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}  # of each format
HINT = "INFERENCE_PRECISION_HINT"  # of OpenVINO: a file says what it is to be computed in
ASKED, ANSWERED = "asked.pickle", "answered.pickle"  # between the two processes
RATES = {"escape_rate": (True, ACCEPT), "overkill_rate": (False, REJECT)}  # of defective or others, what is wrong
ODD = ((0.37, 1.21), (1.0, 2.3), (2.9, 0.71))  # heights and widths of raw photos, in those of the model


class ExportSettings(Settings):
    checkpoint: Path
    format: Literal["onnx", "openvino", "torch"]
    output: Path | None
    overwrite: bool
    precision: Annotated[Literal["32", "fp16", "bf16", "int8"], Text]
    rethreshold: bool
    heat_map: bool
    photos: Annotated[str, Text] | None
    root: Path | None
    imports: list[str]

    def model_post_init(self, _: Any) -> None:
        able = {"int8": ("onnx", "openvino"), "fp16": ("onnx",), "bf16": ("openvino",)}
        if self.format not in able.get(self.precision, (self.format,)):
            raise ValueError(f"precision={self.precision} is of format={' or '.join(able[self.precision])}")
        if self.rethreshold and (self.precision == "32" or self.photos is not None):
            raise ValueError(
                "rethreshold=true is for precision=int8, fp16 or bf16, on the run's own validation photos: in float32 "
                "the scores are the checkpoint's"
            )


def opened(file: Path) -> Predictor:
    """A file of any format at work on the CPU."""
    if file.suffix == ".onnx":
        return load(file, "cpu")
    compute: Any
    if file.suffix == ".pt2":
        import torch  # the one format that is judged with it

        kept = {PROPERTY: ""}
        program = torch.export.load(file, extra_files=kept).module()
        metadata = Metadata.model_validate_json(kept[PROPERTY])
        outputs = [*outputs_of(metadata.classes, metadata.measured), HEAT_MAP]
        compute = lambda photos: dict(zip(outputs, map(np.asarray, program(torch.from_numpy(photos))), strict=False))  # noqa: E731
    else:
        import openvino

        model = openvino.Core().read_model(file)
        metadata = Metadata.model_validate_json(model.get_rt_info([PROPERTY]).value)
        compute = openvino.compile_model(model, "CPU", {HINT: model.get_rt_info(["runtime_options", HINT]).value})

    def run(names: list[str], photos: np.ndarray) -> list[np.ndarray]:
        answers = compute(photos)
        return [answers[name] for name in names]

    return predictor_of(run, metadata, file, {})


def answer(file: Path, folder: Path) -> None:
    """What a file says of the photos of which `Gate` tells in `folder`, and how many it judges a second; left there."""
    predictor, (paths, one) = opened(file), pickle.loads((folder / ASKED).read_bytes())
    special, raw = photos_beside(one)
    photos = [*paths, *special]
    tables = [predictor.predict(photos, BATCH), predictor.predict(photos[:ALONE], 1)]
    tables += [predictor.rows([Read("", "", each.transpose(2, 0, 1), False)]) for each in raw]
    many = np.stack([one] * TIMED)
    seconds = min(timeit.repeat(lambda: predictor.judge(many), number=1, repeat=3))
    if "torch" in sys.modules and file.suffix != ".pt2":
        raise RuntimeError("the gate runs without torch, and something imported it")
    answered = pd.concat(tables, ignore_index=True), TIMED / seconds
    (folder / ANSWERED).write_bytes(pickle.dumps(answered))


def photos_beside(pixels: np.ndarray) -> tuple[list[Photo], list[np.ndarray]]:
    """Of one photo (3, height, width) a grey one, one turned by EXIF, one of 12 bits; and raw ones of `ODD` sizes."""
    upright = Image.fromarray(pixels.transpose(1, 2, 0))
    grey, turned, exif = np.asarray(upright.convert("L")), io.BytesIO(), Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    upright.save(turned, "JPEG", exif=exif, quality=95)
    sizes = [(int(wide * upright.width) | 1, int(tall * upright.height) | 1) for tall, wide in ODD]
    raw = [np.asarray(upright.resize(size)) for size in sizes]
    return [grey, turned.getvalue(), grey.astype(np.uint16) * 16], raw


class Gate:
    """What a checkpoint says of photos, in float32, to hold files against.

    Args:
        predictor: of the checkpoint.
        rows: `path` of each photo, absolute; where the truth is known also the columns of a predictions table.
        judging: of which of them rates are told, bool (photos,).
        folder: for what is made on the way.

    Raises:
        UserError: not one photo can be read.
    """

    def __init__(self, predictor: Predictor, rows: pd.DataFrame, judging: np.ndarray, folder: Path) -> None:
        self.predictor, self.rows, self.judging, self.folder = predictor, rows, judging, folder
        readable = (pixels for path in rows["path"] if (pixels := predictor.read(path).pixels) is not None)
        if (one := next(readable, None)) is None:
            raise UserError(f"of {len(rows)} photos to hold the file against not one can be read: photos=<others>")
        (folder / ASKED).write_bytes(pickle.dumps(([*rows["path"]], one)))
        special, raw = photos_beside(one)
        judged = predictor.predict([*rows["path"], *special])
        self.expected = pd.concat([judged, judged[:ALONE], predictor.predict(raw)], ignore_index=True)

    def hold(self, file: Path, exact: bool, decision: Decision) -> tuple[pd.DataFrame, dict[str, Any]]:
        """The file's answers for the photos of `rows`, and what was found; `refused` says why, or is empty.

        A flip is excused where the checkpoint's score lies within the largest difference of the threshold, and that is
        not above ROUNDING. A file that decides by a threshold of its own may flip; it may not break a promise that
        the checkpoint keeps, nor have a rate whose interval lies above the checkpoint's rate.

        Args:
            exact: it computes in float32, and no difference above ROUNDING is excused.
            decision: the file's, which may be its own.

        Raises:
            UserError: the runtime does not take the file.
        """
        command = [sys.executable, "-m", "defectcls.deployment.gate", str(file), str(self.folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["it was killed"])[-1]
            raise UserError(f"the runtime does not take {file.name}: {last[:300]}")
        found, speed = pickle.loads((self.folder / ANSWERED).read_bytes())
        expected, n = self.expected, len(self.rows)
        most = (expected["score"] - found["score"]).abs().max()
        flips, margins = (expected["decision"] != found["decision"]).to_numpy(), self._margins()
        excused = flips & (margins <= min(most, ROUNDING))
        told = {"photos": n, "largest_difference": most, "flips": flips[:n].sum(), "excused": excused.sum()}
        told |= {"flips_of_other_kinds": flips[n:].sum(), "images_per_second": speed, **self._rates(found[:n])}
        against, refused = flips & ~excused, ""
        if decision != self.predictor.decision:
            refused = self._worse(decision, told)
        elif against.any():
            worst = expected["path"][np.argmax(np.where(against, margins, -1))] or "a photo of another size or kind"
            refused = f"{against.sum()} of {len(flips)} decisions differ, as of {worst}"
        elif exact and most > ROUNDING:
            refused = f"a score differs by {most:.2g}, and float32 leaves no more than {ROUNDING:g} open"
        return found[:n], plain(told | {"refused": refused})

    def _worse(self, decision: Decision, told: dict[str, Any]) -> str:
        """Why a file that decides by a threshold of its own, with the rates that are told, is refused."""
        pairs = zip(decision.promises, self.predictor.decision.promises, strict=True)
        if broken := [one.rate for one, before in pairs if before.kept > one.kept]:
            return f"its scores no longer prove the promised {' and '.join(broken)}"
        before = self._rates(self.expected[: len(self.rows)])
        above = [rate for rate in RATES if told[f"{rate}_interval"][0] > before[rate]]
        return f"its {above[0].replace('_', ' ')} is surely above the checkpoint's" if above else ""

    def _margins(self) -> np.ndarray:
        """How far each score of the checkpoint is from where its decision turns, (answers,)."""
        one, expected = self.predictor.decision, self.expected
        if one.accept_below is not None and one.reject_from is not None:
            starts = np.array([one.accept_below, one.reject_from])
            return np.abs(expected[["score"]].to_numpy() - starts).min(1)
        sides = np.array([*self.predictor.classes.values()])
        likely = expected[[PROBABILITY + name for name in self.predictor.classes]].to_numpy()
        weighed = likely / np.array(one.prior or 1.0)
        return np.abs(weighed[:, sides].max(1, initial=0) - weighed[:, ~sides].max(1, initial=0))

    def _rates(self, table: pd.DataFrame) -> dict[str, Any]:
        """RATES of answers for the photos of `rows`, and their intervals; none where the truth is not known."""
        if "defective" not in self.rows:
            return {}
        rated, found = self.judging & (table["error"] == "").to_numpy(), {}
        groups, defective = groups_of(self.rows[rated]), self.rows["defective"][rated].to_numpy(bool)
        for rate, (of_defective, wrong) in RATES.items():
            of = defective == of_defective
            hits = table["decision"][rated].to_numpy()[of] == wrong
            found[rate] = hits.mean() if hits.size else np.nan
            found[f"{rate}_interval"] = proportion_interval(hits, groups[of])
        return found


if __name__ == "__main__":
    answer(Path(sys.argv[1]), Path(sys.argv[2]))
