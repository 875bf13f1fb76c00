"""An exported file at work, by ONNX Runtime alone: no torch, and the answers are those of the file's own graph.

The file may come from a stranger: nothing that it names is imported, opened or fetched.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from defectcls.data.images import Depth, Resize
from defectcls.deployment.predictor import COMPARED, Predictor
from defectcls.errors import UserError, first_mistake, one_line
from defectcls.evaluation.decision import Decision
from defectcls.evaluation.drift import Measured
from defectcls.evaluation.predictions import ACCEPT, PROBABILITY, REJECT, REVIEW
from defectcls.files import checkpoint_file

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

    from defectcls.settings import Device, Precision

PROPERTY, FORMAT = "defectcls", 1  # key of the metadata, and the version of what stands there
INPUT, HEAT_MAP = "image", "heat_map"
CUDA = "CUDAExecutionProvider"
DECISIONS = np.array([ACCEPT, REVIEW, REJECT], object)  # by their numbers in the file
# How protobuf writes the key of weights that lie in another file: its length, 8, in any spelling, and the text.
EXTERNAL, LENGTH = b"location", re.compile(rb"(\x08|\x88\x80*\x00)\Z")
OWN = {"format", "classes", "image_size", "resize", "depth", "decision", "measured"}  # of a Predictor beside `about`

Side = Annotated[int, Field(ge=1, le=2**14)]
Run = Callable[[list[str], np.ndarray], list[np.ndarray]]  # names of outputs, photos uint8 (n, height, width, 3)


class Metadata(BaseModel):
    """What the file says of itself, as JSON in `metadata_props["defectcls"]`; further keys are for people to read."""

    model_config = ConfigDict(extra="allow")

    format: Literal[1]
    version: str  # of defectcls
    model: str
    dataset: str
    classes: Annotated[dict[str, bool], Field(min_length=2)]
    image_size: tuple[Side, Side]
    resize: Resize
    depth: Depth
    decision: dict[str, Any]  # of `Decision.plain`
    precision: str
    heat_map: bool
    seed: int
    measured: Measured | None = None  # of float32 alone, and not in files from before


def load_file(path: Path, device: "Device", precision: "Precision | None") -> Predictor:
    """See `defectcls.deployment.predictor.load`."""
    file = checkpoint_file(path)
    content = file.read_bytes()
    session = _session(content, file, device)
    said = session.get_modelmeta().custom_metadata_map.get(PROPERTY)
    if said is None:
        raise UserError(f"{file} is an ONNX file of another tool: give one that defectcls.export wrote")
    place = "cuda" if CUDA in session.get_providers() else "cpu"
    about = {"digest": hashlib.sha256(content).hexdigest(), "device": place}
    other = f"{file} is damaged, or of another version of defectcls"
    try:
        metadata = Metadata.model_validate_json(said)
        predictor = predictor_of(lambda names, photos: session.run(names, {INPUT: photos}), metadata, file, about)
    except (ValidationError, UserError) as error:
        reason = first_mistake(error) if isinstance(error, ValidationError) else error
        raise UserError(f"{other}: {reason}") from error
    hot = {HEAT_MAP: "tensor(float)"} if metadata.heat_map else {}
    wanted = outputs_of(metadata.classes, metadata.measured) | hot
    given = [{one.name: one.type for one in some} for some in (session.get_inputs(), session.get_outputs())]
    if given != [{INPUT: "tensor(uint8)"}, wanted]:
        raise UserError(f"{other}: it takes and answers {given}")
    if precision not in (None, metadata.precision):
        computes = f"{file} computes in {metadata.precision}, as it was exported"
        raise UserError(f"precision={precision} is asked for, and {computes}: leave precision out")
    return predictor


def _session(content: bytes, file: Path, device: "Device") -> "InferenceSession":
    """What computes a file's content, on all cores.

    Raises:
        UserError: a damaged file, one whose weights lie in others, or no GPU.
    """
    import onnxruntime

    if any(LENGTH.search(before[-12:]) for before in content.split(EXTERNAL)[:-1]):
        raise UserError(f"{file} has weights in other files, and none is opened for it: give one that holds them all")
    providers: list = ["CPUExecutionProvider"]
    if device != "cpu" and CUDA in onnxruntime.get_available_providers():
        providers.insert(0, (CUDA, {"use_tf32": "0"}))  # which decides otherwise than float32
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = os.cpu_count() or 1, 4
    options.add_session_config_entry("session.load_model_format", "ONNX")  # no other that bytes may be taken for
    # Threads that spin while they wait take 3 ms of 23 a photo from whoever else needs the cores, and gain 0.6 of 15.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(content, options, providers=providers)
    except Exception as error:  # it has a class of its own for each of its errors
        raise UserError(f"{file} is damaged, or no ONNX file that can be computed here: {one_line(error)}") from error
    if device == "gpu" and CUDA not in session.get_providers():
        raise UserError("a gpu is asked for, and ONNX Runtime finds none here: pip install onnxruntime-gpu, or use cpu")
    return session


def predictor_of(run: Run, metadata: Metadata, file: Path, about: dict[str, Any]) -> Predictor:
    """A predictor by what computes the outputs of a file.

    Raises:
        UserError: the decision in its metadata makes no sense; and when it judges, it cannot be computed, or gives
            another number of answers, or other ones.
    """
    decision = Decision.from_plain(metadata.decision, len(metadata.classes))
    names, classes = [*outputs_of(metadata.classes)], np.array([*metadata.classes], object)

    def compute(asked: list[str], pixels: np.ndarray, *of_each: int) -> list[np.ndarray]:
        """Outputs, with a number for each photo, or what has the shape `of_each`."""
        try:
            answers = run(asked, np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)))
        except Exception as error:
            raise UserError(f"{file} cannot be computed for {len(pixels)} photos at once: {one_line(error)}") from error
        if any(one.shape != (len(pixels), *of_each) for one in answers):
            raise UserError(f"{file} is damaged: it does not answer once for each photo")
        return answers

    def judge(pixels: np.ndarray) -> pd.DataFrame:
        answers = compute([*outputs_of(classes, metadata.measured)], pixels)
        *probabilities, score, prediction, decided = answers[: len(names)]
        if not all((one >= 0).all() and (one < end).all() for one, end in ((prediction, len(classes)), (decided, 3))):
            raise UserError(f"{file} is damaged: it answers with a class or a decision that there is not")
        known = np.isfinite([*probabilities, score]).all(0)
        rows = {"decision": np.where(known, DECISIONS[decided], REJECT), "prediction": classes[prediction]}
        rows |= {"score": np.where(known, score, np.nan), **dict(zip(names, probabilities, strict=False))}
        rows |= dict(zip(COMPARED, answers[len(names) :], strict=False))
        return pd.DataFrame(rows)

    def heat(pixels: np.ndarray) -> np.ndarray:
        if not metadata.heat_map:
            raise UserError(f"{file} was exported without heat maps: export it with heat_map=true")
        return compute([HEAT_MAP], pixels, *metadata.image_size)[0]

    how = metadata.image_size, metadata.resize, metadata.depth, decision
    about = metadata.model_dump(exclude=OWN) | about
    return Predictor(metadata.classes, *how, about, judge, heat, measured=metadata.measured)


def outputs_of(classes: Iterable[str], measured: object = None) -> dict[str, str]:
    """Names and types of the answers, in their order in the file; a heat map comes after them."""
    probabilities = {PROBABILITY + name: "tensor(double)" for name in classes}
    decided = {"score": "tensor(double)", "prediction": "tensor(int64)", "decision": "tensor(int64)"}
    return probabilities | decided | (COMPARED if measured else {})
