"""A study: trials of a space, asked of Optuna and told to it, by as many processes and machines as take part.

    <study folder>/
        study.log                       Optuna's journal, where `storage` names no database
        trials/<number>/<repeat>/       a job as a sweep has it; repeat 0 is the trial, others are of further seeds

Who does a trial gives signs of life, as Optuna itself has them for databases only. A trial without them is told as
failed, without an error, and a copy waits for whoever is next. A point that is asked again, as a copy or by chance,
keeps its first number, and so its folder, which knows how far it came.
"""

import json
import logging
import math
import re
import time
import warnings
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
from optuna import samplers
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState, create_trial

from defectcls.arguments import RUN_DIR, UNRECORDED, quoted
from defectcls.config import compose, flat, job_overrides, plain
from defectcls.data.datamodule import DefectDataModule
from defectcls.data.shards import file_of
from defectcls.errors import UserError, did_you_mean, one_line
from defectcls.evaluation.metrics import METRICS, records
from defectcls.evaluation.sweeps import over_seeds
from defectcls.files import digest_of
from defectcls.training.jobs import PRUNED, Task, run_job
from defectcls.training.results import epochs_of, versions
from defectcls.training.search import COST, try_once
from defectcls.training.settings import TuneSettings
from defectcls.training.space import OWN, distributions_of

log = logging.getLogger(__name__)


MAY_CHANGE = (  # while a study goes on, or from machine to machine
    *("n_trials", "finalists", "seeds", "storage", "study", "lease_s", "resume", "logger.", "trainer.", "inspect."),
    *("dataset.root", "dataset.cache", "ray.", "workers", "slurm"),
)
OVER = (optuna.exceptions.UpdateFinishedTrialError, ValueError)  # a trial that another process has told of, or taken up
RUNNING, WAITING, COMPLETE, FAIL = TrialState.RUNNING, TrialState.WAITING, TrialState.COMPLETE, TrialState.FAIL

Place = tuple[int, int]  # the number of a trial, and which repeat


def open_storage(address: str | None, folder: Path) -> Any:
    """The journal in the folder, or what answers at the address; a UserError where nothing does, or it is damaged."""
    journal, known = folder / "study.log", "hydra.run.dir=<new folder> begins anew"
    try:
        if address is None:
            lock = JournalFileOpenLock(str(journal))  # which needs no symbolic links, as some network drives have none
            backend = JournalFileBackend(str(journal), lock)
            lock.acquire()
            try:
                with journal.open("rb+") as file:  # the last line of which a full disk or a cut has left torn
                    file.truncate(sum(len(line) for line in file if line.endswith(b"\n") and json.loads(line)))
            finally:
                lock.release()
            return optuna.storages.JournalStorage(backend)
        known = "start it, or give postgresql://user@host/name, sqlite:///study.db or grpc://host:port"
        if address.startswith("grpc://"):
            host, _, port = address.removeprefix("grpc://").partition(":")
            proxy = optuna.storages.GrpcStorageProxy(host=host, port=int(port))
            proxy.wait_server_ready(timeout=10)
            return proxy
        driver = re.sub("^postgresql:", "postgresql+psycopg:", address)
        return optuna.storages.RDBStorage(driver, engine_kwargs={"pool_pre_ping": True})
    except Exception as error:  # of whichever driver
        raise UserError(f"storage={address or journal} cannot be used ({one_line(error)}): {known}") from error


