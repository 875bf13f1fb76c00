"""Predict photos with a trained model, once or as they arrive in a folder."""

import itertools
import json
import logging
import os
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from defectcls.config import job_command, parse, run_verb

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from defectcls.data.inputs import Photos
    from defectcls.deployment.predictor import Predictor
    from defectcls.deployment.tally import Tally
    from defectcls.settings import PredictSettings

log = logging.getLogger(__name__)

TOLD = 3  # photos that could not be judged, on the terminal; the table has all
HEAT_SIDE = 128  # pixels of a heat map in memory, at most twice as many: its cells are coarser, and so is a thumbnail


def predict(config: dict[str, Any], folder: Path) -> int:
    """Write the table, gallery.html and summary.json; 1 where photos could not be read."""
    from defectcls.settings import PredictSettings

    settings = parse(PredictSettings, config)
    from defectcls.data.depth import examine, further_pages
    from defectcls.data.inputs import Photos, list_inputs
    from defectcls.data.samples import counted
    from defectcls.deployment.output import latest, refuse_output
    from defectcls.files import checkpoint_file

    output = settings.output or folder / "predictions.csv"
    refuse_output(output, settings.overwrite or settings.watch)
    photos = Photos(Path(settings.input), [], {}) if settings.watch else list_inputs(settings.input, settings.root)
    checkpoint_file(settings.checkpoint)  # told before torch is imported
    from defectcls.deployment.predictor import load
    from defectcls.deployment.tally import Tally
    from defectcls.model.hardware import keep_freed_memory
    from defectcls.pages.gallery import outcome_words
    from defectcls.pages.wording import decision_words, not_promised

    predictor = load(settings.checkpoint, settings.device, settings.precision)
    if predictor.device.type == "cpu":
        keep_freed_memory(one_heap=True)
    if settings.heat_maps:
        predictor.refuse_without_map()
    tally, paged, start = Tally(settings.gallery), 0, time.perf_counter()
    for rows in (_watched if settings.watch else _written)(predictor, photos, settings, output):
        tally.add(rows)
        paged += sum(examine(f"{photos.root / path}", measured=False)[1] for path in rows["path"][rows["error"] == ""])
    if paged:
        log.warning(further_pages(paged))
    if settings.watch and output.is_file():  # of all times that it was watched
        tally = Tally(settings.gallery)
        tally.add(latest(output))
    seconds = time.perf_counter() - start
    summary = _about(predictor, settings) | tally.counts | {"output": str(output), "root": str(photos.root)}
    summary |= {"left_out": photos.left_out, "further_pages": paged}
    summary |= {"seconds": seconds, "images_per_second": tally.counts["images"] / seconds}
    (folder / "summary.json").write_text(json.dumps(summary, indent=2), encoding="utf-8")
    if settings.gallery:
        page = _page(predictor, photos.root, tally, summary, settings)
        (folder / "gallery.html").write_text(page, encoding="utf-8")
    words = outcome_words(summary), *decision_words(summary["decision"]), *not_promised(summary["decision"])
    print(*words, sep="\n")
    for path, error in tally.unreadable[["path", "error"]].head(TOLD).itertuples(index=False):
        print(f"- {path}: {error}")
    if photos.left_out:
        print(f"beside the photos: {counted(photos.left_out)}")
    speed = "" if settings.watch else f"{summary['images_per_second']:.1f} photos per second; "
    print(f"{speed}table: {output}")
    if settings.gallery:
        print(f"page: {folder / 'gallery.html'}")
    return int(tally.counts["unreadable"] > 0)


def _written(
    predictor: "Predictor", photos: "Photos", settings: "PredictSettings", output: Path
) -> Iterator["pd.DataFrame"]:
    """Predict and write batch by batch, so that memory is bounded and a kill loses little."""
    from tqdm import tqdm

    from defectcls.data.samples import writable
    from defectcls.deployment.output import written_by_and_by

    names = iter(photos.names)
    paths = (os.path.join(photos.root, name) for name in photos.names)  # noqa: PTH118  quick, and names may be absolute
    with written_by_and_by(output) as append, tqdm(total=len(photos.names), unit="img", disable=None) as progress:
        for rows in predictor.stream(paths, settings.batch_size):
            rows["path"] = [writable(name) for name in itertools.islice(names, len(rows))]
            append(rows)
            progress.update(len(rows))
            yield rows


def _watched(
    predictor: "Predictor", photos: "Photos", settings: "PredictSettings", output: Path
) -> Iterator["pd.DataFrame"]:
    """As they arrive; tells of each photo that is not accepted."""
    from defectcls.deployment.watching import watch
    from defectcls.evaluation.predictions import ACCEPT

    log.info("watching %s, predictions go to %s; Ctrl-C ends it", photos.root, output)
    often = settings.batch_size, settings.watch_seconds, settings.watch_patience
    for rows in watch(predictor, photos.root, output, settings.overwrite, *often):
        for row in rows[rows["decision"] != ACCEPT].to_dict("records"):
            told = f"{row['decision']} {row['score']:.3f}" if not row["error"] else f"unreadable ({row['error']})"
            print(f"{datetime.now():%Y-%m-%d %H:%M:%S} {told} {row['path']}", flush=True)
        yield rows


def _about(predictor: "Predictor", settings: "PredictSettings") -> dict[str, Any]:
    """What summary.json says besides the counts."""
    from defectcls.training.provenance import provenance

    trained = predictor.trained.settings
    return {
        "checkpoint": str(settings.checkpoint),
        "input": settings.input,
        "dataset": trained.dataset.name,
        "model": trained.model.name,
        "class_names": list(predictor.classes),
        "defective_classes": list(predictor.classes.values()),
        "decision": predictor.decision.plain(),
        "depth": predictor.depth,
        "command": job_command(),
        **provenance(trained.seed, {}, predictor.device),
    }


def _page(
    predictor: "Predictor", root: Path, tally: "Tally", summary: dict[str, Any], settings: "PredictSettings"
) -> str:
    from defectcls.pages.gallery import render_gallery
    from defectcls.training.inspection import without_borders

    heat: dict[str, np.ndarray] = {}
    if settings.heat_maps:
        paths = tally.shown["path"].tolist()
        maps = predictor.heat_maps([root / path for path in paths], settings.batch_size)
        for path, one in zip(paths, maps, strict=True):
            if one is not None:
                step = max(1, len(one) // HEAT_SIDE)
                small = one[::step, ::step]
                heat[path] = without_borders(small, root / path) if predictor.resize == "pad" else small
    return render_gallery(tally.shown, tally.unreadable, root, summary, heat)


if __name__ == "__main__":
    run_verb("predict", predict)
