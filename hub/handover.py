"""Commit operations for files that another machine has sent: what a commit needs of them is path, SHA-256 and size.

huggingface_hub marks an operation as sent in fields of its own (`_upload_mode`, `_is_uploaded`, `_should_ignore`, and
`upload_info`); its pickled operations can be handed over between machines in the same way. Where a release has other
fields, `can_rebuild` says so, and every machine commits its own units.
"""

from __future__ import annotations

from dataclasses import fields

from huggingface_hub import CommitOperationAdd

from hub.pending import Entry

PRIVATE_FIELDS = {"upload_info", "_upload_mode", "_is_uploaded", "_should_ignore", "_remote_oid", "_is_committed"}


def can_rebuild() -> bool:
    """Tell whether the installed huggingface_hub has the fields that `rebuild` sets, and no others that it would need."""
    known = {"path_in_repo", "path_or_fileobj", *PRIVATE_FIELDS}
    try:
        operation = rebuild(Entry("a.parquet", 1, "0" * 64))
    except (AttributeError, TypeError, ValueError, ImportError):
        return False
    return {spec.name for spec in fields(CommitOperationAdd)} <= known and operation.upload_info.size == 1


def rebuild(entry: Entry) -> CommitOperationAdd:
    """Return the operation of a file that the repository has received already."""
    operation = CommitOperationAdd(entry.path, b"")
    info = type(operation.upload_info)(size=entry.size, sample=b"", sha256=bytes.fromhex(entry.sha256))
    operation.upload_info = info
    operation._upload_mode = "lfs"
    operation._should_ignore = False
    operation._is_uploaded = True
    return operation
