"""Predict photos with a trained model, once or as they arrive in a folder."""

import itertools
import json
import logging
import os
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from defectcls.training.command import run_verb

if TYPE_CHECKING:
    from defectcls.data.inputs import Photos
    from defectcls.deployment.predictor import Predictor
    from defectcls.deployment.watching import PredictSettings

log = logging.getLogger(__name__)

HEAT_SIDE = 128  # pixels of a heat map in memory, at most twice as many: its cells are coarser, and so is a thumbnail


def predict(config: dict[str, Any], folder: Path) -> int:
    """Write the table, gallery.html and summary.json; 1 where photos could not be read."""
    from defectcls.deployment.watching import PredictSettings, read_output, watch

    settings = PredictSettings(**config)
    import numpy as np
    import pandas as pd

    from defectcls.data.images import further_pages
    from defectcls.data.inputs import Photos, list_inputs
    from defectcls.data.threads import keep_freed_memory
    from defectcls.evaluation.predictions import ACCEPT, REJECT, REVIEW
    from defectcls.files import checkpoint_file, refuse_output

    output = settings.output or folder / "predictions.csv"
    if (by_ray := settings.ray.address) is None:
        refuse_output(output, ".csv", settings.overwrite or settings.watch)
    photos = Photos(Path(settings.input), [], {}) if settings.watch else list_inputs(settings.input, settings.root)
    checkpoint_file(settings.checkpoint)  # told before torch is imported
    from defectcls.deployment.predictor import load
    from defectcls.pages.gallery import gallery_page
    from defectcls.pages.render import print_page, write_page
    from defectcls.training.results import provenance

    predictor = load(settings.checkpoint, settings.device, settings.precision)
    if predictor.about["device"] == "cpu":
        keep_freed_memory(one_heap=True)
    if settings.heat_maps:
        next(predictor.heat_maps([np.zeros((8, 8), np.uint8)]))  # refuses before anything is predicted
    write: Any = watch if settings.watch else _write
    if by_ray:
        from defectcls.deployment.actors import write
    written = output.with_name(f"{output.name}.{predictor.about['digest'][:8]}.part") if write is _write else output
    start = time.perf_counter()
    before = write(predictor, photos, settings, written)
    seconds = time.perf_counter() - start
    counts = Counter[str]()  # of all times that it was watched
    for rows in read_output(written, settings.watch):
        counts.update(rows["decision"])  # "" of what could not be read
    read, lost, best, drift = counts.total() - counts[""], pd.DataFrame(), pd.DataFrame(), []
    window = predictor.drift(read)
    for rows in read_output(written, settings.watch):
        known = rows[rows["error"] == ""]
        drift += window.windows(known)
        lost = pd.concat([lost, rows[rows["error"] != ""]])[:100]  # the table has all
        best = pd.concat([best, known], ignore_index=True)  # files of actors count anew
        strange = best[best["cause"] != ""].nlargest(settings.gallery // 4, "unlike")
        best = best.loc[strange.index.union(best.nlargest(settings.gallery, "score").index)]
    if predictor.paged:
        log.warning(further_pages(predictor.paged))
    summary = {
        "checkpoint": str(settings.checkpoint),
        "input": settings.input,
        **{key: predictor.about[key] for key in ("digest", "dataset", "model")},
        "class_names": list(predictor.classes),
        "defective_classes": list(predictor.classes.values()),
        "decision": predictor.decision.plain(),
        "depth": predictor.depth,
        "images": counts.total(),
        "read": read,
        "unreadable": counts[""],
        **{decision: counts[decision] for decision in (ACCEPT, REVIEW, REJECT)},
        "output": str(output),
        "root": str(photos.root),
        "left_out": photos.left_out,
        "further_pages": predictor.paged,
        "unlike": drift[0]._asdict() if drift else None,
        "seconds": seconds,
        "images_per_second": None if settings.watch else (counts.total() - (before or 0)) / seconds,
        **provenance(predictor.about["seed"], {}, predictor.about["device"]),
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=2), encoding="utf-8")
    shown = pd.concat([strange, best.drop(strange.index).nlargest(settings.gallery - len(strange), "score")])
    heat = _heat(predictor, photos.root, list(shown["path"])) if settings.heat_maps else {}
    page = gallery_page(shown, lost, photos.root, summary, heat)
    file = folder / "gallery.html" if settings.gallery else None
    if file:
        write_page(page, file)
    written.replace(output)  # whoever is killed before goes on
    print_page(page, file)
    return int(counts[""] > 0)


def _write(predictor: "Predictor", photos: "Photos", settings: "PredictSettings", part: Path) -> int:
    """Batch by batch, so that memory is bounded; how many rows the part had, which a kill leaves."""
    import pandas as pd
    from tqdm import tqdm

    from defectcls.data.samples import writable
    from defectcls.deployment.watching import AT_ONCE, append, mend_table
    from defectcls.errors import UserError

    done, anew = 0, f"{part} is of other photos or of another version: type the command, without resume"
    if settings.resume and part.is_file():
        mend_table(part, predictor.columns, anew)
        for rows in pd.read_csv(part, usecols=["path"], dtype=str, keep_default_na=False, chunksize=AT_ONCE):
            if rows["path"].tolist() != [*map(writable, photos.names[done : done + len(rows)])]:
                raise UserError(anew)
            done += len(rows)
        log.info("%s has %d of %d photos: going on after them", part, done, len(photos.names))
    else:
        part.unlink(missing_ok=True)
    names = map(writable, photos.names[done:])
    paths = (os.path.join(photos.root, name) for name in photos.names[done:])  # noqa: PTH118  names may be absolute
    with tqdm(total=len(photos.names), initial=done, unit="img", disable=None) as progress:
        for rows in predictor.stream(paths, settings.batch_size):
            append(rows.assign(path=list(itertools.islice(names, len(rows)))), part)
            progress.update(len(rows))
    return done


def _heat(predictor: "Predictor", root: Path, paths: list[str]) -> dict[str, Any]:
    """Heat maps of the photos that can be read again, by path."""
    from defectcls.data.images import without_borders

    maps = zip(paths, predictor.heat_maps(root / path for path in paths), strict=True)
    steps = slice(None, None, max(1, max(predictor.image_size) // HEAT_SIDE))  # copied, lest the whole map stays
    small = {path: one[steps, steps].copy() for path, one in maps if one is not None}
    padded = predictor.resize == "pad"
    return {path: without_borders(one, root / path) if padded else one for path, one in small.items()}


if __name__ == "__main__":
    run_verb("predict")
