"""A node for every test, and the people who use it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from web_support import Person, add_user, found_store, person

from edgepacs import config
from edgepacs.model import Role
from edgepacs.store import Store, founding


@pytest.fixture(scope="session")
def founded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A node nobody uses: every test begins with a copy of it."""
    folder = tmp_path_factory.mktemp("web") / "node"
    store = found_store(folder)
    add_user(store, "mara", Role.TECHNOLOGIST)
    add_user(store, "viola", Role.VIEWER)
    store.close()
    return folder


@pytest.fixture
def store(tmp_path: Path, founded: Path) -> Iterator[Store]:
    folder = shutil.copytree(founded, tmp_path / "node")
    opened = Store.open(config.load(folder / founding.CONFIG_NAME))
    yield opened
    opened.close()


@pytest.fixture
def admin(store: Store) -> Person:
    return person(store)


@pytest.fixture
def technologist(store: Store) -> Person:
    return person(store, "mara")


@pytest.fixture
def viewer(store: Store) -> Person:
    return person(store, "viola")
