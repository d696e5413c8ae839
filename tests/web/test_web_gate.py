"""Who gets in, and what nobody gets past: BAD-INPUT 74 to 86 as far as they are the web's."""

import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from flask import Flask
from harness import made
from web_support import (
    PAGE,
    PASSWORD,
    Looked,
    Person,
    add_destination,
    add_user,
    csrf_in,
    log_in,
    put,
    put_changed,
)

from edgepacs.model import Role, StudyState
from edgepacs.store import Store, certificate, instances, studies, users
from edgepacs.web import create_app

_OPEN = {"account.login", "account.log_in", "system.healthz", "static"}


def _views(app: Flask) -> list[tuple[str, str]]:
    """Every method and path there is, row numbers filled in."""
    found = []
    for rule in app.url_map.iter_rules():
        path = rule.rule.replace("<row:number>", "1").replace("<int(max=2147483647):frame>", "0")
        found += [
            (method, path)
            for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"})
            if rule.endpoint not in _OPEN
        ]
    return found


def test_every_view_says_who_may_call_it(store: Store):
    app = create_app(store)
    silent = [
        name
        for name, view in app.view_functions.items()
        if name != "static" and "needs" not in view.__dict__
    ]
    assert silent == []


def test_nothing_answers_strangers(store: Store):
    put(store, made.ct())
    app = create_app(store)
    for method, path in _views(app):
        script = app.test_client().open(path, method=method)
        assert script.status_code == 401, (method, path)
        assert "Test" not in script.text
        page = app.test_client().open(path, method=method, headers=PAGE)
        assert page.status_code == 303, (method, path)
        assert page.headers["Location"].startswith("/login"), (method, path)


def test_nothing_changes_without_the_token(store: Store, admin: Person):
    put(store, made.ct())
    for method, path in _views(create_app(store)):
        if method == "GET":
            continue
        for csrf in ("", "wrong", "ünïcode"):
            answer = admin.client.open(path, method=method, data={"csrf": csrf, "state": "held"})
            assert answer.status_code == 403, (path, csrf)
    assert studies.search(store.db, studies.Search())[0].state is StudyState.RECEIVED


def test_every_form_carries_the_token(store: Store, admin: Person):
    add_destination(store)
    one = made.ct()
    put(store, one)
    other = one.dataset()
    other.SeriesDescription = "Other content"
    instances.quarantine(store.db, put(store, made.instance(other)).instance_id)
    for path, least in (("/studies", 2), ("/studies/1", 7), ("/queue", 6), ("/system", 8)):
        forms = Looked(admin.get(path).text).forms
        assert len(forms) >= least, path
        assert {form.get("csrf") for form in forms} == {admin.csrf}, path


def test_token_of_another_session_does_not_count(admin: Person, technologist: Person):
    answer = admin.client.post("/logout", data={"csrf": technologist.csrf}, headers=PAGE)
    assert answer.status_code == 403


def test_token_in_a_header_counts(store: Store, technologist: Person):
    study = put(store, made.ct()).study_id
    answer = technologist.client.post(
        f"/studies/{study}/state",
        data={"state": "verified"},
        headers={"X-CSRF-Token": technologist.csrf},
    )
    assert answer.status_code == 200
    assert answer.json["state"] == "verified"


@pytest.mark.parametrize(
    ("path", "data"),
    [
        ("/studies/1/state", {"state": "verified"}),
        ("/studies/1/send", {"destination": "1"}),
        ("/instances/1/accept", {}),
        ("/instances/1/discard", {}),
        ("/instances/1/withdraw", {}),
        ("/import", {}),
        ("/queue", {"act": "hold", "study": "1"}),
    ],
)
def test_viewers_only_look(store: Store, viewer: Person, path: str, data: dict[str, str]):
    put(store, made.ct())
    assert viewer.post(path, data).status_code == 403
    assert viewer.get("/instances/1/file").status_code == 403
    assert viewer.get("/studies/1").status_code == 200


def test_technologists_do_not_administer(store: Store, technologist: Person):
    app = create_app(store)
    for method, path in _views(app):
        if path.startswith("/system"):
            answer = technologist.client.open(path, method=method, data={"csrf": technologist.csrf})
            assert answer.status_code == 403, (method, path)
    assert technologist.post("/queue", {"act": "hold", "destination": "1"}).status_code == 403


