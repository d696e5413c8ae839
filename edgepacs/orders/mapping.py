"""Where the values of an entry stand in messages: as the standard says, or a mapping file.

The built-in places follow the mappings of IHE RAD TF-2 (RAD-2, RAD-4). A file, TOML, says what a
site or one sender does otherwise; docs/operations.md shows one.
"""

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path as FilePath
from typing import Any

from edgepacs.errors import ConfigurationError, InvalidValue
from edgepacs.orders import paths, values
from edgepacs.orders.charsets import codec_of
from edgepacs.orders.content import Header
from edgepacs.orders.paths import Path
from edgepacs.orders.values import Convert


class Act(StrEnum):
    """What a message wants done with an order."""

    NEW = "new"
    CHANGE = "change"
    CANCEL = "cancel"
    DISCONTINUE = "discontinue"
    COMPLETE = "complete"
    RELEASE = "release"
    STATUS = "status"  # as ORC-5 says


# HL7 table 0119, what a placer or filler may say of an order to somebody who keeps a worklist.
_CONTROLS: Mapping[str, Act] = {
    "NW": Act.NEW,
    "SN": Act.NEW,
    "RO": Act.NEW,
    "XO": Act.CHANGE,
    "XX": Act.CHANGE,
    "XR": Act.CHANGE,
    "NA": Act.CHANGE,
    "CA": Act.CANCEL,
    "OC": Act.CANCEL,
    "CR": Act.CANCEL,
    "RP": Act.CANCEL,  # the order that takes its place follows, with RO
    "HD": Act.CANCEL,
    "OH": Act.CANCEL,
    "RL": Act.RELEASE,
    "DC": Act.DISCONTINUE,
    "OD": Act.DISCONTINUE,
    "DR": Act.DISCONTINUE,
    "CM": Act.COMPLETE,
    "SC": Act.STATUS,
    "SR": Act.STATUS,
}
_STATUSES: Mapping[str, Act] = {  # HL7 table 0038; that it has begun is the modality's to say
    "CA": Act.CANCEL,
    "RP": Act.CANCEL,
    "HD": Act.CANCEL,
    "DC": Act.DISCONTINUE,
    "CM": Act.COMPLETE,
    "IP": Act.CHANGE,
    "SC": Act.CHANGE,
    "A": Act.CHANGE,
    "ER": Act.CHANGE,
    "": Act.CHANGE,
}


@dataclass(frozen=True, slots=True)
class Rule:
    """Where a value stands, the first place that says something counting, and how it is read.

    `table` translates it, `*` standing for all else; without that, what is in no table stays as
    it is, or is an error where `closed`. `otherwise` counts for new entries alone: a change that
    does not speak of the start does not move it. With `joint` all segments count, that between.
    """

    convert: Convert
    places: Sequence[Path]
    table: Mapping[str, str] = field(default_factory=dict)
    closed: bool = False
    otherwise: Sequence[Path] = ()
    joint: str = ""


def _rule(convert: Convert, *places: str) -> Rule:
    return Rule(convert, tuple(map(paths.parsed, places)))


def _else(*places: str) -> Sequence[Path]:
    return tuple(map(paths.parsed, places))


