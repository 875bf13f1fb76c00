"""A verb as a command and as a function: its options, what it resumes, how it ends."""

import functools
import gc
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from defectcls.arguments import RUN_DIR, SWEEP_DIR, UNRECORDED, as_typed, quoted, searchpath
from defectcls.config import TRAINING, do_job, explain_composition, hydra_of, overrides_of, plain, task_of
from defectcls.errors import AGAIN, FULL_ERROR, Stopped, UserError, explain, one_line, stoppable
from defectcls.files import BEST, locked, read_json
from defectcls.training.jobs import SWEEP, Task, close_sweep, recorded_command, run_job

if TYPE_CHECKING:
    import pandas as pd

TRUST = "trust=true"  # of the folder that `resume` names
# Keys of Hydra's own, of functions, classes and modules, of databases, and presets that lie outside of conf/.
CODE = re.compile(
    r"[\s+~]*(-|hydra|imports|storage|ray|slurm)|.*_target_|.*verdicts[^=]*[=:]|[\w/+~]*(@[^=]*)?=.*(\.\./|\$)",
    re.DOTALL,
)
REFUSED = ("config_path", "config_name", "experimental_rerun", "hydra_help", "info", "shell_completion")  # of Hydra's
RESUMED = ("train", "crossval", "auto", "tune", "predict")  # verbs that go on where they stopped
PROCESSES, RANKS = ("WORLD_SIZE", "SLURM_NTASKS"), ("RANK", "SLURM_PROCID")  # of torchrun, of srun
NUMBERS = ("metrics", "audit", "compare", "summary", "export", "audited", "study")  # what the verbs call their JSON


@dataclass(frozen=True)
class RunFolder:
    """What a verb left in its folder, of now or of another day: `RunFolder(Path("runs/mvtec/resnet18/..."))`."""

    folder: Path

    @property
    def metrics(self) -> dict[str, Any]:
        """The numbers: metrics.json, or audit.json, compare.json, summary.json (of predict), export or study.json."""
        files = (self.folder / f"{name}.json" for name in NUMBERS)
        found = next((file for file in files if file.is_file()), None)
        if found is None:
            raise UserError(f"{self.folder} holds no numbers: give the folder of a finished run")
        return read_json(found, "repeat the run")

    @property
    def predictions(self) -> "pd.DataFrame":
        """The predictions table, one row an image; of `predict`, which knows no truth, the path and the decision."""
        import pandas as pd

        from defectcls.evaluation.predictions import TEXT_COLUMNS

        text = dict.fromkeys((*TEXT_COLUMNS, "decision", "error"), str)  # a class may be called NA, None or 007
        rows = pd.read_csv(self.folder / "predictions.csv", dtype=text, keep_default_na=False, na_values=[""])
        return rows.fillna(dict.fromkeys(rows.columns.intersection([*text]), ""))

    @property
    def checkpoint(self) -> Path | None:
        """The best checkpoint; None of a verb that does not train."""
        return self.folder / BEST if (self.folder / BEST).is_file() else None


def run(verb: str, *overrides: str, config_dir: str | Path | None = None) -> RunFolder:
    """Any verb as a function: `run("train", "dataset=mvtec", "model=mobilenetv2").metrics["test"]["auroc"]`.

    Args:
        verb: train, auto, tune, evaluate, predict, crossval, audit, compare or export.
        overrides: key=value, as on the command line; for a sweep, call it in a loop.
        config_dir: folder of presets of one's own, which stand beside those of conf/.

    Raises:
        UserError: a mistake that the user can mend.
        KeyboardInterrupt: Ctrl-C; `run("train", "resume=<folder>")` goes on.
    """
    if options := [word for word in overrides if word.startswith("-")]:
        raise UserError(f"{options[0]} is for the command line: give key=value, and config_dir=<folder>")
    given = [] if config_dir is None else [f"--config-dir={config_dir}"]
    begun: list[Path] = []
    status, said = _done(verb, [*given, *overrides], begun, alone=False)
    if status > 128:
        raise KeyboardInterrupt(said)
    if said:
        raise UserError(said)
    return RunFolder(begun[-1])


