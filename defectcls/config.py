"""Hydra and the command line: with errors.py, the only files that know Hydra's machinery."""

import difflib
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from defectcls.errors import UserError, did_you_mean, explain

# In a wheel conf/ lies inside the package, in a checkout beside it.
_PACKAGE = Path(__file__).resolve().parent
CONF_DIR = next(folder for folder in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if (folder / "train.yaml").is_file())
FULL_ERROR, RUN_DIR = "HYDRA_FULL_ERROR", "hydra.run.dir"

WORDS = {"compare": "runs"}  # verbs that take words that are no key=value, and the key these are the values of
SHORT = {"recall": ">=", "precision": ">=", "fpr": "<="}  # decisions with a target, and the sign before it
TRAINING = ("train", "crossval", "audit", "benchmark")  # verbs that need a dataset

Parsed = TypeVar("Parsed")


def run_verb(verb: str, task: Callable[[dict[str, Any], Path], int | None]) -> None:
    """Compose conf/<verb>.yaml with the command line and call `task(config, run folder)`, in a sweep for every job.

    A user's mistake ends in one sentence on stderr and exit status 2; HYDRA_FULL_ERROR=1 shows its traceback. What the
    task returns is the exit status, in a sweep the highest.
    """
    show_all = os.environ.get(FULL_ERROR) == "1"
    failed: list[Exception] = []
    statuses = [0]

    def job(config: DictConfig) -> None:
        state, typed = HydraConfig.get(), sys.argv
        folder = Path(state.runtime.output_dir)
        try:
            values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
            # The processes that a job starts repeat this job alone, in its folder, and not the sweep. Lightning would
            # start them on the composed configuration, which no longer knows the presets, if it saw Hydra's state.
            sys.argv = [typed[0], *state.overrides.task, f"{RUN_DIR}={_quoted(str(folder))}"]
            HydraConfig.instance().cfg = None
            if not show_all:
                del os.environ[FULL_ERROR]
            statuses.append(task(values, folder) or 0)  # type: ignore[arg-type]
        except Exception as error:
            if state.mode == RunMode.MULTIRUN:
                sentence = _composition_sentence(error) or explain(error) or repr(error)
                print(f"error in job {state.job.num}: {sentence}", file=sys.stderr)
                raise  # Hydra records it, and goes on with the other jobs
            failed.append(error)  # Hydra would announce it in words of its own
            if [entry.name for entry in folder.iterdir()] == [".hydra"]:
                shutil.rmtree(folder)  # nothing came of it
        finally:
            os.environ[FULL_ERROR], sys.argv = "1", typed
            HydraConfig.instance().set_config(OmegaConf.create({"hydra": state}))

    os.environ[FULL_ERROR] = "1"  # Hydra would print a page of its own and exit; with this it raises
    try:
        sys.argv[1:] = _with_words_as_values(verb, sys.argv[1:])
        sys.argv[1:] = _with_recorded_overrides(sys.argv[1:])
        sys.argv[1:] = [word for argument in sys.argv[1:] for word in _spelled_out(argument)]
        sys.argv[1:] = sorted(sys.argv[1:], key=lambda typed: typed not in ("-m", "--multirun"))  # Hydra wants it first
        if verb in TRAINING and {"--help", "-h"} & set(sys.argv):
            sys.argv.append("dataset=synthetic")  # a dataset is required; the help shows the keys of this one
        hydra.main(config_path=str(CONF_DIR), config_name=verb, version_base="1.3")(job)()
        if failed:
            raise failed[0]
    except Exception as error:
        sentence = _composition_sentence(error) or explain(error)
        if sentence is None or show_all:
            raise
        print(f"error: {sentence}", file=sys.stderr)
        sys.exit(2)
    if max(statuses):
        sys.exit(max(statuses))


def job_command() -> str:
    """What to type to repeat this job."""
    module = getattr(getattr(sys.modules["__main__"], "__spec__", None), "name", "defectcls")
    return shlex.join(["python", "-m", module, *(a for a in sys.argv[1:] if not a.startswith((RUN_DIR, "resume=")))])


