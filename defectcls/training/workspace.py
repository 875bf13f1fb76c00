"""The page of a W&B project: panels of what `loggers`, and trials of a study, send there."""

from typing import Any

import wandb_workspaces.reports.v2 as panels
import wandb_workspaces.workspaces as ws

from defectcls.settings import Settings
from defectcls.training.loggers import AT_5, MATRIX, REPORT

TABLE = {name: name for name in ("Actual", "Predicted", "nPredictions")}  # of W&B's own confusion matrix


class DashboardSettings(Settings):
    project: str
    entity: str | None
    name: str


def workspace(settings: DashboardSettings, entity: str, trial: dict[str, Any]) -> ws.Workspace:
    """What is to be saved; its table of runs has the best first.

    Args:
        trial: W&B's config of one of the newest study; empty where the project has none.
    """
    ways = {f"best/{name.replace('/', '_')}": way for name, way in trial.get("objectives", {}).items()}
    ways, keys = ways or {"best/val_auroc": "maximize"}, [f"searched.{key}" for key in trial.get("searched", {})]
    by_model: Any = {"groupby": panels.Config("model.name"), "groupby_aggfunc": "mean", "groupby_rangefunc": "stddev"}
    shown: dict[str, Any] = {
        "Recall where 5 % of the sound test photos are rejected": [
            panels.ScatterPlot(title="by seed", x=panels.Config("seed"), y=panels.SummaryMetric(AT_5)),
            panels.BarPlot(title="mean and standard deviation over seeds", metrics=[AT_5], **by_model),
        ],
        "Confusion matrices": [
            panels.CustomChart({"summaryTable": {"tableKey": f"{MATRIX}_table"}}, "wandb/confusion_matrix/v1", TABLE),
            panels.MediaBrowser(title="reports", media_keys=[REPORT]),
        ],
    }
    if keys:
        columns: list[Any] = [*map(panels.Config, keys), *map(panels.SummaryMetric, ways)]
        axes = [panels.ParallelCoordinatesPlotColumn(one, display_name=one.name) for one in columns]
        importance = panels.ParameterImportancePlot(next(iter(ways)))
        shown["The newest study"] = [panels.ParallelCoordinatesPlot(axes, title="each trial a line"), importance]
    told = [f"summary:{key}" for key in (*ways, AT_5, "test/auroc", "test/recall", "test/overkill_rate")]
    told += [f"config:{key.replace('.', '.value.', 1)}" for key in (*keys, "model.name")]
    order = [ws.Ordering(ws.Summary(key), ascending=way == "minimize") for key, way in ways.items()]
    table = ws.RunsetSettings(order=order[:1], pinned_columns=[*told, "config:seed.value"])
    sections = [ws.Section(title, of, is_open=True) for title, of in shown.items()]
    every = ws.WorkspaceSettings(max_runs=100)
    return ws.Workspace(entity, settings.project, settings.name, sections, every, table)
