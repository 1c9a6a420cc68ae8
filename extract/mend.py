"""`stillroom verify --repair`: make a damaged output an honest one, for a resumed run to complete."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from extract.calibrate import ranges_of_chunks
from extract.plan import open_existing
from extract.ranks import table_again
from extract.settings import Settings
from extract.verify import Proof
from hub.commit import commit_files
from hub.ledger import Ledger
from hub.pending import Receipt
from hub.verify import READ_THREADS


def mend(proof: Proof, settings: Settings) -> bool:
    """Make a damaged output an honest one in one commit, and tell whether a resumed run makes it complete.

    Files of damaged units and files in excess go, and so do the receipts of damaged units; receipts that are lost or wrong
    are written from the files. A complete output that lost units has its receipts in parts again, as a growing one. A rank
    table that cannot be made again takes all units with it.

    Raises:
        CommitError: the output refuses.
        ConfigError: the rank table is to be made, and the model has changed.
    """
    verifier, problems = proof.verifier, proof.report.problems
    damaged = {problem.unit for problem in problems if problem.repair == "compute"}
    unproved = {problem.unit for problem in problems if problem.repair == "receipt"} - damaged
    paths = set[str]()
    files: dict[str, bytes] = {}
    for problem in (problem for problem in problems if problem.repair == "table"):
        metadata = verifier.metadata(proof.units)
        table = ranges_of_chunks(proof.job, metadata) or table_again(proof.job, metadata, settings)
        if table is not None:
            files[problem.path] = table
        else:
            damaged, unproved = {unit.number for unit in proof.units if verifier.files.keys() & unit.paths}, set()
            paths.add(problem.path)
    paths |= {path for number in damaged if number is not None for path in proof.units[number].paths}
    paths |= {problem.path for problem in problems if problem.repair == "delete"}
    if damaged or unproved:
        receipts, old = _new_receipts(proof, damaged, unproved)
        files |= receipts
        paths |= old - files.keys()
    repo = open_existing(verifier.repo.name)  # not the pinned one: a commit tried again looks at what is there
    commit_files(repo, files, sorted(paths & verifier.files.keys()), "Remove what is damaged", lambda: None)
    return not proof.report.missing and (bool(damaged) or not verifier.is_finished)


def _new_receipts(
    proof: Proof, damaged: set[int | None], unproved: set[int | None]
) -> tuple[Mapping[str, bytes], set[str]]:
    """Return the files of the receipts that stay or are written anew, and the paths of all old ones."""
    verifier, layout = proof.verifier, proof.layout
    old = {path for path in verifier.files if path == layout.ledger or path.startswith(f"{layout.receipts}/")}
    fitting = verifier.fitting_receipts(proof.units)
    receipts: dict[int, Receipt] = {
        unit.start: fitting[unit.start]
        for unit in proof.units
        if unit.start in fitting and unit.number not in damaged | unproved
    }
    lost = [unit for unit in proof.units if unit.number in unproved]
    with ThreadPoolExecutor(READ_THREADS) as pool:
        receipts.update({receipt.start: receipt for receipt in pool.map(verifier.receipt_of, lost)})
    ledger = Ledger(verifier.repo, layout.receipts, layout.ledger)
    ledger.add(receipts.values())
    if verifier.is_finished and not damaged:
        return ledger.whole(), old
    return ledger.part(list(ledger.receipts)) if receipts else {}, old
