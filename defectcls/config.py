"""Hydra and the command line: with errors.py, the only files that know Hydra's machinery."""

import contextlib
import difflib
import importlib
import os
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import setup_globals
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError

from defectcls.arguments import (
    RUN_DIR,
    SWEEP_DIR,
    as_typed,
    quoted,
    spelled_out,
    unquoted,
    with_options_joined,
    with_text_quoted,
    with_words_as_values,
)
from defectcls.errors import AGAIN, FULL_ERROR, Stopped, UserError, did_you_mean, explain, stoppable
from defectcls.files import reader_has_gone, replace_unprintable
from defectcls.training.jobs import Task, close_sweep, open_sweep, recorded_sweep, run_job

# In a wheel conf/ lies inside the package, in a checkout beside it.
_PACKAGE = Path(__file__).resolve().parent
CONF_DIR = next(folder for folder in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if (folder / "train.yaml").is_file())
MULTIRUN = {"-m", "--multirun"}

UNRECORDED = "hydra.output_subdir=null"  # .hydra/ stays what began the run, whatever is typed to go on with it
TRUST = "trust=true"  # of the folder that `resume` names
# Flags, keys of Hydra's own, keys of functions and classes, and presets that lie outside of conf/.
CODE = re.compile(r"[\s+~]*(-|hydra|imports)|.*_target_|[\w/+~]*(@[^=]*)?=.*(\.\./|\$)", re.DOTALL)

STANDS_ON = ("defectcls", "torch", "torchmetrics", "timm", "lightning")  # packages that a file may name parts of

TRAINING = ("train", "crossval", "audit")  # verbs that need a dataset
RESUMED = ("train", "crossval")  # those that go on where they stopped
POINTERS = {  # a key, and what other tools call it
    **{"optim.lr": "lr learning_rate", "optim.weight_decay": "weight_decay", "optim": "optimizer optimiser"},
    **{"finetune.stages.full.epochs": "epochs max_epochs", "finetune.patience": "patience", "seed": "seed"},
    **{"batch_size": "bs batch batch_size", "image_size": "imgsz size image_size", "decision": "threshold"},
    **{"trainer.workers": "workers num_workers", "trainer.precision": "precision", "trainer.devices": "devices gpus"},
    **{"trainer": "device accelerator", "device": "trainer accelerator", "dataset": "data", "input": "source data"},
    **{"model": "backbone arch", "model.weights": "weights", "model.pretrained": "pretrained"},
    **{"prevalence": "prevalence"},
    **{"checkpoint": "model weights", "hydra.run.dir": "save_dir output_dir"},
}

Parsed = TypeVar("Parsed")


def run_verb(verb: str, task: Callable[[dict[str, Any], Path], int | None]) -> None:
    """Compose conf/<verb>.yaml with the command line and call `task(config, run folder)`, in a sweep for every job.

    A user's mistake ends in one sentence on stderr and exit status 2; HYDRA_FULL_ERROR=1 shows its traceback. So does
    a signal, in 128 and its number. What the task returns is the exit status, in a sweep the highest; 1 where some of
    its jobs failed.
    """
    show_all = os.environ.get(FULL_ERROR) == "1"
    os.environ[FULL_ERROR] = "1"  # Hydra would print a page of its own and exit; with this it raises
    begun: list[Path] = []
    status = 128 + 13  # as a shell has it where the reader of a pipe has gone before all was printed
    replace_unprintable()
    with stoppable() as received:
        try:
            status = _run_or_sweep(verb, task, show_all, begun)
            sys.stdout.flush()
        except (Exception, Stopped) as error:
            way_on = _way_on(verb, begun)
            sentence = _composition_sentence(error, verb) or explain(error, way_on)
            if received:
                status = 128 + received[0]
                print(f"stopped by {signal.Signals(received[0]).name}: {way_on}", file=sys.stderr)
            elif not (isinstance(error, BrokenPipeError) and reader_has_gone()):
                if sentence is None or show_all:
                    raise
                status = 2
                print(f"error: {sentence}", file=sys.stderr)
    if status:
        sys.exit(status)


def _run_or_sweep(
    verb: str, task: Callable[[dict[str, Any], Path], int | None], show_all: bool, begun: list[Path]
) -> int:
    sys.argv[1:] = with_words_as_values(verb, with_options_joined(sys.argv[1:]))
    sys.argv[1:] = [argument for argument in _with_recorded_overrides(sys.argv[1:]) if argument != TRUST]
    sys.argv[1:] = [word for argument in sys.argv[1:] for word in spelled_out(argument)]
    sweeps = bool(MULTIRUN & set(sys.argv))
    sys.argv[1:] = [with_text_quoted(argument, sweeps) for argument in sys.argv[1:]]
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda typed: not typed.startswith("-"))  # Hydra wants options first
    asks_for_help = bool({"--help", "-h"} & set(sys.argv))
    if verb in TRAINING and asks_for_help:
        sys.argv.append("dataset=synthetic")  # a dataset is required; the help shows the keys of this one
    if sweeps and not asks_for_help:
        return _sweep(verb, show_all, begun)
    return _run(verb, task, show_all, begun)


