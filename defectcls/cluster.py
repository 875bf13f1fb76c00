"""What this process would do, done by tasks of a Ray cluster, of a Ray of this machine alone, or by a job of Slurm."""

import logging
import os
import pydoc
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from defectcls.errors import UserError, one_line
from defectcls.settings import RaySettings

log = logging.getLogger(__name__)

TAKEN_ALONG = ("DEFECTCLS_", "WANDB_", "PYTHONPATH", "HYDRA_FULL_ERROR")  # variables of the environment


@contextmanager
def connected(settings: RaySettings) -> Iterator[Any]:
    """Ray, while the block lasts. A UserError where none answers or a node has another version, or a task's own."""
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to its makers
    there = {"env_vars": {name: value for name, value in os.environ.items() if name.startswith(TAKEN_ALONG)}}
    handler, (host, colon, port) = signal.getsignal(signal.SIGTERM), str(settings.address).rpartition(":")
    try:
        if colon:  # Ray would try for ten minutes
            socket.create_connection((host.removeprefix("ray://"), port), timeout=10).close()
        ray.init(settings.address, runtime_env=there, logging_level=logging.ERROR, include_dashboard=False)
    except Exception as error:  # it has one for each way in which nobody answers
        ray.shutdown()  # of what it has begun
        known = "auto is this machine's Ray (ray start), host:port another of the same Ray and Python, local a new one"
        raise UserError(f"address={settings.address} cannot be used ({one_line(error)}): {known}") from error
    with suppress(ValueError):  # in a thread
        signal.signal(signal.SIGTERM, handler)  # in place of Ray's
    try:
        wants = {"CPU": settings.num_cpus, "GPU": settings.num_gpus}
        fit = [one for one in ray.nodes() if all(one["Resources"].get(kind, 0) >= wants[kind] for kind in wants)]
        if not fit:  # to a cluster that grows one may come
            log.warning("waiting for a node with num_cpus=%g and num_gpus=%g: Ray has none", *wants.values())
        name, at = "defectcls.__version__", ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        ask = ray.remote(num_cpus=0)(pydoc.locate).options  # of Python's own, lest a node lack it
        asked = [ask(scheduling_strategy=at(one["NodeID"], False)).remote(name) for one in fit]
        found, here = zip(fit, ray.get(asked), strict=True), pydoc.locate(name)  # None where it cannot be imported
        if others := {node["NodeManagerHostname"]: version for node, version in found if version != here}:
            raise UserError(f"defectcls is {here} here, and on other nodes {others}: install the same there")
        yield ray
    except ray.exceptions.RayError as error:
        cause: Any = error
        while cause and type(cause) is not UserError:
            cause = getattr(cause, "cause", None) or cause.__cause__
        raise cause or error from error
    finally:
        ray.shutdown()


def on_ray(function: Callable[..., Any], arguments: list[tuple[Any, ...]], settings: RaySettings) -> None:
    """Call it with each of them, elsewhere again where a node dies, three times at most; errors wait for all others."""
    with connected(settings) as ray:
        task = ray.remote(**settings.model_dump(exclude={"address"}))(_there)
        begun = [task.remote(Path.cwd(), function, some) for some in arguments]
        ray.get(ray.wait(begun, num_returns=len(begun))[0])


def on_slurm(module: str, words: list[str], options: str, logs: Path) -> None:
    """Queue `python -m <module> <words>` with these options of sbatch, and wait until all of the job has ended somehow.

    Raises:
        UserError: Slurm does not take it.
    """
    log.info("a job of Slurm writes %s/slurm-*.log; where this command is stopped, it goes on", logs)
    wrapped = f"--wrap={shlex.join([sys.executable, '-m', module, *words])}"
    try:
        command = ["sbatch", "--wait", f"--output={logs.absolute()}/slurm-%j.log", *shlex.split(options), wrapped]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        queued, said = done.stdout, done.stderr
    except (OSError, ValueError) as error:
        queued, said = "", str(error)
    if not queued:
        raise UserError(f"Slurm does not take the job ({' '.join(said.split())}): slurm={options} is typed")


def _there(folder: Path, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    refuse_unseen(folder)
    os.chdir(folder)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    function(*arguments)


def refuse_unseen(folder: Path) -> None:
    """Raise a UserError where this node lacks a folder of the machine at which the command was typed."""
    if not folder.is_dir():
        raise UserError(f"the node {socket.gethostname()} does not see {folder}: mount it there by the same name")
