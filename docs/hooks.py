"""The page of the configuration, made from conf/ at every build: what it says is what a command takes."""

import html
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

CONF = Path(__file__).parents[1] / "conf"
INTRODUCTION = """# Configuration

Every default lies in `conf/`; this page is made from it. A key is overruled as `key=value`, a preset chosen as
`group=name`, and `python -m defectcls.<verb> --help` shows all of it for the command at hand. Presets of your own lie
in a folder of the same shape, named by `--config-dir=<folder>`.
"""


def on_files(files: Files, config: Any) -> Files:
    """Add configuration.md."""
    files.append(File.generated(config, "configuration.md", content=configuration()))
    return files


def configuration() -> str:
    """Markdown: the verbs' own keys, then each group with its presets."""
    verbs = [section(file, f"The verb {file.stem}") for file in sorted(CONF.glob("*.yaml")) if has_help(file)]
    base = section(CONF / "dataset_base.yaml", "What every dataset has")
    groups = [group(folder) for folder in sorted({file.parent for file in CONF.glob("*/**/*.yaml")})]
    return "\n".join([INTRODUCTION, "## Verbs", *verbs, "## Datasets", base, *groups])


def has_help(file: Path) -> bool:
    """Whether a file is the configuration of a verb."""
    return "app_name:" in file.read_text(encoding="utf-8")


def group(folder: Path) -> str:
    """A heading, and every preset with the comments that say what it is for."""
    presets = [
        section(file, f"{folder.relative_to(CONF).as_posix()}={file.stem}") for file in sorted(folder.glob("*.yaml"))
    ]
    return "\n".join([f"## {folder.relative_to(CONF).as_posix()}", *presets])


def section(file: Path, title: str) -> str:
    """One file: its first comment as the sentence, and a row a key, without what is Hydra's."""
    first, _, rest = file.read_text(encoding="utf-8").partition("\n")
    if not first.startswith("# ") or first.startswith("# @package"):
        first, rest = "", f"{first}\n{rest}"
    sentence, colon, command = first.removeprefix("# ").rpartition(": python -m ")
    words = f"{sentence}: `python -m {command}`" if colon else html.escape(command)
    rows = keys(rest.partition("\nhydra:")[0].splitlines())
    table = ["| key | default | |", "| --- | --- | --- |", *(f"| {' | '.join(map(cell, row))} |" for row in rows)]
    return "\n".join([f"### {title}", "", words, "", *(table if rows else []), ""])


def keys(lines: list[str]) -> list[tuple[str, str, str]]:
    """Key, default and comment of each line of YAML; a line of comment alone goes on with the comment before it."""
    rows: list[tuple[str, str, str]] = []
    parents: list[tuple[int, str]] = []
    for line in lines:
        content, _, comment = line.partition("# ") if "# " in line else (line, "", "")
        indent, (name, _, value) = len(content) - len(content.lstrip()), content.strip().partition(": ")
        if not name and comment and rows:
            rows[-1] = (*rows[-1][:2], f"{rows[-1][2]} {comment}")
        if not name:
            continue
        parents = [parent for parent in parents if parent[0] < indent]
        path = ".".join([*(parent for _, parent in parents), name.rstrip(":")])
        if name.endswith(":"):
            parents.append((indent, name.rstrip(":")))
        if name.startswith("- "):
            start = content.strip().removeprefix("- ")
            if start != "_self_" and "hydra/" not in start:
                rows.append(("starts from", f"`{start}`", comment))
        elif value or comment:
            rows.append((f"`{path}`", f"`{value.strip()}`" if value.strip() else "", comment))
    return rows


def cell(text: str) -> str:
    """Text that a table of Markdown takes as it is."""
    code = text.startswith("`") and text.endswith("`") and text.count("`") == 2
    return (text if code else html.escape(text, quote=False)).replace("|", "\\|")
