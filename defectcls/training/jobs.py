"""The jobs of a sweep: each in a process of its own, recorded in its folder, and not run twice.

    <sweep folder>/
        sweep.json              the command
        sweep.lock              held while the sweep runs
        <job folder>/
            job.json            what was to be done, and what became of it
            job.lock            held by the process that does it

A job knows nothing of what launched it: this process, one of joblib's, or one of a cluster.
"""

import contextlib
import json
import logging
import logging.config
import multiprocessing
import multiprocessing.connection
import os
import shlex
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from defectcls.config import as_job, import_named, task_of
from defectcls.errors import FULL_ERROR, Stopped, UserError, explain, stoppable
from defectcls.files import lock_at_once, locked, read_json, replace_unprintable, written_whole

if TYPE_CHECKING:
    from defectcls.evaluation.sweeps import Job

log = logging.getLogger(__name__)

FINISHED, FAILED, UNFINISHED = "finished", "failed", "unfinished"
RECORD, SWEEP = "job.json", "sweep.json"
GOES_ON, OTHER_FOLDER = "resume=<sweep folder> goes on", "take another folder by hydra.sweep.dir=<folder>"
KEYS = {  # that a file of these names has
    RECORD: ("number", "overrides", "config", "status", "error", "exit_status", "objective"),
    SWEEP: ("verb", "arguments"),
    "metrics.json": ("seed", "test"),
}
# joblib: a process has to know the start method of its launcher.
IMPORTED_ONCE = ["joblib", *(f"defectcls.training.{name}" for name in ("run", "inspection", "results", "loggers"))]


class Task(NamedTuple):
    """A job that is to be done: `python -m defectcls.<verb> <overrides>`, in a folder of a sweep."""

    verb: str
    number: int
    folder: Path
    overrides: list[str]
    config: dict[str, Any]  # composed of the overrides
    arguments: list[str]  # that do it again in the same folder
    logs: dict[str, Any]  # as `logging.config.dictConfig` takes it

    def record(self, status: str, error: str | None = None, returned: int | float | None = None) -> dict[str, Any]:
        """What job.json says; what the verb returned is its exit status, if a whole number, or else its objective."""
        exit_status, objective = (returned, None) if isinstance(returned, int) else (0, returned)
        about = {"number": self.number, "overrides": self.overrides, "config": self.config}
        return about | {"status": status, "error": error, "exit_status": exit_status, "objective": objective}


def run_job(task: Task) -> dict[str, Any]:
    """Do a job in a process of its own, unless it is done. What became of it: job.json.

    So no job takes another one's memory, on a GPU either, or dies of another one's death.

    Raises:
        UserError: the folder holds the same job with another configuration.
    """
    record = task.folder / RECORD
    known = _read(record)
    if known is not None:
        refuse_another(known["config"], task.config, str(task.folder), ("resume", "logger."), OTHER_FOLDER)
        if known["status"] == FINISHED:
            log.info("job %d is finished: %s", task.number, " ".join(task.overrides))
            return known
    # What takes seconds to import is imported once, by a process that does nothing else but fork.
    context: Any = multiprocessing.get_context("forkserver")  # Any: typeshed's lacks Process
    context.set_forkserver_preload(IMPORTED_ONCE)
    process = context.Process(target=_work, args=(task, dict(os.environ)))
    process.start()
    try:
        process.join()
    except (KeyboardInterrupt, Stopped):
        process.terminate()  # if it has not got the same signal; it ends its dashboard
        process.join()
        raise
    done = _read(record)
    if done is None or done["status"] == UNFINISHED:
        code = process.exitcode or 0
        how = f"ended with status {code}" if code >= 0 else f"was killed by {signal.Signals(-code).name}"
        how += ", as Linux does when memory runs out" * (code == -signal.SIGKILL)
        done = task.record(FAILED, f"its process {how}")
        _write(record, done)
    if done["status"] == FAILED:
        print(f"error in job {task.number}: {done['error']}", file=sys.stderr)
    return done


def _work(task: Task, variables: dict[str, str]) -> None:
    """The job, in its process.

    Args:
        variables: of the environment as it is now; the process that forks is older.
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.update(variables)
    logging.config.dictConfig(task.logs)
    record = task.folder / RECORD
    replace_unprintable()
    with (
        locked(task.folder / "job.lock", f"job {task.number} is being done by another process"),
        stoppable() as stopped,
        as_job(task.verb, task.arguments),
    ):
        if (_read(record) or {}).get("status") == FINISHED:
            return
        _write(record, task.record(UNFINISHED))
        try:
            import_named(task.config)
            returned = task_of(task.verb)(task.config, task.folder)
        except (Exception, Stopped) as error:
            if stopped:
                sys.exit(128 + stopped[0])
            sentence = explain(error, GOES_ON)
            if sentence is None or variables.get(FULL_ERROR) == "1":
                traceback.print_exc()
            _write(record, task.record(FAILED, sentence or repr(error)))
        else:
            _write(record, task.record(FINISHED, returned=returned))


def _end_with_parent() -> None:
    """A job whose sweep was killed would go on beside the same job of the sweep that is started again."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(128 + signal.SIGTERM)