def test_login_makes_a_new_session_and_ends_the_old(store: Store):
    client = create_app(store).test_client()
    client.set_cookie("edgepacs", "chosen-by-somebody-else")
    assert log_in(client, "admin").status_code == 303
    first = client.get_cookie("edgepacs").value
    assert first != "chosen-by-somebody-else"
    assert log_in_again(client) != first
    assert users.session(store.db, first) is None


def log_in_again(client) -> str:
    """Log in over a session that is still open, as a forced form would."""
    client.set_cookie("edgepacs-form", "known")
    values = {"csrf": "known", "name": "admin", "password": PASSWORD}
    assert client.post("/login", data=values, headers=PAGE).status_code == 303
    return str(client.get_cookie("edgepacs").value)


def test_login_form_of_another_site_is_refused(store: Store):
    client = create_app(store).test_client()
    values = {"csrf": "guessed", "name": "admin", "password": PASSWORD}
    assert client.post("/login", data=values, headers=PAGE).status_code == 403
    client.get("/login", headers=PAGE)
    assert client.post("/login", data=values, headers=PAGE).status_code == 403
    assert client.get_cookie("edgepacs") is None


def test_wrong_passwords_are_slowed_and_locked(store: Store):
    client = create_app(store).test_client()
    answers = [log_in(client, "admin", "not the password") for _ in range(6)]
    assert {answer.status_code for answer in answers} == {403}
    assert "wrong user name or password" in answers[0].text
    assert "too many wrong passwords" in answers[-1].text
    locked = log_in(client, "admin")  # the right one
    assert locked.status_code == 403
    assert client.get_cookie("edgepacs") is None


def test_unknown_names_are_answered_like_wrong_passwords(store: Store):
    client = create_app(store).test_client()
    texts = [
        log_in(client, name, "not the password").text.partition("<label")[0]
        for name in ("admin", "nobody")
    ]
    assert all("wrong user name or password" in text for text in texts)


def test_one_time_password_must_be_changed_first(store: Store):
    add_user(store, "new", Role.ADMIN, one_time=True)
    client = create_app(store).test_client()
    assert log_in(client, "new").status_code == 303
    assert client.get("/studies", headers=PAGE).headers["Location"] == "/password"
    assert client.get("/studies.json").status_code == 403
    csrf = csrf_in(client.get("/password", headers=PAGE))
    assert client.post("/system/rules", data={"csrf": csrf, "to": "*"}).status_code == 403
    good = {"csrf": csrf, "old": PASSWORD, "new": "another long phrase"}
    for change in (
        {"again": "something else"},
        {"again": "another long phrase", "old": "wrong"},
        {"again": "short", "new": "short"},
        {"again": PASSWORD, "new": PASSWORD},
    ):
        answer = client.post("/password", data=good | change, headers=PAGE)
        assert 400 <= answer.status_code < 500, change
        assert 'role="alert"' in answer.text, change
    before = client.get_cookie("edgepacs").value
    done = client.post("/password", data=good | {"again": good["new"]}, headers=PAGE)
    assert done.status_code == 303
    assert client.get_cookie("edgepacs").value != before
    assert client.get("/studies", headers=PAGE).status_code == 200


def test_logout_ends_the_session(store: Store, admin: Person):
    secret = admin.client.get_cookie("edgepacs").value
    assert admin.post("/logout").status_code == 303
    assert users.session(store.db, secret) is None
    admin.client.set_cookie("edgepacs", secret)
    assert admin.get("/studies").status_code == 303


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:8080", 200),
        ("127.0.0.1:8080", 200),
        ("[::1]:8080", 200),
        ("192.0.2.7", 200),
        ("evil.example", 400),
        ("localhost.evil.example", 400),
        ("127.0.0.1.evil.example", 400),
        ("", 400),
        ("[evil", 400),
    ],
)
def test_only_our_own_names_are_answered(store: Store, host: str, status: int):
    client = create_app(store).test_client()
    answer = client.get("/login", headers=PAGE | {"Host": host})
    assert answer.status_code == status
    assert ("Log in" in answer.text) == (status == 200)


