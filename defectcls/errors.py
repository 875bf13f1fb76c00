"""A user's mistake becomes one sentence; a real bug keeps its traceback."""

import difflib
import errno
import sys
from collections.abc import Iterable
from typing import Any

FULL_ERROR = "HYDRA_FULL_ERROR"  # environment variable: 1 shows the traceback of a mistake
MEMORY_WORDS = ("out of memory", "can't allocate memory", "not enough memory")


class UserError(Exception):
    """Something the user can mend. The message is one sentence: what was given, what is allowed, what to type."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`, did you mean 'resnet18'?` for a near miss of a known word, else the empty string."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f", did you mean '{near[0]}'?" if near else ""


def explain(error: BaseException) -> str | None:
    """One sentence for what a user can mend, None for a bug."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return (
            "no space left on the disk; what was written is kept: make room, then start again, or resume=<run folder>"
        )
    out_of_memory = isinstance(error, RuntimeError) and any(word in str(error).lower() for word in MEMORY_WORDS)
    if out_of_memory or isinstance(error, MemoryError):
        reason = (str(error) or "MemoryError").splitlines()[0]
        return f"a batch does not fit into memory: lower batch_size or image_size ({reason})"
    pydantic = sys.modules.get("pydantic")  # not imported for its sake: --help has to be quick
    if pydantic is not None and isinstance(error, pydantic.ValidationError) and error.title != "Settings":  # W&B's own
        return _wrong_value(error)
    return None


def _wrong_value(error: Any) -> str:
    """A pydantic error: the key as one types it, the value, what is allowed."""
    first = error.errors(include_url=False)[0]
    # Steps of a union's branches, such as 'constrained-float', are no part of the key.
    steps = [str(step) for step in first["loc"] if str(step).isidentifier() and not str(step).startswith("function")]
    prefix = "" if error.title.endswith("Settings") else "dataset."
    allowed = {
        one["msg"].removeprefix("Value error, ")
        for one in error.errors(include_url=False)
        if one["loc"][:1] == first["loc"][:1]
    }
    near = ""
    if first["type"] == "literal_error":
        near = did_you_mean(
            str(first["input"]), first["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        )
    if not steps:  # of several keys together
        return "; ".join(sorted(allowed))
    given = "" if first["type"] in ("value_error", "missing") else f"={first['input']}"
    return f"{prefix}{'.'.join(steps)}{given}: {'; '.join(sorted(allowed))}{near}"
