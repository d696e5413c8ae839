"""Drafts: instances whose sealed bytes are durable and whose rows are not yet written."""

from dataclasses import dataclass
from typing import Any

from edgepacs.model import UID, Arrival, Attributes, ObjectId, Origin
from edgepacs.store import fingerprint


@dataclass(frozen=True, slots=True, kw_only=True)
class AtRest:
    """How an object stands that holds another data set than was received: a compressed one.

    `received_length` is in bytes, `native_digest` the fingerprint of the native frames as
    received, `restore` what gives the received data set back (custody/restore.py).
    """

    transfer_syntax_uid: UID
    received_length: int
    native_digest: bytes
    restore: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """An instance whose sealed bytes are durable and whose row is not yet written.

    `byte_length` and `pixel_offset` are of the data set that is sealed; without `at_rest` that
    is the one received.
    """

    arrival: Arrival
    attributes: Attributes
    object_id: ObjectId
    byte_length: int
    sealed_length: int
    received_digest: bytes
    pixel_offset: int
    received_ms: int
    at_rest: AtRest | None = None

    @property
    def transfer_syntax_uid(self) -> UID:
        """That of the data set that is sealed."""
        rest = self.at_rest
        return self.arrival.transfer_syntax_uid if rest is None else rest.transfer_syntax_uid

    @property
    def native_digest(self) -> bytes | None:
        """The fingerprint of the native frames, where they were compressed."""
        return None if self.at_rest is None else self.at_rest.native_digest

    def trailer(self) -> dict[str, Any]:
        """What is sealed with the object, so that the row can be made again from it."""
        return {
            **{name: getattr(self.attributes, name) for name in Attributes.__slots__},
            "transfer_syntax_uid": self.transfer_syntax_uid,
            "origin": self.arrival.origin,
            "source": self.arrival.source,
            "byte_length": self.byte_length,
            "received_digest": self.received_digest.hex(),
            "pixel_offset": self.pixel_offset,
            "received_ms": self.received_ms,
            **({"corrects": self.arrival.corrects.hex()} if self.arrival.corrects else {}),
            **self._at_rest(),
        }

    def _at_rest(self) -> dict[str, Any]:
        if self.at_rest is None:
            return {}
        return {
            "received_syntax_uid": self.arrival.transfer_syntax_uid,
            "received_length": self.at_rest.received_length,
            "native_digest": self.at_rest.native_digest.hex(),
            "restore": self.at_rest.restore,
        }

    @classmethod
    def from_trailer(
        cls, trailer: dict[str, Any], object_id: ObjectId, sealed_length: int
    ) -> "Draft":
        """The draft that `trailer` was sealed from."""
        values = dict(trailer)
        at_rest = None
        if "restore" in values:
            at_rest = AtRest(
                transfer_syntax_uid=UID(values["transfer_syntax_uid"]),
                received_length=values["received_length"],
                native_digest=bytes.fromhex(values["native_digest"]),
                restore=values["restore"],
            )
            values["transfer_syntax_uid"] = values["received_syntax_uid"]
        arrival = Arrival(
            sop_class_uid=values["sop_class_uid"],
            sop_instance_uid=values["sop_instance_uid"],
            transfer_syntax_uid=UID(values.pop("transfer_syntax_uid")),
            origin=Origin(values.pop("origin")),
            source=values.pop("source"),
            corrects=bytes.fromhex(values.pop("corrects", "")),
        )
        own = {name: values.pop(name) for name in ("byte_length", "pixel_offset", "received_ms")}
        if "received_sha256" in values:  # sealed by a version before 0.2
            digest = fingerprint.from_sha256(bytes.fromhex(values["received_sha256"]))
        else:
            digest = bytes.fromhex(values["received_digest"])
        values["flags"] = tuple(values["flags"])
        # A later version may have sealed more than this one keeps.
        kept = {name: values[name] for name in Attributes.__slots__ if name in values}
        return cls(
            arrival=arrival,
            attributes=Attributes(**kept),
            object_id=object_id,
            sealed_length=sealed_length,
            received_digest=digest,
            at_rest=at_rest,
            **own,
        )
