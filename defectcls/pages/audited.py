"""The page of an audit: the escape rate as it is now, and what it would take to promise it again."""

from pathlib import Path
from typing import Any

from defectcls.pages.blocks import Page, Text
from defectcls.pages.wording import percent, plural, span


def audited_page(found: dict[str, Any], plan: Path) -> Page:
    """Of what audited.json says; the photos to look at next are in the table `plan`."""
    of = f"{found['looked_at']:,} of {plural(found['accepted'], 'accepted photo')} were drawn and looked at"
    said, target = [f"{of}: none tells anything yet."], f"at most {percent(found['at_most'])} of the accepted"
    if found["looked_at"]:
        share = f"{percent(found['share'])} (95 % interval {span('escape_rate', found['share_interval'])})"
        said = [f"{of}, {found['escapes']} are defective: of all accepted {share}."]
    if found["escape_rate"] is not None:
        rate = f"{percent(found['escape_rate'])} ({span('escape_rate', found['escape_rate_interval'])})"
        said += [f"Escape rate: {rate} of all defects were let through; about {found['caught']:.0f} were caught."]
    needed = f"To say {target} takes {plural(found['more'] or 0, 'more photo')}: {plan} says which."
    if found["more"] is None:
        needed = f"No number of photos would show {target}: more were found."
    elif not found["more"]:
        needed = f"That it is {target} is shown."
    disputed = f"{plural(found['disputed'], 'photo')} on which people disagree: each counts as defective."
    blocks = [
        Text(*said, look="verdict", terminal=True),
        Text(disputed if found["disputed"] else None, look="caveats", terminal=True),
        Text(needed, terminal=True),
        Text("Each photo weighs the inverse of its chance to be drawn; the interval is mid-p.", look="note"),
    ]
    return Page("Audit of what was accepted", found["checkpoint"], blocks)
