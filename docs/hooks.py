"""The page of the configuration, made from conf/ at every build: what it says is what a command takes."""

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

CONF = Path(__file__).parents[1] / "conf"
INTRODUCTION = """# Configuration

Every default lies in `conf/`; this page is made from it. A key is overruled as `key=value`, a preset chosen as `group=name`, and
`python -m defectcls.<verb> --help` shows all of it for the command at hand. Presets of your own lie in a folder of the same
shape, named by `--config-dir=<folder>`.
"""


def on_files(files: Files, config: Any) -> Files:
    """Add configuration.md."""
    files.append(File.generated(config, "configuration.md", content=configuration()))
    return files


def configuration() -> str:
    """Markdown: the verbs' own keys, then each group with its presets."""
    verbs = [section(file, f"The verb {file.stem}") for file in sorted(CONF.glob("*.yaml")) if has_help(file)]
    base = section(CONF / "dataset_base.yaml", "What every dataset has")
    groups = [group(folder) for folder in sorted(CONF.iterdir()) if folder.is_dir()]
    return "\n".join([INTRODUCTION, "## Verbs", *verbs, "## Datasets", base, *groups])


def has_help(file: Path) -> bool:
    """Whether a file is the configuration of a verb."""
    return "app_name:" in file.read_text(encoding="utf-8")


def group(folder: Path) -> str:
    """A heading, and every preset with the comments that say what it is for."""
    presets = [section(file, f"{folder.name}={file.stem}") for file in sorted(folder.glob("*.yaml"))]
    return "\n".join([f"## {folder.name}", *presets])


def section(file: Path, title: str) -> str:
    """One file: its first comment as the sentence, the keys as they stand, without what is Hydra's."""
    first, _, rest = file.read_text(encoding="utf-8").partition("\n")
    if not first.startswith("# ") or first.startswith("# @package"):
        first, rest = "", f"{first}\n{rest}"
    keys = rest.partition("\nhydra:")[0].strip("\n")
    return f"### {title}\n\n{first.removeprefix('# ')}\n\n```yaml\n{keys}\n```\n"
