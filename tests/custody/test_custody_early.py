"""Compression before the acknowledgement: only the smaller form is ever sealed."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from custody.pictures import LIES, NATIVE, colour, gradient, picture
from custody.pressing import press, received, row, sealed
from harness import corpus
from store.making import arrival, objects, opened_store, take_in, take_in_part

from edgepacs.config import Compression
from edgepacs.custody import early, ingest
from edgepacs.errors import EdgePacsError, InvalidValue, LimitExceeded, NoRoom
from edgepacs.model import Outcome
from edgepacs.pixels.syntaxes import DEFLATED_DATA_SET, JPEG_LS
from edgepacs.store import Store, compressions, fsck
from edgepacs.store.compressions import Selection
from edgepacs.store.rebuild import rebuild


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A store that compresses before it acknowledges."""
    with opened_store(tmp_path / "node") as one:
        yield with_early(one)
    assert early._room._held == 0


def with_early(store: Store) -> Store:
    return replace(store, config=replace(store.config, compression=Compression(before_ack=True)))


@pytest.mark.parametrize("transfer_syntax", NATIVE)
def test_sealed_once_and_compressed(store: Store, transfer_syntax: str):
    for part in (picture(transfer_syntax=transfer_syntax), colour(transfer_syntax=transfer_syntax)):
        receipt = take_in_part(store, part)
        now = row(store, receipt.instance_id)
        assert now.transfer_syntax_uid != now.received_syntax_uid == transfer_syntax
        assert now.byte_length == len(sealed(store, now.id)) < len(part.data)
        assert now.native_digest is not None
        assert received(store, now.id) == part.data
        (result,) = compressions.results(store.db, Selection(instance=now.id))
        assert (result.state, result.received_length) == ("compressed", len(part.data))
    assert len(objects(store)) == 2
    assert fsck.check(store).sound
    assert press(store) == {}


def test_the_whole_sample_comes_back(store: Store):
    parts = {}
    for part in corpus.sample():
        try:
            parts[take_in_part(store, part).instance_id] = part
        except EdgePacsError:  # refused without early compression too
            continue
    assert len(parts) > 20
    assert all(received(store, number) == part.data for number, part in parts.items())
    stand = {row(store, number).transfer_syntax_uid for number in parts}
    assert stand >= {JPEG_LS, DEFLATED_DATA_SET}
    assert fsck.check(store).sound


def test_the_same_again_is_a_duplicate(store: Store):
    part = picture()
    first = take_in_part(store, part)
    again = take_in_part(store, part)
    assert (again.outcome, again.instance_id) == (Outcome.DUPLICATE, first.instance_id)
    assert len(objects(store)) == 1
    assert received(store, first.instance_id) == part.data
    assert fsck.check(store).sound


def test_an_index_made_again_knows_what_it_knew(store: Store):
    part = picture()
    number = take_in_part(store, part).instance_id
    before = row(store, number)
    store.db.close()
    for path in store.paths.data_dir.glob("index.db*"):
        path.unlink()
    assert rebuild(store.config).instances == 1
    with_rebuilt = Store.open(store.config)
    try:
        assert replace(row(with_rebuilt, 1), id=before.id) == before
        (result,) = compressions.results(with_rebuilt.db, Selection())
        assert (result.state, result.received_length) == ("compressed", len(part.data))
        assert received(with_rebuilt, 1) == part.data
        assert fsck.check(with_rebuilt).sound
    finally:
        with_rebuilt.close()


@pytest.mark.parametrize("name", LIES)
def test_what_lies_is_sealed_as_it_came(store: Store, name: str):
    part = LIES[name][0]()
    number = take_in_part(store, part).instance_id
    assert sealed(store, number) == part.data
    assert row(store, number).transfer_syntax_uid == part.transfer_syntax
    assert fsck.check(store).sound


def test_what_has_no_pixels_is_sealed_as_it_came(store: Store):
    number = take_in(store).instance_id
    assert received(store, number) == sealed(store, number)


def test_what_memory_does_not_hold_goes_the_usual_way(
    store: Store, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(early, "MAX_HELD", 10_000)
    part = picture()
    come = arrival(part)
    pieces = [part.data[at : at + 4000] for at in range(0, len(part.data), 4000)]
    number = ingest.receive(store, come, pieces).instance_id
    assert sealed(store, number) == part.data
    assert early._room._held == 0


def test_room_is_shared_and_given_back(store: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(early, "MAX_HELD", 60_000)
    one, other = picture(), picture(gradient(seed=2))
    waiting = early.EarlyIntake(store, arrival(one))
    waiting.write(one.data)
    number = take_in_part(store, other).instance_id  # there is no room for it beside the first
    assert sealed(store, number) == other.data
    receipt = waiting.commit()
    assert row(store, receipt.instance_id).transfer_syntax_uid == JPEG_LS
    third = take_in_part(store, picture(gradient(seed=3))).instance_id
    assert row(store, third).transfer_syntax_uid == JPEG_LS


def test_nothing_is_left_of_what_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch):
    part = picture()
    with pytest.raises(InvalidValue):
        ingest.receive(store, arrival(part), [part.data[:-1]])
    assert objects(store) == []
    broken = early.EarlyIntake(store, arrival(part))
    broken.write(part.data[:1000])
    broken.discard()
    assert objects(store) == []
    small = replace(store, config=replace(store.config, dicom=_small(store)))
    noise = picture(np.zeros((1024, 1024), "u2"))
    with pytest.raises(LimitExceeded):
        take_in_part(small, noise)
    monkeypatch.setattr(store.vault, "_reserve", 1 << 60)
    with pytest.raises(NoRoom):
        take_in_part(store, part)
    assert objects(store) == []


def _small(store: Store) -> object:
    return replace(store.config.dicom, max_object_mib=1)