def run_verb(verb: str, typed: list[str] | None = None) -> None:
    """Do what the command line asks for: compose conf/<verb>.yaml and call the verb's function for every job.

    A user's mistake ends in one sentence on stderr and exit status 2; HYDRA_FULL_ERROR=1 shows its traceback. So does
    a signal, in 128 and its number. A whole number that the function returns is the exit status; any other is what a
    sweeper is told. A sweep ends in 1 where some of its jobs failed, in 2 where all did.

    Args:
        typed: None takes what was typed after the name of the program.
    """
    gc.set_threshold(100_000, 50, 50)  # what is imported is kept: to look through it for garbage took 8 % of the import
    if "OMP_WAIT_POLICY" not in os.environ:  # threads that spin while they wait starve others: sleep sooner
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # before torch is imported, here and in what is started here
    try:
        status, said = _done(verb, sys.argv[1:] if typed is None else typed, [])
        if said:
            print(said if status > 128 else f"error: {said}", file=sys.stderr)
        sys.stdout.flush()
    except BrokenPipeError:  # nobody reads on, as `| head` does not: what is left goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 128 + signal.SIGPIPE
    if status:
        sys.exit(status)


def _done(verb: str, typed: list[str], begun: list[Path], alone: bool = True) -> tuple[int, str | None]:
    """The exit status; and of a signal, or of what a user can mend, one sentence. A bug is raised.

    `begun` takes the folder that is made; `alone`: the process does nothing else.
    """
    with stoppable() as received:
        try:
            return _perform(verb, typed, begun, alone), None
        except (Exception, Stopped) as error:
            goes_on = begun and begun[-1].is_dir() and (verb in RESUMED or (begun[-1] / SWEEP).is_file())
            way_on = f"{as_typed(f'resume={begun[-1]}')} goes on" if goes_on else AGAIN
            if received:
                return 128 + received[0], f"stopped by {signal.Signals(received[0]).name}: {way_on}"
            composing = isinstance(error, HydraException | OmegaConfBaseException)
            sentence = explain_composition(error) if composing else explain(error, way_on)
            if sentence is None or os.environ.get(FULL_ERROR) == "1":
                raise
            return 2, sentence


def _perform(verb: str, typed: list[str], begun: list[Path], alone: bool) -> int:
    """Show, run or sweep; the exit status."""
    task_of(verb)  # one that there is not is told before its words are read
    parser = get_args_parser()
    options = parser.parse_intermixed_args(typed)
    if any(getattr(options, name) for name in REFUSED):
        raise UserError("there are --help, --cfg, --resolve, --package, --multirun, and --config-dir=<your presets>")
    if verb == "tune" and options.multirun:
        raise UserError("tune searches what has several values, without -m")
    overrides, sweeps = resumed(verb, options.overrides)
    if verb in TRAINING and options.help:
        overrides.append("dataset=synthetic")  # a dataset is required; the help shows the keys of this one
    sweeps = (sweeps or options.multirun) and not options.help
    options.overrides = overrides = overrides_of(verb, overrides, sweeps, options.config_dir)
    if verb == "train" and not sweeps and any(int(os.environ.get(name) or 1) > 1 for name in PROCESSES):
        if not any(override.startswith(f"{RUN_DIR}=") for override in overrides):
            raise UserError(f"srun and torchrun start this several times, for one folder: {RUN_DIR}=runs/<a new name>")
        if any(int(os.environ.get(name) or 0) for name in RANKS):
            overrides.append(UNRECORDED)
    with hydra_of(verb) as hydra:
        if options.help:
            hydra.app_help(verb, parser, options)
        elif options.cfg:
            hydra.show_cfg(verb, overrides, options.cfg, options.package, options.resolve)
        elif sweeps:
            return _sweep(hydra, verb, overrides, begun)
        else:
            return _run(hydra, verb, overrides, begun, alone)
    return 0


def _run(hydra: Any, verb: str, overrides: list[str], begun: list[Path], alone: bool) -> int:
    def job(config: DictConfig) -> int | float | Exception | None:
        folder = Path(HydraConfig.get().runtime.output_dir)
        begun.append(folder)
        try:
            return do_job(verb, plain(config), folder, repetition(folder), alone)
        except Exception as error:  # Hydra would announce it in words of its own
            beside = {".hydra", "wandb", f"{verb}.log"}  # the results, of which there are none
            if all(one.is_dir() or one.relative_to(folder).parts[0] in beside for one in folder.rglob("*")):
                shutil.rmtree(folder, ignore_errors=True)  # W&B may still be closing its files
            return error

    returned = hydra.run(verb, job, overrides, with_log_configuration=alone).return_value
    if isinstance(returned, Exception):
        raise returned
    return returned if isinstance(returned, int) else 0


