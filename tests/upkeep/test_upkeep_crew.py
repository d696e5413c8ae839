"""The crew and its workers: nothing a worker does or suffers costs more than its own instance."""

import contextlib
import os
import random
import signal
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import blake3
import psutil
import pytest
from custody.pressing import received, row
from harness import corpus
from harness.box import Box
from harness.fault import Failpoint
from harness.made import ct, new_uid
from harness.part10 import Part10
from harness.waiting import stays, until
from store.making import arrival, objects, take_in_part
from upkeep.crewing import (
    at_work,
    intact,
    large,
    reason,
    settled,
    states,
    until_settled,
    with_workers,
)

from edgepacs import config, upkeep
from edgepacs.custody import ingest, restore
from edgepacs.errors import Busy
from edgepacs.model import CompressionState, InstanceId
from edgepacs.pixels.syntaxes import JPEG_LS
from edgepacs.store import Store, compressions, fsck
from edgepacs.store.compressions import Selection
from edgepacs.upkeep import pace
from edgepacs.upkeep.crew import Crew, Limits


def take(store: Store, *parts: Part10) -> dict[InstanceId, Part10]:
    return {take_in_part(store, part).instance_id: part for part in parts}


def series(count: int) -> list[Part10]:
    study, one = new_uid(), new_uid()
    return [ct(study=study, series=one, number=number) for number in range(count)]


def pids(crew: Crew) -> list[int]:
    return [worker.process.pid for worker in crew._workers]


def at_a_job(crew: Crew) -> list[int]:
    return [worker.process.pid for worker in list(crew._workers) if worker.task is not None]


def test_what_has_been_received_is_compressed_and_what_comes_later_too(store: Store):
    store = with_workers(store, 2)
    parts = take(store, *series(6), *series(3))
    with at_work(store) as crew:
        until_settled(store)
        assert len(pids(crew)) == 2
        parts |= take(store, *series(2))
        until_settled(store)
        workers = [psutil.Process(pid) for pid in pids(crew)]
        assert all(one.nice() == 19 for one in workers)
        assert all(os.sched_getscheduler(one.pid) == os.SCHED_IDLE for one in workers)
    assert not any(one.is_running() for one in workers)
    assert set(states(store).values()) == {"compressed"}
    assert {row(store, number).transfer_syntax_uid for number in parts} == {JPEG_LS}
    intact(store, parts)


def test_the_role_compresses(store: Store):
    store = with_workers(store)
    parts = take(store, ct())
    stop = threading.Event()
    thread = threading.Thread(target=upkeep.run, args=(store, stop))
    thread.start()
    try:
        until_settled(store)
    finally:
        stop.set()
        thread.join(30)
    assert not thread.is_alive()
    assert set(states(store).values()) == {"compressed"}
    intact(store, parts)


def test_off_means_off(store: Store):
    store = with_workers(store, 0)
    take(store, ct())
    stop = threading.Event()
    thread = threading.Thread(target=upkeep.run, args=(store, stop))
    thread.start()
    stays(lambda: compressions.pending(store.db), "nothing is planned", seconds=1.5)
    stop.set()
    thread.join(30)
    assert set(states(store).values()) == {""}


def test_workers_killed_at_random_moments_cost_nothing(store: Store):
    """Must show 6: 0 altered, 0 lost, 0 leftovers."""
    chance = random.Random(corpus.SEED)
    store = with_workers(store, 2)
    parts = take(store, *(large(2 + n % 6, 256) for n in range(6)), *series(6))
    kills = corpus.count(20, 200)
    with at_work(store) as crew:
        while kills:
            if settled(store):
                with store.db.write() as tx:
                    compressions.again(tx, Selection(), actor="test")
            victims = at_a_job(crew)
            if not victims:
                time.sleep(0.005)
                continue
            time.sleep(chance.uniform(0, 0.1))  # the random moment itself
            with contextlib.suppress(ProcessLookupError):  # it has ended by itself
                os.kill(chance.choice(victims), signal.SIGKILL)
                kills -= 1
        until_settled(store, seconds=120)
    intact(store, parts)
    assert not set(states(store).values()) & {"waiting", "compressing"}
    with store.db.write() as tx:
        compressions.again(tx, Selection(state=CompressionState.FAILED), actor="test")
    with at_work(store):
        until_settled(store)
    assert set(states(store).values()) == {"compressed"}
    intact(store, parts)


@pytest.mark.parametrize("point", ["compress.sealed", "compress.proved"])
def test_a_worker_that_always_crashes_over_an_instance(
    store: Store, point: str, monkeypatch: pytest.MonkeyPatch
):
    store = with_workers(store)
    parts = take(store, ct())
    (number,) = parts
    monkeypatch.setenv("EDGEPACS_FAILPOINT", point)
    with at_work(store):
        until_settled(store)
    assert states(store) == {number: "failed"}
    assert "signal 9" in reason(store, number)
    intact(store, parts)
    monkeypatch.delenv("EDGEPACS_FAILPOINT")
    with store.db.write() as tx:
        compressions.again(tx, Selection(instance=number), actor="test")
    with at_work(store):
        until_settled(store)
    assert states(store) == {number: "compressed"}
    intact(store, parts)


