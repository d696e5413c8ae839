import io
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import click
import pytest
from harness.fault import flip_bit
from harness.recorder import RecordingSCP
from store.making import PASSWORD, add_destination, node_in, objects, take_in, template

from edgepacs import cli, config
from edgepacs.model import LinkState
from edgepacs.store import Store, destinations, instances, studies, usage, users
from edgepacs.telemetry import doorbell


@dataclass
class Said:
    code: int
    out: str
    err: str

    @property
    def json(self) -> object:
        return json.loads(self.out)


@dataclass
class Node:
    """A node, and its command line."""

    config: config.Config
    say: Callable[..., Said]

    def __call__(self, *words: str, stdin: str = "") -> Said:
        return self.say("--config", str(self.config.path), *words, stdin=stdin)

    def done(self, *words: str, stdin: str = "") -> str:
        """The command's words, which must succeed."""
        said = self(*words, stdin=stdin)
        assert (said.code, said.err) == (0, ""), said
        return said.out

    def data(self, *words: str) -> list[dict[str, object]]:
        said = self(*words, "--json")
        assert (said.code, said.err) == (0, ""), said
        return said.json  # type: ignore[return-value]


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    def run(*words: str, stdin: str = "") -> Said:
        monkeypatch.setattr(sys, "argv", ["edgepacs", *words])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Said(ended.value.code, out, err)

    return run


@pytest.fixture
def node(tmp_path: Path, say: Callable[..., Said]) -> Iterator[Node]:
    yield Node(node_in(tmp_path / "node"), say)
    doorbell.cache_clear()


@pytest.fixture
def filled(node: Node) -> Node:
    """Two studies of two instances, one of them with a quarantined version; one destination."""
    store = Store.open(node.config)
    add_destination(store)
    for number in range(4):
        take_in(store, sop=f"1.2.{number}", study=f"1.9.{number % 2}")
    other = take_in(store, sop="1.2.3", study="1.9.1", name="Other")
    instances.quarantine(store.db, other.instance_id)
    store.close()
    return node


