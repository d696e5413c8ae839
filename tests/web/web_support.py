"""What the web tests share: a node with a few studies, and people who are logged in."""

import io
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

from flask.testing import FlaskClient
from harness import made
from harness.part10 import Part10
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from werkzeug.test import TestResponse

from edgepacs import config
from edgepacs.custody import ingest
from edgepacs.model import Receipt, Role
from edgepacs.store import Store, destinations, founding, users
from edgepacs.web import create_app

PASSWORD = "correct horse battery staple"
PAGE = {"Accept": "text/html"}


def found_store(folder: Path, http_port: int = 0) -> Store:
    """A new node's store, its administrator named admin."""
    founding.create_node(
        folder, title="EDGEPACS", dicom_port=0, http_port=http_port, password=PASSWORD
    )
    return Store.open(config.load(folder / founding.CONFIG_NAME))


def add_user(store: Store, name: str, role: Role, *, one_time: bool = False) -> None:
    with store.db.write() as tx:
        users.add(tx, name=name, role=role, password=PASSWORD, one_time=one_time, actor="test")


def add_destination(store: Store, name: str = "Central PACS", port: int = 11199) -> int:
    with store.db.write() as tx:
        return destinations.add(
            tx, name=name, title="CENTRAL", host="127.0.0.1", port=port, actor="test"
        )


def put(store: Store, one: Part10) -> Receipt:
    return ingest.import_part10(store, io.BytesIO(one.file()), source="CT1")


def put_changed(store: Store, name: str, **changes: object) -> Receipt:
    """Store pydicom's file `name` with fresh UIDs and the attributes given."""
    return put(store, changed(name, **changes))


def changed(name: str, **changes: object) -> Part10:
    path = get_testdata_file(name, download=False)
    assert isinstance(path, str), f"{name} is in neither pydicom nor pydicom-data"
    dataset: Dataset = dcmread(path)
    syntax = str(dataset.file_meta.TransferSyntaxUID)
    values = {
        "StudyInstanceUID": made.new_uid(),
        "SeriesInstanceUID": made.new_uid(),
        "SOPInstanceUID": made.new_uid(),
        "SpecificCharacterSet": "ISO_IR 192",
    }
    for keyword, value in (values | changes).items():
        setattr(dataset, keyword, value)
    return made.instance(dataset, syntax)


@dataclass(slots=True)
class Person:
    """Somebody with a browser that is logged in."""

    client: FlaskClient
    csrf: str = field(default="", repr=False)

    def get(self, path: str, **headers: str) -> TestResponse:
        return self.client.get(path, headers=PAGE | headers)

    def post(self, path: str, data: dict[str, object] | None = None) -> TestResponse:
        return self.client.post(path, data={"csrf": self.csrf, **(data or {})}, headers=PAGE)


class Looked(HTMLParser):
    """A page looked through. `inline` is what it would execute or style without a file."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.inline: list[str] = []
        self.forms: list[dict[str, str]] = []  # the fields of every form that changes something
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = dict(attrs)
        self.inline += [f"<{tag} {name}>" for name in names if name.startswith("on")]
        self.inline += [f"<{tag} {name}>" for name in names if name in ("style", "srcdoc")]
        self.inline += [
            f"<{tag} {value}>"
            for value in names.values()
            if (value or "").startswith("javascript:")
        ]
        if tag == "form" and names.get("method") == "post":
            self.forms.append({})
        if tag == "input" and self.forms:
            self.forms[-1][names.get("name") or ""] = names.get("value") or ""
        if tag == "style" or (tag == "script" and "src" not in names):
            self.inline.append(f"<{tag}>")
        for name in ("src", "href"):
            if name in names and not (names[name] or "").startswith(("/", "#")):
                self.inline.append(f"<{tag} {name}={names[name]}>")


def csrf_in(page: TestResponse) -> str:
    found = re.search(r'name="csrf" (?:content|value)="([^"]+)"', page.text)
    assert found, "no CSRF token in the page"
    return found[1]


def log_in(client: FlaskClient, name: str, password: str = PASSWORD) -> TestResponse:
    token = csrf_in(client.get("/login", headers=PAGE))
    values = {"csrf": token, "name": name, "password": password}
    return client.post("/login", data=values, headers=PAGE)


def person(store: Store, name: str = "admin") -> Person:
    client = create_app(store).test_client()
    assert log_in(client, name).status_code == 303
    return Person(client, csrf_in(client.get("/password", headers=PAGE)))