def test_a_worker_that_hangs_is_ended(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    store = with_workers(store)
    parts = take(store, ct())
    (number,) = parts
    point = Failpoint("compress.sealed", tmp_path / "point")
    for name, value in point.env().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(compressions, "MAX_ATTEMPTS", 2)
    with at_work(store, Limits(asleep=0.5)):
        until_settled(store)
    assert states(store) == {number: "failed"}
    assert "did nothing" in reason(store, number)
    intact(store, parts)


def test_a_worker_that_takes_too_long_is_ended(store: Store, monkeypatch: pytest.MonkeyPatch):
    store = with_workers(store)
    parts = take(store, large(40), ct())
    first, second = parts
    monkeypatch.setattr(compressions, "MAX_ATTEMPTS", 1)
    with at_work(store, Limits(base=0.05, bytes_a_second=1 << 40)):
        until_settled(store)
    assert states(store)[first] == "failed"
    assert "of the processor" in reason(store, first)
    assert states(store)[second] in ("compressed", "failed")
    intact(store, parts)


def test_a_worker_outgrows_its_memory(store: Store):
    """Its own instance stays as it is; the next is compressed."""
    store = with_workers(store)
    parts = take(store, large(1, 4096), ct())
    first, second = parts
    with at_work(store, Limits(memory=48 << 20)):
        until_settled(store)
    assert states(store)[first] in ("failed", "native")
    assert reason(store, first)
    assert states(store)[second] == "compressed"
    intact(store, parts)


def test_workers_that_cannot_start_blame_no_instance(store: Store):
    store = with_workers(store)
    parts = take(store, ct())
    (number,) = parts
    with at_work(store, Limits(memory=0)) as crew:
        until(lambda: crew._rest_until > 0, "the crew rests")
    (found,) = compressions.results(store.db, Selection(instance=number))
    assert (found.state, found.attempts) == ("waiting", 0)
    intact(store, parts)


def test_at_shutdown_everything_stops_at_once_and_nothing_is_left(store: Store):
    store = with_workers(store)
    parts = take(store, large(60), *series(3))
    with at_work(store) as crew:
        until(lambda: at_a_job(crew), "a worker at work")
        workers = [psutil.Process(pid) for pid in pids(crew)]
        begin = time.monotonic()
    assert time.monotonic() - begin < 3
    assert not any(one.is_running() for one in workers)
    found = compressions.results(store.db, Selection())
    assert {(one.state, one.attempts) for one in found} <= {("waiting", 0), ("compressed", 1)}
    intact(store, parts)


def test_a_worker_dies_with_its_crew(store: Store):
    """Not even a crew that is killed leaves a worker behind."""
    take(store, large(60))
    path = store.config.path
    path.write_text(path.read_text().replace('workers = "auto"', "workers = 1"))
    crew = psutil.Popen(Box.command(_Place(path), "upkeep"))
    workers = until(crew.children, "a worker")
    crew.kill()
    crew.wait()
    until(lambda: not any(one.is_running() for one in workers), "the worker is gone too")


class _Place:
    """What Box.command needs to know of a node."""

    def __init__(self, path: Path) -> None:
        self.config = path


def test_killed_right_after_the_swap(store: Store):
    """The row names the new object, the former one is still there: the sweep settles it."""
    parts = take(store, ct())
    (number,) = parts
    path = store.config.path
    path.write_text(path.read_text().replace('workers = "auto"', "workers = 1"))
    crew = psutil.Popen(
        Box.command(_Place(path), "upkeep"),
        env={**os.environ, "EDGEPACS_FAILPOINT": "compress.swapped"},
    )
    assert crew.wait(60) == -signal.SIGKILL
    assert len(objects(store)) == 2
    assert received(store, number) == parts[number].data
    assert fsck.sweep(store).removed == 1
    intact(store, parts)
    again = with_workers(store)
    with at_work(again):
        until_settled(again)
    assert states(store) == {number: "compressed"}
    intact(store, parts)


def test_sweeps_wait_while_workers_write_and_not_longer(store: Store):
    store = with_workers(store)
    take(store, large(30))
    with at_work(store) as crew:
        until(lambda: at_a_job(crew), "a worker at work")
        with pytest.raises(Busy):
            fsck.sweep(store)
        until_settled(store)
        until(lambda: not crew._is_writing, "the crew has let go")
        fsck.sweep(store)


def test_idle_workers_end(store: Store):
    store = with_workers(store)
    take(store, ct())
    with at_work(store, Limits(idle=0.0)) as crew:
        until_settled(store)
        until(lambda: not pids(crew), "no worker is left")


def test_workers_stand_still_while_modalities_send(store: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pace, "_spare", lambda _cores: float("inf"))  # no core counts as free
    monkeypatch.setattr(pace, "ARRIVING_SECONDS", 1.0)
    store = with_workers(store)
    take(store, large(60))
    with at_work(store) as crew:
        until(lambda: at_a_job(crew), "a worker at work")
        take(store, ct())
        until(lambda: crew._workers[0].stopped, "the worker stands still")
        worker = psutil.Process(pids(crew)[0])
        until(lambda: worker.status() == psutil.STATUS_STOPPED, "the kernel has stopped it")
        until(lambda: not crew._workers[0].stopped, "it goes on")
        until_settled(store)


def test_a_budget_makes_workers_stand_still(store: Store):
    store = with_workers(store, cpu_percent=10)
    take(store, large(30))
    with at_work(store) as crew:
        until(lambda: at_a_job(crew), "a worker at work")
        until(lambda: crew._workers and crew._workers[0].stopped, "it has used what it may")
        process = psutil.Process(pids(crew)[0])
        used, begin = sum(process.cpu_times()[:2]), time.monotonic()
        time.sleep(2)
        share = (sum(process.cpu_times()[:2]) - used) / (time.monotonic() - begin)
        assert share < 0.3


def test_a_disk_that_is_full_makes_the_crew_rest(store: Store):
    """Nothing is lost and nobody is blamed: it is done later."""
    parts = take(store, ct())
    (number,) = parts
    path = store.config.path
    path.write_text(path.read_text().replace("reserve_mib = 0", "reserve_mib = 1000000000"))
    store = with_workers(store)
    with at_work(store) as crew:
        until(lambda: crew._rest_until > 0, "the crew rests")
    (found,) = compressions.results(store.db, Selection(instance=number))
    assert (found.state, found.attempts) == ("waiting", 0)
    intact(store, parts)


def test_an_instance_that_is_damaged_stays_and_says_so(store: Store):
    parts = take(store, ct())
    (number,) = parts
    (path,) = objects(store)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    store = with_workers(store)
    with at_work(store):
        until_settled(store)
    assert states(store) == {number: "native"}
    assert "does not authenticate" in reason(store, number)
    assert objects(store) == [path]


def test_workers_get_the_configuration_of_the_node(store: Store):
    """The crew reads it from the store, a worker from the file: both are the same node."""
    assert config.load(store.config.path) == store.config
    assert replace(store.config.compression, workers=3).workers == 3


def peak_mib(pid: int) -> float:
    """The most memory a process has had at once, in MiB (proc(5), VmHWM)."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def test_seven_megapixels_fit_into_200_megabytes(store: Store):
    """Must show 5."""
    store = with_workers(store)
    parts = take(store, large(1, 2700))
    with at_work(store) as crew:
        until_settled(store)
        peak = peak_mib(pids(crew)[0])
    assert set(states(store).values()) == {"compressed"}
    assert peak < 200 / 1.048576
    intact(store, parts)


def test_a_long_multi_frame_takes_no_more_memory_than_a_short_one(store: Store):
    """Must show 5: frame by frame; 2 GB in the soak."""
    frames = corpus.count(100, 4096)
    one = large(1)
    at = one.data.index(b"\xe0\x7f\x10\x00OW\0\0") + 12
    head, frame = one.data[: at - 4], one.data[at:]
    number_of_frames = f"{frames:<4}".encode()
    before, after = b"\x28\x00\x08\x00IS\x02\x001 ", b"\x28\x00\x08\x00IS\x04\x00"
    head = head.replace(before, after + number_of_frames)
    digest = blake3.blake3()

    def fragments() -> Iterator[bytes]:
        yield head + struct.pack("<I", frames * len(frame))
        for number in range(frames):
            yield frame[2 * number :] + frame[: 2 * number]

    def counted() -> Iterator[bytes]:
        for fragment in fragments():
            digest.update(fragment)
            yield fragment

    number = ingest.receive(store, arrival(one), counted()).instance_id
    store = with_workers(store)
    with at_work(store) as crew:
        until_settled(store, seconds=60 + frames)
        peak = peak_mib(pids(crew)[0])
    now = row(store, number)
    assert now.frames == frames
    assert now.transfer_syntax_uid == JPEG_LS
    assert peak < 200 / 1.048576
    again = blake3.blake3()
    for chunk in restore.received_chunks(store, now):
        again.update(chunk)
    assert again.digest() == digest.digest()
    assert fsck.check(store).sound


def test_workers_leave_it_to_the_crew_when_to_end(store: Store):
    """A service manager signals every process at once: nobody is blamed for that."""
    store = with_workers(store)
    parts = take(store, large(30))
    with at_work(store) as crew:
        until(lambda: at_a_job(crew), "a worker at work")
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(pids(crew)[0], number)
        until_settled(store)
    (found,) = compressions.results(store.db, Selection())
    assert (found.state, found.attempts) == ("compressed", 1)
    intact(store, parts)