def _leaves(group: click.Group, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, one in group.commands.items():
        if isinstance(one, click.Group):
            yield from _leaves(one, (*words, name))
        else:
            yield (*words, name)


LEAVES = sorted(_leaves(cli.cli))


# -- every command


def test_the_promised_commands_are_there() -> None:
    promised = """init serve scp forward web upkeep check migrate fsck rebuild
        ae-add ae-list ae-remove
        destination-add destination-list destination-echo destination-remove
        rule-add rule-list rule-remove queue-list queue-hold queue-release queue-retry
        user-add user-passwd user-list user-remove token-create"""
    assert set(promised.split()) <= {"-".join(words) for words in LEAVES}


@pytest.mark.parametrize("words", LEAVES, ids="-".join)
def test_every_command_helps_and_knows_json(
    say: Callable[..., Said], words: tuple[str, ...]
) -> None:
    said = say(*words, "--help")
    assert (said.code, said.err) == (0, "")
    assert "Usage: " in said.out
    assert "--json" in said.out
    assert len([line for line in said.out.splitlines() if line.strip()]) > 3, "no words of help"


@pytest.mark.parametrize("words", [w for w in LEAVES if w != ("init",)], ids="-".join)
@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_every_command_names_a_missing_configuration(
    say: Callable[..., Said], tmp_path: Path, words: tuple[str, ...], flags: tuple[str, ...]
) -> None:
    missing = str(tmp_path / "no.toml")
    said = say("--config", missing, *words, *_arguments(words), *flags, stdin="a password\n")
    assert (said.code, said.out) == (78, "")
    assert said.err.startswith(f"edgepacs: {missing}: no such configuration")
    assert said.err.count("\n") == 1


_ARGUMENTS = {
    "ae add": "CT9 --host * --port 104",
    "ae remove": "CT9",
    "ae set": "CT9 --max-associations 2",
    "commitment report": "99",
    "compression show": "99",
    "destination add": "new --ae NEW --host 127.0.0.1 --port 104",
    "destination echo": "pacs9",
    "destination lossy": "pacs9 80",
    "destination remove": "pacs9",
    "destination set": "pacs9 kbits=384",
    "destination show": "pacs9",
    "rule add": "--to *",
    "rule remove": "99",
    "rule test": "99",
    "prefetch ask": "99",
    "prefetch cancel": "99",
    "queue show": "99",
    "queue reroute": "pacs9",
    "queue priority": "stat",
    "study show": "99",
    "study send": "99 --to pacs",
    "study verify": "99",
    "study reconcile": "99",
    "study hold": "99",
    "study release": "99",
    "study reject": "99",
    "study withdraw": "99",
    "quarantine accept": "99",
    "quarantine discard": "99",
    "user add": "nina --role viewer --password-stdin",
    "user passwd": "nina --password-stdin",
    "user remove": "nina",
    "token create": "--role viewer",
    "hl7 show": "99",
    "hl7 replay": "99",
    "mpps show": "99",
    "worklist-source add": "ris9 --ae RIS --host 127.0.0.1 --port 104",
    "worklist-source remove": "ris9",
    "worklist-source settle": "99 merged",
    "worklist show": "99",
    "worklist add": "name=Doe modality=CT",
    "worklist change": "99 name=Doe",
    "worklist cancel": "99",
    "worklist complete": "99",
    "worklist reopen": "99",
    "worklist retire": "--before 2026-01-01",
    "worklist import": "none.csv",
}


def _arguments(words: tuple[str, ...]) -> list[str]:
    """Arguments a command takes, of things that need not exist."""
    return _ARGUMENTS.get(" ".join(words), "").split()


_MISSING = [
    w
    for w in LEAVES
    if w[-1]
    in (
        "remove",
        "echo",
        "lossy",
        "report",
        "set",
        "show",
        "send",
        "verify",
        "reconcile",
        "hold",
        "release",
        "reject",
        "accept",
        "discard",
        "withdraw",
    )
    and w[0] not in ("queue", "compression")  # a list of nothing is empty
]


@pytest.mark.parametrize("words", _MISSING, ids="-".join)
@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_a_command_about_nothing_says_so_in_one_line(
    filled: Node, words: tuple[str, ...], flags: tuple[str, ...]
) -> None:
    said = filled(*words, *_arguments(words), *flags)
    assert (said.code, said.out) == (66, "")
    assert said.err.startswith("edgepacs: ")
    assert said.err.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        ("check",),
        ("migrate",),
        ("fsck",),
        ("ae", "list"),
        ("ae", "list", "--refused"),
        ("ae", "add", "CT1", "--host", "*", "--port", "104"),
        ("destination", "list"),
        ("destination", "add", "x", "--ae", "X", "--host", "127.0.0.1", "--port", "1"),
        ("destination", "remove", "pacs"),
        ("rule", "list"),
        ("rule", "add", "--to", "pacs", "--match", "modality=US", "--hold-until-verified"),
        ("rule", "add", "--to", "pacs", "--as", "lossy:80", "--patience", "60"),
        ("rule", "remove", "1"),
        ("rule", "test", "1"),
        ("rule", "test", "--to", "pacs", "--match", "modality=US", "--hold-until-verified"),
        ("queue", "list"),
        ("queue", "totals"),
        ("queue", "show", "1"),
        ("queue", "reroute", "pacs", "--study", "1"),
        ("queue", "priority", "stat", "--study", "1", "--study", "2"),
        ("queue", "list", "--to", "pacs", "--after", "1", "--limit", "1"),
        ("queue", "list", "--state", "queued"),
        ("queue", "hold", "--study", "1"),
        ("queue", "release", "--to", "pacs"),
        ("queue", "retry", "--delivery", "1"),
        ("queue", "cancel"),
        ("study", "list"),
        ("study", "send", "1", "--to", "pacs"),
        ("study", "verify", "1"),
        ("study", "reconcile", "1"),
        ("study", "hold", "1"),
        ("study", "reject", "1"),
        ("quarantine", "list"),
        ("quarantine", "accept", "5"),
        ("quarantine", "discard", "5"),
        ("user", "list"),
        ("user", "add", "nina", "--role", "viewer"),
        ("user", "passwd", "admin"),
        ("token", "create", "--role", "admin"),
    ],
    ids=" ".join,
)
def test_commands_answer_in_words_and_as_json(
    filled: Node, tmp_path: Path, words: tuple[str, ...], say: Callable[..., Said]
) -> None:
    other = Node(config.load(_copied(filled.config.path.parent, tmp_path / "copy")), say)
    assert filled.done(*words).strip()
    other.data(*words)


