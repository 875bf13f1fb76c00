"""A trained model as one file that decides without PyTorch: python -m defectcls.export checkpoint=<run>."""

from pathlib import Path
from typing import Any

from defectcls.training.command import run_verb


def export(config: dict[str, Any], folder: Path) -> int:
    """Write the file, export.json and export.html; 1 where the file does not decide as its checkpoint."""
    from defectcls.deployment.gate import SUFFIXES, ExportSettings

    settings = ExportSettings(**config)
    from defectcls.files import checkpoint_file, refuse_output

    suffix = SUFFIXES[settings.format]
    output = settings.output or folder / f"model{suffix}"
    checkpoint_file(settings.checkpoint)  # told before torch is imported
    refuse_output(output, suffix, settings.overwrite)
    from defectcls.deployment.export import export_model
    from defectcls.pages.export import export_page
    from defectcls.pages.render import write_and_print

    found = export_model(settings, output, folder)
    write_and_print(export_page(found), found, folder / "export.html")
    return int(bool(found["refused"]))


if __name__ == "__main__":
    run_verb("export")
