"""The configuration: conf/ composed by Hydra, its mistakes in one sentence each, and the parts that it names."""

import contextlib
import functools
import importlib
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from defectcls.arguments import RUN_DIR, UNRECORDED, as_typed, quoted, spelled_out, with_presets, with_text_quoted
from defectcls.errors import UserError, did_you_mean

# In a wheel conf/ lies inside the package, in a checkout beside it.
_PACKAGE = Path(__file__).resolve().parent
CONF_DIR = next(folder for folder in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if (folder / "train.yaml").is_file())

SHIPPED = ("defectcls.", "torch.nn.", "lightning.pytorch.")  # whose classes a file may name
TRAINING = ("train", "crossval", "auto", "audit", "tune")  # verbs that need a dataset
FURTHER = {"trainer": "trainer/auto", "logger": "logger/wandb"}  # groups that take arguments of Lightning's classes too

JOB = ["defectcls"]  # what this process does, as one types it after python -m


def verbs() -> dict[str, list[str]]:
    """What each verb is for, and its command: the first line of its preset."""
    presets = (file for file in sorted(CONF_DIR.glob("*.yaml")) if (_PACKAGE / file.name).with_suffix(".py").is_file())
    first = {file.stem: file.read_text(encoding="utf-8").splitlines()[0].lstrip("# ") for file in presets}
    return {verb: line.split(": ", 1) for verb, line in first.items()}


def task_of(verb: str) -> Any:
    """The function of a verb, which takes its configuration and the folder of the run.

    Raises:
        UserError: there is no such verb.
    """
    if verb not in (known := verbs()):
        raise UserError(f"there is no verb '{verb}'{did_you_mean(verb, known) or ','} there are {', '.join(known)}")
    return getattr(importlib.import_module(f"defectcls.{verb}"), verb)


@contextmanager
def hydra_of(verb: str) -> Iterator[Any]:
    """Hydra on conf/, for as long, whoever else in this process has it on another folder."""
    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF_DIR), version_base="1.3", job_name=verb):
            yield GlobalHydra.instance().hydra
    finally:
        GlobalHydra.instance().hydra = before


def compose(*overrides: str, verb: str = "train", config_dir: str | Path | None = None) -> DictConfig:
    """The configuration of a verb, as its command would have it: `compose("dataset=mvtec", "model=resnet18")`.

    Args:
        overrides: key=value, as on the command line.
        config_dir: folder of presets of one's own, which stand beside those of conf/.

    Raises:
        UserError: no such key, preset or folder.
    """
    given = overrides_of(verb, list(overrides), config_dir=config_dir)
    try:
        with hydra_of(verb):
            return hydra_compose(verb, given)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain_composition(error)) from error


def overrides_of(verb: str, typed: list[str], sweeps: bool = False, config_dir: str | Path | None = None) -> list[str]:
    """What was typed beside options, as Hydra takes it; in a sweep each of several values.

    `trainer.<argument of Lightning's Trainer>` needs no `+`.
    """
    if verb == "compare":  # `a b level=0.9`; a path may hold whatever a path may, "=" too
        runs = [word for word in typed if "=" not in word or Path(word).exists()]
        typed = [word for word in typed if word not in runs]
        typed += [f"runs=[{','.join(map(quoted, runs))}]"] * bool(runs)
    if verb in ("serve", "review"):  # to Hydra `model` is a group of presets
        typed = [re.sub("^model=", "checkpoint=", word) for word in typed]
    if verb in TRAINING:  # to Python `from` is a word of its own
        typed = [re.sub("^from=", "earlier=", word) for word in typed]
    words = [with_text_quoted(word, sweeps) for argument in typed for word in spelled_out(argument)]
    if verb in TRAINING:
        words = [f"++{word}" if _is_further(word) else word for word in words]
    return with_presets(space_of(words) if verb == "tune" else words, config_dir)


