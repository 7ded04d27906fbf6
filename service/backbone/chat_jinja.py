"""Chat templates as Hugging Face's models bring them: sandboxed Jinja with the few additions that they rely on."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import jinja2


def compile_chat_template(template: str) -> jinja2.Template:
    """The template, ready to render with `messages`, special tokens and whatever else it asks for.

    It comes with the model, so it runs in a sandbox, and may change nothing that it is given.

    Raises:
        jinja2.TemplateSyntaxError: It is no template.
    """
    import jinja2
    import jinja2.ext
    import jinja2.sandbox
    from jinja2 import nodes
    from jinja2.parser import Parser

    class Generation(jinja2.ext.Extension):
        """`{% generation %}` marks what the model wrote, for training on it; here it is only what it holds."""

        tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        # Jinja's own escapes HTML, which would change the text.
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # it makes text for a model, not HTML
        extensions=[Generation, "jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = refuse
    return environment.from_string(template)
