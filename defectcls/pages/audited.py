"""The page of an audit: the escape rate as it is now, and what it would take to promise it again."""

from pathlib import Path
from typing import Any

from defectcls.pages.blocks import Page, Text
from defectcls.pages.wording import percent, plural, span


def audited_page(found: dict[str, Any], plan: Path) -> Page:
    """Of what audited.json says; the photos to look at next are in the table `plan`."""

    def rate(name: str) -> str:
        return f"{percent(found[name])} (95 % interval {span('escape_rate', found[f'{name}_interval'])})"

    of = f"{found['looked_at']:,} of {plural(found['accepted'], 'accepted photo')} were drawn and looked at"
    said, claim = f"{of}, {found['escapes']} are defective: of all accepted {rate('share')}.", percent(found["at_most"])
    claim = f"That at most {claim} of the accepted are defective"
    takes = f"takes {plural(found['more'] or 0, 'more photo')}: {plan}"
    needed = {None: "no number of photos would show, more are found", 0: "is shown"}.get(found["more"], takes)
    of_all = f"Escape rate: {rate('escape_rate')} of all defects; about {found['caught'] or 0:.0f} were caught."
    disputed = f"People disagree on {plural(found['disputed'], 'photo')}: each counts as defective."
    blocks = [
        Text(said, of_all if found["escape_rate"] is not None else None, look="verdict", terminal=True),
        Text(disputed if found["disputed"] else None, look="caveats", terminal=True),
        Text(f"{claim} {needed}.", terminal=True),
    ]
    return Page("Audit of what was accepted", found["checkpoint"], blocks)
