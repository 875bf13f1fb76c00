"""How fast this machine trains, evaluates and decodes: python -m defectcls.benchmark dataset=<name> model=<name>."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from defectcls.config import job_command, parse, run_verb

if TYPE_CHECKING:
    from defectcls.benchmarking.turns import Contender, Played
    from defectcls.settings import BenchmarkSettings


def benchmark(config: dict[str, Any], folder: Path) -> int:
    """Let the contenders take turns, section after section; write benchmark.json and benchmark.png, print the table.

    The status is 1 where one of them failed; the others are measured all the same.

    Raises:
        UserError: the first of them all failed, as they do without images or weights.
    """
    from defectcls.settings import BenchmarkSettings

    settings = parse(BenchmarkSettings, config)
    from defectcls.benchmarking.contenders import WARM_UP
    from defectcls.benchmarking.summary import plot_benchmark, print_benchmark, summarise
    from defectcls.benchmarking.turns import take_turns
    from defectcls.errors import UserError
    from defectcls.model.hardware import find_device
    from defectcls.pages.pictures import png
    from defectcls.training.provenance import provenance

    sections, work = contenders(settings), folder / "contenders"
    played: dict[str, Played] = {}
    for name, rivals in sections.items():
        once = name == "probe"  # ten epochs of the plain recipe take minutes
        played |= take_turns(rivals, settings, work, 1 if once else settings.rounds, 0 if once else WARM_UP)
        errors = [rival.error for rival in played.values() if rival.error is not None]
        if len(errors) == len(played):
            shutil.rmtree(work)
            raise UserError(errors[0])
    found = {
        "dataset": settings.dataset.name,
        "model": settings.model.name,
        "image_size": settings.image_size,
        "batch_size": settings.batch_size,
        "augment": settings.augment.model_dump(),
        "sections": [list(rivals) for rivals in sections.values()],
        **summarise(played),
        "command": job_command(),
        **provenance(settings.seed, config, find_device(settings.trainer.accelerator)),
    }
    (folder / "benchmark.json").write_text(json.dumps(found, indent=2), encoding="utf-8")
    (folder / "benchmark.png").write_bytes(png(plot_benchmark(found)))
    if not errors:
        shutil.rmtree(work)  # else its logs tell why
    print_benchmark(found, folder)
    return int(bool(errors))


def contenders(settings: "BenchmarkSettings") -> dict[str, dict[str, "Contender"]]:
    """What takes turns with what, by section and name.

    Raises:
        UserError: another tool that is asked for is not installed.
    """
    from importlib.util import find_spec

    from defectcls.errors import UserError

    if "ultralytics" in settings.against and find_spec("ultralytics") is None:
        raise UserError("ultralytics is not installed: pip install ultralytics, or leave against=[plain]")
    from defectcls.benchmarking import contenders as own
    from defectcls.benchmarking import others, plain, start

    against = {"plain": plain.plain, "ultralytics": others.ultralytics}
    rivals: dict[str, Contender] = {name: against[name] for name in settings.against}
    sections: dict[str, dict[str, Contender]] = {
        "training": {"step": own.step, "input": own.input_pipeline, "end_to_end": own.end_to_end, **rivals},
        "evaluation": {"forward": own.forward, "evaluate": own.evaluate},
        "first_pass": {"decode": own.decode, "first_pass": own.first_pass},
        "probe": {"probe": own.probe, "probe_views": own.probe_views, "plain_frozen": plain.plain_frozen},
        "start": {"start": start.start},
    }
    return {name: sections[name] for name in settings.measure}


if __name__ == "__main__":
    run_verb("benchmark", benchmark)
