"""Hydra and the command line: with errors.py, the only files that know Hydra's machinery."""

import logging
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from defectcls.errors import UserError, did_you_mean, explain

# In a wheel conf/ lies inside the package, in a checkout beside it.
_PACKAGE = Path(__file__).resolve().parent
CONF_DIR = next(folder for folder in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if (folder / "train.yaml").is_file())
FULL_ERROR = "HYDRA_FULL_ERROR"

Parsed = TypeVar("Parsed")


def run_verb(verb: str, task: Callable[[dict[str, Any], Path], None]) -> None:
    """Compose conf/<verb>.yaml with the command line and call `task(config, run folder)`, in a sweep for every job.

    A user's mistake ends in one sentence on stderr and exit status 2; HYDRA_FULL_ERROR=1 shows its traceback.
    """
    show_all = os.environ.get(FULL_ERROR) == "1"

    def job(config: DictConfig) -> None:
        if not show_all:
            del os.environ[FULL_ERROR]  # not for the processes that a job starts
        try:
            values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
            task(values, Path(HydraConfig.get().runtime.output_dir))  # type: ignore[arg-type]
        except Exception as error:
            if HydraConfig.get().mode == RunMode.MULTIRUN and (sentence := explain(error)):
                overrides = HydraConfig.get().job.override_dirname
                print(f"error in job {HydraConfig.get().job.num} ({overrides}): {sentence}", file=sys.stderr)
            raise
        finally:
            os.environ[FULL_ERROR] = "1"

    logging.getLogger("hydra.core.utils").setLevel(logging.CRITICAL)  # it would announce every error a second time
    os.environ[FULL_ERROR] = "1"  # Hydra would print a page of its own and exit; with this it raises
    try:
        sys.argv[1:] = _with_recorded_overrides(sys.argv[1:])
        hydra.main(config_path=str(CONF_DIR), config_name=verb, version_base="1.3")(job)()
    except Exception as error:
        sentence = _composition_sentence(error) or explain(error)
        if sentence is None or show_all:
            raise
        print(f"error: {sentence}", file=sys.stderr)
        sys.exit(2)


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
    return [*started, f"hydra.run.dir={_quoted(str(folder))}", *arguments]


def _quoted(value: str) -> str:
    return "'" + value.replace("'", "\\'") + "'"


def _composition_sentence(error: Exception) -> str | None:
    """Hydra's and OmegaConf's errors in one sentence: what was typed, what is near, what is allowed."""
    if not isinstance(error, HydraException | OmegaConfBaseException):
        return None
    text, cause = str(error), error.__cause__ if isinstance(error, HydraException) else error
    if isinstance(cause, ConfigKeyError) and cause.full_key:
        parent = cause.parent_node
        known = [str(key) for key in parent] if isinstance(parent, DictConfig) else []
        return _unknown_key(cause.full_key, known)
    if isinstance(cause, MissingMandatoryValue):
        key = re.search(r"[\w.]+$", text.splitlines()[0])
        return f"{key.group() if key else text} is not set: add {key.group() if key else 'it'}=<value>"
    if match := re.search(r"Could not find '([^']+)'\n\nAvailable options in '([^']+)':\n((?:\t.*\n?)+)", text):
        missing, group, options = match[1].removeprefix(f"{match[2]}/"), match[2], match[3].split()
        return (
            f"{group} has no preset '{missing}'{did_you_mean(missing, options) or ','} there are {', '.join(options)}"
        )
    if match := re.search(r"You must specify '(\w+)', e.g, \w+=<OPTION>\nAvailable options:\n((?:\t.*\n?)+)", text):
        return f"{match[1]} is not set: add {match[1]}=<name>, one of {', '.join(match[2].split())}"
    if match := re.search(r"Could not override '([^']+)'", text):
        return _unknown_key(match[1], _known_keys())
    return " ".join(text.splitlines()[0].split()) + "; quote values with brackets, commas or spaces: 'key=[a,b]'"


def _unknown_key(key: str, known: list[str]) -> str:
    stem, _, word = key.rpartition(".")
    near = did_you_mean(word, known) or f"; known here are {', '.join(known)}"
    return f"unknown key '{key}'{near}" if not stem else f"unknown key '{key}' in {stem}{near}"


def _known_keys() -> list[str]:
    groups = [folder.name for folder in CONF_DIR.iterdir() if folder.is_dir()]
    return [*groups, *(str(key) for key in OmegaConf.load(CONF_DIR / "train.yaml") if key not in ("defaults", "hydra"))]
