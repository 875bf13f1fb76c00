"""The page of a sweep: no job is lost, and what chance explains is not called better."""

from pathlib import Path

import pytest

from defectcls.evaluation.sweeps import Job, Sweep, summarise_sweep
from defectcls.pages.blocks import Cell, Page, Table
from defectcls.pages.render import print_page, render_html
from defectcls.pages.sweep import sweep_page
from tests.evaluation.test_sweeps import failed, finished, trained, two_models

COMMAND = "python -m defectcls.train -m model=good,bad"


def page_of(sweep: Sweep, folder: Path = Path("nowhere")) -> Page:
    return sweep_page(sweep, folder, COMMAND)


def tables(page: Page) -> list[list[list[Cell]]]:
    return [block.rows for block in page.all_blocks() if isinstance(block, Table)]


def test_failed_jobs_are_named_with_their_errors(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    jobs = [finished(0, "model=a", 0.9, 0), failed(1, "model=a", 1, "no <memory> left"), failed(2, "model=b", 0)]
    jobs += [Job(3, ("model=b", "seed=1"), "unfinished", None, None)]
    page = page_of(summarise_sweep("runs/sweeps/now", jobs))
    assert page.said("caveats") == [
        "job 1 failed (model=a, seed=1) no <memory> left",
        "job 2 failed (model=b, seed=0) out of memory",
        "job 3 unfinished (model=b, seed=1) ",
    ]
    settings, of_jobs = tables(page)
    assert [[cell.text for cell in row[:2]] for row in settings] == [["model=a", "1 of 2"], ["model=b", "0 of 2"]]
    assert [row[1].text for row in of_jobs] == ["0", "1", "2", "3"]
    print_page(page, tmp_path / "sweep.html")
    text = capsys.readouterr().out
    assert "4 jobs: 2 failed, 1 finished, 1 unfinished." in text and "- job 3 unfinished (model=b, seed=1)" in text
    assert f"page: {tmp_path / 'sweep.html'}" in text
    assert "<memory>" not in render_html(page)


def test_number_that_some_seeds_do_not_state_says_how_many_do() -> None:
    jobs = [finished(seed, "model=a", 0.9 + seed / 100, seed, recall=[0.5, None, 0.7][seed]) for seed in range(3)]
    settings, of_jobs = tables(page_of(summarise_sweep("sweep", jobs)))
    assert any(cell.text.startswith("60.0 % ± 14.1 % of 2\n") for cell in settings[0])
    assert of_jobs[1][7].text == "–"


def test_settings_on_other_images_are_not_called_better() -> None:
    jobs = [finished(n, f"dataset={name}", 0.9 + n / 20, seed) for n, name in enumerate("ab") for seed in range(2)]
    said = page_of(summarise_sweep("sweep", jobs)).said("verdict")
    assert "differ in dataset" in said[1] and not any("Best" in sentence for sentence in said)


def test_what_ranks_is_named_and_what_chance_explains_is_said() -> None:
    jobs = [finished(n, f"lr={n}", None, seed, loss=1 - n / 10 + seed / 50) for n in range(2) for seed in range(2)]
    assert "validation images: lr=1, loss 0.910" in page_of(summarise_sweep("sweep", jobs)).said("verdict")[1]
    by_test = [
        Job(n, (f"checkpoint={n}",), "finished", None, {"seed": 0, "test": trained(n / 9)["test"]}) for n in (7, 8)
    ]
    said = page_of(summarise_sweep("sweep", by_test)).said("verdict")
    assert said[-1] == "These jobs have no validation part: of many test numbers the best flatters."
    said = page_of(two_models([0.90, 0.95, 0.80], [0.88, 0.931, 0.779])).said("verdict")
    assert said[1].startswith("Best on validation images: model=good, AUROC 0.883 ± 0.076 of 3, interval 0.694 to")
    assert said[2:] == ["Of 1 other: 1 worse."]


def test_what_is_judged_out_of_fold_alone_is_shown_once_and_said_to_flatter() -> None:
    jobs = [finished(n, f"lr={n}", 0.8 + n / 10) for n in range(2)]
    folded = []
    for job in jobs:
        metrics = dict(job.metrics or {})
        folded.append(job._replace(metrics=metrics | {"val": metrics["test"], "out_of_fold": {"val": 5, "test": 5}}))
    sweep = summarise_sweep("sweep", folded)
    assert sweep.ranked_by == "val_auroc" and not [one for one in sweep.columns if one.startswith("test")]
    said = page_of(sweep).said("verdict")
    assert said[1].startswith("Best on out-of-fold images: lr=1, ")
    assert said[-1] == "These jobs have no test part: of many out-of-fold numbers the best flatters."
    mixed = summarise_sweep("sweep", [folded[0], jobs[1]])
    assert mixed.other_images == ["evaluation"]


def test_no_finished_job() -> None:
    jobs = [failed(n, "model=a", n) for n in range(3)]
    page = page_of(summarise_sweep("sweep", jobs))
    assert page.said("verdict") == ["3 jobs: 3 failed."]
    assert render_html(page).count("out of memory") == 3


def test_jobs_of_a_verb_without_metrics_are_listed() -> None:
    jobs = [Job(n, (f"dataset={name}",), "finished", None, None) for n, name in enumerate("ab")]
    page = page_of(summarise_sweep("sweep", jobs))
    assert page.said("verdict") == ["2 jobs: 2 finished."]
    assert "dataset=b" in render_html(page)


def test_one_seed_has_no_interval_and_one_setting_no_rival() -> None:
    page = page_of(summarise_sweep("sweep", [finished(0, "model=a", 0.9)]))
    assert page.said("verdict") == ["1 job: 1 finished.", "On validation images, AUROC 0.900."]
    assert "0.900 ±" not in render_html(page)


def test_page_says_first_what_was_found_and_leads_to_the_reports(tmp_path: Path) -> None:
    for number in (0, 11):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "report.html").touch()
    page = page_of(two_models([0.90, 0.95, 0.80], [0.88, 0.931, 0.779]), tmp_path)
    assert [cell.address for row in tables(page)[1] for cell in row if cell.address] == [
        "11/report.html",
        "0/report.html",
    ]
    html = render_html(page)
    places = [html.index(part) for part in ("Best on validation images: model=good", "worse</td>", COMMAND)]
    assert places == sorted(places)