def _copied(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to, ignore=shutil.ignore_patterns("run"))
    return to / "edgepacs.toml"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ((), 2),
        (("nonsense",), 2),
        (("ae",), 2),
        (("ae", "add", "CT1"), 2),
        (("ae", "add", "CT1", "--host", "*", "--port", "x"), 2),
        (("ae", "add", "CT1", "--host", "*", "--port", "0"), 65),
        (("ae", "add", "SEVENTEEN_LETTERS", "--host", "*", "--port", "104"), 65),
        (("ae", "add", "CT1", "--host", "*", "--port", "104", "--allow", "fly"), 65),
        (("ae", "set", "CT1"), 65),
        (("ae", "set", "NOBODY", "--max-associations", "1"), 66),
        (("destination", "add", "pacs", "--ae", "P", "--host", "h", "--port", "1"), 65),
        (("destination", "add", "x", "--ae", "P", "--host", "a..b", "--port", "1"), 65),
        (("rule", "add", "--to", "nowhere"), 66),
        (("rule", "add", "--to", "*", "--match", "shoe=9"), 65),
        (("queue", "list", "--state", "odd"), 2),
        (("queue", "hold", "--to", "nowhere"), 66),
        (("queue", "reroute", "nowhere"), 66),
        (("queue", "show", "99"), 66),
        (("queue", "priority", "urgent"), 65),
        (("queue", "priority", "2000"), 65),
        (("queue", "list", "--limit", "0"), 65),
        (("rule", "test", "1", "--match", "modality=US"), 65),
        (("rule", "test", "--to", "nowhere"), 66),
        (("rule", "add", "--to", "*", "--as", "jpeg"), 65),
        (("rule", "add", "--to", "*", "--then", "pacs"), 65),
        (("user", "add", "admin", "--role", "viewer"), 65),
        (("user", "add", "nina", "--role", "king"), 2),
        (("user", "remove", "admin"), 65),
        (("study", "release", "1"), 65),
        (("quarantine", "accept", "1"), 65),
        (("quarantine", "discard", "1"), 65),
        (("--version",), 0),
    ],
    ids=lambda one: " ".join(one) if isinstance(one, tuple) else str(one),
)
def test_what_does_not_go_ends_with_its_code(
    filled: Node, words: tuple[str, ...], code: int
) -> None:
    said = filled(*words)
    assert said.code == code, said
    assert "Traceback" not in said.err
    if 64 <= code <= 78:
        assert said.err.startswith("edgepacs: ")
        assert said.err.count("\n") == 1


# -- the node


def test_init_makes_a_node_that_opens(tmp_path: Path, say: Callable[..., Said]) -> None:
    folder = tmp_path / "node"
    said = say("init", str(folder), "--ae-title", "BOX", "--dicom-port", "0", "--json")
    assert (said.code, said.err) == (0, "")
    made = said.json
    assert isinstance(made, dict)
    loaded = config.load(Path(made["config_path"]))
    assert (loaded.node.ae_title, loaded.dicom.port, loaded.web.port) == ("BOX", 0, 8080)
    store = Store.open(loaded)
    assert users.log_in(store.db, made["user"], made["password"])
    assert store.db.problems() == []
    store.close()
    again = say("init", str(folder))
    assert again.code == 65
    assert "nothing was changed" in again.err
    assert len(made["recovery_key"].replace("-", "")) == 55


