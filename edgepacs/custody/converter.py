"""Converting in a process of its own: a codec that crashes or hangs costs one instance a try.

`Converter` starts the process, which runs `main`, and asks it for one instance after the other.
Only that process loads codecs.
An order is a line of JSON; the answer are messages: a letter, a length, that many bytes. Data
sets pass through the pipe and memory alone.
"""

import contextlib
import json
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Generator, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import IO, Any, NamedTuple

from edgepacs import child, config, telemetry
from edgepacs.errors import (
    Busy,
    EdgePacsError,
    NoRoom,
    NotFound,
    NotOffered,
    Tampered,
    Undecodable,
)
from edgepacs.model import UID, InstanceId, ObjectId
from edgepacs.store import Store, instances
from edgepacs.store.instances import Instance

_HEAD = struct.Struct(">cI")
_NICE = 10
_MEMORY = 2 << 30  # bytes beyond its own; a frame may take 256 MiB decoded
_SECONDS = 60.0
_BYTES_A_SECOND = 1_000_000  # a slow machine with better things to do
_SECONDS_MOST = 4 * 3600.0


class ConverterBroke(EdgePacsError):
    """The process that converts instances failed over one: ended, hung or ran out of memory."""


_ERRORS: dict[str, type[EdgePacsError]] = {
    one.__name__: one for one in (NotOffered, NotFound, Tampered, NoRoom, Busy, ConverterBroke)
}


@dataclass(frozen=True, slots=True)
class Order:
    """One instance in one of the transfer syntaxes `accepted`; `lossy` as in `outgoing`.

    `object_id` is that of the object it was ordered for: a rewrite is another order.
    """

    instance: InstanceId
    object_id: ObjectId
    accepted: frozenset[UID]
    lossy: int = 0


class Kind(StrEnum):
    """What a message is."""

    BEGIN = "B"  # JSON: transfer syntax and SOP Instance UID; forget what came before
    DATA = "D"
    END = "E"
    AS_STORED = "S"  # it goes out as it stands
    ERROR = "X"  # JSON: class and words


class Message(NamedTuple):
    """One message of the converter."""

    kind: Kind
    content: bytes


class Converter:
    """A converting process of `role`, started when it is needed; for one thread.

    The process ends with the thread that has started it.
    """

    def __init__(self, path: Path, role: str) -> None:
        self._path = path
        self._role = role
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False
        self._lock = threading.Lock()

    def run(self, order: Order, instance: Instance) -> Generator[Message]:
        """What comes of an order, up to but without `END`; raises what the process met.

        Raises ConverterBroke where it ended, or was ended for taking too long.
        """
        process = self._ready()
        watchdog = threading.Timer(_patience(instance), process.kill)
        watchdog.daemon = True
        watchdog.start()
        finished = False
        try:
            for message in _answer(process, order):
                if message.kind is Kind.ERROR:
                    finished = True
                    raise _error(message.content)
                yield message
            finished = True
        except (OSError, EOFError) as error:
            raise ConverterBroke("the converter ended, or took too long") from error
        finally:
            watchdog.cancel()
            if not finished:
                self._end()

    def stop(self) -> None:
        """End it for good, from any thread: what is being converted ends in ConverterBroke."""
        self._stopped = True
        self._end()

    def rest(self) -> None:
        """End the process until it is needed again."""
        self._end()

    def _ready(self) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._stopped:
                raise ConverterBroke("the converter was stopped")
            if self._process is None or self._process.poll() is not None:
                arguments = [str(self._path), str(os.getpid()), self._role]
                self._process = subprocess.Popen(  # noqa: S603  our own interpreter and module
                    [sys.executable, "-m", __name__, *arguments],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
            return self._process

    def _end(self) -> None:
        with self._lock:
            process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):  # what it never read is lost, and not wanted
                if pipe is not None:
                    pipe.close()


def _patience(instance: Instance) -> float:
    """Seconds an instance may take. What its row says of its size is a claim, hence the cap."""
    native = 6 * instance.rows * instance.columns * max(1, instance.frames)
    return min(_SECONDS + (native + instance.byte_length) / _BYTES_A_SECOND, _SECONDS_MOST)


