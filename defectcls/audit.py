"""Find copies, leaks, likely wrong labels, unreadable and plain photos: python -m defectcls.audit dataset=<name>."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from defectcls.training.command import run_verb

if TYPE_CHECKING:
    import numpy as np

    from defectcls.data.datamodule import DefectDataModule
    from defectcls.data.findings import Finding
    from defectcls.settings import AuditSettings


def audit(config: dict[str, Any], folder: Path) -> int:
    """Write audit.csv, audit.html and audit.json; 1 where copies or near-identical images straddle the split."""
    from defectcls.settings import AuditSettings

    settings = AuditSettings(**config)
    from defectcls.data.datamodule import DefectDataModule
    from defectcls.data.findings import balance, take_inventory
    from defectcls.errors import UserError
    from defectcls.model.hardware import find_device
    from defectcls.pages.audit import audit_page, summarise
    from defectcls.pages.render import print_page, write_page
    from defectcls.training.results import provenance

    device = find_device(settings.trainer.accelerator, settings.trainer.precision)
    data = DefectDataModule.from_settings(settings, device=device, test_all=True)
    inventory = take_inventory(data)
    try:
        doubted = doubted_labels(settings, data, inventory.units)
        note = "" if doubted else "No label is likely wrong."
    except UserError as error:
        doubted, note = [], f"Wrong labels were not looked for: {error}"
    findings, counts = inventory.table(doubted), balance(inventory.samples)
    summary = summarise(settings.dataset.name, findings, counts, inventory.leaks, [inventory.refusal, note])
    findings.to_csv(folder / "audit.csv", index=False)
    page = audit_page(summary, findings, data.root, data.settings.depth)
    write_page(page, folder / "audit.html")
    about = {"left_out": inventory.samples.attrs.get("left_out", {}), **provenance(settings.seed, config, device)}
    (folder / "audit.json").write_text(json.dumps(summary | about, indent=2), encoding="utf-8")
    print_page(page, folder / "audit.html")
    return int(inventory.leaks > 0)


def doubted_labels(settings: "AuditSettings", data: "DefectDataModule", units: "np.ndarray") -> list["Finding"]:
    """Images whose label is likely wrong, the least credible first; `units` are of related images, (images,).

    Raises:
        UserError: they are not asked for, one class, too few images, or no weights.
    """
    from defectcls.data.findings import Finding
    from defectcls.errors import UserError
    from defectcls.model.features import extract_features
    from defectcls.model.head import doubt_labels
    from defectcls.training.build import build_classifier, build_features, with_compute

    options, resolved = settings.audit, with_compute(settings)
    if not options.wrong_labels:
        raise UserError("audit.wrong_labels=false")
    data.samples["split"] = "test"  # all of them
    backbone = build_classifier(resolved, data).backbone.to(data.device)
    features, targets = extract_features(build_features(resolved, data, backbone), data.test_dataloader())
    doubted, said = doubt_labels(features, targets, units, options.folds, options.c, settings.seed)
    found, names = [], data.class_names
    for row in doubted.tolist():
        detail = ", ".join(f"{names[one]} {said[row, one]:.0%}" for one in (targets[row], said[row].argmax()))
        found.append(Finding("wrong_label", data.samples["path"][row], detail=detail))
    return found


if __name__ == "__main__":
    run_verb("audit", audit)