def _sweep(hydra: Any, verb: str, overrides: list[str], begun: list[Path]) -> int:
    """Every job, by whichever launcher, and then their table; a UserError where the folder is another sweep's."""
    composed = hydra.compose_config(verb, overrides, RunMode.MULTIRUN).hydra
    folder = Path(composed.sweep.dir)
    command = [*searchpath(overrides), *(override for override in overrides if not override.startswith("hydra"))]
    if folder.is_dir() and any(folder.iterdir()):
        known = recorded_command(folder) if (folder / SWEEP).is_file() else None
        if known != (verb, command):
            raise UserError(f"{folder} is of another command: give {SWEEP_DIR}=<new folder>")
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "sweep.lock", f"the sweep in {folder} is running: wait for it, or stop it", wait=False):
        begun.append(folder)
        here, lost = f"{SWEEP_DIR}={quoted(str(folder))}", None
        tasks = list[Task]()
        if by_ray := "_target_" not in composed.launcher:  # Hydra composes the jobs, and takes no launcher of others
            overrides = [word for word in overrides if not re.match("[+~]*hydra[/.]launcher", word)]
        try:
            do = functools.partial(_sweep_job, verb, tasks.append if by_ray else run_job)
            hydra.multirun(verb, do, [*overrides, here])
            if by_ray:
                from defectcls.cluster import on_ray
                from defectcls.settings import RaySettings

                on_ray(run_job, [(task,) for task in tasks], RaySettings(**plain(composed.launcher)))
        except Exception as error:
            if not type(error).__module__.startswith(("submitit", "ray")):
                raise
            lost = f"the cluster has lost a job ({one_line(error)}): resume={folder} does what is not finished"
            print(f"error: {lost}", file=sys.stderr)
        finally:
            status = close_sweep(folder, verb, command)
    return max(status, int(lost is not None))


def repetition(folder: Path) -> list[str]:
    """What repeats the job that Hydra is doing, in its folder: presets beside conf/, the overrides, the folder."""
    overrides = HydraConfig.get().overrides
    return [*searchpath(overrides.hydra), *overrides.task, f"{RUN_DIR}={quoted(str(folder))}", UNRECORDED]


def _sweep_job(verb: str, do: Callable[[Task], Any], config: DictConfig) -> float:
    """One job, wherever a launcher has put it; what the sweeper is told, of a failed job nan."""
    state, values = HydraConfig.get(), plain(config)
    folder = Path(state.runtime.output_dir)
    if "logger" in values:
        values["logger"]["group"] = values["logger"]["group"] or state.sweep.dir
    logs = plain(state.job_logging)
    done = do(Task(verb, state.job.num, folder, list(state.overrides.task), values, repetition(folder), logs))
    return float("nan") if done is None or done["objective"] is None else done["objective"]


def resumed(verb: str, typed: list[str]) -> tuple[list[str], bool]:
    """The overrides, and whether they are of a sweep: `resume=<folder>` stands for what began it; what is typed wins.

    Raises:
        UserError: the folder is of none, or names code and `trust=true` is not typed.
    """
    rest = [word for word in typed if word != TRUST]
    folders = [word.partition("=")[2] for word in rest if word.startswith("resume=")]
    if not folders or folders[-1] in ("", "null"):
        return rest, False
    folder = Path(folders[-1]).expanduser()
    began, recorded = recorded_command(folder)
    if began != verb:
        raise UserError(f"{folder} is of {began}: {as_typed(f'python -m defectcls.{began} resume={folder}')} goes on")
    sweeps = (folder / SWEEP).is_file()
    if TRUST not in typed and (code := next(filter(CODE.match, recorded), None)):
        what = f"{code}, which may run code, or open what you did not name"
        raise UserError(f"resume={folder} would repeat {what}: add {TRUST} if you trust the folder")
    if sweeps:
        place = [f"{SWEEP_DIR}={quoted(str(folder))}"]
        rest = [word for word in rest if not word.startswith("resume=")]
    else:
        place = [f"{RUN_DIR}={quoted(str(folder))}", UNRECORDED]
    return [*recorded, *place, *rest], sweeps
