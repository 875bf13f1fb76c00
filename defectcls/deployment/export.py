"""A checkpoint as an ONNX file, an OpenVINO model or torch's own, which is held against it before it gets its name."""

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import pandas as pd
import torch
from onnx_ir.passes import common

from defectcls.data.inputs import list_inputs
from defectcls.deployment.gate import HINT, ExportSettings, Gate
from defectcls.deployment.graph import Deployed, exporting, traced
from defectcls.deployment.predictor import Predictor, load
from defectcls.deployment.runtime import FORMAT, INPUT, PROPERTY
from defectcls.errors import UserError
from defectcls.evaluation.calibration import calibrate
from defectcls.evaluation.decision import Decision, choose_decision
from defectcls.evaluation.predictions import PROBABILITY, predictions_table, read_predictions
from defectcls.files import written_whole
from defectcls.model.checkpoint import Trained, load_trained
from defectcls.tables import refuse
from defectcls.training.results import commit, provenance, versions

log = logging.getLogger(__name__)

OPSET = 18  # of ONNX: what runtimes of 2023 read
SCOPES = "pkg.torch.onnx.name_scopes"  # where torch notes which modules a node is of
SEEN, AT_ONCE = 64, 8  # photos of each kind that set the scales of int8
GAIN = 1.1  # times as fast as float32: of less a precision is not worth its differences


def export_model(settings: ExportSettings, output: Path, folder: Path) -> dict[str, Any]:
    """Write the file, held against its checkpoint: as `output`, or with the suffix .refused. What export.json says.

    Raises:
        UserError: a run that did not finish, photos that are not there, a model that cannot be exported.
    """
    trained = load_trained(settings.checkpoint, "cpu", "32")
    if trained.decision is None:
        raise UserError(f"{trained.checkpoint} is of a run that did not finish, nothing is calibrated: resume its run")
    own = _rows_of_run(settings, trained) if settings.photos is None or settings.precision == "int8" else pd.DataFrame()
    if settings.photos is None:
        rows = own[own["split"] != "train"].reset_index(drop=True)
    else:
        photos = list_inputs(settings.photos, settings.root)
        rows = pd.DataFrame({"path": [str(photos.root / name) for name in photos.names], "split": "test"})
    folded = trained.settings.evaluation == "crossval" and settings.photos is None
    validated = (rows["split"] == "val").to_numpy()
    if settings.rethreshold and (folded or not validated.any()):
        needs = "rethreshold=true needs photos that the model has not learned from"
        raise UserError(f"{needs}, and this run set none aside: train with evaluation=holdout")
    with TemporaryDirectory(dir=folder, prefix="unfinished_") as work:
        predictor = load(settings.checkpoint, "cpu", "32")
        gate, tried = Gate(predictor, rows, ~validated | validated.all(), Path(work)), []
        for precision in dict.fromkeys(["32", settings.precision]):
            file = Path(work, f"{precision}{output.suffix}")
            log.info("precision=%s: held against the checkpoint on %d photos", precision, len(rows))
            answers, about = _attempt(settings, trained, gate, file, trained.decision, own)
            if settings.rethreshold and precision != "32":
                again = _chosen_again(trained, rows[validated], answers[validated])
                _, about = _attempt(settings, trained, gate, file, again, own)
            tried.append(about["gate"])
        whole, last = tried[0], tried[-1]
        ending = ".refused" if last["refused"] else ""
        for part in file.parent.glob(f"{file.stem}.*"):  # OpenVINO's model has weights beside it
            with written_whole(output.with_suffix(part.suffix + ending)) as unfinished:
                shutil.copyfile(part, unfinished)
    faster = last["images_per_second"] >= GAIN * whole["images_per_second"] and not last["refused"]
    return {
        **about,
        **provenance(trained.settings.seed, {}, None),
        "tried": tried,
        "take": settings.precision if faster else "32",
        "refused": last["refused"],
        "seen": bool(folded and not validated.any()),
        "trained_in": trained.about["config"]["trainer"]["precision"],
        "checkpoint": str(settings.checkpoint),
        "file": settings.format,
        "output": f"{output}{ending}",
    }


