"""Photos as tensors: the Open Inference Protocol over HTTP, binary tensors too, as Triton's and KServe's clients speak.

Names and types are those of an exported file: the input `image`, the outputs `p_<class name>`, `score`, `prediction`
(place of the class; -1 where the model gives no finite score) and `decision` (0 accept, 1 review, 2 reject).
https://github.com/kserve/open-inference-protocol
"""

import json
import math
from typing import Any, Literal

import numpy as np
from fastapi import Response
from pydantic import BaseModel, PositiveInt

from defectcls.deployment.runtime import DECISIONS, outputs_of
from defectcls.errors import UserError
from defectcls.evaluation.predictions import PROBABILITY, REJECT

LENGTH = "Inference-Header-Content-Length"  # bytes of JSON, behind which binary tensors follow
IMAGE = {"name": "image", "datatype": "UINT8", "shape": [-1, -1, -1, 3]}
KINDS = {"tensor(double)": "FP64", "tensor(int64)": "INT64"}  # of an exported file
NUMPY = {"FP64": "<f8", "INT64": "<i8"}
NUMBERS = {name: number for number, name in enumerate(DECISIONS)}


class Output(BaseModel):
    """What is asked for."""

    name: str
    parameters: dict[str, Any] = {}


class Tensor(BaseModel):
    """What is given; without `data` it is binary, behind the JSON."""

    name: Literal["image"]
    datatype: Literal["UINT8"]
    shape: tuple[PositiveInt, PositiveInt, PositiveInt, Literal[3]]
    data: list[Any] | None = None


class Asked(BaseModel):
    """A request, but for its binary tensors."""

    id: str = ""
    inputs: tuple[Tensor]
    outputs: list[Output] = []
    parameters: dict[str, Any] = {}


def described(name: str, classes: dict[str, bool]) -> dict[str, Any]:
    """A model that is at work, as `/v2/models/<name>` tells it."""
    outputs = [{"name": each, "datatype": KINDS[kind], "shape": [-1]} for each, kind in outputs_of(classes).items()]
    return {"name": name, "platform": "defectcls", "ready": True, "inputs": [IMAGE], "outputs": outputs}


def asked_of(body: bytes, length: int | None, classes: dict[str, bool]) -> tuple[Asked, np.ndarray]:
    """The request, and its photos uint8 (batch, height, width, 3).

    Args:
        length: bytes of the body that are JSON; None: all of them.

    Raises:
        ValidationError: it is no request, or its input is no photos of that shape.
        UserError: an output that there is not, or other values.
    """
    end = len(body) if length is None else length
    asked = Asked.model_validate_json(body[:end])
    if unknown := [one.name for one in asked.outputs if one.name not in outputs_of(classes)]:
        raise UserError(f"there is no output '{unknown[0][:100]}': there are {', '.join(outputs_of(classes))}")
    (image,) = asked.inputs
    try:
        values = np.frombuffer(body[end:], np.uint8) if image.data is None else np.array(image.data)
        if values.dtype.kind not in "iu" or values.min() < 0 or values.max() > 255:
            raise ValueError
        return asked, values.astype(np.uint8).reshape(image.shape)
    except (ValueError, OverflowError) as error:
        needed = f"{math.prod(image.shape)} whole numbers from 0 to 255, a byte each where they are binary"
        raise UserError(f"image of shape {[*image.shape]} takes {needed}") from error


def answer(name: str, asked: Asked, classes: dict[str, bool], rows: list[Any]) -> Response:
    """To a request, of rows of `Line.decide`."""
    numbers: dict[str, list[Any]] = {PROBABILITY + one: [row["probabilities"][one] for row in rows] for one in classes}
    numbers["score"] = [row["score"] for row in rows]
    numbers["prediction"] = [[*classes].index(row["prediction"]) if row["prediction"] else -1 for row in rows]
    numbers["decision"] = [NUMBERS.get(row["decision"], NUMBERS[REJECT]) for row in rows]
    outputs, tail = [], b""
    for wanted in asked.outputs or [Output(name=each) for each in numbers]:
        kind = KINDS[outputs_of(classes)[wanted.name]]
        told: dict[str, Any] = {"name": wanted.name, "datatype": kind, "shape": [len(rows)]}
        if wanted.parameters.get("binary_data", asked.parameters.get("binary_data_output")):
            content = np.array(numbers[wanted.name], NUMPY[kind]).tobytes()
            told["parameters"] = {"binary_data_size": len(content)}
            tail += content
        else:
            told["data"] = numbers[wanted.name]
        outputs.append(told)
    head = json.dumps({"model_name": name, "id": asked.id, "outputs": outputs}).encode()
    if not tail:
        return Response(head, media_type="application/json")
    return Response(head + tail, headers={LENGTH: str(len(head))}, media_type="application/octet-stream")
