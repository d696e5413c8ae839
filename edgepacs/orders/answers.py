"""Acknowledgements, of the original and the enhanced mode (HL7 2.9.2, 2.9.3)."""

import secrets
from datetime import UTC, datetime

from edgepacs.clock import wall_ms
from edgepacs.orders.content import Header
from edgepacs.orders.faults import Problem
from edgepacs.store.messages import Verdict

_WORDS = {int(problem): problem.words for problem in Problem}
_ECHO_MOST = 227  # characters of a field that is given back (HL7 2.14.9.3)
_COMMIT = {"AA": "CA", "AE": "CE", "AR": "CR"}
_WANTED = {"AL": "AER", "ER": "ER", "SU": "A", "NE": ""}  # HL7 table 0155: the codes that matter


def answers(header: Header, commit: Verdict, verdict: Verdict | None, title: str) -> list[bytes]:
    """What the sender wants to hear, in its order.

    `commit` says whether the message is kept, in the words of the original mode, `verdict` what
    came of it, None while nothing has. In the enhanced mode both are answered, each where MSH-15
    and MSH-16 want it; in the original mode what came of it is the one answer.
    """
    if not header.enhanced:
        return [_acknowledgement(header, verdict or commit, title)]
    found = []
    if commit.code[1] in _WANTED.get(header.accept, ""):
        kept = Verdict(
            code=_COMMIT[commit.code], place=commit.place, error=commit.error, words=commit.words
        )
        found.append(_acknowledgement(header, kept, title))
    if verdict is not None and verdict.code[1] in _WANTED.get(header.answer, ""):
        found.append(_acknowledgement(header, verdict, title))
    return found


def _acknowledgement(header: Header, verdict: Verdict, title: str) -> bytes:
    """An ACK in the delimiters of the message it answers, what is given back byte by byte."""
    bar, caret, tilde, escape, ampersand = tuple(header.delimiters)
    head = [
        "MSH",
        caret + tilde + escape + ampersand,
        header.receiving_application[:_ECHO_MOST] or _escaped(title, header),
        header.receiving_facility[:_ECHO_MOST],
        header.application[:_ECHO_MOST],
        header.facility[:_ECHO_MOST],
        datetime.fromtimestamp(wall_ms() / 1000, UTC).astimezone().strftime("%Y%m%d%H%M%S%z"),
        "",
        _kind(header),
        secrets.token_hex(8).upper(),
        header.processing_id[:1] or "P",
        header.version[:8] or "2.5.1",
    ]
    if header.enhanced:
        head += ["", "", "NE", "NE"]  # an acknowledgement is not acknowledged
    if header.character_set:
        head += [""] * (17 - len(head)) + [header.character_set[:_ECHO_MOST]]
    lines = [bar.join(head)]
    words = _escaped(verdict.words, header) if verdict.error else ""
    lines.append(bar.join(["MSA", verdict.code, header.control_id[:_ECHO_MOST], words]).rstrip(bar))
    if verdict.error:
        lines.append(_error(header, verdict))
    return "".join(line + "\r" for line in lines).encode("latin-1", "replace")


def _kind(header: Header) -> str:
    caret = header.delimiters[1]
    event = header.kind.partition("^")[2][:3]
    if not event:
        return "ACK"
    structured = header.version >= "2.3.1"
    return caret.join(["ACK", event, "ACK"] if structured else ["ACK", event])


def _error(header: Header, verdict: Verdict) -> str:
    """ERR: where and what; before version 2.5 in its one field (HL7 2.14.5)."""
    bar, caret, _, _, ampersand = tuple(header.delimiters)
    place = verdict.place.split("^")
    number, meaning = str(verdict.error), _WORDS[verdict.error]
    if header.version < "2.5":
        place = [*place[:3], *[""] * (3 - len(place))]
        return bar.join(["ERR", caret.join([*place, ampersand.join([number, meaning, "HL70357"])])])
    fault = caret.join([number, meaning, "HL70357"])
    words = _escaped(verdict.words, header)
    return bar.join(["ERR", "", caret.join(place), fault, "E", "", "", "", words])


def _escaped(text: str, header: Header) -> str:
    """Our own words with the delimiters of the message escaped (HL7 2.7.1)."""
    escape = header.delimiters[3]
    marks = dict(zip(header.delimiters, "FSRET", strict=True))
    return "".join(f"{escape}{marks[c]}{escape}" if c in marks else c for c in text)
