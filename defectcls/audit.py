"""Find copies, leaks, likely wrong labels and odd files: python -m defectcls.audit dataset=<name>."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from defectcls.training.command import run_verb

if TYPE_CHECKING:
    from defectcls.data.datamodule import DefectDataModule
    from defectcls.data.findings import Finding, Inventory
    from defectcls.verb_settings import AuditSettings


def audit(config: dict[str, Any], folder: Path) -> int:
    """Write audit.csv, audit.html and audit.json; 1 where copies or near-identical images straddle the split."""
    from defectcls.verb_settings import AuditSettings

    settings = AuditSettings(**config)
    from defectcls.data.datamodule import DefectDataModule
    from defectcls.data.findings import balance, take_inventory
    from defectcls.data.samples import counted
    from defectcls.errors import UserError
    from defectcls.pages.audit import audit_page, summarise
    from defectcls.pages.render import print_page, write_page
    from defectcls.training.build import device_of
    from defectcls.training.provenance import provenance

    device = device_of(settings.trainer)
    data = DefectDataModule.from_settings(settings, device=device, test_all=True)
    inventory = take_inventory(data)
    notes = [f"train would refuse this set: {inventory.refusal}"] if inventory.refusal else []
    left_out = inventory.samples.attrs.get("left_out", {})
    notes += [f"Beside the photos: {counted(left_out)}."] if left_out else []
    doubted: list[Finding] = []
    if settings.audit.wrong_labels:
        try:
            doubted = doubted_labels(settings, data, inventory)
            notes += [] if doubted else ["No label is likely wrong."]
        except UserError as error:
            notes.append(f"wrong labels were not looked for: {error}; audit.wrong_labels=false leaves this out")
    else:
        notes.append("Wrong labels were not looked for, as audit.wrong_labels=false says.")
    findings, counts = inventory.table(doubted), balance(inventory.samples)
    summary = summarise(settings.dataset.name, findings, counts, inventory.leaks, notes)
    findings.to_csv(folder / "audit.csv", index=False)
    page = audit_page(summary, findings, data.root, data.settings.depth)
    write_page(page, folder / "audit.html")
    about = {"left_out": left_out, **provenance(settings.seed, config, device)}
    (folder / "audit.json").write_text(json.dumps(summary | about, indent=2), encoding="utf-8")
    print_page(page, folder / "audit.html")
    return int(inventory.leaks > 0)


def doubted_labels(settings: "AuditSettings", data: "DefectDataModule", inventory: "Inventory") -> list["Finding"]:
    """Images whose label is likely wrong, the least credible first.

    Raises:
        UserError: one class, too few images, or no weights.
    """
    from defectcls.data.findings import Finding
    from defectcls.model.backbone import Backbone
    from defectcls.model.features import extract_features
    from defectcls.model.head import doubt_labels
    from defectcls.training.build import build_features, with_compute

    model, options, resolved = settings.model, settings.audit, with_compute(settings, data.device)
    computed = (resolved.trainer.channels_last is True, resolved.trainer.precision)
    backbone = Backbone(model.name, model.pool, settings.image_size, *computed)  # type: ignore[arg-type]
    if model.pretrained:
        backbone.load_pretrained(model.weights)
    data.samples["split"] = "test"  # all of them
    frozen = build_features(resolved, data, backbone.to(data.device))
    features, targets = extract_features(frozen, data.part_dataloader("test"))
    doubted, said = doubt_labels(features, targets, inventory.units, options.folds, options.c, settings.seed)
    names, found = data.class_names, []
    for row in doubted.tolist():
        best = int(said[row].argmax())
        detail = f"{names[targets[row]]} {said[row, targets[row]]:.0%}, {names[best]} {said[row, best]:.0%}"
        found.append(Finding("wrong_label", data.samples["path"][row], detail=detail))
    return found


if __name__ == "__main__":
    run_verb("audit", audit)
