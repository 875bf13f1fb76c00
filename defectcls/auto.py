"""Try what may be better within minutes, and keep the best: python -m defectcls.auto dataset=<name> minutes=5."""

from pathlib import Path
from typing import Any

from defectcls.errors import UserError
from defectcls.train import train
from defectcls.training.command import run_verb


def auto(config: dict[str, Any], folder: Path) -> float | None:
    """Search, then train what is kept in the run's own folder, and say in its report what was tried."""
    from defectcls.settings import TrainSettings
    from defectcls.training.settings import AutoSettings

    settings = AutoSettings(**config)
    if settings.trainer.strategy != "auto":
        raise UserError("a search trains on one device: leave trainer.strategy=auto")
    from defectcls.training.results import finished_metrics, objective_of
    from defectcls.training.search import Search

    objective_of({}, settings.objective)  # a typo is told now
    if finished_metrics(folder) is not None:
        return train({key: config[key] for key in TrainSettings.model_fields}, folder)
    search = Search(settings, folder)
    return train(search.run(), folder, lambda: {"auto": search.summary()})


if __name__ == "__main__":
    run_verb("auto")
