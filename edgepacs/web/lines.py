"""Destinations one by one: settings, how the line has been, what it carried, what it proves."""

from dataclasses import dataclass
from datetime import date

from flask import Blueprint, redirect, render_template, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from edgepacs.errors import InvalidValue, NotFound
from edgepacs.model import CorrectionPolicy, ProofWanted, Role
from edgepacs.store import commitments, destinations, ledger, terms, usage
from edgepacs.store.destinations import LONG, SECRETS, SETTINGS, Destination
from edgepacs.web import acting, gate

blueprint = Blueprint("lines", __name__)
_DAYS, _CHANGES = 31, 50


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting as a field: `choices` where it is one of a few, `secret` where never shown."""

    name: str
    words: str
    value: str = ""
    hint: str = ""
    choices: tuple[tuple[str, str], ...] = ()
    secret: bool = False
    long: bool = False
    is_set: bool = False


_GROUPS = (
    ("Address", ("transport", "ae_title", "host", "port", "url", "associations")),
    ("Proof of arrival", ("proof",)),
    ("Messages", ("mpps", "notify")),
    ("When a study it has is corrected", ("correction", "adt")),
    ("Line", ("kbits", "daily_mib", "monthly_mib", "stat_mib", "hours", "least_priority")),
    (
        "Identity and encryption",
        ("tls", "authority", "certificate", "private_key", "user_name", "passcode", "token"),
    ),
)
_WORDS = {
    "transport": ("Reached by", ""),
    "ae_title": ("AE title", ""),
    "host": ("Host", "address or name"),
    "port": ("Port", ""),
    "url": ("Address of DICOMweb", "https://pacs.example/dicom-web"),
    "associations": ("Associations at most", "0: as measured"),
    "proof": ("Nothing is deleted here without", ""),
    "kbits": ("Speed at most, kbit/s", "0: no cap"),
    "daily_mib": ("A day, MiB", "0: no quota"),
    "monthly_mib": ("A month, MiB", "0: no quota"),
    "stat_mib": ("STAT beyond a quota, MiB", "0: none"),
    "hours": ("Hours", "22:00-06:00,12:00-13:00; empty: always"),
    "least_priority": ("Least priority", "what is less urgent waits for another line; 0: all goes"),
    "mpps": ("Told of procedure steps (MPPS)", "of what modalities report here"),
    "notify": ("Told when a study is there", "instance availability notification"),
    "correction": ("It gets", ""),
    "adt": ("HL7 ADT goes to", "mllps://pacs.example:2575"),
    "tls": ("Encryption of DICOM", ""),
    "authority": ("Trusted authority (PEM)", "empty: those this machine trusts"),
    "certificate": ("Our certificate (PEM)", "shown to the destination"),
    "private_key": ("Its key (PEM)", ""),
    "user_name": ("User name", "of the user identity"),
    "passcode": ("Passcode", ""),
    "token": ("Bearer token", "for DICOMweb"),
}
_CHOICES: dict[str, tuple[tuple[str, str], ...]] = {
    "transport": (("dimse", "C-STORE"), ("stow", "STOW-RS (HTTPS)")),
    "mpps": (("0", "no"), ("1", "yes")),
    "notify": (("0", "no"), ("1", "yes")),
    "tls": (("0", "none"), ("1", "TLS")),
    "proof": tuple((str(one), f"{one}: {one.meaning}") for one in ProofWanted),
    "correction": tuple((str(one), f"{one}: {one.meaning}") for one in CorrectionPolicy),
}


def _settings(one: Destination) -> list[tuple[str, list[Setting]]]:
    """Every setting there is, in groups; what has no words of its own comes last."""
    grouped = {name for _, names in _GROUPS for name in names}
    others = tuple(name for name in SETTINGS if name not in grouped)
    groups = (*_GROUPS, ("More", others)) if others else _GROUPS
    return [
        (title, [_setting(one, name) for name in names if name in SETTINGS])
        for title, names in groups
    ]


def _setting(one: Destination, name: str) -> Setting:
    words, hint = _WORDS.get(name, (name.replace("_", " ").capitalize(), ""))
    value = getattr(one, name)
    hidden = name in SECRETS
    return Setting(
        name=name,
        words=words,
        value="" if hidden else str(value),
        hint=hint,
        choices=_CHOICES.get(name, ()),
        secret=hidden,
        long=name in LONG or name == "private_key",
        is_set=bool(value),
    )


def _numbered(number: int) -> Destination:
    for one in destinations.every(gate.store().db):
        if one.id == number:
            return one
    raise NotFound(f"destination: there is no destination {number}")


@blueprint.get("/system/destinations/<row:number>")
@gate.open_to(Role.ADMIN)
def page(number: int) -> str:
    """One destination."""
    db, one = gate.store().db, _numbered(number)
    return render_template(
        "destination.html",
        destination=one,
        groups=_settings(one),
        measured=usage.measured(db, number),
        used=usage.used(db, number, date.today()),  # noqa: DTZ011  quotas go by local days
        days=usage.days(db, number, _DAYS),
        changes=usage.changes(db, number, _CHANGES),
        forecast=usage.forecast(db, one),
        tally=ledger.tally(db, number),
        callback=commitments.callback(db, number),
        mib=usage.MIB,
        told=acting.told(),
    )


@blueprint.post("/system/destinations/<row:number>")
@gate.open_to(Role.ADMIN)
def change(number: int) -> AnyResponse:
    """Change what the form changes; an empty secret stays as it is unless `forget` names it."""
    store, one = gate.store(), _numbered(number)
    said: dict[str, str] = {}
    for name in SETTINGS:
        if name not in request.form:
            continue
        text = request.form[name].replace("\r\n", "\n").strip()
        if text != str(getattr(one, name)).strip() and (text or name not in SECRETS):
            said[name] = text
    for name in request.form.getlist("forget"):
        if name not in SECRETS:
            raise InvalidValue("forget", f"must be one of {', '.join(SECRETS)}")
        said[name] = ""
    lossy = request.form.get("lossy", str(one.lossy)).strip()
    if not lossy.isascii() or not lossy.isdigit() or len(lossy) > 3:
        raise InvalidValue("lossy", "must be a quality from 1 to 100, or 0 for never")
    with store.db.write() as tx:
        destinations.change(tx, one.name, said, actor=gate.caller().name)
        if int(lossy) != one.lossy:
            terms.set_lossy(tx, one.name, int(lossy), actor=gate.caller().name)
    store.ring("forward")
    return redirect(url_for("lines.page", number=number), 303)