def space_of(words: list[str]) -> list[str]:
    """What has several values, in Hydra's grammar of sweeps, as entries of `space`; and all other words."""
    try:
        parsed = [(word, OverridesParser.create().parse_override(word)) for word in words]
    except HydraException:
        return words  # Hydra tells it when it composes
    searched = {one.get_key_element(): word.partition("=")[2] for word, one in parsed if one.is_sweep_override()}
    rest = [word for word, one in parsed if not one.is_sweep_override()]
    entries = ",".join(f"{key}:{quoted(value)}" for key, value in searched.items())
    return [*rest, *[f"++space={{{entries}}}"] * bool(entries)]


def swept(word: str, intervals: bool) -> Any:
    """Of `key=<several values>` each as one types it; of an interval, where there may be one, its start, end and tags.

    Raises:
        ValueError: it has one value, or is none of Hydra's grammar.
    """
    try:
        override = OverridesParser.create().parse_override(word)
        sweep = override.value()
        return sweep if intervals and isinstance(sweep, IntervalSweep) else [*override.sweep_string_iterator()]
    except HydraException as error:
        raise ValueError(str(error)) from error


def _is_further(word: str) -> bool:
    """Whether it sets an argument of a class of Lightning's that no preset has, and is no misspelt key."""
    group, _, key = word.partition("=")[0].partition(".")
    known = _preset(FURTHER[group]) if group in FURTHER else ()
    return bool(key and known) and not did_you_mean(key.partition(".")[0], map(str, known))


def plain(config: Any, resolve: bool = True) -> dict[str, Any]:
    """The values of a composed configuration; what is missing raises OmegaConf's error."""
    return OmegaConf.to_container(config, resolve=resolve, throw_on_missing=resolve)  # type: ignore[return-value]


def presets(*names: str) -> dict[str, Any]:
    """The values of conf/<name>.yaml, of a later one over those before it, with ??? for what one has to give."""
    merged: Any = OmegaConf.merge(*map(_preset, names))
    rest = [str(key) for key in merged if key not in ("defaults", "hydra")]
    return OmegaConf.to_container(OmegaConf.masked_copy(merged, rest), resolve=True)  # type: ignore[return-value]


@functools.cache  # a millisecond a line
def _preset(name: str) -> Any:
    return OmegaConf.load(CONF_DIR / f"{name}.yaml")


def shipped_dataset(target: str) -> dict[str, Any] | None:
    """The preset of conf/dataset/ whose class this is."""
    files = sorted((CONF_DIR / "dataset").glob("*.yaml"))
    named = (file.stem for file in files if f"\n_target_: {target}\n" in file.read_text(encoding="utf-8"))
    return next((presets("dataset_base", f"dataset/{name}") for name in named), None)


def import_named(config: dict[str, Any]) -> None:
    """Import `imports` and the module of every `_target_`, of a configuration that the user has typed or trusts.

    Raises:
        UserError: one is not there.
    """
    targets = re.findall(r"_target_: (\S+)\.\w+$", OmegaConf.to_yaml(OmegaConf.create(config)), re.MULTILINE)
    for module in (*(config.get("imports") or []), *(path for path in targets if not f"{path}.".startswith(SHIPPED))):
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise UserError(f"{module} cannot be imported ({error}): install it, or start where it lies") from error


