"""Priors from real archives, by the whole forward role: C-GET, C-MOVE and WADO-RS."""

import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from forward.sending import forwarding, hasten
from harness import made
from harness.orthanc import Orthanc, with_dicomweb
from harness.part10 import Part10
from harness.waiting import until
from scp.serving import Serving, serving
from store.making import states_of, take_in

from edgepacs.forward import prefetch
from edgepacs.model import InstanceId, InstanceState, Origin, PrefetchState
from edgepacs.store import Store, destinations, instances, prefetches

pytestmark = pytest.mark.peers
PATIENT = "TEST-PATIENT"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    hasten(monkeypatch)
    monkeypatch.setattr(prefetch, "LOOK_SECONDS", 0.1)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Serving]:
    with serving(tmp_path / "node") as one:
        yield one


@contextmanager
def archive(folder: Path, node: Serving) -> Iterator[tuple[Orthanc, list[Part10]]]:
    """An Orthanc that knows the node, with two studies of the patient and one of another."""
    one = with_dicomweb(folder)
    settings = json.loads(one._config.read_text())
    known = {"AET": "EDGEPACS", "Host": "127.0.0.1", "Port": node.port}
    settings["DicomModalities"] = {"edge": known}
    one._config.write_text(json.dumps(settings))
    with one:
        own = [*study(3), *study(2)]
        for part in [*own, *study(2, patient_id="SOMEBODY-ELSE")]:
            upload(one, part)
        yield one, own


def study(count: int, patient_id: str = PATIENT) -> list[Part10]:
    uid, series = made.new_uid(), made.new_uid()
    return [
        made.ct(study=uid, series=series, patient_id=patient_id, number=number + 1)
        for number in range(count)
    ]


def upload(to: Orthanc, part: Part10) -> None:
    url = f"http://127.0.0.1:{to.http_port}/instances"
    urllib.request.urlopen(urllib.request.Request(url, data=part.file()), timeout=10).close()


def point_at(store: Store, one: Orthanc, **settings: str) -> None:
    with store.db.write() as tx:
        destinations.add(
            tx, name="pacs", title=one.ae_title, host="127.0.0.1", port=one.port, actor="test"
        )
        url = f"http://127.0.0.1:{one.http_port}/dicom-web"
        destinations.change(tx, "pacs", {"priors_years": "100", "url": url, **settings}, actor="t")


def finished(store: Store) -> prefetches.Prefetch:
    until(
        lambda: [one for one in prefetches.listed(store.db) if one.state.over],
        "the task is over",
        seconds=40,
    )
    (task,) = prefetches.listed(store.db)
    return task


def stored(store: Store) -> dict[str, instances.Instance]:
    with store.db.read() as tx:
        rows = tx.rows("SELECT id FROM instance WHERE origin = 'prefetch'")
    found = [instances.instance(store.db, InstanceId(row[0])) for row in rows]
    return {str(one.sop_instance_uid): one for one in found}


@pytest.mark.parametrize("way", ["get", "move", "web"])
def test_the_priors_of_a_new_patient_are_fetched(node: Serving, tmp_path: Path, way: str) -> None:
    store = node.store
    with archive(tmp_path / "orthanc", node) as (orthanc, own):
        point_at(store, orthanc, priors=way)
        take_in(store, patient_id=PATIENT)
        with forwarding(store):
            task = finished(store)
    assert (task.state, task.studies, task.instances) == (PrefetchState.DONE, 2, 5), task.words
    assert task.byte_size >= sum(len(part.data) for part in own) * 9 // 10
    found = stored(store)
    assert found.keys() == {part.sop_instance for part in own}
    assert {one.state for one in found.values()} == {InstanceState.STORED}
    assert {one.origin for one in found.values()} == {Origin.PREFETCH}
    assert len(states_of(store)) == 1  # of the new study: what was fetched is not routed