@pytest.mark.parametrize(
    "target",
    ["//evil.example", "https://evil.example", "/\\evil.example", "/studies/../../x", "/logout",
     "/studies/1\r\nX: y", "javascript:alert(1)", "/studies/1/panel"],
)  # fmt: skip
def test_login_leads_nowhere_else(store: Store, target: str):
    client = create_app(store).test_client()
    page = client.get("/login", query_string={"next": target}, headers=PAGE)
    values = {"csrf": csrf_in(page), "name": "admin", "password": PASSWORD, "next": target}
    answer = client.post("/login", data=values, headers=PAGE)
    assert answer.status_code == 303
    assert answer.headers["Location"] == "/studies"


def test_login_leads_back(store: Store):
    client = create_app(store).test_client()
    asked = client.get("/studies/17", headers=PAGE)
    assert asked.headers["Location"] == "/login?next=/studies/17"
    page = client.get(asked.headers["Location"], headers=PAGE)
    values = {"csrf": csrf_in(page), "name": "admin", "password": PASSWORD, "next": "/studies/17"}
    answer = client.post("/login", data=values, headers=PAGE)
    assert answer.headers["Location"] == "/studies/17"


def test_cookies_are_strict(store: Store):
    client = create_app(store).test_client()
    plain = log_in(client, "admin").headers.getlist("Set-Cookie")
    (cookie,) = [one for one in plain if one.startswith("edgepacs=")]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert "Secure" not in cookie

    tls = create_app(store).test_client()
    token = csrf_in(tls.get("/login", base_url="https://localhost", headers=PAGE))
    values = {"csrf": token, "name": "admin", "password": PASSWORD}
    answer = tls.post("/login", base_url="https://localhost", data=values, headers=PAGE)
    (cookie,) = [
        one for one in answer.headers.getlist("Set-Cookie") if one.startswith("__Host-edgepacs=")
    ]
    assert {"Secure", "HttpOnly", "SameSite=Strict", "Path=/"} <= set(cookie.split("; "))


def test_every_answer_carries_the_headers(store: Store, admin: Person):
    put(store, made.ct())
    for path in ("/studies", "/studies/1", "/nowhere", "/instances/1/frames/0", "/studies.json"):
        answer = admin.get(path)
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert answer.headers["Cache-Control"] == "no-store", path


def test_pages_hold_nothing_inline(store: Store, admin: Person):
    put(store, made.ct())
    for path in ("/login", "/studies", "/studies/1", "/queue", "/system", "/password"):
        text = admin.get(path).text
        assert Looked(text).inline == [], path


def test_bodies_are_capped_and_plain(store: Store, admin: Person):
    big = admin.client.post(
        "/studies", data=b"x" * (70 << 10), content_type="application/x-www-form-urlencoded"
    )
    assert big.status_code == 413
    packed = admin.client.post("/import", data=b"\x1f\x8b", headers={"Content-Encoding": "gzip"})
    assert packed.status_code == 413
    form = admin.client.post(
        "/studies", data={"csrf": admin.csrf}, content_type="multipart/form-data"
    )
    assert form.status_code == 413
    limit = store.config.web.max_upload_mib << 20
    huge = admin.client.post(
        "/import",
        headers={"X-CSRF-Token": admin.csrf, "Content-Type": "application/dicom"},
        environ_overrides={"CONTENT_LENGTH": str(limit + 1)},
    )
    assert huge.status_code == 413


def _token(store: Store, role: Role) -> dict[str, str]:
    with store.db.write() as tx:
        return {"Authorization": f"Bearer {users.create_token(tx, role=role, actor='test')}"}


def test_bearer_tokens_stand_for_a_session(store: Store):
    put(store, made.ct())
    client = create_app(store).test_client()
    look, work = _token(store, Role.VIEWER), _token(store, Role.TECHNOLOGIST)
    assert client.get("/studies.json", headers=look).json["studies"][0]["id"] == 1
    verify = {"data": {"state": "verified"}}
    assert client.post("/studies/1/state", headers=look, **verify).status_code == 403
    assert client.post("/studies/1/state", headers=work, **verify).status_code == 200
    assert client.get("/studies", headers=work | PAGE).status_code == 200
    for wrong in ("Bearer edge_nonsense", "Basic edge_nonsense", "Bearer"):
        assert client.get("/studies.json", headers={"Authorization": wrong}).status_code == 401


