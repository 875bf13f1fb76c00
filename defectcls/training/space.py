"""The space of a study, in the grammar of Hydra's sweeps, as Optuna takes it."""

import re
from typing import Any

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from defectcls.config import swept
from defectcls.errors import UserError, one_line
from defectcls.settings import TrainSettings
from defectcls.training.settings import TuneSettings

OWN = {*TuneSettings.model_fields, "search"} - {*TrainSettings.model_fields} | {"resume"}  # no keys of a trial
IN_COMMON = (*OWN, "dataset", "target", "evaluation", "decision", "seed", "logger", "hydra", "imports", "objective")


def distributions_of(space: dict[str, str], discrete: bool) -> dict[str, Any]:
    """What Optuna draws from: `interval(…)` of Hydra's grammar, or else the values of `choice(…)`, `a,b`, `range(…)`.

    Raises:
        UserError: nothing is left to choose, a key that all trials have in common, or a value that is none of these.
    """
    found: dict[str, Any] = {}
    for key, value in space.items():
        if re.split("[.@/]", key.lstrip("+"))[0] in IN_COMMON:
            raise UserError(f"{key}={value} is not to be searched, as trials have it in common: give one value")
        try:
            sweep = swept(f"{key}={value}", not discrete)
            if others := {*getattr(sweep, "tags", ())} - {"log"}:
                raise ValueError(f"tag {', '.join(others)} means nothing")
            if isinstance(sweep, list):
                found[key] = CategoricalDistribution(sweep)
            else:
                kind: Any = IntDistribution if isinstance(sweep.start, int) else FloatDistribution
                found[key] = kind(sweep.start, sweep.end, log="log" in sweep.tags)
        except ValueError as error:
            ways = "choice(a,b), range(1,9,2)" + ", interval(0,1), tag(log,interval(1e-5,1e-3))" * (not discrete)
            raise UserError(f"space has {key}={value} ({one_line(error)}), and takes {ways}") from error
    if not found:
        raise UserError("there is nothing to search: add image_size=choice(224,448), or search=probe")
    return found
