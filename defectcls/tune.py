"""Search the settings that you name: python -m defectcls.tune dataset=<name> search=probe n_trials=50."""

import json
from pathlib import Path
from typing import Any

from defectcls.errors import UserError
from defectcls.training.command import run_verb


def tune(config: dict[str, Any], folder: Path) -> None:
    """Do trials until there are enough; then the best, an ordinary run, judges the photos that were set aside."""
    from defectcls.training.settings import TuneSettings

    settings = TuneSettings(**config)
    if settings.trainer.strategy != "auto":
        raise UserError("a trial trains on one device: leave trainer.strategy=auto")
    from defectcls.cluster import on_ray, on_slurm
    from defectcls.config import JOB, do_job, job_command
    from defectcls.files import locked, written_whole
    from defectcls.pages.render import print_page, write_page
    from defectcls.pages.study import study_page, study_pictures
    from defectcls.training.results import finished_metrics
    from defectcls.training.tuning import Study

    if settings.ray.address and not settings.slurm:
        on_ray(do_job, [], settings.ray)  # lest a study be left that holds nothing where none answers
    study, metrics = Study(settings, folder), None
    try:
        if settings.slurm:
            again = [word for word in JOB[1:] if not word.startswith("resume=")]
            on_slurm("defectcls.tune", [*again, "slurm=null"], settings.slurm, folder)
        elif settings.ray.address is None:
            study.run()
        else:
            part = "tune", config, folder, JOB[1:], False, lambda *_: Study(settings, folder).run()
            on_ray(do_job, [part] * settings.workers, settings.ray)
        number = study.summary()["best"]
        best = study.task((number, 0), study.ranked()[0][number].params)
        with locked(best.folder / "job.lock", f"trial {number} is being done by another process"):
            if not (settings.slurm or finished_metrics(best.folder)):
                do_job(best.verb, best.config, best.folder, best.arguments, alone=False)
            metrics = finished_metrics(best.folder)
        if metrics is None:
            raise UserError(f"the job has ended before the study, see {folder}/slurm-*.log: resume={folder} goes on")
    finally:
        if ranked := study.ranked()[0]:
            summary = study.summary() | {"test": metrics and metrics["test"]}
            with written_whole(folder / "study.json") as unfinished:
                unfinished.write_text(json.dumps(summary, indent=2), encoding="utf-8")
            pictures = study_pictures([one for _, one in sorted(ranked.items())], study.ways, study.names)
            page = study_page(summary, pictures, metrics, job_command())
            write_page(page, folder / "study.html")
            print_page(page, folder / "study.html")


if __name__ == "__main__":
    run_verb("tune")
