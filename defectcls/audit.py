"""Find copies, leaks, likely wrong labels, unreadable and plain photos: python -m defectcls.audit dataset=<name>."""

from pathlib import Path
from typing import Any

from defectcls.training.command import run_verb


def audit(config: dict[str, Any], folder: Path) -> int:
    """Write audit.csv, doubted.csv, audit.html, audit.json; 1 if copies or near-identical images straddle a split."""
    from defectcls.training.settings import AuditSettings

    settings = AuditSettings(**config)
    from defectcls.arguments import as_typed
    from defectcls.data.datamodule import DefectDataModule
    from defectcls.data.findings import balance, find_faults, table_of
    from defectcls.data.splits import leaked_units
    from defectcls.errors import UserError
    from defectcls.evaluation.predictions import write_predictions
    from defectcls.model.hardware import find_device
    from defectcls.model.head import FOLDS
    from defectcls.pages.audit import audit_page, summarise
    from defectcls.pages.render import write_and_print
    from defectcls.tables import DEFECTIVE, SOUND
    from defectcls.training.build import deal
    from defectcls.training.inspection import find_doubted_labels
    from defectcls.training.results import provenance

    device = find_device(settings.trainer.accelerator, settings.trainer.precision)
    data = DefectDataModule.from_settings(settings, device=device, test_all=True)
    data.settings = data.settings.model_copy(update={"on_unreadable": "skip", "contradictions": "allow"})
    if data.target == "defect":
        data.classes = {SOUND: False, DEFECTIVE: True}  # of a set of one class, too
    data.prepare_data()
    data.setup()
    findings, copies, units = find_faults(data)
    samples = data.samples.assign(split="")
    notes = []
    try:
        if deal(settings, data) == "crossval":
            rows = data.part("train")
            data.samples.loc[rows, "split"] = [f"fold {fold}" for fold in data.folds(rows, FOLDS)]
            notes.append("train validates out of fold: each image is judged by a model of the other folds.")
        samples = data.samples.copy()
    except UserError as error:
        notes.append(f"train would refuse this set: {error}")
    leaks = leaked_units(samples["split"], copies)
    try:
        if not settings.audit.wrong_labels:
            raise UserError("audit.wrong_labels=false")
        doubted = find_doubted_labels(settings, data, units)
        findings += doubted
        notes += ["No label is likely wrong."] * (not doubted)
        doubts = samples.set_index("path").loc[[one.path for one in doubted], ["photo", "label"]]
        doubts["suspected"] = [one.suspected for one in doubted]
        write_predictions(doubts.reset_index(), folder / "doubted.csv")
        review = f"python -m defectcls.review model=<run> {as_typed(f'input={folder}/doubted.csv')}"
        notes += [f"To look at them one by one: {review} {as_typed(f'root={data.root}')}"] * bool(doubted)
    except UserError as error:
        notes.append(f"Wrong labels were not looked for: {error}")
    table = table_of(findings, samples)
    summary = summarise(settings.dataset.name, table, balance(samples), leaks, notes)
    table.to_csv(folder / "audit.csv", index=False)
    about = {"left_out": samples.attrs.get("left_out", {}), **provenance(settings.seed, config, device)}
    write_and_print(audit_page(summary, table, data.root, data.settings.depth), summary | about, folder / "audit.html")
    return int(leaks > 0)


if __name__ == "__main__":
    run_verb("audit")
