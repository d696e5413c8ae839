"""`edgepacs room`: how much there is, what may go, why the rest may not."""

from store.making import add_destination, take_in
from test_cli import Node, node, say  # noqa: F401  fixtures

from edgepacs.store import Store


def test_room_of_an_empty_node(node: Node):  # noqa: F811
    found = node.data("room")
    assert isinstance(found, dict)
    assert (found["evictable_bytes"], found["blocked_bytes"]) == (0, {})
    assert found["days_to_full"] is None
    assert 0 < found["free_bytes"] <= found["total_bytes"]
    assert found["evict_below_bytes"] < found["evict_until_bytes"]
    assert "full: nothing arrives" in node.done("room")


def test_room_says_what_stays_and_why(node: Node):  # noqa: F811
    store = Store.open(node.config)
    add_destination(store)
    take_in(store)
    store.close()
    found = node.data("room")
    assert isinstance(found, dict)
    assert found["blocked_bytes"].keys() == {"unproved"}
    assert found["daily_bytes"] == found["blocked_bytes"]["unproved"] > 0
    assert found["days_to_full"] > 0
    words = node.done("room")
    assert "on its way, or arrived without the proof its destination owes" in words
    assert "arrive in a day" in words
