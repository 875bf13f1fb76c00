"""Let a run take over from the model at work, or take that back: python -m defectcls.promote run=<run> why=<reason>."""

from pathlib import Path
from typing import Any

from defectcls.files import locked
from defectcls.training.command import run_verb


def promote(config: dict[str, Any], folder: Path) -> None:
    """Put the file in place, and write history.html beside the database; compare.html lies in the job's own folder."""
    from defectcls.deployment.decisions import Decisions
    from defectcls.deployment.promotions import PromoteSettings, Shelf, candidate
    from defectcls.pages.history import history_page
    from defectcls.pages.render import print_page, write_page

    settings = PromoteSettings(**config)
    models, page = settings.folder / "models", settings.folder / "history.html"
    models.mkdir(parents=True, exist_ok=True)
    with locked(models / "promote.lock", f"another promotion is under way in {models}: wait for it", wait=False):
        decisions = Decisions(settings.database or settings.folder / "decisions.sqlite")
        shelf = Shelf(settings, decisions)
        row = candidate(settings.run, settings, shelf, folder) if settings.run else shelf.before()
        shelf.take_over(row | {"who": settings.who, "why": settings.why})
        told = history_page(decisions.promotions(shelf.at_work), decisions.versions())
        write_page(told, page)
    print_page(told, page)


if __name__ == "__main__":
    run_verb("promote")