PATIENT_RULES: Mapping[str, Rule] = {
    "patient_id": _rule(values.text, "PID-3.1", "PID-2.1"),
    "issuer": _rule(values.text, "PID-3.4", "PID-3.4.2"),
    "name": _rule(values.name, "PID-5"),
    "birth_date": _rule(values.date, "PID-7"),
    "sex": replace(_rule(values.word, "PID-8"), table=values.SEXES, closed=True),
    "pregnancy": replace(_rule(values.text, "PV1-15"), table=values.PREGNANT),
    "allergies": replace(_rule(values.either, "AL1-3"), joint="\\"),
    "patient_state": _rule(values.either, "OBR-12"),
    "weight": _rule(values.text),  # nothing: units differ, so a site says where and in kg
    "size": _rule(values.text),
    "other_ids": _rule(values.text),
    "alerts": _rule(values.text),
    "special_needs": _rule(values.text),
    "confidentiality": _rule(values.text),
}
_STARTS = ("TQ1-7", "ORC-7.4", "OBR-27.4", "OBR-36")
_SAID = ("OBR-6", "ORC-15", "ORC-9", "MSH-7")  # requested for, effective from, ordered, sent
ENTRY_RULES: Mapping[str, Rule] = {
    "placer_order": _rule(values.text, "ORC-2.1", "OBR-2.1"),
    "filler_order": _rule(values.text, "ORC-3.1", "OBR-3.1"),
    "study_instance_uid": _rule(values.text, "IPC-3.1", "ZDS-1.1"),
    "accession_number": replace(
        _rule(values.text, "IPC-1.1", "OBR-18.1"),
        otherwise=_else("ORC-3.1", "OBR-3.1", "ORC-2.1", "OBR-2.1"),
    ),
    "admission_id": _rule(values.text, "PV1-19.1", "PID-18.1"),
    "procedure_id": _rule(values.text, "IPC-2.1", "OBR-19.1"),
    "procedure_description": _rule(values.either, "OBR-44", "OBR-4"),
    "procedure_code": _rule(values.code, "OBR-44", "OBR-4"),
    "procedure_priority": replace(
        _rule(values.word, "TQ1-9.1", "ORC-7.6", "OBR-27.6", "OBR-5.1"), table=values.PRIORITIES
    ),
    "referring_physician": _rule(values.person, "PV1-8"),
    "requesting_physician": _rule(values.person, "ORC-12", "OBR-16"),
    "requesting_service": _rule(values.either, "ORC-17"),
    "step_id": _rule(values.text, "IPC-4.1", "OBR-20.1"),
    "step_description": _rule(values.either, "IPC-6", "OBR-4.4", "OBR-4"),
    "step_code": _rule(values.code, "IPC-6", "OBR-4.4"),
    "modality": _rule(values.word, "IPC-5.1", "OBR-24.1"),
    "station_ae": _rule(values.text, "IPC-9.1"),
    "station_name": _rule(values.either, "IPC-7"),
    "start_date": replace(_rule(values.date, *_STARTS), otherwise=_else(*_SAID)),
    "start_time": replace(_rule(values.time, *_STARTS), otherwise=_else(*_SAID)),
    "performing_physician": _rule(values.person, "OBR-34.1"),
    "location": _rule(values.either, "IPC-8"),
    "laterality": replace(_rule(values.word, "OBR-15.5"), table=values.LATERALITIES),
    "comments": replace(_rule(values.lines, "OBR-13", "NTE-3"), joint="\n"),
    "patient_location": _rule(values.joined, "PV1-3"),
    "transport": _rule(values.text, "OBR-30"),
    "pre_medication": _rule(values.text),
    "contrast_agent": _rule(values.text),
}
GONE_RULES: Mapping[str, Rule] = {  # the patient given up in a merge
    "patient_id": _rule(values.text, "MRG-1.1"),
    "issuer": _rule(values.text, "MRG-1.4", "MRG-1.4.2"),
}
_RULES: Mapping[str, Rule] = {**PATIENT_RULES, **ENTRY_RULES}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sender:
    """How the messages of one sender are read.

    `source` is whose order numbers they are: several applications may share theirs.
    """

    source: str = ""
    character_set: str = ""
    ignored: frozenset[str] = frozenset()
    controls: Mapping[str, Act] = field(default_factory=lambda: _CONTROLS)
    statuses: Mapping[str, Act] = field(default_factory=lambda: _STATUSES)
    rules: Mapping[str, Rule] = field(default_factory=lambda: _RULES)