def _way_on(verb: str, begun: list[Path]) -> str:
    """What goes on after a run, or a sweep, was cut short.

    Args:
        begun: its folder, where there was one yet.
    """
    if not begun or not begun[-1].is_dir() or not (verb in RESUMED or recorded_sweep(begun[-1]) is not None):
        return AGAIN
    return f"{as_typed(f'resume={begun[-1]}')} goes on"


def _run(verb: str, task: Callable[[dict[str, Any], Path], int | None], show_all: bool, begun: list[Path]) -> int:
    failed: list[Exception] = []
    statuses = [0]

    def job(config: DictConfig) -> None:
        state, typed = HydraConfig.get(), sys.argv
        folder = Path(state.runtime.output_dir)
        begun.append(folder)
        try:
            values = _values(config)
            # The processes that a job starts repeat it, in its folder. Lightning would start them on the composed
            # configuration, which no longer knows the presets, if it saw Hydra's state.
            again = [*_presets_beside(state), *state.overrides.task, f"{RUN_DIR}={quoted(str(folder))}", UNRECORDED]
            sys.argv = [typed[0], *again]
            HydraConfig.instance().cfg = None
            if not show_all:
                del os.environ[FULL_ERROR]
            statuses.append(task(values, folder) or 0)
        except Exception as error:
            failed.append(error)  # Hydra would announce it in words of its own
            if [entry.name for entry in folder.iterdir()] == [".hydra"]:
                shutil.rmtree(folder)  # nothing came of it
        finally:
            os.environ[FULL_ERROR], sys.argv = "1", typed
            HydraConfig.instance().set_config(OmegaConf.create({"hydra": state}))

    hydra.main(config_path=str(CONF_DIR), config_name=verb, version_base="1.3")(job)()
    if failed:
        raise failed[0]
    return max(statuses)


def _sweep(verb: str, show_all: bool, begun: list[Path]) -> int:
    """Every job, by whichever launcher, and then their table."""
    given = [argument.partition("=")[2] for argument in sys.argv if argument.startswith(f"{SWEEP_DIR}=")]
    presets, rest = "hydra.searchpath=", [argument for argument in sys.argv[1:] if argument not in MULTIRUN]
    arguments = [argument for argument in rest if argument.startswith(presets) or not argument.startswith("hydra")]
    new = Path(unquoted(given[-1])) if given else _new_sweep_folder(verb)

    def job(config: DictConfig) -> None:  # by value into other processes: it holds nothing but two words
        _sweep_job(verb, show_all, config)

    with open_sweep(new, bool(given), verb, arguments) as folder:
        begun.append(folder)
        sys.argv.append(f"{SWEEP_DIR}={quoted(str(folder))}")
        try:
            hydra.main(config_path=str(CONF_DIR), config_name=verb, version_base="1.3")(job)()
        except (Exception, Stopped):
            close_sweep(folder, stopped=True)
            raise
        return close_sweep(folder)


def _sweep_job(verb: str, show_all: bool, config: DictConfig) -> None:
    state = HydraConfig.get()
    folder = Path(state.runtime.output_dir)
    if not show_all:
        os.environ.pop(FULL_ERROR, None)
    try:
        overrides = list(state.overrides.task)
        arguments = [*_presets_beside(state), *overrides, f"{RUN_DIR}={quoted(str(folder))}", UNRECORDED]
        values = _values(config)
        if "logger" in values:
            values["logger"]["group"] = values["logger"]["group"] or state.sweep.dir
        run_job(Task(verb, state.job.num, folder, overrides, values, arguments, _values(state.job_logging)))
    finally:
        os.environ[FULL_ERROR] = "1"


def _values(config: Any) -> dict[str, Any]:
    return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # type: ignore[return-value]


def _new_sweep_folder(verb: str) -> Path:
    setup_globals()  # the resolver of the time
    presets = [OmegaConf.load(CONF_DIR / f"{name}.yaml") for name in (verb, "train")]  # some verbs extend train
    return Path(next(folder for preset in presets if (folder := OmegaConf.select(preset, SWEEP_DIR))))


