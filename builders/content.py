"""The content hash: what the model is given of a row, as 128 bits. Updates find records by it, and readers duplicates."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from hashlib import blake2b

from builders.text import Text

IMAGE = 2**64 - 1  # where else the length of a text stands
HASH_BYTES = 16  # 2**64 rows until two different ones are likely to meet


def content_hash(texts: Sequence[Text]) -> str:
    """Hash the texts of a row to 32 hex digits (BLAKE2b), from nothing but what decides its vectors within one job.

    That is each text with its images, and where its parts begin and end: a balanced cut shares the room among them. Every
    piece comes after its length, so that no two different rows give the same bytes. Position, id and revision are not in it.
    """
    digest = blake2b(digest_size=HASH_BYTES)
    for text in texts:
        content = text.text.encode(errors="surrogatepass")
        bounds = [bound for span in text.spans for bound in (span.start, span.stop)]
        digest.update(struct.pack(f"<QQ{len(bounds)}Q", len(content), len(bounds), *bounds))
        digest.update(content)
        for image in text.images:
            digest.update(struct.pack("<QQ", IMAGE, len(image)))
            digest.update(image)
    return digest.hexdigest()
