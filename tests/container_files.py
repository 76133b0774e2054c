"""The container files as tests read them: docker-compose.yml with its variables, the Dockerfile by instructions."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
COMPOSE_TEXT = (ROOT / "docker-compose.yml").read_text()
COMPOSE = yaml.safe_load(COMPOSE_TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
EXAMPLE = (ROOT / ".env.example").read_text()
NASTY = "a$b ${c} #d'e\"f:g/h@i%j\\k"
"""A password with what shells, URLs, compose files and SQL give a meaning to."""
_VARIABLE = re.compile(r"\$\{(\w+)(:-|:\?)([^}]*)\}")


class MissingVariable(Exception):
    """A variable that has no default is not set; compose would print the message and exit."""


def interpolate(node: Any, given: dict[str, str]) -> Any:
    """Return a tree with its variables replaced, as the specification of compose defines `:-` and `:?`."""
    if isinstance(node, dict):
        return {key: interpolate(value, given) for key, value in node.items()}
    if isinstance(node, list):
        return [interpolate(value, given) for value in node]
    return _VARIABLE.sub(lambda found: _value(found, given), node) if isinstance(node, str) else node


def _value(found: re.Match[str], given: dict[str, str]) -> str:
    name, operator, rest = found.groups()
    if given.get(name):
        return given[name]
    if operator == ":?":
        raise MissingVariable(f"{name}: {rest}")
    return rest


def texts(node: Any) -> list[str]:
    """Return every text in a tree of dicts and lists."""
    if isinstance(node, dict):
        return list(itertools.chain.from_iterable(map(texts, node.values())))
    if isinstance(node, list):
        return list(itertools.chain.from_iterable(map(texts, node)))
    return [str(node)]


def example_variables() -> dict[str, str]:
    """Return the variables of .env.example."""
    return dict(re.findall(r"(?m)^(\w+)=(.*)$", EXAMPLE))


def instructions() -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile in their order, with continued lines joined."""
    code = "\n".join(line for line in DOCKERFILE.splitlines() if line and not line.startswith("#"))
    lines = re.sub(r"\s*\\\n\s*", " ", code).splitlines()
    return [(name, words) for name, _, words in (line.partition(" ") for line in lines)]


def image_health_check() -> list[str]:
    """Return the health check of the image in the form of compose."""
    (check,) = (words for name, words in instructions() if name == "HEALTHCHECK")
    return ["CMD", *json.loads(check[check.index("CMD ") + 4 :])]
