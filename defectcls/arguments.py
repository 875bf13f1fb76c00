"""The words of a command line as Hydra's grammar takes them: names are text, whatever is in them."""

import os
import re
import shlex
from pathlib import Path

from defectcls.errors import UserError, did_you_mean

RUN_DIR, SWEEP_DIR = "hydra.run.dir", "hydra.sweep.dir"
SEARCHPATH = "hydra.searchpath"  # folders of presets beside conf/
UNRECORDED = "hydra.output_subdir=null"  # .hydra/ stays what began the run, whatever is typed to go on with it
SHORT = {"recall": ">=", "precision": ">=", "fpr": "<="}  # decisions with a target, and the sign before it
WORDS = {"compare": "runs"}  # verbs that take words that are no key=value, and the key these are the values of
TEXTS = (  # keys whose values are text whatever Hydra's grammar makes of it; a leading ~ is somebody's home
    *("dataset.root", "dataset.table", "dataset.cache_dir", "dataset.split.hold_out_defect_type", "model.name"),
    *("model.weights", "logger.project", "logger.group", "resume", "checkpoint", "predictions", "input", "output"),
    *("root", RUN_DIR, SWEEP_DIR),
)
NAMES = ("dataset.sound", "dataset.categories", "dataset.labels", "runs", "logger.tags", SEARCHPATH)  # lists

QUOTED = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
ELEMENT = re.compile(rf"(?:^|,)\s*((?:{QUOTED}|\[.*?\])(?=\s*(?:,|$))|[^,]*)")
PLAIN = re.compile(r"(?!(?:null|true|false|nan|inf)$)(?:[a-z_]|\.{0,2}/)[\w./-]*|\.{1,2}", re.IGNORECASE | re.ASCII)
SWEPT = re.compile(r"(?:choice|range|interval|glob|shuffle|sort|tag)\(.*\)")


def as_overrides(verb: str, typed: list[str], sweeps: bool) -> list[str]:
    """What was typed beside options, as Hydra takes it; in a sweep each of several values."""
    words = [word for argument in with_words_as_values(verb, typed) for word in spelled_out(argument)]
    return [with_text_quoted(word, sweeps) for word in words]


def with_presets(typed: list[str], folder: str | Path | None) -> list[str]:
    """`--config-dir <folder>` and every `hydra.searchpath` as one, for any working directory: a resumed run repeats it.

    Raises:
        UserError: there is no such folder.
    """
    paths, rest = [], []
    if folder is not None:
        if not Path(folder).expanduser().is_dir():
            raise UserError(f"--config-dir={folder} is no folder: give one with presets such as model/<name>.yaml")
        paths.append(quoted(f"file://{Path(folder).expanduser().absolute()}"))
    for word in typed:
        key, _, value = word.partition("=")
        if key == SEARCHPATH:
            several = map(str.strip, ELEMENT.findall(value.removeprefix("[").removesuffix("]")))
            paths += [path if re.fullmatch(QUOTED, path) else quoted(path) for path in several]
        else:
            rest.append(word)
    return [f"{SEARCHPATH}=[{','.join(dict.fromkeys(paths))}]", *rest] if paths else rest


def with_words_as_values(verb: str, arguments: list[str]) -> list[str]:
    """`a b level=0.9` as `level=0.9 runs=['a','b']`; a path may hold whatever a path may, "=" too."""
    words = [argument for argument in arguments if "=" not in argument or Path(argument).exists()]
    words = [word for word in words if verb in WORDS and not word.startswith("-")]
    rest = [argument for argument in arguments if argument not in words]
    return [*rest, f"{WORDS[verb]}=[{','.join(map(quoted, words))}]"] if words else rest


def spelled_out(argument: str) -> list[str]:
    """`decision=recall>=0.99` as the preset and its key, for Hydra takes no such word; all else as it is."""
    match = re.fullmatch(r"decision=([\w ]+)([<>]=?)(.*)", argument)
    if match is None:
        return [argument]
    rate, sign, value = match.groups()
    if SHORT.get(rate) != sign:
        known = ", ".join(f"{name}{sign}<number>" for name, sign in SHORT.items())
        raise UserError(f"{argument}{did_you_mean(rate, SHORT) or ','} there are {known}")
    return [f"decision={rate}", f"decision.target={value}"]


def with_text_quoted(argument: str, sweeps: bool) -> str:
    """Text in Hydra's quotes where its grammar would take it for anything else; in a sweep each of several values."""
    key, sign, value = argument.partition("=")
    if key.lstrip("+") not in (*TEXTS, *NAMES) or not sign or "${" in value or (sweeps and SWEPT.fullmatch(value)):
        return argument
    names = key.lstrip("+") in NAMES
    return f"{key}={','.join(_as_text(one, names) for one in (ELEMENT.findall(value) if sweeps or names else [value]))}"


def _as_text(value: str, names: bool) -> str:
    if names and value.startswith("[") and value.endswith("]"):
        several = [name.strip() for name in ELEMENT.findall(value[1:-1])] if value[1:-1].strip() else []
        return f"[{','.join(name if _is_text(name) else quoted(name) for name in several)}]"
    if value in ("", "null") or _is_text(value):
        return value
    return quoted(value if names else os.path.expanduser(value))  # noqa: PTH111  pathlib refuses an unknown user


def _is_text(value: str) -> bool:
    return bool(PLAIN.fullmatch(value) or re.fullmatch(QUOTED, value))


def quoted(value: str) -> str:
    """As Hydra's grammar has it: backslashes count before a quote only."""
    return "'" + re.sub(r"(\\*)('|\Z)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), value) + "'"


def as_typed(argument: str) -> str:
    """As a shell takes it."""
    return shlex.quote(argument) if "'" not in argument or set('"$`!\\') & set(argument) else f'"{argument}"'
