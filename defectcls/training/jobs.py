"""The jobs of a sweep: each in a process of its own, recorded in its folder, and not run twice.

    <sweep folder>/
        multirun.yaml           the command, as Hydra records it
        sweep.lock              held while the sweep runs
        <job folder>/
            job.json            what was to be done, and what became of it
            job.lock            held while the job is done

A job knows nothing of what launched it: this process, one of joblib's, or one of a cluster.
"""

import json
import logging
import logging.config
import multiprocessing
import os
import shlex
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from defectcls.arguments import searchpath
from defectcls.config import do_job
from defectcls.errors import FULL_ERROR, Stopped, UserError, explain, stoppable
from defectcls.files import locked, read_json, written_whole

if TYPE_CHECKING:
    from defectcls.evaluation.sweeps import Job

log = logging.getLogger(__name__)

FINISHED, FAILED, UNFINISHED, PRUNED = "finished", "failed", "unfinished", "pruned"
WATCH_S = 1.0  # between two looks at a job
RECORD = "job.json"
RUN, SWEEP = Path(".hydra", "hydra.yaml"), Path("multirun.yaml")  # in which Hydra records what began a folder
SLURM_KILLS_S = 120  # it waits for KillWait, by default 30
GOES_ON = "resume=<sweep folder> goes on"
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
    act: Callable[[dict[str, Any], Path], Any] | None = None  # in place of the verb's function

    def record(self, status: str, error: str | None = None, objective: Any = None) -> dict[str, Any]:
        """Write job.json, and give what it says."""
        done = {"number": self.number, "overrides": self.overrides, "status": status}
        done |= {"error": error, "objective": objective}
        with written_whole(self.folder / RECORD) as unfinished:
            unfinished.write_text(json.dumps(done, indent=2), encoding="utf-8")
        return done


def run_job(task: Task, watch: Callable[[], bool] | None = None) -> dict[str, Any]:
    """Do a job in a process of its own, unless it is done. What became of it: job.json.

    So no job takes another one's memory, on a GPU either, or dies of another one's death.

    Args:
        watch: asked each second while the job is done; where it says so, the job ends as pruned.
    """
    record = task.folder / RECORD
    with locked(task.folder / "job.lock", f"job {task.number} is being done by another process"):
        if record.is_file() and (known := _read(record))["status"] in (FINISHED, PRUNED):
            log.info("job %d is %s: %s", task.number, known["status"], " ".join(task.overrides))
            return known
        task.record(UNFINISHED)
        # What takes seconds to import is imported once, by a process that does nothing else but fork.
        context: Any = multiprocessing.get_context("forkserver")  # Any: typeshed's lacks Process
        context.set_forkserver_preload(IMPORTED_ONCE)
        process = context.Process(target=_work, args=(task, dict(os.environ)))
        resource_tracker.ensure_running()  # which unblocks signals
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # for what is forked, until it can tell of a Ctrl-C
        try:
            forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        main, sys.modules["__main__"] = sys.modules["__main__"], sys.modules[__name__]
        try:
            process.start()  # which else would run a script that calls this again
        finally:
            sys.modules["__main__"] = main
        try:
            while watch is not None and process.exitcode is None:
                process.join(WATCH_S)
                if process.exitcode is None and watch():
                    process.terminate()
                    process.join()
                    return task.record(PRUNED)
            process.join()
        except BaseException:
            process.terminate()  # if it has not got the same signal; it ends its dashboard
            process.join()
            raise
        done = _read(record)
        if done["status"] == UNFINISHED:
            if "SLURM_JOB_ID" in os.environ and process.exitcode in (255, -signal.SIGTERM, 128 + signal.SIGTERM):
                time.sleep(SLURM_KILLS_S)  # all of the job, which is no failure: it may go back into the queue
            killed = process.exitcode == -signal.SIGKILL
            how = "was killed, as Linux does when memory runs out" if killed else f"ended with {process.exitcode}"
            done = task.record(FAILED, f"its process {how}")
    if done["status"] == FAILED:
        print(f"error in job {task.number}: {done['error']}", file=sys.stderr)
    return done