def _attempt(
    settings: ExportSettings, trained: Trained, gate: Gate, file: Path, decision: Decision, own: pd.DataFrame
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Write a file of the precision that is its name: its answers for the gate's photos, and what it says of itself.

    Args:
        own: the predictions table of the run, from whose photos int8 learns.
    """
    name, precision = f"model.name={trained.settings.model.name}", file.stem
    in_half, branches = precision == "fp16", settings.format != "openvino"
    how = gate.predictor.resize, settings.heat_map, in_half, branches, precision == "32"  # others see otherwise
    deployed = Deployed(trained.network, decision, *how)
    likeness = deployed.network.likeness
    made: Any = traced(deployed, name)
    if settings.format != "torch":
        made, body = as_onnx(made, deployed.outputs, name)
        if precision == "int8":
            made = as_int8(made, body, _to_learn_from(own, gate.predictor), file.with_name("scaled.onnx"))
    about = _about(trained, gate.predictor) | {"heat_map": settings.heat_map, "precision": precision}
    about |= {"decision": decision.plain(), "gate": None, "measured": likeness and likeness.measured.model_dump()}
    write(made, file, about)
    answers, found = gate.hold(file, precision == "32", decision)
    megabytes = sum(part.stat().st_size for part in file.parent.glob(f"{precision}.*")) / 1e6
    about["gate"] = {"precision": precision, "megabytes": megabytes, **found}
    write(made, file, about)
    return answers, about


def as_onnx(program: torch.export.ExportedProgram, outputs: list[str], name: str) -> tuple[Any, list[str]]:
    """An onnx.ModelProto, and which of its nodes are of the backbone.

    Raises:
        UserError: ONNX has not what the model needs that is called `name`.
    """
    how: dict[str, Any] = {"input_names": [INPUT], "output_names": outputs, "opset_version": OPSET, "verbose": False}
    with exporting(name, "torch.onnx"):
        made: Any = torch.onnx.export(program, (), dynamo=True, **how)
    body = [node.name for node in made.model.graph if "backbone.body" in node.metadata_props.get(SCOPES, "")]
    common.ClearMetadataAndDocStringPass()(made.model)  # of places in Python's files
    return made.model_proto, body


def as_int8(model: Any, nodes: list[str], photos: Iterator[np.ndarray], file: Path) -> Any:
    """The same with some nodes in 8 bits, one scale a channel of weights; all else stays.

    Args:
        photos: uint8 (batch, *size of the model, 3) each, of both kinds: what is seen sets the scales.
        file: where it may write.
    """
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(({INPUT: batch} for batch in photos), None)

    with exporting("precision=int8", "onnxruntime"):
        quantize_static(model, file, Reader(), nodes_to_quantize=nodes, per_channel=True)
    return onnx.load(file)


def write(made: Any, file: Path, about: dict[str, Any]) -> None:
    """A program of torch's, or an ONNX model, in the format of the suffix, with what the file says of itself."""
    said = json.dumps(about)
    if file.suffix == ".pt2":
        torch.export.save(made, file, extra_files={PROPERTY: said})
    elif file.suffix == ".onnx":
        onnx.helper.set_model_props(made, {PROPERTY: said})
        onnx.save(made, file)
    else:
        import openvino

        with exporting("format=openvino", "openvino"):
            model = openvino.Core().read_model(made.SerializeToString())
        model.set_rt_info(said, [PROPERTY])
        computed = "bf16" if about["precision"] == "bf16" else "f32"  # left to itself a CPU takes bf16
        model.set_rt_info(computed, ["runtime_options", HINT])
        openvino.save_model(model, file, compress_to_fp16=False)


def _rows_of_run(settings: ExportSettings, trained: Trained) -> pd.DataFrame:
    """The predictions table of the checkpoint's run, with paths of files."""
    table = trained.checkpoint.resolve().parents[1] / "predictions.csv"
    if not table.is_file():
        raise UserError(f"{trained.checkpoint} lies in no run folder whose photos could be judged: photos=<folder>")
    rows, root = read_predictions(table), settings.root or trained.settings.dataset.root
    if not root.is_dir():
        raise UserError(f"the photos of the run were in {root}, which is not there: root=<folder>, or photos=<others>")
    return rows.assign(path=[str(root / path) for path in rows["path"]])


def _to_learn_from(rows: pd.DataFrame, predictor: Predictor) -> Iterator[np.ndarray]:
    """Photos that the model has learned from, of both kinds, in turns, as a file takes them."""
    taught = rows[rows["split"] == "train"] if (rows["split"] == "train").any() else rows
    kinds = (kind.sample(min(SEEN, len(kind)), random_state=0) for _, kind in taught.groupby("defective")["path"])
    mixed = pd.concat(kinds).sample(frac=1, random_state=0)
    for start in range(0, len(mixed), AT_ONCE):
        read = [predictor.read(path) for path in mixed[start : start + AT_ONCE]]
        refuse([one.path for one in read if one.error], "photos of the run cannot be read any more")
        yield np.ascontiguousarray(
            np.stack([one.pixels for one in read if one.pixels is not None]).transpose(0, 2, 3, 1)
        )


def _chosen_again(trained: Trained, rows: pd.DataFrame, answers: pd.DataFrame) -> Decision:
    """By the run's policy, on what a file says of the validation photos."""
    read, before, classes = (answers["error"] == "").to_numpy(), trained.decision, trained.network.classes
    assert before is not None
    told = answers[[PROBABILITY + name for name in classes]].to_numpy()[read]
    raw = calibrate(told, 1 / before.scale, -np.array(before.shift) / before.scale)
    samples = rows[read].filter(["path", "label", "defective", "unit", "group"])
    decision = choose_decision(trained.settings.decision, predictions_table(samples, raw, classes), classes)
    if decision.policy != before.policy:
        raise UserError(f"the checkpoint decides by {before.policy}, its run by {decision.policy}: rethreshold=false")
    return decision


def _about(trained: Trained, predictor: Predictor) -> dict[str, Any]:
    """What files of any precision say of themselves."""
    joined, licence = trained.network.joined, trained.network.backbone.pretrained_config.license
    head = "memory" if trained.settings.model.head == "memory" else "joined"
    about = {name: predictor.about[name] for name in ("version", "model", "dataset", "seed")}
    about |= {name: getattr(predictor, name) for name in ("classes", "image_size", "resize", "depth")}
    about |= {"format": FORMAT, "head": "linear" if joined is None else head, "weights_licence": licence or "not told"}
    return about | {"checkpoint": predictor.about["digest"], "versions": versions(), "commit": commit()}
