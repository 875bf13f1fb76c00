"""From turns to lines of a CSV: medians and spreads, ratios taken round by round, and where they were measured."""

import shlex
import sys
from pathlib import Path
from typing import Any

import pandas as pd

Line = dict[str, Any]


def spread(what: str, rounds: pd.Series, unit: str) -> Line:
    """Median, least and most over the rounds."""
    return {"what": what, "median": rounds.median(), "low": rounds.min(), "high": rounds.max(), "unit": unit}


def number(value: float) -> str:
    """Three digits, or all before the point; thousands from ten on."""
    if value >= 10_000:
        return f"{value / 1000:,.0f}k"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def keep(lines: list[Line], about: Line, seed: int, file: Path | None) -> None:
    """Print the lines, and put them into a CSV in place of those that it has of the same.

    Args:
        about: what was measured, alike in all lines: with `what` and `unit` it names a number.
    """
    from defectcls.training.results import provenance

    made = provenance(seed, {})
    made["command"] = shlex.join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]])
    about = about | {name: made[name] for name in ("date", "seed", "commit", "hardware", "command")}
    versions = {f"version_{name}": version for name, version in made["versions"].items()}
    results = pd.DataFrame([about | line | versions for line in lines])
    print(results[["what", "median", "low", "high", "unit"]].to_string(index=False, float_format=number))
    if file is not None:
        key = [*(name for name in about if name not in made), "what", "unit"]
        before = [pd.read_csv(file)] if file.is_file() else []
        pd.concat([*before, results]).drop_duplicates(key, keep="last").to_csv(file, index=False)
        print(f"in {file}")
