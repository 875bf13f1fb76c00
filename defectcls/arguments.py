"""The words of a command line as Hydra's grammar takes them: names are text, whatever is in them."""

import os
import re
import shlex
from collections.abc import Iterable
from pathlib import Path

from defectcls.errors import UserError, did_you_mean

RUN_DIR, SWEEP_DIR = "hydra.run.dir", "hydra.sweep.dir"
SEARCHPATH = "hydra.searchpath"  # folders of presets beside conf/
UNRECORDED = "hydra.output_subdir=null"  # .hydra/ stays what began the run, whatever is typed to go on with it
SHORT = {"recall": ">=0.95", "precision": ">=0.95", "fpr": "<=0.05"}  # decisions with a target, as conf/ has it
TEXTS = (  # keys whose values are text whatever Hydra's grammar makes of it; a leading ~ is somebody's home
    *("dataset.root", "dataset.table", "dataset.cache_dir", "dataset.split.hold_out_defect_type", "model.name"),
    *("model.weights", "logger.project", "logger.group", "resume", "checkpoint", "predictions", "input", "output"),
    *("root", "host", "token", "folder", "database", "storage", "study", "slurm", "ray.address", RUN_DIR, SWEEP_DIR),
)
NAMES = (  # lists
    *("dataset.sound", "dataset.categories", "dataset.labels", "dataset.verdicts", "labels", "runs", "logger.tags"),
    SEARCHPATH,
)

SHARE = re.compile(r"\s*\d*\.?\d+(e-\d+)?\s*", re.IGNORECASE)
QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""")
PLAIN = re.compile(r"(?!(?:null|true|false|nan|inf)$)(?:[a-z_]|\.{0,2}/)[\w./-]*|\.{1,2}", re.IGNORECASE | re.ASCII)


def with_presets(words: list[str], folder: str | Path | None) -> list[str]:
    """`--config-dir <folder>` and every `hydra.searchpath` as one, for any working directory: a resumed run repeats it.

    Raises:
        UserError: there is no such folder.
    """
    paths = [path for word in searchpath(words) for path in re.findall(r"[^,\[\]]+", word.partition("=")[2])]
    if folder is not None:
        place = Path(folder).expanduser()
        if not place.is_dir():
            raise UserError(f"--config-dir={folder} is no folder: give one with presets such as model/<name>.yaml")
        paths.insert(0, quoted(f"file://{place.absolute()}"))
    merged = [f"{SEARCHPATH}=[{','.join(dict.fromkeys(paths))}]"] * bool(paths)
    return merged + [word for word in words if word not in searchpath(words)]


def searchpath(overrides: Iterable[str]) -> list[str]:
    """Those that name folders of presets beside conf/."""
    return [override for override in overrides if override.startswith(f"{SEARCHPATH}=")]


def spelled_out(argument: str) -> list[str]:
    """`decision=recall>=0.99` as the preset and its key, for Hydra takes no such word; all else as it is."""
    match = re.fullmatch(r"decision=([\w ]+)([<>]=?)(.*)", argument)
    if match is None:
        return [argument]
    rate, sign, value = match.groups()
    if SHORT.get(rate, "")[:2] != sign:
        known = ", ".join(f"{name}{short[:2]}<number>" for name, short in SHORT.items())
        raise UserError(f"{argument}{did_you_mean(rate, SHORT) or ','} there are {known}")
    if not all(SHARE.fullmatch(one) and 0 < float(one) < 1 for one in value.split(",")):  # of a sweep
        raise UserError(f"{argument}: give a share between 0 and 1, such as decision={rate}{SHORT[rate]}")
    return [f"decision={rate}", f"decision.target={value}"]


def with_text_quoted(argument: str, sweeps: bool) -> str:
    """Text in Hydra's quotes where its grammar would take it for anything else.

    So is each name of a list, and in a sweep each of several values, unless quotes or `choice(…)` are there already.
    """
    key, _, value = argument.partition("=")
    known, names = key.lstrip("+"), key.lstrip("+") in NAMES
    if not (names or known in TEXTS) or value in ("", "null") or "${" in value or QUOTED.fullmatch(value):
        return argument
    if not (names or sweeps):
        return f"{key}={_as_text(os.path.expanduser(value))}"  # noqa: PTH111  pathlib refuses an unknown user
    if re.search("['\"(]" if sweeps else "['\"]", value):
        return argument
    return f"{key}={re.sub('[^][,]+' if names else '[^,]+', lambda one: _as_text(one[0].strip()), value)}"


def _as_text(value: str) -> str:
    return value if PLAIN.fullmatch(value) else quoted(value)


def quoted(value: str) -> str:
    """As Hydra's grammar has it: backslashes count before a quote only."""
    return "'" + re.sub(r"(\\*)('|\Z)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), value) + "'"


def as_typed(argument: str) -> str:
    """As a shell takes it."""
    return shlex.quote(argument) if "'" not in argument or set('"$`!\\') & set(argument) else f'"{argument}"'
