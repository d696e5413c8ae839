"""How instances stand at rest, on the pages people look at."""

from custody.pictures import LIES, picture
from custody.pressing import press
from web_support import Person, put

from edgepacs.store import Store


def test_study_page_and_attributes_say_how_it_stands(store: Store, viewer: Person):
    part = picture()
    receipt = put(store, part)
    assert "as received" in viewer.get("/studies/1").text
    press(store)
    page = viewer.get("/studies/1/panel").text
    assert "JPEG-LS Lossless" in page
    assert "verified" in page
    drawer = viewer.get(f"/instances/{receipt.instance_id}/attributes").text
    assert "JPEG-LS Lossless" in drawer
    assert "MONOCHROME2" in drawer


def test_json_says_how_every_instance_stands(store: Store, viewer: Person):
    put(store, picture())
    kept = put(store, LIES["no rows"][0]())
    press(store)
    (one,) = viewer.get("/studies/1.json").json["series"][0]["instances"]  # type: ignore[index]
    assert one["compression"]["verified"] is True
    assert one["compression"]["received_length"] > one["byte_length"]
    assert one["native_digest"].startswith("blake3:")
    study = viewer.get(f"/studies/{kept.study_id}.json").json
    (other,) = study["series"][0]["instances"]  # type: ignore[index]
    assert other["compression"]["state"] == "native"
    assert "Rows" in other["compression"]["reason"]
    assert other["native_digest"] is None


def test_system_page_sums_up(store: Store, admin: Person):
    assert "Compression at rest" not in admin.get("/system").text
    put(store, picture())
    put(store, LIES["no rows"][0]())
    press(store)
    page = admin.get("/system").text
    assert "Compression at rest" in page
    assert "JPEG-LS Lossless" in page
    assert "Kept as received" in page