def test_init_takes_a_password_and_does_not_repeat_it(
    tmp_path: Path, say: Callable[..., Said]
) -> None:
    refused = say("init", str(tmp_path / "n"), "--admin-password-stdin", stdin="short\n")
    assert refused.code == 65
    assert "password" in refused.err
    assert say("init", str(tmp_path / "n"), "--admin-password-stdin").code == 65
    said = say("init", str(tmp_path / "n"), "--admin-password-stdin", stdin=PASSWORD + "\n")
    assert said.code == 0
    assert PASSWORD not in said.out + said.err
    store = Store.open(config.load(tmp_path / "n" / "edgepacs.toml"))
    session = users.session(store.db, users.log_in(store.db, "admin", PASSWORD))
    store.close()
    assert session is not None
    assert session.one_time == 0


def test_init_where_nothing_can_be_made_is_one_line(
    tmp_path: Path, say: Callable[..., Said]
) -> None:
    (tmp_path / "file").write_text("")
    said = say("init", str(tmp_path / "file" / "node"))
    assert said.code == 74
    assert said.err.startswith(f"edgepacs: {tmp_path}")
    assert said.err.count("\n") == 1


def test_check_counts_and_warns_of_a_key_on_this_disk(filled: Node) -> None:
    said = filled("check", "--json").json
    assert isinstance(said, dict)
    assert (said["study"], said["instance"]) == (2, 4)
    assert "thief" in said["warnings"][0]
    assert "warning: " in filled.done("check")


@pytest.mark.parametrize(
    ("damage", "code", "words"),
    [
        ("wrong key", 77, "keystore"),
        ("no key", 78, "device.key"),
        ("no keystore", 78, "keystore"),
        ("no index", 78, "rebuild"),
        ("broken keystore", 76, "keystore"),
        ("newer schema", 78, "newer"),
        ("older schema", 78, "migrate"),
        ("no objects", 74, "objects"),
        ("no data", 78, "data_dir"),
    ],
)
def test_a_node_that_does_not_open_says_why(node: Node, damage: str, code: int, words: str) -> None:
    data = node.config.data_dir
    match damage:
        case "wrong key":
            node.config.device_key_file.write_bytes(b"x" * 32)
        case "no key":
            node.config.device_key_file.unlink()
        case "no keystore":
            (data / "keystore").unlink()
        case "no index":
            (data / "index.db").unlink()
        case "broken keystore":
            (data / "keystore").write_bytes(b"x" * 300)
        case "newer schema" | "older schema":
            store = Store.open(node.config)
            with store.db.write() as tx:
                tx.run(f"PRAGMA user_version = {99 if damage == 'newer schema' else 0}")
            store.close()
        case "no objects":
            (data / "objects").rename(data / "moved")
        case "no data":
            data.rename(data.with_name("moved"))
    said = node("check")
    assert (said.code, said.out) == (code, ""), said
    assert words in said.err
    assert said.err.count("\n") == 1


def test_fsck_says_what_is_wrong_and_ends_with_it(filled: Node) -> None:
    assert "sound" in filled.done("fsck").splitlines()
    store = Store.open(filled.config)
    flip_bit(objects(store)[0], -30)
    store.close()
    said = filled("fsck")
    assert said.code == 76
    assert "NOT sound" in said.out
    said = filled("fsck", "--json")
    assert said.code == 76
    assert isinstance(said.json, dict)
    assert len(said.json["broken"]) == 1


def test_rebuild_takes_the_recovery_key(filled: Node) -> None:
    for path in filled.config.data_dir.glob("index.db*"):
        path.unlink()
    filled.config.device_key_file.rename(filled.config.device_key_file.with_name("lost"))
    assert filled("rebuild").code == 78
    wrong = filled("rebuild", "--recovery-key-stdin", stdin="AAAA-BBBB\n")
    assert (wrong.code, "recovery key" in wrong.err) == (65, True)
    text = template()[1].recovery_key
    out = filled.done("rebuild", "--recovery-key-stdin", stdin=text + "\n")
    assert "5 instances are back" in out
    assert filled("rebuild", "--recovery-key-stdin", stdin=text + "\n").code == 65
    filled.config.device_key_file.with_name("lost").rename(filled.config.device_key_file)
    assert [s["instance_count"] for s in filled.data("study", "list")] == [2, 2]


# -- what is told is done