class Senders:
    """Every sender the mapping file names, and how all the others are read."""

    def __init__(self, everyone: Sender, named: Mapping[str, Sender]) -> None:
        self._everyone = everyone
        self._named = named

    def of(self, header: Header) -> Sender:
        """How a message is read, by its sending application and facility, or application."""
        known = self._named.get(header.sender) or self._named.get(header.application)
        return known or self._everyone


def load(file: FilePath | None) -> Senders:
    """The mapping file, or what stands in its place; raises ConfigurationError.

    A sender's section adds to [default], which adds to what is built in.
    """
    if file is None:
        return Senders(Sender(), {})
    try:
        return _senders(tomllib.loads(file.read_text("utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"{file}: cannot be read: {error}") from error
    except InvalidValue as error:
        raise ConfigurationError(f"{file}: {error}") from error


def _senders(document: dict[str, Any]) -> Senders:
    default = _sender(Sender(), document.pop("default", {}), "default")
    senders = _table(document.pop("sender", {}), "sender")
    if document:
        raise InvalidValue(next(iter(document)), "neither default nor sender")
    named = {name: _sender(default, said, f"sender.{name}") for name, said in senders.items()}
    return Senders(default, named)


def _table(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidValue(name, "must be a table")
    return value


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise InvalidValue(name, "must be text in quotes")
    return value


def _sender(base: Sender, said: Any, where: str) -> Sender:
    """`base` with what one section says; raises InvalidValue."""
    rest = dict(_table(said, where))
    character_set = _text(rest.pop("character_set", base.character_set), f"{where}.character_set")
    if codec_of(character_set, "~") is None:
        raise InvalidValue(f"{where}.character_set", "not in HL7 table 0211")
    ignored = rest.pop("ignore", [])
    if not isinstance(ignored, list):
        raise InvalidValue(f"{where}.ignore", "must be a list of texts in quotes")
    made = Sender(
        source=_text(rest.pop("source", base.source), f"{where}.source"),
        character_set=character_set,
        ignored=base.ignored | {_text(one, f"{where}.ignore") for one in ignored},
        controls=_acts(base.controls, rest.pop("control", {}), f"{where}.control"),
        statuses=_acts(base.statuses, rest.pop("status", {}), f"{where}.status"),
        rules=_rules(base.rules, rest.pop("values", {}), rest.pop("from", {}), where),
    )
    if rest:
        known = "source, character_set, ignore, control, status, from, values"
        raise InvalidValue(f"{where}.{next(iter(rest))}", f"unknown; known are {known}")
    return made


def _acts(base: Mapping[str, Act], said: Any, where: str) -> Mapping[str, Act]:
    acts = dict(base)
    for word, act in _table(said, where).items():
        if act not in list(Act):
            raise InvalidValue(f"{where}.{word}", f"must be one of {', '.join(Act)}")
        acts[word] = Act(act)
    return acts


def _rules(base: Mapping[str, Rule], tables: Any, places: Any, where: str) -> Mapping[str, Rule]:
    rules = dict(base)
    for name, said in _table(places, f"{where}.from").items():
        written = said if isinstance(said, list) else [said]
        found = tuple(_named(paths.parsed, one, f"{where}.from.{name}") for one in written)
        old = _known(rules, name, f"{where}.from.{name}")
        rules[name] = replace(old, places=found, otherwise=())
    for name, said in _table(tables, f"{where}.values").items():
        old = _known(rules, name, f"{where}.values.{name}")
        table = {key: _text(to, f"{where}.values.{name}") for key, to in _table(said, name).items()}
        rules[name] = replace(old, table={**old.table, **table})
    return rules


def _named(parse: Callable[[str], Path], written: Any, where: str) -> Path:
    try:
        return parse(_text(written, where))
    except InvalidValue as error:
        raise InvalidValue(where, error.problem) from None


def _known(rules: Mapping[str, Rule], name: str, where: str) -> Rule:
    if name not in rules:
        raise InvalidValue(where, f"unknown; known are {', '.join(rules)}")
    return rules[name]