def parse(kind: type[Parsed], config: dict[str, Any]) -> Parsed:
    """Check the types of a composed configuration; a mistake raises pydantic's error, which `explain` puts in words."""
    return kind(**config)


def _with_recorded_overrides(arguments: list[str]) -> list[str]:
    """`resume=<run folder>` stands for the command that started the run, with the same folder; later arguments win."""
    runs = [value for key, _, value in (argument.partition("=") for argument in arguments) if key == "resume"]
    if not runs or runs[-1] in ("", "null"):
        return arguments
    folder = Path(runs[-1])
    recorded = folder / ".hydra" / "overrides.yaml"
    if not recorded.is_file():
        raise UserError(f"resume={folder} is not a run folder: it has no {recorded.relative_to(folder)}")
    started = [str(override) for override in OmegaConf.load(recorded) if not str(override).startswith("resume=")]
    return [*started, f"{RUN_DIR}={_quoted(str(folder))}", *arguments]


def _with_words_as_values(verb: str, arguments: list[str]) -> list[str]:
    """`a b level=0.9` as `level=0.9 runs=['a','b']`; a path may hold whatever a path may, "=" too."""
    words = [argument for argument in arguments if "=" not in argument or Path(argument).exists()]
    words = [word for word in words if verb in WORDS and not word.startswith("-")]
    rest = [argument for argument in arguments if argument not in words]
    return [*rest, f"{WORDS[verb]}=[{','.join(map(_quoted, words))}]"] if words else rest


def _spelled_out(argument: str) -> list[str]:
    """`decision=recall>=0.99` as the preset and its key, for Hydra takes no such word; all else as it is."""
    match = re.fullmatch(r"decision=([\w ]+)([<>]=?)(.*)", argument)
    if match is None:
        return [argument]
    rate, sign, value = match.groups()
    if SHORT.get(rate) != sign:
        known = ", ".join(f"{name}{sign}<number>" for name, sign in SHORT.items())
        raise UserError(f"{argument}{did_you_mean(rate, SHORT) or ','} there are {known}")
    return [f"decision={rate}", f"decision.target={value}"]


def _quoted(value: str) -> str:
    return "'" + value.replace("'", "\\'") + "'"


def _composition_sentence(error: Exception) -> str | None:
    """Hydra's and OmegaConf's errors in one sentence: what was typed, what is near, what is allowed."""
    if not isinstance(error, HydraException | OmegaConfBaseException):
        return None
    text, cause = str(error), error.__cause__ if isinstance(error, HydraException) else error
    if isinstance(cause, ConfigKeyError | ConfigAttributeError) and cause.full_key and "." in cause.full_key:
        parent = cause.parent_node
        known = [str(key) for key in parent] if isinstance(parent, DictConfig) else []
        return _unknown_key(cause.full_key, known)
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
            return _unknown_key(near[0], [match[1]])
        return f"{match[1]} is not set: add {match[1]}=<name>, one of {', '.join(match[2].split())}"
    if match := re.search(r"Could not override '([^']+)'", text):
        return _unknown_key(match[1], _known_keys())
    return " ".join(text.splitlines()[0].split()) + "; quote values with brackets, commas or spaces: 'key=[a,b]'"


def _unknown_key(key: str, known: list[str]) -> str:
    stem, _, word = key.rpartition(".")
    others = f"; known here are {', '.join(known)}" if known else f"; +{key}=<value> adds it"
    near = did_you_mean(word, known) or others
    return f"unknown key '{key}'{near}" if not stem else f"unknown key '{key}' in {stem}{near}"


def _known_keys() -> list[str]:
    groups = [folder.name for folder in CONF_DIR.iterdir() if folder.is_dir()]
    return [*groups, *(str(key) for key in OmegaConf.load(CONF_DIR / "train.yaml") if key not in ("defaults", "hydra"))]
