"""Template rendering. jinja2 is imported when the first page is requested."""

import datetime as dt
import hashlib
from functools import cached_property
from importlib import resources
from typing import TYPE_CHECKING, Any

import msgspec
from litestar import Request, Response

from drl_core.policy.actions import Action

if TYPE_CHECKING:
    from jinja2 import Environment

STATIC = {
    "console.css": "text/css",
    "htmx.min.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}
"""Files of `static/` that are served, and what they are."""


class Pages:
    """Renders this package's templates; everything that they print is escaped."""

    @cached_property
    def _templates(self) -> "Environment":
        from jinja2 import Environment, PackageLoader, StrictUndefined

        templates = Environment(
            loader=PackageLoader("drl_serving.console"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        templates.filters |= {"time": _time, "number": number, "words": words, "pretty": _pretty}
        templates.globals |= {"static": static_url, "actions": list(Action)}
        return templates

    def render(self, template: str, **context: Any) -> str:
        """The text of a template."""
        return self._templates.get_template(template).render(context)

    def page(self, template: str, status: int = 200, **context: Any) -> Response[str]:
        """A template as an HTML answer."""
        return Response(
            self.render(template, **context), status_code=status, media_type="text/html"
        )


def static_file(name: str) -> bytes:
    """The content of a file of STATIC."""
    return resources.files("drl_serving.console").joinpath("static", name).read_bytes()


def static_url(name: str) -> str:
    """Where a file of STATIC is; another place when its content is another."""
    if name not in _urls:
        mark = hashlib.sha256(static_file(name)).hexdigest()[:12]
        _urls[name] = f"/console/static/{name}?v={mark}"
    return _urls[name]


_urls: dict[str, str] = {}


def by_htmx(request: Request[Any, Any, Any]) -> bool:
    """Whether a part of a page is asked for."""
    return request.headers.get("hx-request") == "true"


def words(name: str) -> str:
    """An identifier for people: `request_human_review` is `request human review`."""
    return name.replace("_", " ")


def number(value: Any, digits: int = 3) -> str:
    """A number with some decimals, a dash for none."""
    if value is None:
        return "–"  # noqa: RUF001 - a dash for no value
    if isinstance(value, float):
        return f"{value:z.{digits}f}"
    return str(value)


def _pretty(value: Any) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def _time(when: dt.datetime | None) -> str:
    """A time in UTC; one without a zone is in UTC already."""
    if when is None:
        return "never"
    known = when if when.tzinfo else when.replace(tzinfo=dt.UTC)
    return known.astimezone(dt.UTC).strftime("%Y-%m-%d %H:%M:%S")
