"""What a message says: orders and what is to be done with them, patients, merges.

Only messages are looked at here, never the worklist; what they want of it is `applying`'s.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from edgepacs.orders.content import Content, Header, Segment
from edgepacs.orders.faults import Place, Problem, Refusal
from edgepacs.orders.mapping import GONE_RULES, PATIENT_RULES, Act, Rule, Sender
from edgepacs.orders.paths import NOTHING, Path, text_of

_LEVELS = {"ORC": 0, "OBR": 1, "IPC": 2}  # HL7 4.4.1, 4.4.8, 4.16: order, detail, imaging


@dataclass(frozen=True, slots=True, repr=False)
class Value:
    """What a message says of one attribute, and where; '' says that there is none any more."""

    text: str
    place: Place


Said = Mapping[str, Value]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class OrderSaid:
    """One step of an order: what is wanted and what is said of it.

    `step` is its ID, or `#1`, `#2` ... by its place in the order. `otherwise` counts where nothing
    is known yet.
    """

    act: Act
    placer: str
    filler: str
    step: str
    at: Segment
    said: Said
    otherwise: Said
    absent: Mapping[str, Place]  # where what is required would have stood

    def place(self, attribute: str) -> Place:
        """Where an attribute stands in the message, or would."""
        value = self.said.get(attribute) or self.otherwise.get(attribute)
        return value.place if value else self.absent.get(attribute, self.at.place(1))


@dataclass(frozen=True, slots=True, repr=False)
class PatientSaid:
    """A patient is registered, or has changed."""

    said: Said
    at: Place


@dataclass(frozen=True, slots=True, repr=False)
class MergeSaid:
    """One patient was given up for another."""

    gone: Said
    said: Said
    at: Place


Statement = OrderSaid | PatientSaid | MergeSaid


def statements(header: Header, content: Content, sender: Sender) -> list[Statement]:
    """What a message says, in its order; none for one that is to be ignored. Raises Refusal."""
    if header.kind in sender.ignored:
        return []
    return list(_KINDS[header.kind](content, sender))


def require_known(header: Header, sender: Sender) -> None:
    """Raise Refusal unless messages of this kind are taken."""
    kind, _, event = header.kind.partition("^")
    if header.kind in _KINDS or header.kind in sender.ignored:
        return
    if any(known.startswith(f"{kind}^") for known in _KINDS) and event:
        raise Refusal(Place("MSH", 9, 2), Problem.EVENT, "an event that is not taken here")
    raise Refusal(Place("MSH", 9, 1), Problem.MESSAGE_TYPE, "a message that is not taken here")


# --- orders ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Step:
    """The segments of one step, those of its order included, and those all orders share."""

    own: Sequence[Segment]
    common: Sequence[Segment]

    def named(self, name: str) -> list[Segment]:
        found = [one for one in self.own if one.name == name]
        return found or [one for one in self.common if one.name == name]

    def value(self, rule: Rule, places: Sequence[Path]) -> Value | None:
        for path in places:
            if path.constant is not None:
                return Value(path.constant, Place("MSH"))
            found = [_read(rule, path, *one) for one in path.found(self.named(path.segment))]
            spoken = [one for one in found if one is not None]
            if spoken:
                whole = rule.joint.join(one.text for one in spoken) if rule.joint else ""
                return Value(whole or spoken[0].text, spoken[0].place)
        return None

    def first_place(self, rule: Rule) -> Place:
        """Where a value would have stood: in a segment that is there, if any may hold it."""
        paths = [one for one in rule.places if one.constant is None]
        for path in paths:
            if segments := self.named(path.segment):
                return path.place(segments[0])
        return paths[0].place(None) if paths else Place("MSH")


def _read(rule: Rule, path: Path, segment: Segment, field: list[list[list[str]]]) -> Value | None:
    place = path.place(segment)
    if text_of(field, path.component or 1) == NOTHING:
        return Value("", place)
    try:
        text = rule.convert(field, path)
    except ValueError as error:
        raise Refusal(place, Problem.DATA_TYPE, str(error)) from None
    if text and rule.closed and text not in rule.table:
        raise Refusal(place, Problem.TABLE, "a value that is not known here")
    text = rule.table.get(text, rule.table.get("*", text)) if text else ""
    return Value(text, place) if text else None


def _steps(content: Content) -> Iterator[_Step]:
    """Every step of every order: an ORC begins an order, an OBR a detail, an IPC a step of it."""
    common: list[Segment] = []
    levels: list[list[Segment]] = [[], [], []]
    groups: list[list[Segment]] = []
    for segment in content.segments:
        level = _LEVELS.get(segment.name)
        if level is not None and any(levels[level:]):
            groups.append([*levels[0], *levels[1], *levels[2]])
            levels[level:] = [[] for _ in levels[level:]]
        if level is None:
            deepest = [one for one in levels if one]
            (deepest[-1] if deepest else common).append(segment)
        else:
            levels[level].append(segment)
    if any(levels):
        groups.append([*levels[0], *levels[1], *levels[2]])
    studies = list(content.named("ZDS"))  # IHE RAD-4: one behind all orders of a procedure
    shared = [*common, *studies] if len(studies) == 1 else common
    return (_Step(own, shared) for own in groups)


def _orders(content: Content, sender: Sender) -> Iterator[OrderSaid]:
    seen: dict[tuple[str, str], set[str]] = {}
    for step in _steps(content):
        order = _order(step, sender, seen)
        if order is not None:
            yield order
    if not seen:
        raise Refusal(Place("ORC"), Problem.SEQUENCE, "a message about orders without any")


def _order(step: _Step, sender: Sender, seen: dict[tuple[str, str], set[str]]) -> OrderSaid | None:
    """One step; None for another line about a step that was there before."""
    head = step.own[0]
    if head.name != "ORC":
        raise Refusal(head.place(0), Problem.SEQUENCE, "an order begins with ORC")
    act = _act(head, sender)
    said = {name: found for name, rule in sender.rules.items() if (found := _said(step, rule))}
    placer, filler = _text(said, "placer_order"), _text(said, "filler_order")
    if not placer and not filler:
        words = "neither placer nor filler order number"
        raise Refusal(head.place(2), Problem.REQUIRED, words)
    steps = seen.setdefault((placer, filler), set())
    name = _text(said, "step_id") or f"#{len(steps) + 1}"
    if name in steps:
        return None
    steps.add(name)
    rules = sender.rules.items()
    further = {name: step.value(rule, rule.otherwise) for name, rule in rules if rule.otherwise}
    return OrderSaid(
        act=act,
        placer=placer,
        filler=filler,
        step=name,
        at=head,
        said=said,
        otherwise={name: found for name, found in further.items() if found},
        absent={name: step.first_place(rule) for name, rule in rules},
    )


def _said(step: _Step, rule: Rule) -> Value | None:
    return step.value(rule, rule.places)


def _text(said: Said, name: str) -> str:
    return said[name].text if name in said else ""


def _act(head: Segment, sender: Sender) -> Act:
    control = text_of(head.field(1)).upper()
    if not control:
        raise Refusal(head.place(1), Problem.REQUIRED, "absent: what is to be done?")
    act = sender.controls.get(control)
    if act is Act.STATUS:
        act = sender.statuses.get(text_of(head.field(5)).upper())
        if act is None:
            raise Refusal(head.place(5), Problem.TABLE, "an order status that is not taken here")
    if act is None:
        raise Refusal(head.place(1), Problem.TABLE, "an order control that is not taken here")
    return act


# --- patients ----------------------------------------------------------------------------------


def _patient_of(step: _Step, sender: Sender) -> Said:
    rules = {name: sender.rules[name] for name in PATIENT_RULES}
    said = {name: found for name, rule in rules.items() if (found := _said(step, rule))}
    if not _text(said, "patient_id"):
        place = step.first_place(rules["patient_id"])
        raise Refusal(place, Problem.REQUIRED, "absent: who is it?")
    return said


def _patient(content: Content, sender: Sender) -> Iterator[PatientSaid]:
    _require(content, "PID")
    said = _patient_of(_Step(content.segments, ()), sender)
    yield PatientSaid(said, said["patient_id"].place)


def _merges(content: Content, sender: Sender) -> Iterator[MergeSaid]:
    """Every pair of PID and MRG: who stays, and who is given up (HL7 3.3.40)."""
    _require(content, "PID")
    _require(content, "MRG")
    stays: Segment | None = None
    for segment in content.segments:
        if segment.name == "PID":
            stays = segment
        elif segment.name == "MRG":
            if stays is None:
                raise Refusal(segment.place(0), Problem.SEQUENCE, "MRG goes behind its PID")
            yield _merge(_Step((stays, segment), ()), sender, segment)


def _merge(pair: _Step, sender: Sender, segment: Segment) -> MergeSaid:
    gone = {name: found for name, rule in GONE_RULES.items() if (found := _said(pair, rule))}
    if not _text(gone, "patient_id"):
        raise Refusal(segment.place(1), Problem.REQUIRED, "absent: who is given up?")
    return MergeSaid(gone, _patient_of(pair, sender), segment.place(1))


def _require(content: Content, name: str) -> None:
    if not any(content.named(name)):
        raise Refusal(Place(name), Problem.SEQUENCE, "a segment that is required is absent")


_KINDS: Mapping[str, Callable[[Content, Sender], Iterator[Statement]]] = {
    "ORM^O01": _orders,
    "OMG^O19": _orders,
    "OMI^O23": _orders,
    "ADT^A01": _patient,
    "ADT^A04": _patient,
    "ADT^A08": _patient,
    "ADT^A28": _patient,
    "ADT^A31": _patient,
    "ADT^A40": _merges,
}
