"""The web: pages for technologists and administrators, JSON for scripts."""

from edgepacs.web.app import create_app
from edgepacs.web.server import serve

__all__ = ["create_app", "serve"]