def test_what_an_ae_may_take_is_set_and_listed(node: Node) -> None:
    at = ("--host", "192.0.2.1", "--port", "104")
    node.done("ae", "add", "CT1", *at)
    node.done("ae", "add", "US1", *at, "--max-object-mib", "200")
    assert "max_object_seconds 60" in node.done("ae", "set", "CT1", "--max-object-seconds", "60")
    node.done("ae", "set", "CT1", "--max-associations", "2")
    node.done("ae", "add", "CT1", *at, "--allow", "echo")  # what it may take stays
    columns = ("title", "services", "max_associations", "max_object_mib", "max_object_seconds")
    assert [tuple(row[name] for name in columns) for row in node.data("ae", "list")] == [
        ("CT1", "echo", 2, 0, 60),
        ("US1", "echo store", 16, 200, 3600),
    ]
    refused = node("ae", "set", "CT1", "--max-associations", "0", "--json")
    assert (refused.code, "max_associations" in refused.err) == (65, True)


def test_how_an_ae_is_called_is_set_and_its_keys_are_not_shown(node: Node, tmp_path: Path) -> None:
    node.done("ae", "add", "WS", "--host", "192.0.2.1", "--port", "104")
    key = tmp_path / "own.key"
    key.write_text("-----BEGIN PRIVATE KEY-----\nsecret\n-----END PRIVATE KEY-----\n")
    said = node.done("ae", "set", "WS", "--call", "tls=1", "--call", f"private_key=@{key}")
    assert "secret" not in said
    (one,) = node.data("ae", "list")
    assert (one["tls"], one["private_key"], one["authority"]) == (1, "set", "")
    for wrong in ("tls=2", "authority=x", "colour=red", "tls"):
        assert node("ae", "set", "WS", "--call", wrong).code == 65
    assert node("ae", "set", "NOBODY", "--call", "tls=1").code == 66
    node.done("ae", "set", "WS", "--call", "tls=0", "--call", "private_key=")
    assert [(one["tls"], one["private_key"]) for one in node.data("ae", "list")] == [(0, "")]


def test_a_destination_is_reached_by_c_store_or_by_an_address(node: Node) -> None:
    node.done("destination", "add", "web", "--url", "https://pacs.example:8443/dicom-web/")
    (one,) = node.data("destination", "list")
    assert [one[name] for name in ("transport", "ae_title", "host", "port", "url")] == [
        *("stow", "", "pacs.example", 8443, "https://pacs.example:8443/dicom-web"),
    ]
    node.done("destination", "set", "web", "url=https://pacs.example/dicom-web")
    assert node.data("destination", "list")[0]["port"] == 443
    for wrong in (
        (),
        ("--ae", "X", "--url", "https://pacs.example/"),
        ("--ae", "X", "--host", "127.0.0.1"),
        ("--url", "http://pacs.example/"),
        ("--url", "https://me:secret@pacs.example/"),
    ):
        refused = node("destination", "add", "other", *wrong)
        assert refused.code == 65, wrong
        assert "secret" not in refused.err
    assert node("destination", "set", "web", "url=http://192.0.2.1/").code == 65


def test_aes_destinations_rules_and_users_are_kept(node: Node) -> None:
    node.done("ae", "add", "CT1", "--host", "192.0.2.1", "--port", "104", "--allow", "echo,find")
    assert node.data("ae", "list")[0]["services"] == "echo find"
    node.done("destination", "add", "pacs", "--ae", "PACS", "--host", "127.0.0.1", "--port", "1")
    assert node.data("destination", "list")[0]["ae_title"] == "PACS"
    node.done("rule", "add", "--to", "pacs", "--match", "modality=US", "--hold-until-verified")
    rules = node.data("rule", "list")
    assert [(r["destination_name"], r["match"], r["hold"]) for r in rules] == [
        (None, "", 0),
        ("pacs", "modality=US", 1),
    ]
    node.done("rule", "remove", "1")
    assert len(node.data("rule", "list")) == 1
    shown = node.done("user", "add", "nina", "--role", "technologist")
    one_time = shown.split(" / ")[1].split()[0]
    store = Store.open(node.config)
    session = users.session(store.db, users.log_in(store.db, "nina", one_time))
    store.close()
    assert session is not None
    assert session.one_time == 1
    node.done("user", "passwd", "nina", "--password-stdin", stdin=PASSWORD + "\n")
    assert [u["one_time"] for u in node.data("user", "list")] == [0, 0]
    node.done("user", "remove", "nina")
    node.done("destination", "remove", "pacs")
    node.done("ae", "remove", "CT1")
    for what in (("ae", "list"), ("destination", "list")):
        assert node.done(*what).strip() == "none"
        assert node.data(*what) == []


