"""How a run ends that does not come to its end: signals, a disk, a reader that goes."""

import errno
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from defectcls.errors import EXTRAS, Stopped, explain, stoppable
from tests.conftest import CHECKOUT

TASK = """
import sys, time
import defectcls.{verb} as module
from defectcls.training.command import run_verb
def task(config, folder):
    {body}
module.{verb} = task
sys.argv[1:] = ["dataset=synthetic", "hydra.run.dir=run 1"]
run_verb("{verb}")
"""


def begin(folder: Path, body: str, verb: str = "train", **variables: str) -> subprocess.Popen:
    """A verb in a process of its own that does nothing but `body`: a third of a second."""
    code = TASK.format(body=body, verb=verb)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environment = os.environ | {"PYTHONUNBUFFERED": ""} | variables
    return subprocess.Popen([sys.executable, "-c", code], cwd=folder, env=environment, **pipes)


def ended(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out.decode("utf-8", "replace"), err.decode("utf-8", "replace")


def wait_for(process: subprocess.Popen, line: bytes) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == line


# --- signals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "name", "status", "way_on"),
    [
        ("train", "SIGTERM", 143, "'resume={}' goes on"),
        ("crossval", "SIGINT", 130, "'resume={}' goes on"),
        ("audit", "SIGTERM", 143, "the same command begins anew"),
    ],
)
def test_a_signal_ends_in_what_to_type(tmp_path: Path, verb: str, name: str, status: int, way_on: str) -> None:
    begun = begin(tmp_path, "print('on', flush=True); time.sleep(60)", verb)
    wait_for(begun, b"on\n")
    begun.send_signal(signal.Signals[name])
    text = f"stopped by {name}: {way_on.format(tmp_path / 'run 1')}\n"
    assert ended(begun) == (status, "", text)
    assert (tmp_path / "run 1/.hydra/overrides.yaml").is_file()


def test_a_signal_in_another_guise_is_still_one(tmp_path: Path) -> None:
    """As an extension makes an ImportError of what comes while it is imported."""
    body = """
    try:
        print('on', flush=True); time.sleep(60)
    except BaseException:
        raise ImportError("numpy._core.multiarray failed to import")
    """
    begun = begin(tmp_path, body)
    wait_for(begun, b"on\n")
    begun.terminate()
    code, _, err = ended(begun)
    assert (code, err) == (143, "stopped by SIGTERM: the same command begins anew\n")


def test_signals_at_once_are_one_and_a_later_one_kills(tmp_path: Path) -> None:
    body = """
    from defectcls import errors
    errors.SAME_S = 0.2
    try:
        print('on', flush=True); time.sleep(60)
    finally:
        print('teardown', flush=True); time.sleep(60)
    """
    begun = begin(tmp_path, body)
    wait_for(begun, b"on\n")
    begun.send_signal(signal.SIGINT)
    begun.terminate()
    wait_for(begun, b"teardown\n")
    time.sleep(0.3)
    assert begun.poll() is None
    begun.terminate()
    assert ended(begun)[0] == -signal.SIGTERM


def test_a_forked_process_ends_by_its_owner_alone() -> None:
    """Those that load images get the Ctrl-C of the terminal too: none of them prints a traceback."""
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Stopped), stoppable() as received:
        child = os.fork()
        if child == 0:
            try:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                os._exit(7)
        assert os.waitpid(child, 0)[1] == signal.SIGTERM
        assert received == []
        os.kill(os.getpid(), signal.SIGINT)
    assert received == [signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) is before


# --- what is printed --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lines", [3, 100_000])
def test_a_reader_that_goes_ends_it_quietly(tmp_path: Path, lines: int) -> None:
    begun = begin(tmp_path, f"print('begun', file=sys.stderr); time.sleep(0.3); print('a line\\n' * {lines})")
    assert begun.stdout is not None
    assert begun.stderr is not None
    begun.stdout.close()
    assert begun.stderr.read() == b"begun\n"
    assert begun.wait(60) == 141


# --- what a GPU says --------------------------------------------------------------------------------------------------


def test_what_a_gpu_cannot_is_a_sentence() -> None:
    kernel = "adaptive_max_pool2d_backward_cuda"
    refused = (
        f"{kernel} does not have a deterministic implementation, but you set 'torch.use_deterministic_algorithms(T"
    )
    told = f"trainer.deterministic=true has no kernel for {kernel}: take =warn, or model.pool=fastcatavgmax"
    assert explain(RuntimeError(refused)) == told
    for full in ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling", "cuDNN error: CUDNN_STATUS_ALLOC_FAILED"):
        told = f"the GPU's memory is full: end what else takes it, or lower batch_size or image_size ({full})"
        assert explain(RuntimeError(full)) == told


# --- disks and folders ------------------------------------------------------------------------------------------------


def test_a_full_disk_names_what_goes_on_in_this_verb() -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "/mnt/a/last.ckpt")
    kept = "no space left on the disk; what was written is kept: make room, then "
    assert explain(full, "resume=/mnt/a goes on") == kept + "resume=/mnt/a goes on"
    assert explain(full) == kept + "the same command begins anew"
    assert explain(OSError(errno.EDQUOT, "Disk quota exceeded")) == (
        "no space left on the disk; what was written is kept: make room, then the same command begins anew"
    )


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR])
def test_a_place_that_cannot_be_written_to_is_a_sentence(number: int) -> None:
    sentence = (
        f"/mnt/runs cannot be used ({os.strerror(number)}): let this user write there, or give another place, "
        "such as hydra.run.dir=<folder>"
    )
    assert explain(OSError(number, os.strerror(number), "/mnt/runs")) == sentence
    assert explain(OSError(number, os.strerror(number))) is None  # of no file: a bug, a socket
    assert explain(FileNotFoundError(errno.ENOENT, "No such file", "/mnt/runs")) is None


def test_a_run_folder_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "run 1").write_text("")
    code, out, err = ended(begin(tmp_path, "pass"))
    assert (code, out) == (2, "")
    assert err.startswith("error: run 1 cannot be used (File exists): ")


# --- what is not installed --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "extra"), [("torch", "train"), ("sklearn", "train"), ("onnxruntime", "runtime"), ("paho", "line")]
)
def test_what_is_not_installed_is_told_with_the_extra_that_brings_it(module: str, extra: str) -> None:
    told = f"this needs {module}: pip install 'defectcls[{extra}]'"
    assert explain(ModuleNotFoundError(f"No module named '{module}'", name=module)) == told


@pytest.mark.parametrize("module", ["defectcls.data.imges", "torch.cuda.graphs", "numpy", None])
def test_a_module_of_no_extra_that_is_not_there_is_a_bug(module: str | None) -> None:
    assert explain(ModuleNotFoundError("No module", name=module)) is None


def test_an_extra_brings_every_module_that_a_sentence_says_it_brings() -> None:
    """As far as they are installed here, by the distribution that has the module."""
    extras = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    homes = packages_distributions()
    for extra, modules in EXTRAS.items():
        brought = {re.split(r"[\[<>=]", one)[0] for one in extras[extra]}
        for module in modules.split():
            names = {name.lower().replace("_", "-") for name in homes.get(module, [])}
            assert not names or names & brought, (extra, module)


def test_database_that_goes_away_is_one_sentence() -> None:
    from sqlalchemy.exc import OperationalError

    error = OperationalError("SELECT 1", None, Exception("server closed the connection"))
    told = explain(error, "resume=runs/tune/a goes on")
    assert (
        told is not None
        and told.startswith("the database cannot be used (")
        and told.endswith("resume=runs/tune/a goes on")
    )
