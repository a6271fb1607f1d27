"""What is wrong with a text that is not YAML, in words for a person who did not write the parser.

Knows PyYAML's messages and what usually causes them; a message that it does not know is passed on.
"""

from __future__ import annotations

import yaml

SHOWN = 60
"""Characters of the line that are shown."""
CAUSES = (
    ("character '\\t'", "a tab stands where spaces are expected", "indent with spaces"),
    (
        "mapping values are not allowed",
        "a second colon, or the line before has none",
        'put a text that contains ": " in quotes; end the name of a section with a colon',
    ),
    ("could not find expected ':'", "a name without a colon behind it", "write `name: value`, or `name:`"),
    ("expected ',' or ']'", "a list in brackets that is not closed", "close it with ]"),
    ("expected ',' or '}'", "a mapping in braces that is not closed", "close it with }"),
    (
        "expected <block end>",
        "an indentation that does not fit the lines before",
        "indent keys of one section alike, and those inside it by two more spaces",
    ),
    ("unexpected end of stream", "a text in quotes that is not closed", "close the quotes"),
    ("that cannot start any token", "a character that no value can begin with", "put the text in quotes"),
    (
        "sequence entries are not allowed",
        "a list item behind a name on the same line",
        "begin the list on the next line",
    ),
    ("could not determine a constructor", "a tag (!name)", "leave the tag away; plain values are enough"),
    ("special characters are not allowed", "a control character", "delete it"),
    ("single document", "a second document (---)", "keep one document in a file"),
    ("unhashable", "a list or a mapping as a name", "use a plain word as the name"),
    ("Exceeds the limit", "a number with thousands of digits", "put it in quotes, or shorten it"),
)
BEGINS = ("could not find expected ':'", "expected ',' or", "unexpected end of stream")
"""What is missing is noticed later: these are told with the line on which the thing began."""


def in_words(error: Exception, text: str) -> tuple[str, str]:
    """(what was found and where, what to do) for an error that PyYAML raised while it read `text`."""
    message = " ".join(str(error).split())
    for sign, cause, todo in CAUSES:
        if sign in message:
            return f"{_place(_line(error, message, text), text)}{cause}", todo
    return message, ""


def _line(error: Exception, message: str, text: str) -> int | None:
    """Number of the line to show, from 0; None where the error names none."""
    if isinstance(error, yaml.reader.ReaderError):
        return text.count("\n", 0, error.position)
    began = any(sign in message for sign in BEGINS)
    names = ("context_mark", "problem_mark") if began else ("problem_mark", "context_mark")
    marks = (getattr(error, name, None) for name in names)
    return next((mark.line for mark in marks if mark is not None), None)


def _place(number: int | None, text: str) -> str:
    if number is None:
        return ""
    lines = text.splitlines()
    line = lines[number].strip() if number < len(lines) else ""
    shown = f" ({line[:SHOWN]}{'...' if len(line) > SHOWN else ''})" if line.isprintable() and line else ""
    return f"line {number + 1}{shown}: "