def presets(*names: str) -> dict[str, Any]:
    """The values of conf/<name>.yaml, of a later one over those before it, with ??? for what one has to give."""
    merged = OmegaConf.merge(*(OmegaConf.load(CONF_DIR / f"{name}.yaml") for name in names))
    assert isinstance(merged, DictConfig)
    rest = [str(key) for key in merged if key not in ("defaults", "hydra")]
    return OmegaConf.to_container(OmegaConf.masked_copy(merged, rest), resolve=True)  # type: ignore[return-value]


def shipped_datasets() -> dict[str, dict[str, Any]]:
    """Every preset of conf/dataset/, by the dotted path of its class."""
    names = sorted(file.stem for file in (CONF_DIR / "dataset").glob("*.yaml"))
    return {values["_target_"]: values for name in names for values in [presets("dataset_base", f"dataset/{name}")]}


def job_command() -> str:
    """What to type to repeat this job."""
    module = getattr(getattr(sys.modules["__main__"], "__spec__", None), "name", "defectcls")
    own = (RUN_DIR, UNRECORDED, "resume=")
    return shlex.join(["python", "-m", module, *(word for word in sys.argv[1:] if not word.startswith(own))])


def named(path: str) -> Any:
    """The class or function at a dotted path, of a package that this one stands on or of a module that is imported.

    A checkpoint names them too, and nothing that only a file names is imported.

    Raises:
        UserError: it is not there, or its module is not imported; what to type.
    """
    module, _, name = path.rpartition(".")
    if module.partition(".")[0] in STANDS_ON:
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(module)
    if (found := getattr(sys.modules.get(module), name, None)) is not None:
        return found
    if module in sys.modules:
        raise UserError(f"{module} has no {name}{did_you_mean(name, vars(sys.modules[module]))}")
    raise UserError(f"{path} is of a module that is not imported: imports=[{module}], or import {module} in Python")


def import_named(config: dict[str, Any]) -> None:
    """Import `imports` and the module of every `_target_`, of a configuration that the user has typed or trusts.

    Raises:
        UserError: one is not there.
    """
    targets = [path for path in _targets(config) if path.partition(".")[0] not in STANDS_ON]
    for module in (*config.get("imports", []), *(path.rpartition(".")[0] for path in targets)):
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise UserError(f"{module} cannot be imported ({error}): install it, or start where it lies") from error


def _targets(config: Any) -> Iterator[str]:
    """Every `_target_` in a configuration."""
    for key, value in config.items() if isinstance(config, dict) else ():
        if key == "_target_" and isinstance(value, str):
            yield value
        yield from _targets(value)


def parse(kind: type[Parsed], config: dict[str, Any]) -> Parsed:
    """Check the types of a composed configuration; a mistake raises pydantic's error, which `explain` puts in words."""
    return kind(**config)


def _with_recorded_overrides(arguments: list[str]) -> list[str]:
    """`resume=<run folder>` stands for the command that started the run, with the same folder; later arguments win."""
    runs = [value for key, _, value in (argument.partition("=") for argument in arguments) if key == "resume"]
    if not runs or runs[-1] in ("", "null"):
        return arguments
    folder = Path(unquoted(runs[-1])).expanduser()
    if (sweep := recorded_sweep(folder)) is not None:
        rest = [argument for argument in arguments if not argument.startswith("resume=") and argument not in MULTIRUN]
        return ["-m", *_trusted(sweep, rest, folder), f"{SWEEP_DIR}={quoted(str(folder))}", *rest]
    started = [argument for argument in recorded_command(folder) if not argument.startswith("resume=")]
    return [*_trusted(started, arguments, folder), f"{RUN_DIR}={quoted(str(folder))}", UNRECORDED, *arguments]


def recorded_command(folder: Path) -> list[str]:
    """What began a run: the options that add presets of the user's own to conf/, and the overrides.

    Raises:
        UserError: no folder of a run, or its record is damaged.
    """
    recorded, state = folder / ".hydra" / "overrides.yaml", folder / ".hydra" / "hydra.yaml"
    if not recorded.is_file():
        what = "is no folder of a run or a sweep" if folder.exists() else "does not exist"
        raise UserError(f"resume={folder} {what}: give one such as runs/<dataset>/<model>/<time>")
    try:
        overrides = OmegaConf.to_container(OmegaConf.load(recorded))
        if not isinstance(overrides, list) or not all(isinstance(override, str) for override in overrides):
            raise ValueError("no list of overrides")
        return [*(_presets_beside(OmegaConf.load(state).hydra) if state.is_file() else []), *overrides]
    except (YAMLError, OmegaConfBaseException, OSError, ValueError, TypeError) as error:
        raise UserError(
            f"the record {recorded.parent} is damaged ({type(error).__name__}): repeat the command that began this "
            f"run, with {as_typed(f'{RUN_DIR}={folder}')}"
        ) from error


