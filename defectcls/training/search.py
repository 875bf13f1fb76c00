"""Candidates tried one after another while there is time, cross-validated on the same photos and the same folds.

<run folder>/tried/<number of the candidate>/<seed>/{metrics.json,predictions.csv}: out of fold; there once it is done
"""

import logging
import shlex
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from defectcls.config import compose, job_overrides, plain
from defectcls.data.datamodule import DefectDataModule
from defectcls.errors import Stopped, UserError, explain
from defectcls.evaluation.comparison import Choice, choose, common_images, nested
from defectcls.evaluation.evaluate import evaluate
from defectcls.evaluation.metrics import defect_numbers, records
from defectcls.evaluation.predictions import read_predictions, write_predictions
from defectcls.files import BEST
from defectcls.settings import TrainSettings
from defectcls.training.loggers import dashboard
from defectcls.training.results import finished_metrics, write_results
from defectcls.training.run import TrainingRun
from defectcls.training.settings import AutoSettings

log = logging.getLogger(__name__)

LEFT = "no time was left"
COST = "ms_per_photo"  # an objective of a study that is no number of METRICS


def try_once(config: dict[str, Any], folder: Path, about: dict[str, Any]) -> dict[str, float]:
    """A trial of a study: train, and judge validation photos, or all out of fold, but none that is to be tested.

    Args:
        about: of the study, which a dashboard is told beside the configuration.

    Returns:
        val/<number> for each number, ms_per_photo, and the seconds that it took.
    """
    settings = TrainSettings(**config)
    with dashboard(settings.logger, folder, settings.model_dump(mode="json") | about) as logger:
        run = TrainingRun(settings, folder, logger)
        run.train()
        metrics, predictions = run.measure(["val"])
        write_predictions(predictions, folder / "predictions.csv")
        numbers = {f"val/{name}": one for name, one in defect_numbers(metrics["val"]).items() if isinstance(one, float)}
        numbers |= {COST: run.ms_per_photo(), "seconds": sum(run.seconds.values())}
        if logger is not None:
            logger.log_metrics({f"best/{name.replace('/', '_')}": one for name, one in numbers.items()})
    if settings.finetune.solves:  # in seconds, again
        (folder / BEST).unlink()
    return numbers


