"""Stores and instances for tests below the wire: real keys, real SQLite, real files."""

import atexit
import itertools
import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp

from harness import made
from harness.part10 import EXPLICIT_LE, Part10

from edgepacs import config
from edgepacs.clock import wall_ms
from edgepacs.custody import ingest
from edgepacs.custody.scan import scan
from edgepacs.model import UID, Arrival, Origin, Receipt
from edgepacs.store import Store, claims, destinations, founding, instances
from edgepacs.store.claims import Claim
from edgepacs.store.drafts import Draft
from edgepacs.telemetry import doorbell

CT = UID(made.CT)
PASSWORD = "correct horse battery"


@lru_cache(maxsize=1)
def template() -> tuple[Path, founding.Founded]:
    """A node as `init` makes it, once a test run."""
    parent = Path(mkdtemp(prefix="edgepacs-template-"))
    atexit.register(shutil.rmtree, parent)
    folder = parent / "node"
    founded = founding.create_node(
        folder, title="EDGEPACS", dicom_port=0, http_port=0, password=PASSWORD
    )
    text = founded.config_path.read_text()
    founded.config_path.write_text(
        text.replace("[dicom]", "reserve_mib = 0\n\n[dicom]").replace("0.0.0.0", "127.0.0.1")
    )
    return folder, founded


def node_in(folder: Path) -> config.Config:
    """A fresh node in `folder`, which must not exist."""
    made = template()[0]
    for inner in ("", "keys", "data", "tls", "data/objects"):
        (folder / inner).mkdir(mode=0o700, parents=True)
    for shard in range(256):
        (folder / "data" / "objects" / f"{shard:02x}").mkdir()
    for path in template_files():
        shutil.copy(path, folder / path.relative_to(made))
    return config.load(folder / "edgepacs.toml")


@lru_cache(maxsize=1)
def template_files() -> list[Path]:
    return [path for path in template()[0].rglob("*") if path.is_file()]


@contextmanager
def opened_store(folder: Path) -> Iterator[Store]:
    """The store of a fresh node in `folder`."""
    store = Store.open(node_in(folder))
    try:
        yield store
    finally:
        store.close()
        doorbell.cache_clear()


def arrival(
    part: Part10 | None = None,
    *,
    sop: str = "1.2.3.4",
    syntax: str = EXPLICIT_LE,
    sop_class: str = CT,
    origin: Origin = Origin.MODALITY,
    source: str = "CT1",
) -> Arrival:
    if part is not None:
        sop, syntax, sop_class = part.sop_instance, part.transfer_syntax, part.sop_class
    return Arrival(
        sop_class_uid=UID(sop_class),
        sop_instance_uid=UID(sop),
        transfer_syntax_uid=UID(syntax),
        origin=origin,
        source=source,
    )


def element(tag: int, vr: str, value: bytes | str) -> bytes:
    """One explicit little endian element, padded to even length."""
    raw = value.encode() if isinstance(value, str) else value
    raw += (b"\0" if vr in ("UI", "OB") else b" ") * (len(raw) % 2)
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr.encode()
    if vr in ("OB", "OW", "OF", "SQ", "UN", "UT", "UC", "UR", "OD", "OL", "SV", "UV", "OV"):
        return head + struct.pack("<2xI", len(raw)) + raw
    return head + struct.pack("<H", len(raw)) + raw


def small(
    *,
    sop: str = "1.2.3.4",
    study: str = "1.2.3.1",
    series: str = "1.2.3.2",
    sop_class: str = CT,
    patient_id: str = "P1",
    issuer: str = "",
    name: str = "Doe^Jane",
    modality: str = "CT",
    station: str = "",
    description: str = "",
    number: str = "1",
    more: bytes = b"",
) -> bytes:
    """A small explicit little endian data set without pixels; `more` goes at its end."""
    return b"".join(
        (
            element(0x00080005, "CS", "ISO_IR 192"),
            element(0x00080016, "UI", sop_class),
            element(0x00080018, "UI", sop),
            element(0x00080060, "CS", modality),
            element(0x00081010, "SH", station),
            element(0x00081030, "LO", description),
            element(0x00100010, "PN", name),
            element(0x00100020, "LO", patient_id),
            element(0x00100021, "LO", issuer),
            element(0x0020000D, "UI", study),
            element(0x0020000E, "UI", series),
            element(0x00200013, "IS", number),
            more,
        )
    )


_serial = itertools.count(1)


def fresh_uid() -> str:
    return f"2.25.{next(_serial)}"


def take_in(
    store: Store,
    *,
    sop: str = "",
    origin: Origin = Origin.MODALITY,
    source: str = "CT1",
    **attributes: str | bytes,
) -> Receipt:
    """Ingest one small instance."""
    uid = sop or fresh_uid()
    data = small(sop=uid, **attributes)  # type: ignore[arg-type]
    return ingest.receive(store, arrival(sop=uid, origin=origin, source=source), [data])


def take_in_part(store: Store, part: Part10, **where: object) -> Receipt:
    return ingest.receive(store, arrival(part, **where), [part.data])  # type: ignore[arg-type]


def draft(store: Store, *, content: bytes = b"", **attributes: object) -> Draft:
    """A draft whose sealed object really stands in the vault."""
    uid = str(attributes.pop("sop", "") or fresh_uid())
    origin = attributes.pop("origin", Origin.MODALITY)
    source = attributes.pop("source", "CT1")
    received_ms = attributes.pop("received_ms", 0) or wall_ms()
    data = small(sop=uid, more=content, **attributes)  # type: ignore[arg-type]
    come = arrival(sop=uid, origin=origin, source=source)  # type: ignore[arg-type]
    found, pixel_offset = scan(data, come)
    writer = store.vault.new(come.sop_instance_uid)
    writer.write(data)
    made_draft = Draft(
        arrival=come,
        attributes=found,
        object_id=writer.object_id,
        byte_length=writer.length,
        sealed_length=0,
        received_digest=writer.fingerprint,
        pixel_offset=pixel_offset,
        received_ms=int(received_ms),  # type: ignore[call-overload]
    )
    key_id, key = store.keystore.ensure_study_key(found.study_instance_uid)
    writer.finish(key_id, key, made_draft.trailer())
    return made_draft


def commit(store: Store, one: Draft) -> Receipt:
    return instances.commit(store.db, [one])[0]


def add_destination(store: Store, name: str = "pacs", title: str = "PACS", port: int = 1) -> int:
    with store.db.write() as tx:
        return destinations.add(
            tx, name=name, title=title, host="127.0.0.1", port=port, actor="test"
        )


def deliveries_of(store: Store) -> list[tuple[str, str, int, int]]:
    """(state, hold reason, priority, attempts) of every delivery, oldest first."""
    with store.db.read() as tx:
        return [
            (str(row[0]), str(row[1]), int(row[2]), int(row[3]))
            for row in tx.rows(
                "SELECT state, hold_reason, priority, attempts FROM delivery ORDER BY id"
            )
        ]


def states_of(store: Store) -> list[str]:
    return [row[0] for row in deliveries_of(store)]


def claim_one(store: Store, destination: int) -> Claim:
    (claimed,) = claims.claim(store.db, destination, 1)
    return claimed


def objects(store: Store) -> list[Path]:
    """Every file of a sealed object."""
    return [path for path in store.paths.objects.glob("??/*") if path.is_file()]