class Study:
    """What one process does for a study, and knows of it.

    Raises:
        UserError: nothing to search, an unknown key or objective, no storage, or a study that was begun otherwise.
    """

    def __init__(self, settings: TuneSettings, folder: Path) -> None:
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.settings, self.folder, self.names = settings, folder, settings.objectives
        self.typed = [word for word in job_overrides() if re.split("[.=]", word.lstrip("+"))[0] not in OWN]
        given = {word.partition("=")[0] for word in self.typed}
        space = {key: value for key, value in settings.space.items() if key not in given}
        self.space, self.wanted = distributions_of(space, settings.sampler == "grid"), settings.n_trials
        if settings.sampler == "grid":
            self.wanted = min(self.wanted, math.prod(len(one.choices) for one in self.space.values()))
        for name in {*self.names} - {COST}:
            if name not in (every := [f"val/{number}" for number in METRICS]):
                near = did_you_mean(name, every) or f", such as val/auroc; names are {', '.join(METRICS)}"
                raise UserError(f"objectives={name} is neither {COST} nor val/<name of a number>{near}")
        self.less = [name == COST or METRICS[name.removeprefix("val/")].less_is_better for name in self.names]
        self.ways: Any = ["minimize" if less else "maximize" for less in self.less]
        data, split = DefectDataModule.from_settings(settings), settings.dataset.split
        data.prepare_data()
        photos = data.sample_table()
        published = split.published and "test" in set(photos.get("split", []))
        if split.folds is None and not published:
            raise UserError("no photos are set aside that no trial sees: leave dataset.split.folds=5")
        dealt = settings.seed if split.seed is None else split.seed
        self.held_out = [f"dataset.split.folds={'null' if published else split.folds}", f"dataset.split.seed={dealt}"]
        first = {key: one.choices[0] if hasattr(one, "choices") else one.low for key, one in self.space.items()}
        self.task((0, 0), first)  # an unknown key is told now
        photos["bytes"] = [Path(file_of(f"{data.root}/{path}")).stat().st_size for path in photos["path"]]
        about = {
            "version": versions().get("defectcls"),
            "photos": f"{len(photos)}, of digest {digest_of(photos.to_csv(index=False).encode()).hex()[:8]}",
        }
        now = flat(settings.model_dump(mode="json") | {"space": space} | about)
        now = {key: value for key, value in now.items() if not key.startswith(MAY_CHANGE)}
        known: Any = {"storage": open_storage(settings.storage, folder), "study_name": settings.study}
        self.study = optuna.create_study(**known, directions=self.ways, load_if_exists=True)
        self.study.stop = lambda: None  # type: ignore[method-assign]  # a grid would call it: here, who asks counts
        if (then := self.study.user_attrs.get("begun")) is None:
            if (folder / "trials").exists():
                raise UserError(f"{folder}/trials is of a study that is not in its storage: hydra.run.dir=<new folder>")
            self.study.set_user_attr("begun", then := now)
        for key in (key for key in then | now if then.get(key) != now.get(key)):
            other = "hydra.run.dir=<new folder>" if settings.storage is None else "study=<new name>"
            told = f"{key}: {then.get(key)}, and here it is {now.get(key)}"
            raise UserError(f"study={settings.study} was begun with {told}; make it the same, or take {other}")
        self._signs: dict[tuple[int, Any], float] = {}  # since when each sign of life of a trial is known
        self._begun = time.monotonic(), len(self.trials())

    def task(self, place: Place, params: dict[str, Any]) -> Task:
        """The job of a trial; photos that are set aside are the same for all. A UserError of an unknown key."""
        folder, logger = self.folder.joinpath("trials", *map(str, place)), self.settings.logger
        words = [*self.typed, *self.held_out, f"seed={self.settings.seed + place[1]}"]
        words += [f"{key}={value}" for key, value in params.items()]
        config = plain(compose(*words))
        config["logger"] |= {"group": logger.group or str(self.folder), "job_type": logger.job_type}
        file = {"class": "logging.FileHandler", "filename": str(folder / "train.log")}
        logs = {"version": 1, "handlers": {"file": file}, "root": {"level": "INFO", "handlers": ["file"]}}
        again = [*words, f"{RUN_DIR}={quoted(str(folder))}", UNRECORDED]
        searched = {key.replace(".", "/"): value for key, value in params.items()}  # W&B takes a dot for a path
        about = {"searched": searched, "objectives": dict(zip(self.names, self.ways, strict=True))}
        return Task("train", place[0], folder, words, config, again, logs, partial(try_once, about=about))

    def trials(self) -> list[tuple[Place, FrozenTrial]]:
        """All but those that another process took up, or that were one too many."""
        first: dict[Any, int] = {}
        every = self.study.get_trials(deepcopy=False)
        places = [(first.setdefault(frozenset(one.params.items()), one.number), _repeat(one)) for one in every]
        alive = [one.state != FAIL or "told" in one.user_attrs for one in every]
        return list(compress(zip(places, every, strict=True), alive))

    def ranked(self) -> tuple[dict[int, FrozenTrial], int]:
        """Each point that has its numbers; first those that none betters in all of them, so many, then by the first."""
        done = {place[0]: one for place, one in self.trials() if place[1] == 0 and one.state == COMPLETE}
        costs = np.array([one.values for one in done.values()]).reshape(-1, len(self.less)) * np.where(self.less, 1, -1)
        behind = np.array([any((other <= one).all() and (other < one).any() for other in costs) for one in costs], bool)
        ranked = np.array([*done], int)[np.lexsort((costs[:, 0], behind))]
        return {number: done[number] for number in ranked.tolist()}, int((~behind).sum())

    def run(self) -> None:
        """Do trials until there are as many as are wanted, then further seeds of the best; wait for what others do."""
        while True:
            for one in self.study.get_trials(deepcopy=False, states=(RUNNING,)):
                known_since = self._signs.setdefault((one.number, one.user_attrs.get("sign")), time.monotonic())
                if time.monotonic() - known_since > self.settings.lease_s:
                    self._hand_on(one.number)
            places, states = [place for place, _ in self.trials()], {one.state for _, one in self.trials()}
            if _drawn(places) < self.wanted or WAITING in states:
                self._next()
            elif RUNNING in states:
                time.sleep(1)
            else:
                best = [*self.ranked()[0].items()][: self.settings.finalists]
                every = [(number, one, repeat) for repeat in range(1, self.settings.seeds) for number, one in best]
                if not (missing := [each for each in every if (each[0], each[2]) not in places]):
                    return
                for _, one, repeat in missing:
                    self._add(one, repeat)

    def _hand_on(self, number: int) -> None:
        """Have it done again, by whoever asks next."""
        with suppress(*OVER):
            self.study.tell(number, state=FAIL)
            self._add(one := self.study.get_trials(deepcopy=False)[number], _repeat(one))

    def _add(self, trial: FrozenTrial, repeat: int) -> None:
        known: Any = {"params": trial.params, "distributions": trial.distributions, "system_attrs": trial.system_attrs}
        self.study.add_trial(create_trial(state=WAITING, user_attrs={"repeat": repeat}, **known))

    def _next(self) -> None:
        """Do what is to be done next, unless somebody else does it meanwhile."""
        if self.settings.sampler == "grid":
            grid = {key: one.choices for key, one in self.space.items()}
            self.study.sampler = samplers.GridSampler(grid, self.settings.seed)
        else:  # it goes on otherwise than it began, and as if nothing had stopped it
            kinds: Any = {"gp": samplers.GPSampler, "random": samplers.RandomSampler, "tpe": samplers.TPESampler}
            asked = len(self.study.get_trials(deepcopy=False))
            self.study.sampler = kinds[self.settings.sampler](seed=self.settings.seed + asked)
        trial = self.study.ask(self.space)
        *before, place = (place for place, one in self.trials() if one.number <= trial.number)
        if place in before if place[1] else _drawn(before) >= self.wanted:
            self.study.tell(trial, state=FAIL)
        else:
            self._do(trial, place)

    def _do(self, trial: optuna.Trial, place: Place) -> None:
        """The trial as a job; what came of it is told."""
        self._signed, self._reported, state = time.monotonic(), 0, FAIL
        try:
            task = self.task(place, trial.params)
            task.folder.mkdir(parents=True, exist_ok=True)
            done = run_job(task, lambda: self._watch(trial, task))
            told = done["objective"] or {"error": done["error"]}
            told["planned"] = sum(stage["epochs"] for stage in task.config["finetune"]["stages"].values() if stage)
            told["epochs"] = len(epochs_of(task.folder))
            if done["status"] == PRUNED:
                state = TrialState.PRUNED
            elif all(told.get(name) is not None for name in self.names):
                state = COMPLETE
            else:
                told["error"] = done["error"] or f"{', '.join(self.names)}: not defined for these photos"
        except UserError as error:
            told = {"error": str(error)}
        except BaseException:
            self._hand_on(trial.number)
            raise
        with suppress(*OVER):
            trial.set_user_attr("told", told)
            self.study.tell(trial, [told[name] for name in self.names] if state == COMPLETE else None, state)
        finished = sum(one.state.is_finished() for _, one in self.trials())
        left = self.wanted + self.settings.finalists * (self.settings.seeds - 1) - finished
        minutes = left * (time.monotonic() - self._begun[0]) / max(1, finished - self._begun[1]) / 60
        best = [f"trial {at}, {self.names[0]} {one.values[0]:.4g}" for at, one in self.ranked()[0].items()] or ["none"]
        log.info("%d done, at most %d to do in %.1f min; best so far: %s", finished, left, minutes, best[0])

    def _watch(self, trial: optuna.Trial, task: Task) -> bool:
        """Give a sign of life and tell of the epochs; whether the trial is to end for what they are."""
        try:
            if time.monotonic() - self._signed > self.settings.lease_s / 4:
                self._signed = time.monotonic()
                trial.set_user_attr("sign", self._signed)
            if not self.settings.prune or len(self.names) > 1 or task.folder.name != "0":
                return False
            new = epochs_of(task.folder)[self._reported :]
            self._reported += len(new)
            if self.names[0] in new:  # epochs know not every number
                for epoch, value in zip(new["epoch"], new[self.names[0]], strict=True):
                    trial.report(value, int(epoch))
            return len(new) > 0 and trial.should_prune()
        except Exception as error:  # of whichever driver: the job does not need it
            log.warning("trial %d cannot tell of itself: %s", task.number, one_line(error))
            return False

    def summary(self) -> dict[str, Any]:
        """What study.json says, trials best first; `best` is the finalist whose seeds have the best mean.

        Raises:
            UserError: no trial has its numbers.
        """
        every, (ranked, front) = self.trials(), self.ranked()
        if not ranked:
            errors = [one.user_attrs["told"]["error"] for _, one in every if one.state == FAIL]
            raise UserError(f"none of {len(every)} trials has its numbers: {[*errors, 'they are not finished'][0]}")
        kept = ["error", COST, "seconds", "epochs", "planned", *self.names]
        rows = pd.DataFrame(
            {"trial": number, "repeat": repeat, "state": one.state.name.lower()}
            | one.params
            | {key: one.user_attrs.get("told", {}).get(key) for key in kept}
            for (number, repeat), one in every
        ).drop_duplicates(["trial", "repeat"], keep="last")
        better = rows["trial"].map({number: place for place, number in enumerate(ranked)})
        rows = rows.iloc[np.lexsort((better, rows["repeat"]))]
        finalists = []
        for number in [*ranked][: self.settings.finalists]:
            kind = "seconds" if self.less[0] else "share"  # whose interval ends nowhere, or at 1
            spread = over_seeds(kind, rows.loc[rows["trial"] == number, self.names[0]])
            finalists.append({"trial": number} | {key.rpartition("_")[2]: value for key, value in spread.items()})
        finalists.sort(key=lambda one: one["mean"] * (1 if self.less[0] else -1))
        about = {"study": self.settings.study, "objectives": self.names, "keys": [*self.space], "front": front}
        about |= {"best": finalists[0]["trial"], "drawn": _drawn(place for place, _ in every)}
        return about | {"finalists": records(pd.DataFrame(finalists)), "trials": records(rows)}


def _repeat(trial: FrozenTrial) -> int:
    return trial.user_attrs.get("repeat", 0)


def _drawn(places: Iterable[Place]) -> int:
    """How many are trials of the space, and no repeats."""
    return sum(repeat == 0 for _, repeat in places)
