"""What a dataset does not hold, for the people who build on it: one sentence each, from the job and its figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from string import Formatter

from builders.job import Job
from builders.text import ALIASES, DEFAULT_TEMPLATE

LEFT_OUT = {  # what a view of a chat can leave out, by the placeholder that would have it
    "user_prompt": "the user's prompt",
    "response_text": "the answer",
    "think_text": "the reasoning",
}


def limits(job: Job, totals: Counter[str]) -> Iterator[str]:
    """Yield sentences, Markdown."""
    yield from {"embeddings": _embeddings, "logits": _logits, "lengths": _lengths}[job.build](job, totals)
    if totals["skipped"]:
        rows = "1 row gives" if totals["skipped"] == 1 else f"{totals['skipped']:,} rows give"
        yield f"{rows} no record; each is listed with its reason in the configuration of skipped rows."


def _embeddings(job: Job, totals: Counter[str]) -> Iterator[str]:
    if left := left_out(job):
        yield f"The vectors know nothing of {left}: the text has no place for it."
    if totals["truncated"]:
        share = totals["truncated"] / max(1, totals["records"])
        yield (
            f"{totals['truncated']:,} texts ({share:.1%}) are longer than {job.max_length:,} tokens: of these, "
            f"{CUT[job.truncate]} is not in the vector. The column `truncated` names them."
        )
    if job.storage_dtype != "float32":
        yield f"Vectors were computed in float32 or {job.dtype} and are stored in {job.storage_dtype}, which rounds them."
    yield (
        "Vectors of other models, other revisions of this model or another prompt cannot be compared with these; the same "
        "job on other hardware gives the same vectors up to rounding."
    )


CUT = {
    "end": "the end",
    "start": "the beginning",
    "middle": "the middle",
    "balanced": "the end of each part",
}


def left_out(job: Job) -> str:
    """Name the parts of a chat that a text view leaves out; "" of none, or where the source has columns of its own."""
    if job.fields:
        names = set(job.fields)
    else:
        names = {name for _, name, _, _ in Formatter().parse(job.text_template or DEFAULT_TEMPLATE) if name}
    names = {ALIASES.get(name, name) for name in names}
    if not names & {*LEFT_OUT, "history", "system"}:
        return ""
    left = [words for name, words in LEFT_OUT.items() if name not in names]
    if job.turns == "last" and "history" not in names:
        left.append("turns before the last")
    if not job.system and "system" not in names:
        left.append("system prompts")
    return " and ".join(filter(None, [", ".join(left[:-1]), *left[-1:]]))


def _logits(job: Job, totals: Counter[str]) -> Iterator[str]:
    yield "Only tokens that the assistant generated have distributions; prompts are in `input_ids` alone."
    yield (
        "Ids that were neither kept nor drawn have no logit of their own: use the weights, as a sum over the stored ids "
        "alone is biased."
    )
    served = ", ".join(f"{t:g}" for t in job.temperatures)
    yield f"Weights are right at temperature {served} and at no other. A student must have the teacher's vocabulary."
    if totals["truncated"]:
        share = totals["truncated"] / max(1, totals["records"])
        yield f"{totals['truncated']:,} conversations ({share:.1%}) are cut after {job.max_length:,} tokens."
    for name, number in totals.items():
        if name.startswith("unread_"):
            yield f"The chat template never prints `{name[7:]}`, which {number:,} conversations have: the teacher saw none."


def _lengths(job: Job, totals: Counter[str]) -> Iterator[str]:
    what = "chat template and " if job.count == "chat" else ""
    yield f"Counts hold for this {what}tokenizer at this revision alone."
    if unsure := sum(number for name, number in totals.items() if name.startswith("no_mask_")):
        yield f"{unsure:,} conversations have a total and no parts: nobody can tell for certain what the assistant wrote."