def test_wrong_token_is_not_made_up_for_by_a_cookie(admin: Person):
    answer = admin.client.get("/studies.json", headers={"Authorization": "Bearer edge_x"})
    assert answer.status_code == 401


@pytest.mark.parametrize(
    "path",
    ["/studies/0", "/studies/01", "/studies/-1", "/studies/9999999999999999",
     "/studies/99999999999999999999999", "/instances/7/attributes", "/studies/1.2.840.113"],
)  # fmt: skip
def test_unknown_numbers_are_not_found(store: Store, admin: Person, path: str):
    assert admin.get(path).status_code == 404


def test_errors_quote_no_patient(store: Store, technologist: Person):
    study = put_changed(store, "CT_small.dcm", PatientName="SECRETNAME^X").study_id
    path = f"/studies/{study}/state"
    for _ in range(2):  # pressed twice is once
        assert (
            technologist.post(f"/studies/{study}/state", {"state": "rejected"}).status_code == 303
        )
    wrong = technologist.post(path, {"state": "held"})
    assert wrong.status_code == 409
    assert "SECRETNAME" not in wrong.text
    assert "cannot become" in wrong.text


def test_faults_are_told_without_a_trace(
    store: Store, admin: Person, caplog: pytest.LogCaptureFixture
):
    number = put_changed(store, "CT_small.dcm", PatientName="SECRETNAME^X").instance_id
    (damaged,) = store.vault.object_ids()
    path = store.paths.objects / damaged.hex()[:2] / damaged.hex()
    with path.open("r+b") as file:
        file.seek(4000)
        byte = file.read(1)
        file.seek(4000)
        file.write(bytes([byte[0] ^ 1]))
    with caplog.at_level(logging.INFO, logger="edgepacs"):
        answers = [
            admin.get(f"/instances/{number}/{what}")
            for what in ("frames/0", "attributes", "display.json")
        ]
    assert [answer.status_code for answer in answers] == [500, 500, 500]
    for answer in answers:
        assert "failed their integrity check" in answer.text
        assert "SECRETNAME" not in answer.text
    file = admin.client.get(f"/instances/{number}/file")
    assert file.status_code == 500
    assert "SECRETNAME" not in caplog.text


def test_the_log_names_routes_only(
    store: Store, technologist: Person, caplog: pytest.LogCaptureFixture
):
    put_changed(store, "CT_small.dcm", PatientName="SECRETNAME^X", PatientID="SECRETID")
    with caplog.at_level(logging.INFO, logger="edgepacs"):
        technologist.get("/studies/1?text=SECRETNAME")
        technologist.post("/studies", {"text": "SECRETNAME"})
        technologist.get("/SECRETNAME/%0d%0aINJECTED")
        technologist.client.open("/studies", method="SECRETVERB")
    assert "GET /studies/<row:number> 200" in caplog.text
    assert "SECRET" not in caplog.text
    assert "INJECTED" not in caplog.text


def _certify(folder: Path, *names: str) -> None:
    """Put a certificate for `names` in place of the node's own, as a site's CA would issue it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "site")])
    now = datetime.now(UTC)
    alternatives = x509.SubjectAlternativeName([x509.DNSName(one) for one in names])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(1))
    made = builder.add_extension(alternatives, critical=False).sign(key, hashes.SHA256())
    (folder / "site.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("pacs.clinic.example", 200),
        ("PACS.clinic.example.:8443", 200),
        ("node7.wards.example", 200),
        ("clinic.example", 400),
        ("evil.pacs.clinic.example", 400),
        ("a.b.wards.example", 400),
        ("wards.example", 400),
    ],
)
def test_names_of_the_site_certificate_are_ours(store: Store, host: str, status: int):
    _certify(store.config.path.parent / "tls", "Pacs.Clinic.example", "*.wards.example")
    client = create_app(store).test_client()
    assert client.get("/login", headers=PAGE | {"Host": host}).status_code == status


def test_a_broken_site_certificate_names_nothing(tmp_path: Path):
    assert certificate.site_names(tmp_path) == frozenset()
    (tmp_path / "site.crt").write_text("not a certificate")
    assert certificate.site_names(tmp_path) == frozenset()
