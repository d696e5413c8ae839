"""A store made by an older version, brought up to date: what it held is there, and it works on."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from store.making import node_in, states_of, take_in

from edgepacs import config
from edgepacs.errors import ConfigurationError
from edgepacs.model import AETitle, InstanceId, InstanceState, Origin, Service
from edgepacs.store import Store, audit, instances, peers
from edgepacs.store.db import Database, migrations
from edgepacs.telemetry import doorbell

# What version 0.1 (schema 1) wrote: one row of each table that a later migration touches.
_FIRST_ROWS = """
INSERT INTO ae VALUES ('CT1', '192.0.2.10', 104, 'echo store', 1000);
INSERT INTO patient VALUES (1, 'P1', '', '', 'Doe^Jane', '', '', 1000);
INSERT INTO study (id, study_instance_uid, patient, state, state_ms, patient_name, patient_id,
                   issuer, birth_date, sex, study_date, study_time, study_id, accession_number,
                   description, referring_physician, institution, modalities, instance_count,
                   search_text, created_ms, received_ms)
  VALUES (1, '1.2.3.1', 1, 'received', 1000, 'Doe^Jane', 'P1', '', '', '', '', '', '', '', '', '',
          '', 'CT', 1, 'doe jane', 1000, 1000);
INSERT INTO series VALUES (1, 1, '1.2.3.2', 'CT', '1', '', '', '', '', 1, 4, 1000, 1000);
INSERT INTO association VALUES (7, 'CT1', 'EDGEPACS', '192.0.2.10', '1.2 X', 1000);
INSERT INTO instance
  VALUES (5, 1, 1, '1.2.3.4', '1.2.840.10008.5.1.4.1.1.2', '1.2.840.10008.1.2.1',
          '1.2.840.10008.1.2.1', 'stored', 1, x'00112233445566778899aabbccddeeff', 4, 200,
          zeroblob(32), NULL, -1, '1', 0, 0, 0, '', 'modality', 'CT1', 7, 1000);
INSERT INTO destination VALUES (1, 'pacs', 'dimse', 'PACS', '192.0.2.20', 104, 'unknown', 1000, '',
                                1000);
INSERT INTO rule VALUES (1, NULL, '', 0, 0, 1000);
INSERT INTO delivery (kind, subject, study, destination, state, created_ms, changed_ms)
  VALUES ('instance', 5, 1, 1, 'queued', 1000, 1000);
"""


@pytest.fixture
def old(tmp_path: Path) -> Iterator[config.Config]:
    """The configuration of a node whose index only the first migration has made."""
    made = node_in(tmp_path / "node")
    store = Store.unlock(made)
    path, key = store.paths.index, store.keystore.index_key()
    store.close()
    for file in path.parent.glob("index.db*"):
        file.unlink()
    db = Database(path, key)
    with db.write() as tx:
        tx.run(migrations()[0][2])
        tx.run("PRAGMA user_version = 1")
        tx.run(_FIRST_ROWS)
        audit.record(tx, actor="init", act="made", kind="user", subject=None)
    db.close()
    yield made
    doorbell.cache_clear()


def test_a_store_of_version_one_says_what_to_do(old: config.Config) -> None:
    with pytest.raises(ConfigurationError, match=r"schema 1 is older.*edgepacs migrate"):
        Store.open(old)


def test_a_store_of_version_one_is_brought_up_to_date(old: config.Config) -> None:
    store = Store.unlock(old)
    assert store.db.migrate() == [name for _, name, _ in migrations()[1:]]
    store.close()
    store = Store.open(old)
    try:
        assert store.db.problems() == []
        assert audit.broken_at(store.db) is None
        known = peers.known_ae(store.db, AETitle("CT1"))
        assert known == peers.KnownAE(
            title=AETitle("CT1"),
            host="192.0.2.10",
            port=104,
            services="echo store",
            created_ms=1000,
            max_associations=16,
            max_object_mib=0,
            max_object_seconds=3600,
        )
        assert known.may(Service.STORE)
        found = instances.instance(store.db, InstanceId(5))
        assert (found.sop_instance_uid, found.state) == ("1.2.3.4", InstanceState.STORED)
        assert (found.origin, found.received_ms) == (Origin.MODALITY, 1000)
        assert states_of(store) == ["queued"]
    finally:
        store.close()


def test_a_store_brought_up_to_date_works_on(old: config.Config) -> None:
    store = Store.unlock(old)
    store.db.migrate()
    try:
        receipt = take_in(store, study="1.2.3.1", series="1.2.3.2", patient_id="P1")
        assert (receipt.study_id, receipt.instance_id) == (1, 6)
        assert states_of(store) == ["queued", "queued"]
        assert store.db.problems() == []
    finally:
        store.close()
