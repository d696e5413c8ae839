"""Rebuilding the index from objects and keystore.

Patients, studies, series and instances come back from what is sealed with each object, and with
them which version stands for which: corrections that were carried out stay so. What only the index
knew does not come back: see `LOST`.
"""

from dataclasses import dataclass, field
from pathlib import Path

from edgepacs.config import Config
from edgepacs.errors import Conflict, EdgePacsError
from edgepacs.model import ObjectId, Outcome
from edgepacs.store import Paths, founding, instances, users
from edgepacs.store.db import Database
from edgepacs.store.drafts import Draft
from edgepacs.store.files import sync_directory
from edgepacs.store.keystore import Keystore, device_key
from edgepacs.store.vault import Vault

_BATCH = 500
LOST = (
    "AE titles, destinations, rules and users, which have to be entered again",
    "HL7 messages, worklist sources and the worklist; only what its sources still have comes again",
    "procedure steps, and requests for storage commitment that were not answered yet",
    "verdicts on studies, which order each was linked with, and corrections that were waiting",
    "what was sent where, what was waiting to be sent, and what was evicted",
    "the audit trail before this day",
)
"""What does not come back, for people."""


@dataclass(slots=True, kw_only=True)
class Rebuilt:
    """What came back, and what could not be read (object id in hex to reason)."""

    instances: int = 0
    corrected: int = 0  # of them: written anew by an order, and standing for what was received
    unreadable: dict[str, str] = field(default_factory=dict)
    user: str = founding.ADMIN
    password: str = ""


def rebuild(config: Config, outer_key: bytes | None = None) -> Rebuilt:
    """Make the index again; the old one must have been moved away. Durable on return.

    `outer_key` is a recovery key where the device key is lost. The administrator gets a new
    one-time password. Raises Conflict where there is an index, Busy while anybody writes.
    """
    paths = Paths(config.data_dir)
    if paths.index.exists():
        raise Conflict(f"{paths.index}: exists; move it away first if it is beyond use")
    keystore = Keystore.open(paths.keystore, outer_key or device_key(config))
    vault = Vault(paths.objects, keystore, reserve=0)
    result = Rebuilt(password=users.one_time_password())
    with vault.alone():
        drafts = _drafts(vault, result)
        making = paths.index.with_name("index.rebuilding")
        _remove_database(making)
        founding.create_index(making, keystore.index_key(), result.password, one_time=True)
        db = Database(making, keystore.index_key())
        for start in range(0, len(drafts), _BATCH):
            receipts = instances.commit(db, drafts[start : start + _BATCH])
            result.instances += sum(one.outcome is not Outcome.DUPLICATE for one in receipts)
        result.corrected = instances.corrected(db)
        db.close()
        _remove_database(paths.index)  # a journal left behind belongs to the lost index
        making.rename(paths.index)
        _remove_database(making)
        sync_directory(paths.data_dir)
    return result


def _drafts(vault: Vault, result: Rebuilt) -> list[Draft]:
    """What is sealed with every object, in the order of arrival."""
    drafts = []
    for object_id in vault.object_ids():
        if not vault.size(object_id):  # a blank a crash has left
            continue
        try:
            drafts.append(_draft(vault, object_id))
        except EdgePacsError as error:
            result.unreadable[object_id.hex()] = str(error)
    # Of an instance that a crash has left twice, what was received comes last, and so stands.
    return sorted(drafts, key=lambda one: (one.received_ms, one.at_rest is None, one.object_id))


def _draft(vault: Vault, object_id: ObjectId) -> Draft:
    with vault.open(object_id) as reader:
        return Draft.from_trailer(reader.trailer(), object_id, vault.size(object_id))


def _remove_database(path: Path) -> None:
    for suffix in ("", "-wal", "-shm", ".lock"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
