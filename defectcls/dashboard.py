"""Save a workspace of a W&B project: python -m defectcls.dashboard project=<name>."""

import os
from pathlib import Path
from typing import Any

from defectcls.errors import UserError, one_line
from defectcls.training.command import run_verb


def dashboard(config: dict[str, Any], folder: Path) -> None:  # noqa: ARG001  of what it keeps nothing
    """Panels of what the runs and the newest study of the project have sent; their address is printed."""
    import wandb

    from defectcls.training.workspace import DashboardSettings, workspace

    settings = DashboardSettings(**config)
    os.environ["WANDB_SILENT"] = "true"
    if not wandb.login(prompt=False, verify=False):  # nor is it where WANDB_MODE=offline
        raise UserError("nobody is logged in to W&B here: type wandb login, or set WANDB_API_KEY")
    try:
        api = wandb.Api(timeout=15)
        entity = settings.entity or str(api.default_entity)
        trials = api.runs(f"{entity}/{settings.project}", {"jobType": "tune"}, "-created_at", per_page=1)
        saved = workspace(settings, entity, trials[0].config if len(trials) else {}).save()
    except (wandb.Error, ValueError, OSError) as error:
        known = "project=<one that has runs>, entity=<whose it is>"
        raise UserError(f"project={settings.project} cannot have a workspace ({one_line(error)}): {known}") from error
    print(saved.url)


if __name__ == "__main__":
    run_verb("dashboard")
