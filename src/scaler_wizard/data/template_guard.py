"""A chat template is a program from somebody else: try it in a subprocess with limits before using it.

The child has jinja2's immutable sandbox and nothing else (no torch, no transformers: about 0.1 s). It
renders a few probe conversations, so a template that loops or swells is refused before it runs in a
process that matters. It cannot catch one that misbehaves only on particular rows; there the worker's
step watchdog is the limit.
"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import lru_cache

from scaler_wizard.errors import ModelError

MAX_TEMPLATE_BYTES = 64 << 10
TIME_LIMIT_SECONDS = 5.0

# Mirrors the globals that transformers.utils.chat_template_utils gives a template. Errors that a template
# raises about the probe (say, "no system role") are its right; only limits are judged here.
_CHILD = r"""
import json, sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
except (ImportError, ValueError, OSError):
    pass
from datetime import datetime
from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

class Generation(Extension):
    tags = {"generation"}
    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return nodes.ScopedEvalContextModifier([], body).set_lineno(line)

def raise_exception(message):
    raise TemplateError(message)

environment = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
)
environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False)
environment.globals.update(raise_exception=raise_exception, strftime_now=lambda f: datetime.now().strftime(f))
turns = [{"role": ("user", "assistant")[i % 2], "content": "word " * 8} for i in range(8)]
system = {"role": "system", "content": "Be brief."}
try:
    template = environment.from_string(sys.stdin.buffer.read().decode("utf-8"))
except TemplateSyntaxError as error:
    print("is not a template: line %d: %s" % (error.lineno, error.message))
    sys.exit()
for messages in (turns[:1], turns[:2], turns, [system, *turns[:2]]):
    for add_generation_prompt in (False, True):
        size = 0
        try:
            tokens = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
            for piece in template.generate(
                messages=messages, add_generation_prompt=add_generation_prompt, **tokens
            ):
                size += len(piece)
                if size > 1 << 20:
                    print("renders a few words as more than 1 MB")
                    sys.exit()
        except MemoryError:
            print("needs more than 1 GB of memory")
            sys.exit()
        except Exception:
            pass
"""


@lru_cache(maxsize=16)
def check_template(template: str, time_limit: float = TIME_LIMIT_SECONDS) -> None:
    """Render probe conversations of `template` under limits of size, time (seconds) and memory (1 GB).

    Raises:
        ModelError: larger than 64 KB, not a template, too slow, or too much memory or output.
    """
    size = len(template.encode("utf-8", "surrogatepass"))
    if size > MAX_TEMPLATE_BYTES:
        raise _refused(f"has {size:,} bytes", f"at most {MAX_TEMPLATE_BYTES:,}")
    try:
        child = subprocess.run(
            [sys.executable, "-I", "-c", _CHILD],
            input=template.encode("utf-8", "surrogatepass"),
            capture_output=True,
            timeout=time_limit,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _refused(f"did not render a few words within {time_limit:g} s", "milliseconds") from None
    complaint = child.stdout.decode("utf-8", "replace").strip()
    if complaint:
        raise _refused(complaint, "a template of a conversation")
    if child.returncode != 0:
        last = child.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        raise _refused(f"stopped its probe (exit {child.returncode}) {json.dumps(last)}", "a clean render")


def _refused(found: str, expected: str) -> ModelError:
    return ModelError(
        f"the chat template {found}",
        expected,
        "use the tokenizer of the model's own publisher, or remove chat_template to get the plain default",
    )
