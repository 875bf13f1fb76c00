"""A trained model as one file that decides without PyTorch: python -m defectcls.export checkpoint=<run>."""

import json
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
    from defectcls.pages.render import print_page, write_page

    found = export_model(settings, output, folder)
    (folder / "export.json").write_text(json.dumps(found, indent=2), encoding="utf-8")
    page = export_page(found)
    write_page(page, folder / "export.html")
    print_page(page, folder / "export.html")
    return int(bool(found["refused"]))


if __name__ == "__main__":
    run_verb("export")
