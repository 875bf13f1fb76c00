"""A study: trials of a space, asked of Optuna and told to it, by as many processes and machines as take part.

    <study folder>/
        study.log                       Optuna's journal, where `storage` names no database
        trials/<number>/<repeat>/       a job as a sweep has it; repeat 0 is the trial, others are of further seeds

Who does a trial gives signs of life. One without them is told as failed, without an error, and a copy waits for whoever
is next, who finds in its folder how far it came.
"""

import io
import logging
import math
import re
import time
import warnings
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState, create_trial

from defectcls.arguments import RUN_DIR, UNRECORDED, quoted
from defectcls.config import compose, flat, job_overrides, plain
from defectcls.data.datamodule import DefectDataModule
from defectcls.data.shards import file_of
from defectcls.errors import UserError, one_line
from defectcls.evaluation.metrics import METRICS, records
from defectcls.evaluation.sweeps import over_seeds
from defectcls.files import digest_of
from defectcls.settings import TuneSettings
from defectcls.training.jobs import PRUNED, Task, run_job
from defectcls.training.results import objective_of, versions
from defectcls.training.search import COST, try_once
from defectcls.training.space import OWN, distributions_of, sampler_of

log = logging.getLogger(__name__)

MAY_CHANGE = (  # while a study goes on, or from machine to machine
    *("n_trials", "finalists", "seeds", "storage", "study", "lease_s", "resume", "logger.", "trainer.", "inspect."),
    *("dataset.root", "dataset.cache", "ray.", "workers"),
)
TOLD = (COST, "seconds", "epochs", "planned", "error", "same_as")  # of a trial, beside its numbers
OVER = (optuna.exceptions.UpdateFinishedTrialError, ValueError)  # a trial that another process has told of, or taken up
RUNNING, WAITING, COMPLETE, FAIL = TrialState.RUNNING, TrialState.WAITING, TrialState.COMPLETE, TrialState.FAIL


def open_storage(address: str | None, folder: Path) -> Any:
    """The journal in the folder, or what answers at the address; a UserError where nothing does, or it is damaged."""
    try:
        if address is None:
            journal = str(folder / "study.log")  # whose lock needs no symbolic links, as some network drives have none
            return optuna.storages.JournalStorage(JournalFileBackend(journal, JournalFileOpenLock(journal)))
        if address.startswith("grpc://"):
            host, _, port = address.removeprefix("grpc://").partition(":")
            proxy = optuna.storages.GrpcStorageProxy(host=host, port=int(port))
            proxy.wait_server_ready(timeout=10)
            return proxy
        driver = re.sub("^postgresql:", "postgresql+psycopg:", address)
        return optuna.storages.RDBStorage(driver, engine_kwargs={"pool_pre_ping": True})
    except Exception as error:  # of whichever driver
        known = "start it, or give postgresql://user@host/name, sqlite:///study.db or grpc://host:port"
        raise UserError(f"storage={address or journal} cannot be used ({one_line(error)}): {known}") from error


def place(trial: Any) -> tuple[int, int]:
    """The number that a trial is known by, and which repeat it is."""
    return trial.user_attrs.get("job", trial.number), trial.user_attrs.get("repeat", 0)


def epochs_of(folder: Path) -> pd.DataFrame:
    """What a job has told of its epochs, without the probe; nothing while it is being written."""
    file = folder / "metrics.csv"
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    rows = pd.read_csv(io.StringIO(text)) if text.endswith("\n") else pd.DataFrame({"epoch": []})
    return rows[rows["epoch"] > 0]


