"""Photos judged by actors of Ray into a folder of Parquet: whoever dies, each is in one file, and no file in part."""

import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from defectcls.cluster import connected, refuse_unseen
from defectcls.config import import_named
from defectcls.data.inputs import Photos
from defectcls.data.samples import writable
from defectcls.data.threads import keep_freed_memory
from defectcls.deployment.predictor import Predictor, load
from defectcls.errors import UserError

if TYPE_CHECKING:
    from defectcls.deployment.watching import PredictSettings


class Judge:
    """An actor, which holds the model and makes such files as are asked for and not there."""

    def __init__(self, settings: "PredictSettings", root: Path) -> None:
        os.cpu_count = lambda: max(1, int(settings.ray.num_cpus))  # its part, as PYTHON_CPU_COUNT says from 3.13 on
        keep_freed_memory(one_heap=True)
        refuse_unseen(root)
        import_named(settings.model_dump())
        self.predictor = load(settings.checkpoint, settings.device, settings.precision)
        self.root, self.batch_size = root, settings.batch_size

    def __call__(self, asked: dict[str, Any]) -> dict[str, Any]:
        """A `file` of the photos of these `names`; how many of them have further pages."""
        before, file = self.predictor.paged, Path(asked["file"][0])
        if not file.is_file():  # else a node has died between it and the answer
            names = [*map(os.fsdecode, asked["names"][0])]
            rows = self.predictor.predict([self.root / name for name in names], self.batch_size)
            unfinished = file.with_name(f"_{uuid.uuid4()}")  # passed over by readers; another node has another one
            with unfinished.open("wb") as content:
                rows.assign(path=[*map(writable, names)]).to_parquet(content, index=False)
                os.fsync(content)
            unfinished.replace(file)
        return {"paged": [self.predictor.paged - before]}


def write(predictor: Predictor, photos: Photos, settings: "PredictSettings", output: Path) -> int:
    """Make the files that are missing, by as many actors as there is room for; how many photos were judged before.

    Raises:
        UserError: a file holds other photos than it would be made of, or is of another model.
    """
    import ray.data

    starts, kind = range(0, len(photos.names), settings.shard), f"{predictor.about['digest'][:8]}.parquet"
    files = {f"{start:09}.{kind}": photos.names[start : start + settings.shard] for start in starts}

    def missing() -> list[str]:
        for file in (there := {file.name: file for file in output.glob("[!_.]*")}).values():
            names = [*map(writable, files.get(file.name, ()))]
            if not names or pd.read_parquet(file, columns=["path"])["path"].tolist() != names:
                raise UserError(f"{file} is of other photos, or of another model or shard: give another output")
        return [name for name in files if name not in there]

    if left := missing():
        there = settings.model_copy(update={"checkpoint": settings.checkpoint.absolute()}), photos.root.absolute()
        pool = ray.data.ActorPoolStrategy(min_size=1, max_size=len(left))
        takes = settings.ray.model_dump(exclude={"address"}) | {"compute": pool, "fn_constructor_args": there}
        asked = [{"file": str((output / name).absolute()), "names": [*map(os.fsencode, files[name])]} for name in left]
        with connected(settings.ray):
            output.mkdir(parents=True, exist_ok=True)
            made = ray.data.from_items(asked, override_num_blocks=len(left)).map_batches(Judge, batch_size=1, **takes)
            predictor.paged += sum(int(row["paged"]) for row in made.iter_rows())
        missing()  # lest an actor of a command that was killed has written with another listing meanwhile
    return len(photos.names) - sum(len(files[name]) for name in left)
