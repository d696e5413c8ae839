"""What can be said of the look without a browser: contrast, and nothing from elsewhere."""

import re
from importlib import resources

import pytest

_WEB = resources.files("edgepacs.web")
_CSS = (_WEB / "static" / "app.css").read_text("utf-8")
_STAGE = (_WEB / "static" / "viewer.css").read_text("utf-8")

_GROUNDS = ("ground", "surface", "raised", "sunken")
_TEXT = [
    *[(ink, ground) for ink in ("ink", "ink-soft") for ground in _GROUNDS],
    *[("accent", ground) for ground in ("ground", "surface", "raised", "accent-soft")],
    *[(f"{mood}", f"{mood}-soft") for mood in ("good", "warn", "bad", "note")],
    *[(mood, "surface") for mood in ("good", "warn", "bad")],
    *[(mood, "sunken") for mood in ("good", "warn", "bad")],
    ("ink", "accent-soft"),
    ("ink-soft", "accent-soft"),
    ("accent-ink", "accent"),
    ("surface", "bad"),
    ("bad", "ground"),
    ("warn", "ground"),
    ("good", "ground"),
]
_SHAPES = [("line-strong", ground) for ground in ("ground", "surface", "raised")] + [
    ("focus", ground) for ground in _GROUNDS
]


def _tokens(block: str) -> dict[str, str]:
    return dict(re.findall(r"--([a-z-]+):\s*(#[0-9a-f]{6})", block))


def _themes() -> dict[str, dict[str, str]]:
    light = _tokens(_CSS[: _CSS.index("@media")])
    after = _CSS.split("prefers-color-scheme: dark")[1]
    asked, chosen = after.split(':root[data-theme="dark"] {')[:2]
    chosen = chosen.partition("}")[0]
    assert _tokens(asked.partition("}")[0]) == _tokens(chosen), "the two dark themes differ"
    stage = re.search(r"\.stage \{[^}]*\}", _STAGE)
    assert stage
    return {"light": light, "dark": light | _tokens(chosen), "stage": _tokens(stage[0])}


def _luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: str, other: str) -> float:
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark", "stage"])
def test_contrast_meets_wcag_aa(theme: str):
    tokens = _themes()[theme]
    weak = [
        f"{ink} on {ground}: {_contrast(tokens[ink], tokens[ground]):.2f}"
        for pairs, least in ((_TEXT, 4.5), (_SHAPES, 3.0))
        for ink, ground in pairs
        if ink in tokens and ground in tokens and _contrast(tokens[ink], tokens[ground]) < least
    ]
    assert weak == []
    assert {"ink", "surface", "focus"} <= tokens.keys()


def test_nothing_comes_from_elsewhere():
    for folder in ("static", "templates"):
        for item in (_WEB / folder).iterdir():
            text = item.read_text("utf-8").replace('xmlns="http://www.w3.org/2000/svg"', "")
            assert not re.search(r"https?:/|//cdn|@import|url\([^)]*[/:]", text), item.name


def test_scripts_evaluate_no_text():
    for item in (_WEB / "static").iterdir():
        if item.name.endswith(".js"):
            assert not re.search(r"\beval\(|new Function|document\.write", item.read_text()), (
                item.name
            )
