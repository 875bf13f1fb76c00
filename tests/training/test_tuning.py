"""A study: what it draws from, which trials are the best, and that each is done once whoever dies."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from defectcls.config import compose
from defectcls.errors import UserError
from defectcls.training import tuning
from defectcls.training.jobs import Task
from defectcls.training.space import distributions_of
from tests.conftest import Outcome, command, sentence
from tests.deployment.conftest import free_port, postgresql  # noqa: F401  a fixture
from tests.deployment.line import wait_until

SPACE = ("optim.lr=tag(log,interval(1e-5,1e-3))", "optim.weight_decay=choice(0,0.1)")


def numbers_of(words: list[str]) -> tuple[float, float]:
    """AUROC and milliseconds of the stand-in: best at lr = 1e-4 and without decay, and the faster the smaller lr is."""
    given = dict(word.split("=", 1) for word in words)
    lr, decay = np.log10(float(given["optim.lr"])), float(given["optim.weight_decay"])
    return float(1 - abs(lr + 4) / 4 - decay - int(given["seed"]) / 1000), float(10 + lr)


def stand_in(task: Task, watch: Callable[[], bool]) -> dict[str, Any]:
    """A job that is done at once; one with augment=texture fails."""
    if (record := task.folder / "job.json").is_file() and (known := json.loads(record.read_text()))["objective"]:
        return known
    with (task.folder / "done").open("a") as done:
        done.write("once\n")
    if "augment=texture" in task.overrides:
        return task.record("failed", "no photos")
    auroc, cost = numbers_of(task.overrides)
    return task.record("finished", objective={"val/auroc": auroc, "ms_per_photo": cost, "seconds": 1.5})


@pytest.fixture
def begin(tiny: list[str], finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """`tune` in the folder `study`, with jobs of the stand-in; the best has the numbers of another run."""
    tested = json.loads((finished / "metrics.json").read_text())

    def judge(verb: str, config: dict[str, Any], folder: Path, *_: Any, **__: Any) -> None:
        (folder / "metrics.json").write_text(json.dumps(tested))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tuning, "run_job", stand_in)
    monkeypatch.setattr("defectcls.config.do_job", judge)
    monkeypatch.setattr("defectcls.pages.study.study_pictures", lambda *_: [])
    composed = compose(*tiny)
    monkeypatch.setattr(tuning, "compose", lambda *words: composed)  # a fifth of a second each time
    given = (*tiny, "lease_s=1", "finalists=2", "seeds=2")
    return lambda *more, folder="study": command("tune", *given, f"hydra.run.dir={folder}", *more)


def found(folder: str = "study") -> tuple[dict[str, Any], pd.DataFrame]:
    """study.json, and its trials without the further seeds."""
    summary = json.loads(Path(folder, "study.json").read_text())
    trials = pd.DataFrame(summary["trials"])
    return summary, trials[trials["repeat"] == 0].set_index("trial")


def times_done() -> dict[str, int]:
    """How often each job was done, by the folder in trials/."""
    return {
        str(file.parent.relative_to("study/trials")): len(file.read_text().split()) for file in Path().rglob("done")
    }


# --- the space --------------------------------------------------------------------------------------------------------


def test_space_of_hydras_grammar() -> None:
    space = {"a": "choice(224,448)", "b": "tag(log,interval(1e-5,1e-3))", "c": "range(1,8,3)", "d": "[],[0.5,1]"}
    assert distributions_of(space | {"e": "int(interval(1,8))", "f": "tag(log,int(interval(1,64)))"}, False) == {
        "a": CategoricalDistribution(["224", "448"]),
        "b": FloatDistribution(1e-5, 1e-3, log=True),
        "c": CategoricalDistribution(["1", "4", "7"]),
        "d": CategoricalDistribution(["[]", "[0.5,1]"]),
        "e": IntDistribution(1, 8),
        "f": IntDistribution(1, 64, log=True),
    }


@pytest.mark.parametrize(
    ("space", "discrete", "told"),
    [
        ({}, False, "there is nothing to search: add image_size=choice(224,448), or search=probe"),
        (
            {"seed": "choice(0,1)"},
            False,
            "seed=choice(0,1) is not to be searched, as trials have it in common",
        ),
        (
            {"n_trials": "choice(5,6)"},
            False,
            "n_trials=choice(5,6) is not to be searched",
        ),
        ({"dataset.split.val": "choice(0.1,0.2)"}, False, "as trials have it in common"),
        ({"optim.lr": "0.1"}, False, "space has optim.lr=0.1 ("),
        ({"optim.lr": "interval(0.1,0.01)"}, False, "space has optim.lr=interval(0.1,0.01) ("),
        ({"optim.lr": "tag(log,interval(0,1))"}, False, "space has optim.lr=tag(log,interval(0,1)) ("),
        ({"optim.lr": "tag(lg,interval(0.1,1))"}, False, "(tag lg means nothing), and takes "),
        ({"image_size": "choice()"}, False, "empty choice is not legal"),
        ({"optim.lr": "interval(0,1)"}, True, ", and takes choice(a,b), range(1,9,2)"),
    ],
)
def test_what_is_no_space(space: dict[str, str], discrete: bool, told: str) -> None:
    with pytest.raises(UserError) as caught:
        distributions_of(space, discrete)
    assert told in str(caught.value)


# --- whole studies, of jobs that are done at once ---------------------------------------------------------------------


def test_the_best_is_repeated_and_nothing_is_done_twice(begin: Callable[..., Outcome]) -> None:
    given = (*SPACE, "augment=none,gentle,texture")
    begun = begin(*given, "n_trials=12")
    assert begun.code == 0, begun.err
    summary, trials = found()
    assert sorted(trials.index) == [*range(12)]
    failed = trials["augment"] == "texture"
    assert (trials["state"] == failed.map({True: "fail", False: "complete"})).all()
    assert set(trials["error"][failed]) == {"no photos"} and 0 < failed.sum() < 12
    rows = trials[~failed]
    expected = 1 - (np.log10(rows["optim.lr"]) + 4).abs() / 4 - rows["optim.weight_decay"].astype(float)
    np.testing.assert_allclose(rows["val/auroc"], expected)
    best = expected.sort_values(ascending=False).index[:2]
    assert [one["trial"] for one in summary["finalists"]] == [*best]
    for one in summary["finalists"]:  # of seed 1 a thousandth less
        assert (one["mean"], one["n"]) == (pytest.approx(expected[one["trial"]] - 0.0005), 2)
    assert summary["best"] == best[0]
    assert f"Best: trial {best[0]}, " in begun.out and "On photos that no trial saw:\nCaught: " in begun.out
    done = times_done()
    assert done == {f"{trial}/0": 1 for trial in range(12)} | {f"{trial}/1": 1 for trial in best}

    assert command("tune", "resume=study").code == 0  # nothing is left to do
    assert times_done() == done
    assert begin(*given, "n_trials=14").code == 0
    assert len([place for place in times_done() if place.endswith("/0")]) == 14
    assert set(times_done().values()) == {1}


def test_grid_has_each_point_once_and_a_point_that_is_known_takes_its_numbers(begin: Callable[..., Outcome]) -> None:
    grid = ("optim.lr=1e-4,2e-4", "optim.weight_decay=range(0,0.3,0.1)")
    assert begin(*grid, "sampler=grid", "n_trials=50").code == 0
    points = {(row["optim.lr"], row["optim.weight_decay"]) for _, row in found()[1].iterrows()}
    assert points == {(lr, decay) for lr in ("0.0001", "0.0002") for decay in ("0.0", "0.1", "0.2")}
    assert len(found()[1]) == 6
    assert begin(*grid, "sampler=random", "n_trials=12", folder="random").code == 0
    summary, trials = found("random")
    assert summary["drawn"] == 12 and len(trials) <= 6
    assert len(trials[["optim.lr", "optim.weight_decay"]].drop_duplicates()) == len(trials)
    assert {entry.name for entry in Path("random/trials").iterdir()} == {*map(str, trials.index)}


@pytest.mark.slow
def test_front_of_two_objectives(begin: Callable[..., Outcome]) -> None:
    given = ("objectives=[val/auroc,ms_per_photo]", "n_trials=15", "sampler=gp")
    assert begin(*SPACE, *given).code == 0
    summary, trials = found()
    auroc, cost = trials["val/auroc"].to_numpy(), trials["ms_per_photo"].to_numpy()
    better = (auroc >= auroc[:, None]) & (cost <= cost[:, None]) & ((auroc > auroc[:, None]) | (cost < cost[:, None]))
    front = ~better.any(1)
    assert summary["front"] == front.sum() > 1
    assert front[: summary["front"]].all()
    assert summary["best"] == trials.index[auroc.argmax()]


def test_trial_that_falls_behind_ends_early(begin: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    """After five whole trials of AUROC 0.8 one of 0.9 goes on, and one of 0.7 ends in its second epoch."""
    aurocs = [0.8] * 5 + [0.9, 0.7]
    ended = []

    def with_epochs(task: Task, watch: Callable[[], bool]) -> dict[str, Any]:
        if task.number >= len(aurocs) or task.folder.name != "0":
            return stand_in(task, watch)
        rows = "epoch,val/auroc\n0,0.1\n"  # the probe, which is no epoch
        for epoch in (1, 2, 3):
            rows += f"{epoch},{0.6 if epoch == 1 else aurocs[task.number]}\n"
            (task.folder / "metrics.csv").write_text(rows[:-3])  # while it is being written
            assert not watch()
            (task.folder / "metrics.csv").write_text(rows)
            if watch():
                ended.append((task.number, epoch))
                return task.record("pruned")
        return stand_in(task, watch)

    monkeypatch.setattr(tuning, "run_job", with_epochs)
    outcome = begin(*SPACE, "n_trials=7", "finalists=1", "seeds=1")
    assert outcome.code == 0, outcome.err
    assert ended == [(6, 2)]
    trials = found()[1]
    assert trials["state"][6] == "pruned" and trials["epochs"].sort_index().tolist() == [3] * 6 + [2]
    assert "Trials that ended early saved 4.8 % of the epochs." in outcome.out  # one of 21


def test_trial_of_a_dead_process_is_done_by_the_next(begin: Callable[..., Outcome]) -> None:
    assert begin(*SPACE, "n_trials=3").code == 0
    journal = "study/study.log"
    lock = optuna.storages.journal.JournalFileOpenLock(journal)
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(journal, lock))
    study = optuna.load_study(study_name="synthetic", storage=storage)
    space = {
        "optim.lr": FloatDistribution(1e-5, 1e-3, log=True),
        "optim.weight_decay": CategoricalDistribution(["0", "0.1"]),
    }
    lost = study.ask(space)  # by somebody who says nothing more
    assert begin(*SPACE, "n_trials=5").code == 0
    trials = found()[1]
    assert len(trials) == 5 and set(trials["state"]) == {"complete"}
    assert trials["optim.lr"][lost.number] == lost.params["optim.lr"]
    with pytest.raises(ValueError, match="FAIL"):  # it comes back, and is too late
        study.tell(lost, 1.0)


@pytest.mark.slow
def test_two_processes_share_a_database(begin: Callable[..., Outcome], postgresql: str) -> None:  # noqa: F811
    given = (*SPACE, "n_trials=4", f"storage={postgresql}", "study=shared")
    assert begin(*given).code == 0
    again = begin(*given, folder="elsewhere")
    assert again.code == 0, again.err
    assert found("elsewhere")[0]["trials"] == found()[0]["trials"]
    assert len(found()[1]) == 4
    assert not list(Path("elsewhere").rglob("done"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_grpc(begin: Callable[..., Outcome]) -> None:
    port, storage = free_port(), optuna.storages.InMemoryStorage()
    serve = {"host": "127.0.0.1", "port": port}
    threading.Thread(target=optuna.storages.run_grpc_proxy_server, args=(storage,), kwargs=serve, daemon=True).start()
    outcome = begin(*SPACE, "n_trials=2", f"storage=grpc://127.0.0.1:{port}")
    assert outcome.code == 0, outcome.err
    assert len(optuna.load_study(study_name="synthetic", storage=storage).trials) == 4


# --- bad input --------------------------------------------------------------------------------------------------------


def test_mistakes(begin: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    assert sentence(begin()) == "there is nothing to search: add image_size=choice(224,448), or search=probe"
    assert sentence(begin(*SPACE, "n_trials=0")).startswith("n_trials=0: it has to be greater than 0")
    assert sentence(begin("seed=0,1")).startswith("seed=0,1 is not to be searched, ")
    with monkeypatch.context() as patch:
        patch.setattr(tuning, "compose", compose)
        assert "did you mean 'lr'" in sentence(begin("optim.lrr=0.1,0.2"))
    for name, told in (("test/auroc", ", did you mean 'val/auroc'?"), ("x", ", such as val/auroc;")):
        said = sentence(begin(*SPACE, f"objectives=[{name}]"))
        assert said.startswith(f"objectives={name} is neither ms_per_photo nor val/<name of a number>{told}")
    assert sentence(begin("-m", *SPACE)) == "tune searches what has several values, without -m"
    assert "trainer.strategy=auto" in sentence(begin(*SPACE, "trainer.strategy=ddp"))
    assert "leave dataset.split.folds=5" in sentence(begin(*SPACE, "dataset.split.folds=null"))
    for address in ("postgresql://me:secret@host/db", "postgresql://me@host/db?password=secret"):
        said = sentence(begin(*SPACE, f"storage={address}"))
        assert said == "storage: a run keeps what is typed: leave the password to a file such as ~/.pgpass"
    assert not Path("study").exists()  # nor is it kept by Hydra
    monkeypatch.setenv("PATH", "")
    said = sentence(begin(*SPACE, "slurm=--array=0-1", folder="elsewhere"))
    assert said.startswith("Slurm does not take the job (") and said.endswith("'sbatch'): slurm=--array=0-1 is typed")
    said = sentence(begin(*SPACE, f"storage=postgresql://nobody@127.0.0.1:{free_port()}/none"))
    assert said.startswith("storage=postgresql://nobody@127.0.0.1:") and "cannot be used (" in said


@pytest.mark.slow
def test_another_study_is_not_joined(
    begin: Callable[..., Outcome], tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert begin(*SPACE, "n_trials=1", "seeds=1").code == 0
    other = "make it the same, or take hydra.run.dir=<new folder>"
    said = sentence(begin(SPACE[0], "optim.weight_decay=choice(0,0.2)"))
    assert said == (
        "study=synthetic was begun with space.optim.weight_decay: choice(0,0.1), and here it is choice(0,0.2); " + other
    )
    assert "begun with batch_size: 32, and here it is 16; " in sentence(begin(*SPACE, "batch_size=16"))
    with monkeypatch.context() as patch:
        patch.setattr(tuning, "versions", lambda: {"defectcls": "9.9"})
        assert "begun with version: 0.1.0, and here it is 9.9; " in sentence(begin(*SPACE))
    (photos,) = (word.partition("=")[2] for word in tiny if word.startswith("dataset.root="))
    shutil.copytree(photos, "others")
    with next(Path("others").rglob("*.jpg")).open("ab") as photo:
        photo.write(b"another")
    assert "begun with photos: " in sentence(begin(*SPACE, "dataset.root=others"))
    Path("study/study.log").write_text("{\n" * 3)
    assert "/study/study.log cannot be used (" in sentence(begin(*SPACE))
    Path("study/study.log").unlink()
    assert "study/trials is of a study that is not in its storage: " in sentence(begin(*SPACE))


def test_a_journal_that_a_full_disk_has_torn(begin: Callable[..., Outcome]) -> None:
    """The last line, of which a part is there, was never told; all others stand."""
    assert begin(*SPACE, "n_trials=3").code == 0
    before, journal = found()[1], Path("study/study.log")
    with journal.open("ab") as file:
        file.write(journal.read_bytes().splitlines()[-1][:20])
    assert begin(*SPACE, "n_trials=4").code == 0
    assert len(found()[1]) == 4
    pd.testing.assert_frame_equal(found()[1].loc[before.index], before)


# --- real jobs --------------------------------------------------------------------------------------------------------


def started(folder: Path, *given: str) -> subprocess.Popen[bytes]:
    """`tune` in a process of its own, which a test may kill."""
    log = (folder.parent / "log").open("ab")
    whole = [sys.executable, "-m", "defectcls.tune", *given, f"hydra.run.dir={folder}"]
    return subprocess.Popen(whole, cwd=folder.parent, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


@pytest.mark.slow
def test_a_script_is_not_run_again_by_its_trials(tiny: list[str], tmp_path: Path) -> None:
    given = (*tiny, "optim.lr=1e-4,1e-3", "sampler=grid", "finalists=1", "seeds=1", "hydra.run.dir=study")
    script = "import defectcls\nprint('begun')\nprint(defectcls.run('tune', *{}).metrics['drawn'])\n"
    (tmp_path / "script.py").write_text(script.format(given))
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    told = subprocess.check_output([sys.executable, "script.py"], cwd=tmp_path, text=True, env=environment)
    assert told.splitlines()[0] == "begun" and told.splitlines()[-1] == "2"
    assert told.count("begun") == 1


@pytest.mark.slow
def test_killed_ten_times_and_joined_by_others(tiny: list[str], tmp_path: Path) -> None:
    """Two processes, of which one after another is killed at a random moment: each trial is finished once."""
    given = [word for word in tiny if not word.startswith(("finetune", "evaluation"))]
    given += ["finetune=full", "finetune.stages.full.epochs=20", "optim.lr=1e-5,1e-4,1e-3,1e-2,0.1"]
    given += ["batch_size=16,32", "sampler=grid", "n_trials=10", "finalists=2", "seeds=2", "lease_s=5", "prune=false"]
    folder, random, kills = tmp_path / "study", np.random.default_rng(0), 0
    workers = [started(folder, *given) for _ in range(2)]
    finished_when: dict[Path, int] = {}
    while any(worker.poll() is None for worker in workers):
        status = {file: json.loads(file.read_text())["status"] for file in folder.glob("trials/*/*/job.json")}
        for file in (file for file, one in status.items() if one == "finished"):
            finished_when.setdefault(file, file.stat().st_mtime_ns)
        if kills < 10 and "unfinished" in status.values():
            time.sleep(random.uniform(0, 3))
            victim = kills % 2
            workers[victim].kill()
            workers[victim].wait()
            workers[victim] = started(folder, *given)
            kills += 1
        time.sleep(0.1)
    for file in folder.glob("trials/*/*/job.json"):
        finished_when.setdefault(file, file.stat().st_mtime_ns)
    assert [worker.returncode for worker in workers] == [0, 0], (tmp_path / "log").read_text()[-3000:]
    assert {file: file.stat().st_mtime_ns for file in finished_when} == finished_when  # none was done again
    trials = pd.DataFrame(json.loads((folder / "study.json").read_text())["trials"])
    points = trials[trials["repeat"] == 0]
    assert len(points) == 10 and len(points[["optim.lr", "batch_size"]].drop_duplicates()) == 10
    assert set(trials["state"]) == {"complete"} and (trials["repeat"] == 1).sum() == 2
    assert (kills, len(finished_when)) == (10, 12)
    best = json.loads((folder / "study.json").read_text())["best"]
    metrics = json.loads((folder / f"trials/{best}/0/metrics.json").read_text())
    tested = pd.read_csv(folder / f"trials/{best}/0/predictions.csv").query("split == 'test'")["path"]
    seen = [
        pd.read_csv(file)["path"]
        for file in folder.glob("trials/*/*/predictions.csv")
        if file.parent.parent.name != str(best)
    ]
    assert metrics["test"]["n"] == len(tested) == 18
    assert not set(tested) & set(pd.concat(seen))
    assert (folder / "study_2.png").read_bytes().startswith(b"\x89PNG")


def jobs_of(folder: Path) -> dict[str, str]:
    """What became of each job, by its folder in trials/."""
    return {
        str(file.parent.relative_to(folder / "trials")): json.loads(file.read_text())["status"]
        for file in folder.glob("trials/*/*/job.json")
    }


@pytest.mark.slow
def test_process_that_joins_through_a_database_is_killed(
    tiny: list[str],
    tmp_path: Path,
    postgresql: str,  # noqa: F811
) -> None:
    """Two processes without a common folder: what the killed one was at is done by the other, each trial once."""
    given = [word for word in tiny if not word.startswith(("finetune", "evaluation"))]
    given += [
        "finetune=full",
        "finetune.stages.full.epochs=20",
        "optim.lr=1e-6,1e-5,1e-4,1e-3,1e-2,0.1",
        "batch_size=16,32",
    ]
    given += ["sampler=grid", "n_trials=12", "finalists=1", "seeds=2", "lease_s=60", "prune=false"]
    given += [f"storage={postgresql}", "study=joined"]
    one, other = tmp_path / "one", tmp_path / "other"
    stays = started(one, *given)
    wait_until(lambda: "finished" in jobs_of(one).values(), 300)
    joins = started(other, *given)
    wait_until(lambda: "finished" in jobs_of(other).values(), 300)
    wait_until(lambda: "unfinished" in jobs_of(other).values(), 300)
    joins.kill()
    joins.wait()
    left = jobs_of(other)
    assert stays.wait(600) == 0, (tmp_path / "log").read_text()[-3000:]
    assert jobs_of(other) == left and [*left.values()].count("unfinished") == 1
    finished = [place for jobs in (left, jobs_of(one)) for place, status in jobs.items() if status == "finished"]
    assert len(finished) == len(set(finished)) == 13
    trials = pd.DataFrame(json.loads((one / "study.json").read_text())["trials"])
    assert set(trials["state"]) == {"complete"} and (trials["repeat"] == 0).sum() == 12
    assert len(trials.loc[trials["repeat"] == 0, ["optim.lr", "batch_size"]].drop_duplicates()) == 12


@pytest.mark.slow
def test_stopped_study_goes_on_at_once(tiny: list[str], tmp_path: Path) -> None:
    given = (*tiny, "optim.lr=tag(log,interval(1e-5,1e-3))", "finetune.stages.full.epochs=30", "finetune.patience=null")
    worker = started(tmp_path / "study", *given, "n_trials=2", "finalists=1", "seeds=1", "prune=false")
    last = tmp_path / "study/trials/0/0/checkpoints/last.ckpt"
    while not last.is_file():
        time.sleep(0.05)
        assert worker.poll() is None, (tmp_path / "log").read_text()
    worker.terminate()
    assert worker.wait(60) == 143
    assert "resume=" in (tmp_path / "log").read_text().splitlines()[-1]
    epochs = len(pd.read_csv(last.parents[1] / "metrics.csv"))
    done = command("tune", f"resume={tmp_path / 'study'}")
    assert done.code == 0, done.err
    history = pd.read_csv(last.parents[1] / "metrics.csv")
    assert 0 < epochs < 30 and history["epoch"].tolist() == [*range(1, 31)]
    # Optuna's number 1 is the rest of trial 0, in the folder of that.
    assert sorted(entry.name for entry in (tmp_path / "study/trials").iterdir()) == ["0", "2"]
    trials = json.loads((tmp_path / "study/study.json").read_text())["trials"]
    assert sorted((one["trial"], one["state"]) for one in trials) == [(0, "complete"), (2, "complete")]