class Search:
    """What was tried, `tries` of a candidate and a seed each, that of the default first; and why others were not.

    Raises:
        UserError: a candidate names an unknown key or preset.
    """

    def __init__(self, settings: AutoSettings, folder: Path) -> None:
        self.settings, self.folder = settings, folder
        self.tries: list[dict[str, Any]] = []
        self.skipped: dict[str, str] = {}
        self._data: tuple[Any, DefectDataModule | None] = None, None  # of the run before, and as what it was read
        self._configs: dict[str, dict[str, Any]] = {}
        for one in settings.candidates:
            config = plain(compose(*shlex.split(one), *job_overrides(), verb="auto"))
            self._configs[one or "default"] = {key: config[key] for key in TrainSettings.model_fields}

    def run(self) -> dict[str, Any]:
        """Try candidates, then the default and the best two with further seeds: the configuration that is kept.

        A signal ends it once one is tried. A further seed would set another test part aside: where there is one, none.

        Raises:
            UserError: the first candidate, the default, cannot be trained.
        """
        try:
            with tqdm(self._configs, "candidates", disable=None) as bar:
                for one in bar:
                    self._try(one, 0)
                    choice, names = self._choose(), self.candidates.index
                    bar.set_postfix_str(best := f"so far kept: {names[choice.kept]}")
                    if bar.disable:
                        log.info("%s: %s; %s", one, self.skipped.get(one, f"loss {choice.losses[-1]:.4f}"), best)
            again = sorted({0, *choice.behind[:, 0].argsort()[:2].tolist()})
            for seed in range(1, self.settings.repeats if "test" in self.tries[0]["out_of_fold"] else 1):
                for one in names[again]:
                    if self.candidates["seeds"][one] == seed:  # none failed: seeds are compared by their place
                        self._try(one, seed)
        except Stopped:
            if not self.tries:
                raise
            log.warning("stopped after %d of %d candidates", len(self.candidates), len(self._configs))
            left = [one for one in self._configs if one not in {*self.candidates.index, *self.skipped}]
            self.skipped |= dict.fromkeys(left, "the search was stopped")
        if len(self.candidates) == 1 and LEFT in self.skipped.values():
            took = self.seconds / 60
            log.warning("minutes=%g leaves no time to try another: the default took %.2g", self.settings.minutes, took)
        return self.candidates["config"].iloc[self._choose().kept]

    @property
    def seconds(self) -> float:
        """That all tries took, those before a run was resumed too."""
        return sum(one["tried_seconds"] for one in self.tries)

    @property
    def candidates(self) -> pd.DataFrame:
        """What was tried, by `overrides`, with its `tables`, one a seed, of the photos that all have."""
        tries = pd.DataFrame(self.tries)
        common = common_images(dict(zip(tries["folder"], tries["table"], strict=True)))
        of_candidate = tries.assign(table=tries["folder"].map(common.get)).groupby("overrides", sort=False)
        columns = {"tables": ("table", list), "seeds": ("table", "size"), "ms_per_photo": ("ms_per_photo", "min")}
        columns |= {"auroc": ("auroc", "mean"), "seconds": ("tried_seconds", "sum"), "config": ("config", "first")}
        return of_candidate.agg(**columns)

    @property
    def classes(self) -> dict[str, bool]:
        """Class name -> defective."""
        return dict(zip(self.tries[0]["class_names"], self.tries[0]["defective_classes"], strict=True))

    def _choose(self) -> Choice:
        found = self.candidates
        return choose(found["tables"].tolist(), found["ms_per_photo"].tolist(), self.classes)

    def _try(self, candidate: str, seed: int) -> None:
        folder = self.folder / "tried" / str([*self._configs].index(candidate)) / str(seed)
        try:
            metrics = finished_metrics(folder, "val") or self._cross_validate(candidate, seed, folder)
        except Exception as error:
            if not self.tries or explain(error) is None:
                raise
            if seed == 0:
                self.skipped[candidate] = str(explain(error))
            return
        found = {"overrides": candidate, "folder": str(folder), "auroc": defect_numbers(metrics["val"])["auroc"]}
        self.tries.append(metrics | found | {"table": read_predictions(folder / "predictions.csv")})

    def _refuse_needless(self, candidate: str) -> None:
        """Raise a UserError where nothing new would come of it; set the size of its images."""
        config = self._configs[candidate]
        typed, own = ({one.partition("=")[0] for one in of} for of in (job_overrides(), shlex.split(candidate)))
        if typed & own:
            raise UserError("what is typed holds for all")
        if self.seconds >= 60 * self.settings.minutes:
            raise UserError(LEFT)
        if str(config["image_size"]).startswith("auto*"):
            sides = np.broadcast_to(self.tries[0]["config"]["image_size"], 2) * float(config["image_size"][5:])
            config["image_size"] = (np.maximum(1, np.round(sides / 32)) * 32).astype(int).tolist()
        if config in [self._configs[one["overrides"]] for one in self.tries if one["overrides"] != candidate]:
            raise UserError("the same as another")

    def _cross_validate(self, candidate: str, seed: int, folder: Path) -> dict[str, Any]:
        if self.tries:
            self._refuse_needless(candidate)
        config, start = self._configs[candidate], time.perf_counter()
        settings = TrainSettings(**config | {"seed": config["seed"] + seed})
        read_as = [config[key] for key in ("dataset", "target", "image_size", "batch_size")]
        logging.disable(logging.INFO)  # of every one, what is told of a run would be too much
        try:
            known = self._data[1] if self._data[0] == read_as else None
            run = TrainingRun(settings, folder, None, known, fetch=not self.tries)  # for candidates nothing is fetched
            self._data = read_as, run.data
            run.train()
            metrics, predictions = run.measure(run.out_of_fold)
        finally:
            logging.disable(logging.NOTSET)
        metrics |= {"ms_per_photo": run.ms_per_photo(), "tried_seconds": time.perf_counter() - start}
        assert run.classifier.folds is not None
        write_results(folder, metrics, predictions.assign(fold=run.classifier.folds.numpy()[predictions.index]))
        (folder / BEST).unlink()  # of all candidates they would be hundreds of megabytes
        return metrics

    def summary(self) -> dict[str, Any]:
        """What metrics.json says of the search; `nested` are numbers as of a part, with their intervals."""
        found, choice = self.candidates, self._choose()
        firsts = [first for first, *_ in found["tables"]]
        judged = nested(firsts, found["ms_per_photo"].tolist(), self.classes, self.settings.decision)
        found[["difference", "low", "high"]], found["loss"] = choice.behind, choice.losses
        return {
            "kept": found.index[choice.kept],
            "simplest": found.index[choice.simplest],
            "nested": evaluate(judged, None, self.classes)[1],
            "tried": records(found.drop(columns=["tables", "config"]).reset_index()),
            "skipped": self.skipped,
            "seconds": self.seconds,
        }
