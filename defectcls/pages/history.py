"""The page of the history: which version of a model decided when, and on whose word."""

from typing import Any

from defectcls.pages.blocks import Page, Table, Text

HEAD = ("from", "model", "version", "until", "decisions", "by", "why", "what was known")
UNTIL = {None: "never at work: it was interrupted", "": "at work"}


def history_page(promotions: list[dict[str, Any]], versions: list[dict[str, Any]]) -> Page:
    """Of what `Decisions.promotions` and `Decisions.versions` give, the newest first."""
    rows, counted = [], {(one["model"], one["model_digest"]): one["rows"] for one in versions}
    for row in promotions[::-1]:
        version, until = (row["model"], row["digest"]), UNTIL.get(row["until"], row["until"])
        said = row["who"], row["why"], row["sentence"]
        rows.append((row["time"], version[0], version[1][:12], until, f"{counted.get(version, 0):,}", *said))
    for one in versions:
        if (one["model"], one["model_digest"]) not in {(row["model"], row["digest"]) for row in promotions}:
            told = one["first"], one["model"], one["model_digest"][:12], f"decided last {one['last']}"
            rows.append((*told, f"{one['rows']:,}", "–", "no promotion brought it", ""))
    note = "Times are UTC; decisions are all of a version, whenever it was at work."
    newest = [
        f"{row['model']}: {row['digest'][:12]} is at work. {row['sentence']}"
        for row in promotions
        if row["until"] == ""
    ]
    blocks = [Text(*newest, look="verdict", terminal=True), Table(rows, HEAD, words=True), Text(note, look="note")]
    return Page("History", "Which model decided when, on whose word", blocks)
