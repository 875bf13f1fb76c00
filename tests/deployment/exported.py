"""A tiny file in the format of `export`, made by hand: the score of a photo is the mean of its pixels over 255.

Of two classes, sound and defective; below 0.4 it is accepted, from 0.6 on rejected. A black photo has no score.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIZE = (48, 64)
EVIDENCE = {"defective": 9, "sound": 20, "escapes": 0, "false_rejects": 1}
DECISION = {"policy": "f1", "accept_below": 0.4, "reject_from": 0.6, "evidence": EVIDENCE}
METADATA: dict[str, Any] = {
    "format": 1,
    "version": "0.1.0",
    "model": "mean",
    "dataset": "photos",
    "classes": {"sound": False, "defective": True},
    "image_size": SIZE,
    "resize": "squash",
    "depth": "8",
    "decision": DECISION,
    "precision": "32",
    "heat_map": True,
    "seed": 3,
    "gate": None,
}
TYPES = {"p_sound": TensorProto.DOUBLE, "p_defective": TensorProto.DOUBLE, "score": TensorProto.DOUBLE}
TYPES |= {"prediction": TensorProto.INT64, "decision": TensorProto.INT64, "heat_map": TensorProto.FLOAT}


def built(metadata: dict[str, Any] | str | None = None, **nodes: list[Any]) -> onnx.ModelProto:
    """The file, not yet written.

    Args:
        metadata: in place of METADATA; "" leaves it out.
        nodes: by the output that they compute, in place of those that compute it.
    """
    constants = {"all": [1, 2, 3], "colours": [3], "255": 255.0, "zero": 0.0, "one": 1.0, "low": 0.4, "high": 0.6}
    kinds = {list: np.int64, float: np.float64}
    initializers = [numpy_helper.from_array(np.array(v, kinds[type(v)]), k) for k, v in constants.items()]
    initializers += [numpy_helper.from_array(np.int64(number), f"number {number}") for number in (0, 1, 2)]
    make, double = helper.make_node, TensorProto.DOUBLE
    computed = {
        "mean": [
            make("Cast", ["image"], ["pixels"], to=double),
            make("ReduceMean", ["pixels", "all"], ["mean"], keepdims=0),
            make("Log", ["mean"], ["log"]),
            make("Mul", ["log", "zero"], ["nothing"]),  # no number of a black photo
        ],
        "score": [make("Div", ["mean", "255"], ["share"]), make("Add", ["share", "nothing"], ["score"])],
        "p_defective": [make("Identity", ["score"], ["p_defective"])],
        "p_sound": [make("Sub", ["one", "score"], ["p_sound"])],
        "prediction": [
            make("Less", ["score", "low"], ["below"]),
            make("Where", ["below", "number 0", "number 1"], ["prediction"]),
        ],
        "decision": [
            make("GreaterOrEqual", ["score", "high"], ["above"]),
            make("Where", ["above", "number 2", "prediction"], ["decision"]),
        ],
        "heat_map": [
            make("ReduceMean", ["pixels", "colours"], ["grey"], keepdims=0),
            make("Div", ["grey", "255"], ["evidence"]),
            make("Cast", ["evidence"], ["heat_map"], to=TensorProto.FLOAT),
        ],
    } | nodes
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", "height", "width", 3])
    metadata = METADATA if metadata is None else metadata
    heat = isinstance(metadata, str) or metadata["heat_map"]
    outputs = [
        helper.make_tensor_value_info(name, kind, ["batch", "height", "width"][: 3 if name == "heat_map" else 1])
        for name, kind in TYPES.items()
        if name != "heat_map" or heat
    ]
    graph = helper.make_graph([one for some in computed.values() for one in some], "g", [image], outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    if metadata:
        text = metadata if isinstance(metadata, str) else json.dumps(metadata)
        helper.set_model_props(model, {"defectcls": text})
    return model


def write(path: Path, *given: Any, **nodes: list[Any]) -> Path:
    """The file that `built` gives."""
    path.write_bytes(built(*given, **nodes).SerializeToString())
    return path
