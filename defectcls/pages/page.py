"""Self-contained HTML pages: style and macros in page.html.j2 and macros.html.j2, one template a page."""

import base64
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def render_page(template: str, pictures: dict[str, bytes], **values: Any) -> str:
    """`pages/<template>.html.j2` as text; `pictures` are PNG files by name, for the macro `picture`."""
    environment = Environment(
        loader=PackageLoader("defectcls.pages", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["base64"] = lambda content: base64.b64encode(content).decode()
    return environment.get_template(f"{template}.html.j2").render(pictures=pictures, **values)