def _answer(process: subprocess.Popen[bytes], order: Order) -> Iterator[Message]:
    assert process.stdin is not None
    assert process.stdout is not None
    line = {**asdict(order), "object_id": order.object_id.hex(), "accepted": sorted(order.accepted)}
    process.stdin.write(json.dumps(line).encode() + b"\n")
    process.stdin.flush()
    while (message := _received(process.stdout)).kind is not Kind.END:
        yield message
        if message.kind is Kind.AS_STORED:
            return


def _received(pipe: IO[bytes]) -> Message:
    head = pipe.read(_HEAD.size)
    if len(head) < _HEAD.size:
        raise EOFError
    kind, length = _HEAD.unpack(head)
    content = pipe.read(length)
    if len(content) < length:
        raise EOFError
    return Message(Kind(kind.decode()), content)


def _error(content: bytes) -> EdgePacsError:
    said = json.loads(content)
    return _ERRORS.get(said["class"], EdgePacsError)(said["words"])


# --- in the process --------------------------------------------------------------------------


def main() -> None:
    """Convert what is asked for on standard input until it ends: `converter CONFIG PARENT ROLE`."""
    answers = child.answers()
    child.give_way(int(sys.argv[2]), nice=_NICE, memory=_MEMORY, role=sys.argv[3])
    store = Store.open(config.load(Path(sys.argv[1])))
    try:
        for line in sys.stdin.buffer:
            said = json.loads(line)
            _serve(store, answers, _asked(said))
            answers.flush()
    except BrokenPipeError:
        pass  # nobody wants it any more
    finally:
        store.close()


def _asked(said: Mapping[str, Any]) -> Order:
    object_id = ObjectId(bytes.fromhex(said["object_id"]))
    return Order(said["instance"], object_id, frozenset(said["accepted"]), said["lossy"])


def _serve(store: Store, answers: IO[bytes], order: Order) -> None:
    try:
        _convert(store, answers, order)
    except BrokenPipeError:
        raise
    except EdgePacsError as error:
        _say(answers, Kind.ERROR, {"class": type(error).__name__, "words": str(error)})
    except MemoryError:
        words = "it took more memory than a converter may have"
        _say(answers, Kind.ERROR, {"class": ConverterBroke.__name__, "words": words})
    except Exception as error:  # noqa: BLE001  its text might hold PHI
        words = f"the converter failed: {telemetry.place_of(error)}"
        _say(answers, Kind.ERROR, {"class": ConverterBroke.__name__, "words": words})


def _convert(store: Store, answers: IO[bytes], order: Order) -> None:
    """Write it out; where a late frame cannot be had in one syntax, again in the next best."""
    # Who only asks loads no codecs.
    from edgepacs.custody.outgoing import outgoing  # noqa: PLC0415
    from edgepacs.pixels.encode import Unencodable  # noqa: PLC0415

    instance = instances.instance(store.db, order.instance)
    going = outgoing(store, instance, order.accepted, lossy=order.lossy)
    if going.transfer_syntax_uid == instance.transfer_syntax_uid:
        _send(answers, Kind.AS_STORED, b"")
        return
    said = {"syntax": going.transfer_syntax_uid, "sop_instance": going.sop_instance_uid}
    _say(answers, Kind.BEGIN, said)
    try:
        for piece in going.chunks:
            if piece:
                _send(answers, Kind.DATA, piece)
    except (Unencodable, Undecodable):
        others = order.accepted - {going.transfer_syntax_uid}
        _convert(store, answers, replace(order, accepted=others))
        return
    _send(answers, Kind.END, b"")


def _say(answers: IO[bytes], kind: Kind, content: Mapping[str, str]) -> None:
    _send(answers, kind, json.dumps(content).encode())


def _send(answers: IO[bytes], kind: Kind, content: bytes) -> None:
    answers.write(_HEAD.pack(kind.encode(), len(content)))
    answers.write(content)


if __name__ == "__main__":
    main()