class Study:
    """What one process does for a study, and knows of it.

    Raises:
        UserError: nothing to search, an unknown key or objective, no storage, or a study that was begun otherwise.
    """

    def __init__(self, settings: TuneSettings, folder: Path) -> None:
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.settings, self.folder, self.names = settings, folder, settings.objectives
        self.wanted, split, grid = settings.n_trials, settings.dataset.split, settings.sampler == "grid"
        self.typed = [word for word in job_overrides() if re.split("[.=]", word.lstrip("+"))[0] not in OWN]
        given = {word.partition("=")[0] for word in self.typed}
        space = {key: value for key, value in settings.space.items() if key not in given}
        self.space = distributions_of(space, grid)
        if grid:
            self.wanted = min(self.wanted, math.prod(len(one.choices) for one in self.space.values()))
        for name in {*self.names} - {COST}:
            objective_of({}, name)  # a typo is told now
        self.less = [name == COST or METRICS[name.removeprefix("val/")].less_is_better for name in self.names]
        self.ways: Any = ["minimize" if less else "maximize" for less in self.less]
        self.prunes = settings.prune and len(self.less) == 1 and not settings.finetune.solves
        data = DefectDataModule.from_settings(settings)
        data.prepare_data()
        photos = data.sample_table()
        published = split.published and "test" in set(photos.get("split", []))
        if split.folds is None and not published:
            raise UserError("no photos are set aside that no trial sees: leave dataset.split.folds=5")
        dealt = settings.seed if split.seed is None else split.seed
        self.held_out = [f"dataset.split.folds={'null' if published else split.folds}", f"dataset.split.seed={dealt}"]
        first = {key: one.choices[0] if hasattr(one, "choices") else one.low for key, one in self.space.items()}
        self.task(create_trial(params=first, distributions=self.space, values=[0.0] * len(self.less)))  # and one here
        photos["bytes"] = [Path(file_of(f"{data.root}/{path}")).stat().st_size for path in photos["path"]]
        about = {"version": versions().get("defectcls"), "photos": digest_of(photos.to_csv(index=False).encode()).hex()}
        now = flat(settings.model_dump(mode="json") | {"space": space} | about)
        now = {key: value for key, value in now.items() if not key.startswith(MAY_CHANGE)}
        known: Any = {"storage": open_storage(settings.storage, folder), "study_name": settings.study}
        self.study = optuna.create_study(**known, directions=self.ways, load_if_exists=True)
        if (then := self.study.user_attrs.get("begun")) is None:
            self.study.set_user_attr("begun", then := now)
        for key in (key for key in then | now if then.get(key) != now.get(key)):
            other = "hydra.run.dir=<new folder>" if settings.storage is None else "study=<new name>"
            told = f"{key}: {then.get(key)}, and here it is {now.get(key)}"
            raise UserError(f"study={settings.study} was begun with {told}; make it the same, or take {other}")
        self._signs: dict[tuple[int, Any], float] = {}  # since when each sign of life of a trial is known

    def task(self, trial: Any) -> Task:
        """The job that a trial is; photos that are set aside are the same for all. A UserError of an unknown key."""
        (job, repeat), folder, logger = place(trial), self.folder_of(trial), self.settings.logger
        words = [*self.typed, *self.held_out, f"seed={self.settings.seed + repeat}"]
        words += [f"{key}={value}" for key, value in trial.params.items()]
        config = plain(compose(*words))
        config["logger"] |= {"group": logger.group or str(self.folder), "job_type": logger.job_type}
        file = {"class": "logging.FileHandler", "filename": str(folder / "train.log")}
        logs = {"version": 1, "handlers": {"file": file}, "root": {"level": "INFO", "handlers": ["file"]}}
        again = [*words, f"{RUN_DIR}={quoted(str(folder))}", UNRECORDED]
        searched = {key.replace(".", "/"): value for key, value in trial.params.items()}  # W&B takes a dot for a path
        about = {"searched": searched, "objectives": dict(zip(self.names, self.ways, strict=True))}
        return Task("train", job, folder, words, config, again, logs, partial(try_once, about=about))

    def folder_of(self, trial: Any) -> Path:
        """Where a trial is done, on the machine that does it."""
        return self.folder.joinpath("trials", *map(str, place(trial)))

    def trials(self, repeats: bool = True) -> list[FrozenTrial]:
        """All but those that another process took up, or that were one too many; with or without the further seeds."""
        every = [one for one in self.study.get_trials(deepcopy=False) if one.state != FAIL or "error" in one.user_attrs]
        return [one for one in every if repeats or place(one)[1] == 0]

    def ranked(self) -> tuple[list[FrozenTrial], int]:
        """Each point that has its numbers; first those that none betters in all of them, so many, then by the first."""
        done = [one for one in self.trials(False) if one.state == COMPLETE and "same_as" not in one.user_attrs]
        costs = np.array([one.values for one in done]).reshape(-1, len(self.less)) * np.where(self.less, 1, -1)
        behind = np.array([any((other <= one).all() and (other < one).any() for other in costs) for one in costs], bool)
        return [done[row] for row in np.lexsort((costs[:, 0], behind))], int((~behind).sum())

    def run(self) -> None:
        """Do trials until there are as many as are wanted, then further seeds of the best; wait for what others do."""
        while True:
            for one in self.study.get_trials(deepcopy=False, states=(RUNNING,)):
                known_since = self._signs.setdefault((one.number, one.user_attrs.get("sign")), time.monotonic())
                if time.monotonic() - known_since > self.settings.lease_s:
                    self._hand_on(one)
            states = {one.state for one in self.trials()}
            if len(self.trials(repeats=False)) < self.wanted or WAITING in states:
                if (trial := self._ask()) is not None:
                    self._do(trial)
            elif RUNNING in states:
                time.sleep(1)
            else:
                best, known = self.ranked()[0][: self.settings.finalists], {place(one) for one in self.trials()}
                every = [(one, repeat) for repeat in range(1, self.settings.seeds) for one in best]
                missing = [(one, repeat) for one, repeat in every if (place(one)[0], repeat) not in known]
                if not missing:
                    return
                for one, repeat in missing:
                    self._add(one, repeat)

    def _hand_on(self, trial: Any) -> None:
        """Have it done again, by whoever asks next."""
        with suppress(*OVER):
            self.study.tell(trial.number, state=FAIL)
            self._add(self.study.get_trials(deepcopy=False)[trial.number], place(trial)[1])

    def _add(self, trial: FrozenTrial, repeat: int) -> None:
        known: Any = {"params": trial.params, "distributions": trial.distributions, "system_attrs": trial.system_attrs}
        about = {"job": place(trial)[0], "repeat": repeat}
        self.study.add_trial(create_trial(state=WAITING, user_attrs=about, **known))

    def _ask(self) -> optuna.Trial | None:
        """What to do next; None where that is known by now, or somebody else does it."""
        asked = len(self.study.get_trials(deepcopy=False))
        self.study.sampler = sampler_of(self.settings.sampler, self.space, self.settings.seed, asked)
        trial = self.study.ask(self.space)
        before = [one for one in self.trials() if one.number < trial.number]
        points = [one for one in before if place(one)[1] == 0]
        known = [one for one in points if one.state == COMPLETE and one.params == trial.params]
        if place(trial) in map(place, before) or (place(trial)[1] == 0 and len(points) >= self.wanted):
            self.study.tell(trial, state=FAIL)
        elif known and place(trial)[1] == 0:
            trial.set_user_attr("same_as", place(known[0])[0])
            self.study.tell(trial, known[0].values)
        else:
            return trial
        return None

    def _do(self, trial: optuna.Trial) -> None:
        """The trial as a job; what came of it is told."""
        folder, self._signed, self._told = self.folder_of(trial), time.monotonic(), 0
        folder.mkdir(parents=True, exist_ok=True)
        about: dict[str, Any] = {}
        values: Any = None
        state = FAIL
        try:
            task = self.task(trial)
            done = run_job(task, lambda: self._watch(trial))
            about = done["objective"] or {}
            about["planned"] = sum(stage["epochs"] for stage in task.config["finetune"]["stages"].values() if stage)
            if done["status"] == PRUNED:
                state = TrialState.PRUNED
            elif None in (reached := [about.get(name) for name in self.names]):
                about["error"] = done["error"] or f"{', '.join(self.names)}: not defined for these photos"
            else:
                values, state = reached, COMPLETE
        except UserError as error:
            about["error"] = str(error)
        except BaseException:
            self._hand_on(trial)
            raise
        about["epochs"] = len(epochs_of(folder))
        with suppress(*OVER):
            for key in about.keys() & {*TOLD}:
                trial.set_user_attr(key, about[key])
            self.study.tell(trial, values, state)
        every, best = self.trials(), self.ranked()[0][:1]
        finished = [one for one in every if one.state.is_finished()]
        left = self.wanted + self.settings.finalists * (self.settings.seeds - 1) - len(finished)
        seconds = sum(one.duration.total_seconds() for one in finished if one.duration) / max(1, len(finished))
        minutes = left * seconds / (1 + sum(one.state == RUNNING for one in every)) / 60
        said = [f"trial {place(one)[0]}, {self.names[0]} {one.values[0]:.4g}" for one in best] or ["none"]
        log.info("%d done, at most %d to do in %.1f min; best so far: %s", len(finished), left, minutes, *said)

    def _watch(self, trial: optuna.Trial) -> bool:
        """Give a sign of life and tell of the epochs; whether the trial is to end for what they are."""
        try:
            if time.monotonic() - self._signed > self.settings.lease_s / 4:
                self._signed = time.monotonic()
                trial.set_user_attr("sign", self._signed)
            if not self.prunes or (rows := epochs_of(self.folder_of(trial))[self._told :]).empty:
                return False
            self._told += len(rows)
            column = "val/calibrated_loss" if self.less[0] else "val/auroc"  # for an objective that no epoch has
            column = self.names[0] if self.names[0] in rows else column
            for epoch, value in zip(rows["epoch"], rows[column], strict=True):
                trial.report(value, int(epoch))
            return trial.should_prune()
        except Exception as error:  # of whichever driver: the job does not need it
            log.warning("trial %d cannot tell of itself: %s", place(trial)[0], one_line(error))
            return False

    def summary(self) -> dict[str, Any]:
        """What study.json says, trials best first; `best` is the finalist whose seeds have the best mean.

        Raises:
            UserError: no trial has its numbers.
        """
        every, (ranked, front) = self.trials(), self.ranked()
        if not ranked:
            errors = [one.user_attrs["error"] for one in every if one.state == FAIL] or ["they are not finished"]
            raise UserError(f"none of {len(every)} trials has its numbers: {errors[0]}")
        every = ranked + [one for one in every if one not in ranked]
        rows = pd.DataFrame([one.params | one.user_attrs for one in every]).reindex(columns=[*self.space, *TOLD])
        rows[["trial", "repeat"]] = [place(one) for one in every]
        rows["state"] = [one.state.name.lower() for one in every]
        rows[self.names] = [one.values if one.state == COMPLETE else [np.nan] * len(self.names) for one in every]
        finalists = []
        for one in ranked[: self.settings.finalists]:
            number = place(one)[0]
            reached = rows.loc[rows["trial"] == number, self.names[0]]
            spread = over_seeds("seconds" if self.less[0] else "share", reached)  # whose interval ends nowhere, or at 1
            finalists.append({"trial": number} | {key.rpartition("_")[2]: value for key, value in spread.items()})
        best = min(finalists, key=lambda one: one["mean"] * (1 if self.less[0] else -1))["trial"]
        about = {"study": self.settings.study, "objectives": self.names, "keys": [*self.space], "best": best}
        return about | {"front": front, "finalists": records(pd.DataFrame(finalists)), "trials": records(rows)}

    def best(self) -> Task:
        """The job of the trial that the summary calls so."""
        number = self.summary()["best"]
        return self.task(next(one for one in self.ranked()[0] if place(one)[0] == number))


def take_part(config: dict[str, Any], folder: Path) -> None:
    """Do trials of a study that was begun, until there are enough."""
    Study(TuneSettings(**config), folder).run()