def _work(task: Task, variables: dict[str, str]) -> None:
    """The job, in its process; with variables of the environment as it is now, as the process that forks is older."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.update(variables)
    logging.config.dictConfig(task.logs)
    with stoppable() as stopped:
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            task.record(FINISHED, objective=do_job(task.verb, task.config, task.folder, task.arguments, act=task.act))
        except (Exception, Stopped) as error:
            if stopped:
                sys.exit(128 + stopped[0])
            sentence = explain(error, GOES_ON)
            if sentence is None or variables.get(FULL_ERROR) == "1":
                traceback.print_exc()
            task.record(FAILED, sentence or repr(error))


def _end_with_parent() -> None:
    """A job whose sweep was killed would go on beside the same job of the sweep that is started again."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(128 + signal.SIGTERM)


def recorded_command(folder: Path) -> tuple[str, list[str]]:
    """What began a run or a sweep: the verb; and the folders of presets beside conf/, and the overrides.

    Raises:
        UserError: no folder of a run or a sweep, or its record is damaged.
    """
    record = next((folder / file for file in (SWEEP, RUN) if (folder / file).is_file()), None)
    if record is None:
        raise UserError(f"{folder} is no folder of a run or a sweep: give one such as runs/<dataset>/<model>/<time>")
    try:
        began: Any = OmegaConf.to_container(OmegaConf.load(record).hydra)
        return began["job"]["name"], [*searchpath(began["overrides"]["hydra"]), *began["overrides"]["task"]]
    except (YAMLError, OmegaConfBaseException, OSError, LookupError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{record} is damaged: repeat the command that began this, in another folder") from error


def close_sweep(folder: Path, verb: str, arguments: list[str]) -> int:
    """Write and show the table of a sweep. Its exit status: 2 where all jobs failed, 1 where some did, else theirs."""
    jobs = read_jobs(folder)
    if not jobs:  # the command could not be composed, or no cluster answers
        kept = (file.name for file in folder.rglob("*") if file.is_file() and file.parent.name != ".hydra")
        if {*kept} <= {SWEEP.name, "sweep.lock", f"{verb}.log"}:
            shutil.rmtree(folder)
        return 0
    from defectcls.evaluation.sweeps import summarise_sweep
    from defectcls.pages.render import print_page, write_page
    from defectcls.pages.sweep import sweep_page

    sweep = summarise_sweep(str(folder), jobs)
    sweep.settings.to_csv(folder / "sweep.csv", index=False)
    sweep.jobs.to_csv(folder / "jobs.csv", index=False)
    page = sweep_page(sweep, folder, shlex.join(["python", "-m", f"defectcls.{verb}", "-m", *arguments]))
    write_page(page, folder / "sweep.html")
    print_page(page, folder / "sweep.html")
    failed = [job for job in jobs if job.status == FAILED]
    if len(failed) == len(jobs):
        print(f"error: all {len(failed)} jobs failed, the first of them: {failed[0].error}", file=sys.stderr)
        return 2
    return 1 if any(job.status != FINISHED for job in jobs) else max(job.exit_status for job in jobs)


def read_jobs(folder: Path) -> list["Job"]:
    """The jobs of a sweep by number, with the metrics.json of each."""
    from defectcls.evaluation.sweeps import Job

    jobs = []
    for file in folder.glob(f"**/{RECORD}"):
        job, numbers = _read(file), file.with_name("metrics.json")
        metrics = _read(numbers) if job["status"] == FINISHED and numbers.is_file() else None
        exit_status = job["objective"] if isinstance(job["objective"], int) else 0
        jobs.append(Job(job["number"], tuple(job["overrides"]), job["status"], job["error"], metrics, exit_status))
    return sorted(jobs, key=lambda job: job.number)


def _read(path: Path) -> dict[str, Any]:
    return read_json(path, f"delete the folder {path.parent}, and {GOES_ON} and does the job anew")
