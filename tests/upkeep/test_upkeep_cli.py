"""`edgepacs compression`: what stands how, and doing it again."""

import json

from custody.pictures import LIES, picture
from custody.pressing import press, row
from harness.made import ct
from store.making import take_in, take_in_part
from test_cli import Node, node, say  # noqa: F401  fixtures

from edgepacs.model import InstanceId
from edgepacs.pixels.syntaxes import JPEG_LS
from edgepacs.store import Store


def filled(node: Node) -> tuple[InstanceId, InstanceId, InstanceId]:  # noqa: F811
    """A compressed instance, one that stays as received for a reason, one without pixels."""
    store = Store.open(node.config)
    small = take_in(store).instance_id
    part = picture()
    compressed = take_in_part(store, part).instance_id
    kept = take_in_part(store, LIES["no rows"][0]()).instance_id
    press(store)
    store.close()
    return compressed, kept, small


def test_list(node: Node):  # noqa: F811
    assert node.data("compression", "list") == []
    compressed, kept, small = filled(node)
    lines = {line["instance"]: line for line in node.data("compression", "list")}
    assert set(lines) == {compressed, kept, small}
    one = lines[compressed]
    assert (one["state"], one["transfer_syntax"]) == ("compressed", "JPEG-LS Lossless")
    assert one["verified"] is True
    assert one["ratio"] == round(one["received_length"] / one["byte_length"], 2) > 1.5  # type: ignore[operator]
    assert lines[kept]["state"] == "native"
    assert "Rows" in str(lines[kept]["reason"])
    assert lines[small]["state"] == "as received"
    assert "JPEG-LS Lossless" in node.done("compression", "list")
    (only,) = node.data("compression", "list", "--state", "native")
    assert only["instance"] == kept
    assert len(node.data("compression", "list", "--study", "2")) == 1
    assert len(node.data("compression", "list", "--limit", "2")) == 2


def test_show(node: Node):  # noqa: F811
    """By series, times in milliseconds."""
    compressed, _, _ = filled(node)
    (one,) = node.data("compression", "list", "--state", "compressed")
    (shown,) = node.data("compression", "show", "2")
    same = ("series", "transfer_syntax", "ratio", "encode_ms", "verify_ms", "verified", "state")
    assert [shown[name] for name in same] == [one[name] for name in same]
    assert (shown["instances"], one["instance"]) == (1, compressed)
    for words in (("show", "2"), ("list", "--state", "compressed")):
        header, line = node.done("compression", *words).splitlines()
        at = header.index("encode_ms")
        assert line[at:].split()[0] == str(one["encode_ms"])
    assert node.data("compression", "show", "99") == []


def test_status(node: Node):  # noqa: F811
    assert "0 bytes received" in node.done("compression", "status")
    filled(node)
    answer = json.loads(node("compression", "status", "--json").out)
    assert answer["received_length"] > answer["byte_length"]
    assert (answer["waiting"], answer["workers"]) == (0, node.config.compression.workers)
    assert answer["workers"] >= 1
    assert {(one["state"], one["instances"]) for one in answer["stand"]} == {
        ("compressed", 1),
        ("native", 1),
        ("as received", 1),
    }
    assert "JPEG-LS Lossless" in node.done("compression", "status")


def test_again(node: Node):  # noqa: F811
    """What an earlier version stored is compressed when somebody asks for it."""
    store = Store.open(node.config)
    number = take_in_part(store, ct()).instance_id
    with store.db.write() as tx:
        tx.run("UPDATE compression_mark SET considered = ?", number)
    assert press(store) == {}
    assert "1 instances wait" in node.done("compression", "again", "--all")
    press(store)
    assert row(store, number).transfer_syntax_uid == JPEG_LS
    for words in (("--instance", str(number)), ("--study", "1"), ("--state", "waiting")):
        assert node("compression", "again", *words).code == 0
    for wrong in ((), ("--all", "--study", "1")):
        assert node("compression", "again", *wrong).code == 65
    assert node("compression", "again", "--state", "nonsense").code == 2
    store.close()
