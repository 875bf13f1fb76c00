"""The page of an export: whether the file decides as its checkpoint, and which precision to take."""

from typing import Any

from defectcls.pages.blocks import Page, Section, Table, Text, making
from defectcls.pages.wording import decision_words, not_promised, number, percent, plural, span

HEAD = ("precision", "MB", "photos/s", "difference", "flips", "escape rate", "overkill rate", "gate")
SEEN = (
    "The model has learned from these photos: the honest rates are those of the run's report, and photos=<others>, "
    "with or without labels, would tell more of what moves."
)


def export_page(found: dict[str, Any]) -> Page:
    """Of what export.json says."""
    tried, last, own = found["tried"], found["tried"][-1], found["trained_in"]
    said = (
        f"{found['output']} decides otherwise than the checkpoint on {last['flips']} of "
        f"{plural(last['photos'], 'photo')}; the largest difference of a score is {last['largest_difference']:.1g}."
    )
    if found["refused"]:
        said = f"Refused: {found['refused']}. {found['output']} is not to be used."
    held = (
        f"The checkpoint was held against it in float32: left to itself it computes in {own}, as its run did, and its "
        "scores may then differ by more."
    )
    blocks = [
        Text(said, look="verdict", terminal=True),
        Text(*not_promised(found["decision"]), held if own != "32" else None, look="caveats", terminal=True),
        Section(
            "Every precision tried",
            Table([_row(one) for one in tried], HEAD, terminal=True),
            Text(_advice(tried[0], last, found["take"]) if len(tried) > 1 else None, terminal=True),
            Text(SEEN if found["seen"] else None, terminal=True),
            Text("Photos a second in batches of 16, on this machine as busy as it was.", look="note"),
        ),
        Section("How it decides", Text(*decision_words(found["decision"]))),
        making(found),
    ]
    return Page(f"Export of {found['model']}, trained on {found['dataset']}", found["output"], blocks)


def _row(one: dict[str, Any]) -> list[str]:
    rates = ("escape_rate", "overkill_rate")
    told = [f"{percent(one[rate])} ({span(rate, one[f'{rate}_interval'])})" if rate in one else "–" for rate in rates]
    return [
        one["precision"],
        f"{one['megabytes']:.1f}",
        number(one["images_per_second"], 1, 1e9),
        f"{one['largest_difference']:.1g}",
        f"{one['flips']} of {one['photos']}",
        *told,
        "refused" if one["refused"] else "passed",
    ]


def _advice(whole: dict[str, Any], other: dict[str, Any], take: str) -> str:
    """Which of two precisions to take, and why."""
    if other["refused"]:
        return f"Take precision={take}: {other['precision']} is refused."
    gain, smaller = (other[name] / whole[name] for name in ("images_per_second", "megabytes"))
    what = f"{other['precision']} is {gain:.1f} times as fast, in {percent(smaller)} of the room"
    moved = f"and has passed the gate, but moves a score by up to {other['largest_difference']:.1g}"
    return f"Take precision={take}: {what}, {moved}."
