"""A tokenizer read from its files alone gives what transformers gives, and needs neither transformers nor torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from models import smollm2_gguf

from service.backbone.golden import golden_token_ids
from service.backbone.huggingface import ModelSource, load_chat_renderer
from service.backbone.load import load_renderer
from service.backbone.templates import ChatTemplateRenderer
from service.backbone.tokenizer_files import read_tokenizer_files
from service.errors import BackboneError

# What templates of published models use beyond the plain: loops with control, tojson, generation marks, whitespace.
TEMPLATES = [
    None,
    "{{- bos_token }}\n{%- for m in messages %}\n    {%- if m.role == 'system' %}{% continue %}{% endif %}\n"
    "    {{- '<|' + m['role'] + '|>' + m.content.strip() }}\n{%- endfor %}\n",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{{ ns.n }}"
    "{{ {'r': m['role'], 'c': m['content']} | tojson }}{% if loop.last %}{{ eos_token }}{% endif %}{% endfor %}",
    "{% for m in messages %}\n  {% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}{% endgeneration %}"
    "\n  {% else %}\n<{{ m['content'][::-1] | upper }}>\n  {% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}never{% endif %}{% if tools is not none and tools %}never{% endif %}",
]
PROGRAM = """
import sys
for name in ("torch", "transformers"):
    sys.modules[name] = None
from service.backbone.golden import golden_token_ids
from service.backbone.load import load_renderer
renderer = load_renderer(sys.argv[1])
print(renderer.template_id, sum(map(sum, golden_token_ids(renderer))))
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    from transformers import AutoTokenizer

    file = smollm2_gguf()
    directory = tmp_path_factory.mktemp("model")
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(directory)
    (directory / "config.json").write_text(json.dumps({"model_type": "llama", "max_position_embeddings": 300}))
    return directory


def model(saved: Path, tmp_path: Path, **changes: object) -> Path:
    """A copy whose tokenizer_config.json has `changes`; None removes."""
    directory = tmp_path / "model"
    shutil.copytree(saved, directory)
    file = directory / "tokenizer_config.json"
    settings = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({name: value for name, value in settings.items() if value is not None}))
    return directory


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_files_alone_give_the_text_that_transformers_renders(saved, tmp_path, template):
    from transformers import AutoTokenizer

    directory = model(saved, tmp_path)
    if template is not None:
        (directory / "chat_template.jinja").write_text(template)
    renderer = load_chat_renderer(ModelSource.of(str(directory)), None)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    for messages, completion in [
        ([{"role": "user", "content": "  <b>\"quoted\"</b> & 'ümläut'\n"}], " yes\n"),
        (
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}],
            "d",
        ),
    ]:
        conversation = [*messages, {"role": "assistant", "content": completion}]
        text = tokenizer.apply_chat_template(conversation, tokenize=False)
        ids = tuple(tokenizer(text, add_special_tokens=False).input_ids)
        assert renderer.tokenise(messages, completion, truncate=False).token_ids == ids
    assert ChatTemplateRenderer(tokenizer, 300, "test").template_id == renderer.template_id
    assert renderer.max_tokens == 300


def test_a_replica_without_torch_and_transformers_makes_the_same_token_ids(saved):
    renderer = load_renderer(str(saved))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(saved)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [renderer.template_id, str(sum(map(sum, golden_token_ids(renderer))))]


@pytest.mark.parametrize("missing", ["tokenizer.json", "config.json", "tokenizer_config.json"])
def test_where_the_files_do_not_say_everything_they_are_not_guessed_from(saved, tmp_path, missing):
    directory = model(saved, tmp_path)
    (directory / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0]['content'] }}")
    (directory / missing).unlink()
    (directory / "special_tokens_map.json").unlink(missing_ok=True)

    def find(name: str) -> Path | None:
        return directory / name if (directory / name).is_file() else None

    assert read_tokenizer_files(find) is None


def test_several_templates_by_name_and_one_that_is_no_template(saved, tmp_path):
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "{{ messages[0]['content'] }}"}]
    directory = model(saved, tmp_path, chat_template=named)
    (directory / "chat_template.jinja").unlink(missing_ok=True)
    renderer = load_renderer(str(directory))
    prompt = [{"role": "user", "content": "only this"}]
    assert list(renderer.tokenise(prompt, "x", truncate=False).token_ids) == renderer.tokenise_text(
        "only this", add_special_tokens=False
    )
    (directory / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(BackboneError, match="no Jinja"):
        load_renderer(str(directory))


def test_a_template_runs_in_a_sandbox(saved, tmp_path):
    directory = model(saved, tmp_path)
    (directory / "chat_template.jinja").write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(ValueError, match="refused by this model's chat template"):
        load_renderer(str(directory)).tokenise([{"role": "user", "content": "x"}], "y", truncate=False)