def refuse_another(
    known: dict[str, Any], config: dict[str, Any], what: str, spared: tuple[str, ...], remedy: str
) -> None:
    """Nothing is skipped, or gone on with, that is not what was asked for.

    Args:
        known, config: that it was begun with, and of now.
        spared: how the keys begin that may differ, such as where it is told.

    Raises:
        UserError: another one differs.
    """
    before, now = (_flat(json.loads(json.dumps(one, default=str))) for one in (known, config))
    other = (key for key in before | now if before.get(key) != now.get(key))
    if (key := next((key for key in other if not key.startswith(spared)), None)) is not None:
        raise UserError(f"{what} was begun with {key}={before.get(key)}, and now it is {now.get(key)}: {remedy}")


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every value by its key as one types it."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


@contextlib.contextmanager
def open_sweep(folder: Path, verb: str, arguments: list[str]) -> Iterator[None]:
    """The folder of a sweep, new or begun by the same command, for this process alone.

    Raises:
        UserError: it is of another command, of a sweep that runs, or holds other files.
    """
    known = recorded_sweep(folder)
    if known not in (None, [verb, *arguments]):
        theirs = " ".join([known[0], "-m", *known[1:]])
        raise UserError(f"{folder} is of another sweep, {theirs}: {OTHER_FOLDER}")
    if known is None and folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} holds other files: give hydra.sweep.dir=<new folder>")
    folder.mkdir(parents=True, exist_ok=True)
    lock = lock_at_once(folder / "sweep.lock")
    if lock is None:
        raise UserError(f"the sweep in {folder} is running: wait for it, or stop it")
    with lock:
        _write(folder / SWEEP, {"verb": verb, "arguments": arguments})
        yield


def recorded_sweep(folder: Path) -> list[str] | None:
    """The verb and the arguments of the command that a folder is the sweep of; None where it is none."""
    known = _read(folder / SWEEP)
    return None if known is None else [known["verb"], *known["arguments"]]


def close_sweep(folder: Path) -> int:
    """Write and show the table of a sweep. Its exit status: 2 where all jobs failed, 1 where some did, else theirs."""
    verb, *arguments = recorded_sweep(folder) or [""]
    records = list(_records(folder).values())
    if not records:
        shutil.rmtree(folder)  # the command could not be composed
        return 0
    from defectcls.evaluation.sweeps import summarise_sweep
    from defectcls.pages.render import print_page, write_page
    from defectcls.pages.sweep import sweep_page

    sweep = summarise_sweep(str(folder), read_jobs(folder))
    for name, table in (("sweep.csv", sweep.settings), ("jobs.csv", sweep.jobs)):
        with written_whole(folder / name) as unfinished:
            table.to_csv(unfinished, index=False)
    page = sweep_page(sweep, folder, shlex.join(["python", "-m", f"defectcls.{verb}", "-m", *arguments]))
    write_page(page, folder / "sweep.html")
    print_page(page, folder / "sweep.html")
    failed = [record for record in records if record["status"] == FAILED]
    if len(failed) == len(records):
        print(f"error: all {len(failed)} jobs failed, the first of them: {failed[0]['error']}", file=sys.stderr)
        return 2
    return 1 if failed else max(record["exit_status"] for record in records)


def read_jobs(folder: Path) -> list["Job"]:
    """The jobs of a sweep by number, with the metrics.json of each."""
    from defectcls.evaluation.sweeps import Job

    jobs = []
    for place, job in _records(folder).items():
        metrics = _read(place / "metrics.json") if job["status"] == FINISHED else None
        jobs.append(Job(job["number"], tuple(job["overrides"]), job["status"], job["error"], metrics))
    return jobs


def _records(folder: Path) -> dict[Path, dict[str, Any]]:
    """job.json of each job by the job's folder, in the order of their numbers."""
    found = {file.parent: _read(file) or {} for file in folder.glob(f"**/{RECORD}")}
    return dict(sorted(found.items(), key=lambda one: one[1]["number"]))


def _read(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    anew = f"delete the folder {path.parent}, and {GOES_ON} and does the job anew"
    return read_json(path, OTHER_FOLDER if path.name == SWEEP else anew, KEYS[path.name])


def _write(path: Path, content: dict[str, Any]) -> None:
    with written_whole(path) as unfinished:
        unfinished.write_text(json.dumps(content, indent=2, default=str), encoding="utf-8")
