"""`edgepacs prefetch`: list, ask, cancel."""

from store.making import add_destination, take_in
from test_cli import Node, node, say  # noqa: F401  fixtures

from edgepacs.store import Store


def test_priors_are_asked_for_listed_and_cancelled(node: Node):  # noqa: F811
    store = Store.open(node.config)
    add_destination(store)
    take_in(store)
    store.close()
    assert node.data("prefetch", "list") == []
    node.done("destination", "set", "pacs", "priors=get", "priors_most=2")
    assert node.data("prefetch", "ask", "1") == {"study": 1, "destinations": 1}
    (task,) = node.data("prefetch", "list", "--state", "waiting")
    assert (task["destination_name"], task["reason"], task["subject"]) == ("pacs", "person", 1)
    assert "pacs" in node.done("prefetch", "list")
    assert node.data("prefetch", "cancel", str(task["id"])) == {"cancelled": task["id"]}
    assert node.data("prefetch", "list", "--state", "waiting") == []
