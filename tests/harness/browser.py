"""A small HTTP client that follows links and fills forms, as a person with a browser would."""

import http.client
import json
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from http.cookies import SimpleCookie
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One answer."""

    path: str
    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)

    @property
    def kind(self) -> str:
        """The media type without parameters."""
        return self.headers.get("content-type", "").partition(";")[0].strip()

    def text(self) -> str:
        """The body as text."""
        return self.body.decode("utf-8", "replace")

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    def parts(self) -> "_Parts":
        """The links, pictures and forms of an HTML page."""
        parts = _Parts()
        parts.feed(self.text())
        return parts


@dataclass(slots=True)
class Form:
    """A form as it stands in the page: its fields are name to (type, value)."""

    action: str
    method: str
    fields: dict[str, tuple[str, str]]


class _Parts(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.sources: list[str] = []
        self.forms: list[Form] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if "href" in values:
            self.links.append(values["href"])
        for name, value in values.items():
            if name in ("src", "poster") or (name.startswith("data-") and value.startswith("/")):
                self.sources.append(value)
        if tag == "form":
            self.forms.append(Form(values.get("action", ""), values.get("method", "get"), {}))
        elif tag in ("input", "button", "select", "textarea") and self.forms and "name" in values:
            kind = values.get("type", "text")
            self.forms[-1].fields[values["name"]] = (kind, values.get("value", ""))


class Browser:
    """One person's session on the node's web port."""

    def __init__(self, port: int, *, token: str = "") -> None:
        self.port = port
        self.token = token
        self.cookies: SimpleCookie = SimpleCookie()

    def request(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        seconds: float = 60.0,
    ) -> Page:
        """One exchange; redirects are not followed."""
        sent = dict(headers or {})
        if self.token:
            sent["Authorization"] = f"Bearer {self.token}"
        if self.cookies:
            sent["Cookie"] = "; ".join(f"{one.key}={one.value}" for one in self.cookies.values())
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)
        try:
            connection.request(method, path, body=body, headers=sent)
            answer = connection.getresponse()
            got = {name.lower(): value for name, value in answer.getheaders()}
            for value in answer.headers.get_all("Set-Cookie") or ():
                self.cookies.load(value)
            return Page(path=path, status=answer.status, headers=got, body=answer.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Page:
        """A GET that follows up to five redirects."""
        for _ in range(5):
            page = self.request("GET", path, headers=headers)
            if page.status not in (301, 302, 303, 307, 308):
                return page
            path = urllib.parse.urljoin(path, page.headers["location"])
            path = path.removeprefix(f"http://127.0.0.1:{self.port}")
        raise AssertionError("more than five redirects")

    def submit(self, page: Page, form: Form, values: Mapping[str, str]) -> Page:
        """Send `form` of `page` with `values` filled in; the answer, redirects followed."""
        filled = {name: value for name, (_, value) in form.fields.items()} | dict(values)
        body = urllib.parse.urlencode(filled).encode()
        path = urllib.parse.urljoin(page.path, form.action or page.path)
        headers = {
            "Content-Type": "application/x-www-form-urlencoded",
            "Origin": f"http://127.0.0.1:{self.port}",
        }
        answer = self.request(form.method.upper(), path, body=body, headers=headers)
        if answer.status in (301, 302, 303):
            return self.get(urllib.parse.urljoin(path, answer.headers["location"]))
        return answer

    def healthy(self) -> bool:
        """Whether /healthz answers 200."""
        try:
            return self.request("GET", "/healthz", seconds=5).status == 200
        except (OSError, http.client.HTTPException):
            return False

    def login(self, user: str, password: str) -> None:
        """Fill in the login page; AssertionError when it does not let us in."""
        page = self.get("/login")
        assert page.status == 200, f"/login answers {page.status}"
        (form,) = [one for one in page.parts().forms if _password_field(one)]
        text_fields = [name for name, (kind, _) in form.fields.items() if kind in ("text", "email")]
        values = {text_fields[0]: user, _password_field(form): password}
        answer = self.submit(page, form, values)
        still = any(_password_field(one) for one in answer.parts().forms)
        assert answer.status == 200, f"login answers {answer.status}"
        assert not still, "login did not let us in"

    def walk(self, start: str = "/", *, limit: int = 60) -> list[Page]:
        """Every page and picture of the node that links lead to from `start`."""
        todo, seen, pages = [start], {start}, []
        while todo and len(pages) < limit:
            page = self.get(todo.pop(0))
            pages.append(page)
            if page.kind != "text/html":
                continue
            parts = page.parts()
            for link in (*parts.sources, *parts.links):
                path = self._here(urllib.parse.urljoin(page.path, link))
                if path and path not in seen and "logout" not in path:
                    seen.add(path)
                    todo.append(path)
        return pages

    def _here(self, url: str) -> str:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("", "http") or parts.netloc not in ("", f"127.0.0.1:{self.port}"):
            return ""
        return parts.path + (f"?{parts.query}" if parts.query else "")


def _password_field(form: Form) -> str:
    return next((name for name, (kind, _) in form.fields.items() if kind == "password"), "")