def test_a_destination_shows_its_line_and_no_secret(node: Node) -> None:
    node.done("destination", "add", "pacs", "--ae", "PACS", "--host", "127.0.0.1", "--port", "1")
    assert "nothing waits" in node.done("destination", "show", "pacs")
    secrets = ("token=t0ken", "passcode=p4ss", "private_key=-----BEGIN PRIVATE KEY-----")
    line = ("kbits=384", "daily_mib=500", "hours=22:00-06:00", "least_priority=50")
    node.done("destination", "set", "pacs", *secrets, *line)
    store = Store.open(node.config)
    destinations.set_link(store.db, 1, LinkState.DOWN, "no answer in time")
    usage.add(store.db, 1, {date(2026, 11, 23): 4096}, 40_000)
    usage.set_round_trip(store.db, 1, 715)
    take_in(store)
    store.close()
    (listed,) = node.data("destination", "list")
    assert listed["line"] == "384 kbit/s, 500 MiB a day, 22:00-06:00, priority 50 and above"
    assert (listed["token"], listed["passcode"], listed["private_key"]) == ("set", "set", "set")
    assert (listed["certificate"], listed["kbits"]) == ("", 384)
    found = json.loads(node.done("destination", "show", "pacs", "--json"))
    assert found["measured"] == {"rate": 40_000, "round_trip_ms": 715, "lanes": 0}
    assert found["usage"] == [{"day": "2026-11-23", "bytes": 4096}]
    (change,) = found["changes"]
    assert (change["link"], change["words"]) == ("down", "no answer in time")
    assert (found["forecast"]["instances"], found["forecast"]["shut_out"]) == (1, 1)
    shown = node.done("destination", "show", "pacs")
    for words in ("715 ms", "1 wait for another line", "2026-11-23  4096", "no answer in time"):
        assert words in shown
    for text in (shown, node.done("destination", "list", "--json")):
        assert not any(secret in text for secret in ("t0ken", "p4ss", "BEGIN"))


def test_passwords_and_digests_are_never_listed(node: Node) -> None:
    listed = node.done("user", "list", "--json")
    assert "password" not in listed
    assert "argon2" not in listed


def test_a_rule_is_tried_before_it_is_made(node: Node) -> None:
    node.done("destination", "add", "pacs", "--ae", "PACS", "--host", "127.0.0.1", "--port", "1")
    node.done("destination", "add", "later", "--ae", "LATER", "--host", "127.0.0.1", "--port", "1")
    store = Store.open(node.config)
    for _ in range(2):
        take_in(store, modality="CT")
    store.close()
    words = ("--to", "pacs", "--match", "modality=CT", "--hold-until-verified")
    tried = json.loads(node.done("rule", "test", *words, "--json"))
    assert tried["total"] == {"studies": 1, "queued": 0, "held": 0, "there": 2, "byte_size": 0}
    node.done("rule", "remove", "1")
    node.done("queue", "reroute", "later", "--to", "pacs")
    made = json.loads(
        node.done("rule", "add", "--to", "later", "--then", "pacs", "--as", "native", "--json")
    )
    (one,) = node.data("rule", "list")
    assert (one["destination_name"], one["then"], one["send_as"]) == ("later", ["pacs"], "native")
    told = node.done("rule", "test", str(made["id"]))
    assert "0 instances would be queued, 0 held, 2 are there already; 0 bytes to send" in told