def _presets_beside(state: Any) -> list[str]:
    """The arguments of a run, by Hydra's record of it, that name folders of presets beside conf/."""
    folders = [source.path for source in state.runtime.config_sources if source.provider == "command-line"]
    typed = [override for override in state.overrides.hydra if override.startswith("hydra.searchpath=")]
    return [*(f"--config-dir={folder}" for folder in folders), *typed]


def _trusted(recorded: list[str], typed: list[str], folder: Path) -> list[str]:
    """What a folder says that was typed, of which nothing names code that is not typed again.

    Raises:
        UserError: something does, and `trust=true` is not typed.
    """
    for argument in [] if TRUST in typed else recorded:
        if CODE.match(argument) and argument not in typed:
            raise UserError(
                f"resume={folder} would repeat {argument}, which may run code: add {TRUST} if you trust this "
                f"folder like a script, or type {shlex.quote(argument)} again"
            )
    return recorded


def _composition_sentence(error: BaseException, verb: str) -> str | None:
    """Hydra's and OmegaConf's errors in one sentence: what was typed, what is near, what is allowed."""
    if not isinstance(error, HydraException | OmegaConfBaseException):
        return None
    text, cause = str(error), error.__cause__ if isinstance(error, HydraException) else error
    if isinstance(cause, ConfigKeyError | ConfigAttributeError) and cause.full_key and "." in cause.full_key:
        parent = cause.parent_node
        known = [str(key) for key in parent] if isinstance(parent, DictConfig) else []
        return _unknown_key(cause.full_key, known, verb)
    if isinstance(cause, MissingMandatoryValue):
        return f"{cause.full_key} is not set: add {cause.full_key}=<value>"
    if match := re.search(r"Could not find '([^']+)'\n\nAvailable options in '([^']+)':\n((?:\t.*\n?)+)", text):
        missing, group, options = match[1].removeprefix(f"{match[2]}/"), match[2], match[3].split()
        return (
            f"{group} has no preset '{missing}'{did_you_mean(missing, options) or ','} there are {', '.join(options)}"
        )
    if match := re.search(r"You must specify '(\w+)', e.g, \w+=<OPTION>\nAvailable options:\n((?:\t.*\n?)+)", text):
        typed = [argument.partition("=")[0] for argument in sys.argv[1:]]
        if near := difflib.get_close_matches(match[1], typed, n=1):
            return _unknown_key(near[0], [match[1]], verb)
        return f"{match[1]} is not set: add {match[1]}=<name>, one of {', '.join(match[2].split())}"
    if match := re.search(r"Ambiguous value for argument '(.+)'", text):
        return f"{match[1]} has several values: add -m for a sweep over them, or write one list as 'key=[a,b]'"
    if match := re.search(r"Could not override '([^']+)'", text):
        return _unknown_key(match[1], _known_keys(verb), verb)
    if isinstance(error, OverrideParseException):
        key, sign, value = error.override.partition("=")
        if sign:
            return (
                f"{error.override} cannot be read: as a text, type {as_typed(f'{key}={quoted(value)}')}; "
                "as a list, 'key=[a,b]'"
            )
        before = sys.argv[max(1, sys.argv.index(error.override) - 1)] if error.override in sys.argv else ""
        whole = f": a value with spaces is typed {as_typed(f'{before} {error.override}')}" if "=" in before else ""
        return f"{error.override} is no key=value{whole}"
    return " ".join(text.splitlines()[0].split())


def _unknown_key(key: str, known: list[str], verb: str) -> str:
    stem, _, word = key.rpartition(".")
    for pointed, names in POINTERS.items():
        if word in names.split() and pointed != key and pointed.partition(".")[0] in (*_known_keys(verb), "hydra"):
            return f"unknown key '{key}': {pointed}=<value> sets it"
    others = f"; known here are {', '.join(known)}" if known else f"; +{key}=<value> adds it"
    near = did_you_mean(word, known) or others
    return f"unknown key '{key}'{near}" if not stem else f"unknown key '{key}' in {stem}{near}"


def _known_keys(verb: str) -> list[str]:
    names = (verb, "train") if verb in TRAINING else (verb,)
    groups = [folder.name for folder in CONF_DIR.iterdir() if folder.is_dir()] if verb in TRAINING else []
    keys = [str(key) for name in names for key in OmegaConf.load(CONF_DIR / f"{name}.yaml")]
    return list(dict.fromkeys([*groups, *(key for key in keys if key not in ("defaults", "hydra"))]))
