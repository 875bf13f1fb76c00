"""Work for a Ray cluster, or for a Ray of this machine alone: tasks do there what this process would do here."""

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from defectcls.errors import UserError, one_line
from defectcls.settings import RaySettings

TAKEN_ALONG = ("DEFECTCLS_", "WANDB_", "HYDRA_FULL_ERROR")  # variables of the environment


@contextmanager
def connected(settings: RaySettings) -> Iterator[Any]:
    """Ray; what it does for the block ends with it.

    Raises:
        UserError: nothing answers at the address, or that of a task, which comes with Ray's own errors around it.
    """
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to its makers
    variables = {name: value for name, value in os.environ.items() if name.startswith(TAKEN_ALONG)}
    main, handler = threading.current_thread() is threading.main_thread(), signal.getsignal(signal.SIGTERM)
    own: Any = {"include_dashboard": False} if settings.address == "local" else {}
    try:
        if (host := str(settings.address).rpartition(":"))[0] and "//" not in host[0]:  # it would try for ten minutes
            socket.create_connection((host[0], int(host[2])), timeout=10).close()
        ray.init(settings.address, runtime_env={"env_vars": variables}, logging_level=logging.ERROR, **own)
    except Exception as error:  # it has one for each way in which nobody answers
        known = "auto is the cluster that this machine is in (ray start), host:port another one, local a new one here"
        raise UserError(f"no Ray answers at address={settings.address} ({one_line(error)}): {known}") from error
    finally:
        if main:
            signal.signal(signal.SIGTERM, handler)  # it has put one of its own there
    try:
        yield ray
    except ray.exceptions.RayError as error:
        cause: Any = error
        while isinstance(cause, ray.exceptions.RayError):
            cause = getattr(cause, "cause", None) or cause.__cause__
        raise cause or error from error
    finally:
        ray.shutdown()


def on_ray(function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]], settings: RaySettings) -> None:
    """Call a function with each of them, all of which are done before the error of one is raised.

    One whose node dies is done anew on another, three times at most.
    """
    with connected(settings) as ray:
        task = ray.remote(num_cpus=settings.num_cpus, num_gpus=settings.num_gpus)(_there)
        left = [task.remote(str(Path.cwd()), function, some) for some in arguments]
        errors = []
        while left:
            ended, left = ray.wait(left)
            try:
                ray.get(ended)
            except ray.exceptions.RayError as error:
                errors.append(error)
        if errors:
            raise errors[0]


def _there(folder: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """In a process of Ray's on any node, from the folder in which the command was typed."""
    see(folder)
    os.chdir(folder)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    function(*arguments)


def see(folder: str | Path) -> None:
    """A UserError where this node does not see a folder of the machine that the work comes from."""
    if not os.path.isdir(folder):  # noqa: PTH112  of a drive that is being lost a path object may raise
        node = f"{socket.gethostname()}, a node of the cluster,"
        raise UserError(f"{node} does not see {folder}: mount it there, under the same name")