def test_acts_on_the_queue_say_why_something_stays(node: Node) -> None:
    node.done("destination", "add", "pacs", "--ae", "PACS", "--host", "127.0.0.1", "--port", "1")
    store = Store.open(node.config)
    for number in range(3):
        take_in(store, study=f"1.{number}")
    store.close()
    node.done("queue", "cancel", "--delivery", "1")
    said = node.done("queue", "hold", "--study", "1", "--study", "2")
    assert said.splitlines() == ["1 deliveries", "1 not: it is cancelled"]
    told = json.loads(node.done("queue", "priority", "stat", "--state", "queued", "--json"))
    assert told == {"changed": 1, "unchanged": {}}
    shown = json.loads(node.done("queue", "show", "3", "--json"))
    assert (shown["priority"], shown["state"], shown["history"]) == (100, "queued", [])
    assert "cancelled" in node.done("queue", "show", "1")
    (one,) = node.data("queue", "totals")
    assert (one["queued"], one["held"], one["cancelled"]) == (1, 1, 1)
    study = json.loads(node.done("study", "show", "2", "--json"))
    assert [way["held"] for way in study["ways"]] == [1]
    assert [one["id"] for one in study["deliveries"]] == [2]
    assert "pacs" in node.done("study", "show", "2")


def test_the_queue_obeys(filled: Node) -> None:
    def count(state: str) -> int:
        rows = filled.data("queue", "list", "--state", state)
        return sum(int(str(row["count"])) for row in rows)

    assert count("queued") == 4
    assert "2 deliveries" in filled.done("queue", "hold", "--study", "1")
    assert (count("held"), count("queued")) == (2, 2)
    filled.done("queue", "release", "--to", "pacs")
    assert count("queued") == 4
    filled.done("queue", "cancel", "--delivery", "1")
    assert count("cancelled") == 1
    filled.done("queue", "retry")
    assert count("queued") == 4


def test_studies_obey(filled: Node) -> None:
    filled.done("study", "reject", "1")
    assert filled("study", "send", "1", "--to", "pacs").code == 65
    assert "0 deliveries" in filled.done("queue", "release")
    filled.done("study", "release", "1")
    assert "2 instances queued" in filled.done("study", "send", "1", "--to", "pacs")
    filled.done("study", "verify", "1")
    assert {s["id"]: s["state"] for s in filled.data("study", "list")} == {
        1: "verified",
        2: "received",
    }
    store = Store.open(filled.config)
    with store.db.read() as tx:
        actors = {row[0] for row in tx.rows("SELECT actor FROM audit WHERE kind = 'study'")}
    store.close()
    assert "cli" in actors


def test_quarantine_is_decided(filled: Node) -> None:
    assert [row["id"] for row in filled.data("quarantine", "list")] == [5]
    filled.done("quarantine", "accept", "5")
    assert filled.data("quarantine", "list") == []
    store = Store.open(filled.config)
    found = instances.stored_version(store.db, instances.instance(store.db, 5).sop_instance_uid)  # type: ignore[arg-type]
    assert found is not None
    assert found.id == 5
    store.close()
    filled.done("quarantine", "discard", "4")


def test_lists_show_no_control_characters(node: Node) -> None:
    store = Store.open(node.config)
    take_in(store, study="1.2", modality="C\x1b[2J")
    found = studies.search(store.db, studies.Search())
    assert found
    with store.db.write() as tx:
        tx.run("UPDATE study SET flags = ?", "a\x1b[31m\nb")
    store.close()
    shown = node.done("study", "list")
    assert "\x1b" not in shown
    assert len(shown.splitlines()) == 2


def test_a_destination_is_echoed(node: Node) -> None:
    with RecordingSCP() as scp:
        where = ["--host", scp.host, "--port", str(scp.port)]
        node.done("destination", "add", "pacs", "--ae", scp.ae_title, *where)
        assert "answered C-ECHO" in node.done("destination", "echo", "pacs")
        said = node("destination", "echo", "pacs", "--json").json
        assert isinstance(said, dict)
        assert said["succeeded"] is True
    said = node("destination", "echo", "pacs")
    assert said.code == 69
    assert "nothing listens" in said.out