def named(path: str, kind: type) -> Any:
    """The class at a dotted path: a `kind` of this package, torch.nn, lightning, or a module that is imported.

    A checkpoint names them too: nothing that only a file names is imported, and nothing else is called.

    Raises:
        UserError: it is no such class, or its module is not imported; what to type.
    """
    module, _, name = path.rpartition(".")
    if path.startswith(SHIPPED):
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(module)
    if module not in sys.modules:
        raise UserError(f"{path} is of a module that is not imported: imports=[{module}], or import {module} in Python")
    found, known = getattr(sys.modules[module], name, None), vars(sys.modules[module]).items()
    if not (isinstance(found, type) and issubclass(found, kind)):
        near = did_you_mean(name, [other for other, one in known if isinstance(one, type) and issubclass(one, kind)])
        raise UserError(f"{module} has no {kind.__name__} {name}{near}")
    return found


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every value by its key as one types it."""
    every: dict[str, Any] = {}
    for key, value in config.items():
        every |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return every


def do_job(
    verb: str, config: dict[str, Any], folder: Path, repeated: list[str], alone: bool = True, act: Any = None
) -> Any:
    """Call the function of a verb; what then asks for the command of this process is told that of the job, `repeated`.

    Lightning does to start the other processes of a distributed job; if it saw Hydra's state, it would start them on
    the composed configuration, which no longer knows the presets.

    Args:
        alone: the process does nothing but the job, else it keeps its own command.
        act: in place of the verb's function.
    """
    import_named(config)
    main, typed, state, job = sys.modules["__main__"], sys.argv, HydraConfig.instance().cfg, JOB[:]
    JOB[:], HydraConfig.instance().cfg = [f"defectcls.{verb}", *repeated], None
    if alone:
        module = importlib.import_module(f"defectcls.{verb}")
        sys.modules["__main__"], sys.argv = module, [str(module.__file__), *repeated]
    try:
        return (act or task_of(verb))(config, folder)
    finally:
        sys.modules["__main__"], sys.argv, HydraConfig.instance().cfg, JOB[:] = main, typed, state, job


def job_command() -> str:
    """What to type to repeat this job."""
    return shlex.join(["python", "-m", JOB[0], *job_overrides()])


def job_overrides() -> list[str]:
    """What was typed, but for the place of this job."""
    return [word for word in JOB[1:] if not word.startswith((RUN_DIR, UNRECORDED, "resume="))]


def explain_composition(error: BaseException) -> str:
    """Hydra's and OmegaConf's errors in one sentence: what was typed, what is near, what is allowed."""
    text, cause = str(error), error.__cause__ if isinstance(error, HydraException) else error
    if isinstance(cause, ConfigKeyError | ConfigAttributeError) and isinstance(cause.parent_node, DictConfig):
        return _unknown_key(cause.full_key or str(cause.key), cause.parent_node)
    if isinstance(cause, MissingMandatoryValue):
        return f"{cause.full_key} is not set: add {cause.full_key}=<value>"
    if match := re.search(r"(?:Could not find|You must specify) '([^'/]+)/?([^']*)'", text):
        group, missing = match.groups()
        options = re.findall(r"^\t(\w+)$", text, re.MULTILINE)
        near = did_you_mean(missing, options) or ","
        what = f"has no preset '{missing}'{near}" if missing else f"is not set: add {group}=<name>;"
        return f"{group} {what} there are {', '.join(options)}"
    if match := re.search(r"Ambiguous value for argument '(.+)'", text):
        return f"{match[1]} has several values: add -m for a sweep over them, or write one list as 'key=[a,b]'"
    if isinstance(error, OverrideParseException):
        key, _, value = error.override.partition("=")
        as_text = as_typed(f"{key}={quoted(value)}")
        return f"{error.override} is no key=value: as a text, type {as_text}; as a list, 'key=[a,b]'"
    return " ".join(text.split())


def _unknown_key(key: str, parent: DictConfig) -> str:
    """Where another group has it, that is told; else what is near or, of this group, known."""
    stem, _, word = key.rpartition(".")
    every = flat(plain(parent._get_root(), resolve=False))
    if place := next((one for one in every if one.rpartition(".")[2] == word and not one.startswith("hydra")), None):
        return f"unknown key '{key}': {place}=<value> sets it"
    known = [str(one) for one in parent if one != "hydra"] + ["experiment"] * (not stem and "finetune" in parent)
    others = f"; known here are {', '.join(known)}" if known else f"; +{key}=<value> adds it"
    return f"unknown key '{key}'{f' in {stem}' if stem else ''}{did_you_mean(word, known) or others}"
