"""Write docs/api.md from the docstrings of what a study file's author uses; with --check, fail if it is out of date."""

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import griffe

ROOT = Path(__file__).parent.parent
TARGET = ROOT / "docs" / "api.md"
HEADER = """# Python interface

Made by `python scripts/api_reference.py` from the docstrings; do not edit. What is not here may
change without a word. [Your own model](guide/your-own-model.md) and [the trainer](training.md) have examples.
"""
SECTIONS = {
    "tuner": None,  # all of its __all__
    "tuner.study.space": ["from_params", "to_params"],
    "tuner.search": ["make_pruner"],
    "tuner.training": None,
    "tuner.training.nnx_layers": ["Dropout"],
    "tuner.models": None,
    "tuner.methods": None,
    "tuner.trial": ["Outcome", "Report"],
    "tuner.launch": ["launch"],
}
ERRORS = "tuner.errors"
"""Beside the sections: its tree is drawn in its own docstring."""


def reference(package: griffe.Module) -> str:
    """Return the text of docs/api.md."""
    parts = [HEADER]
    modules = {path: package[path.removeprefix("tuner.")] if path != "tuner" else package for path in SECTIONS}
    public_in = {
        path: [str(name) for name in chosen or modules[path].exports or () if f"{path}.{name}" != ERRORS]
        for path, chosen in SECTIONS.items()
    }
    # A method is described with the class that defines it, where that is public, and else with the first that has it.
    told: dict[str, str] = {}
    for path, names in public_in.items():
        for name in names:
            item = public(modules[path], name)
            told |= {f"{item.path}.{member}": name for member in item.members if isinstance(item, griffe.Class)}
    for path, names in public_in.items():
        module = modules[path]
        parts += [f"## {path}\n", f"{text_of(module).partition(chr(10) * 2)[0]}\n"]
        parts += [part for name in names for part in described(public(module, name), name, told)]
    tree = text_of(package["errors"]).partition("\n\n")[2]
    parts += [f"## {ERRORS}\n", f"```text\n{tree}\n```\n"]
    return "\n".join(parts).rstrip() + "\n"


def public(module: griffe.Module, name: str) -> griffe.Object:
    """Return what a module's name stands for: what was imported from a submodule, not the submodule of that name."""
    found = final(module[name])
    return final(found[name]) if found.is_module else found


def final(item: griffe.Object | griffe.Alias) -> griffe.Object:
    """Return what a name that was imported stands for."""
    return item.final_target if isinstance(item, griffe.Alias) else item


def text_of(item: griffe.Object) -> str:
    """Return a docstring.

    Raises:
        SystemExit: there is none; what is public must say what it is.
    """
    if item.docstring is None:
        sys.exit(f"what is public must have a docstring: {item.path} has none")
    return inspect.cleandoc(item.docstring.value)


def described(item: griffe.Object, name: str, told: dict[str, str]) -> Iterator[str]:
    """Yield the paragraphs on a function or a class, and on what is public in the class.

    Args:
        item: The function or class.
        name: What it is called where it is public.
        told: Where a method is described: its path -> the class. Several classes may inherit one.
    """
    text_of(item)
    yield f"### {name}\n"
    yield f"```python\n{signature(item, name)}\n```\n"
    yield from sections(item)
    if not isinstance(item, griffe.Class):
        return
    again: dict[str, list[str]] = {}
    for method in members(item):
        teller = told.setdefault(method.path, name)
        if teller != name:
            again.setdefault(teller, []).append(f"`{method.name}`")
            continue
        yield f"**`{signature(method, f'{name}.{method.name}')}`**\n"
        yield from sections(method)
    yield from (f"As `{other}` has it: {', '.join(methods)}.\n" for other, methods in again.items())


def members(of: griffe.Class) -> list[griffe.Object]:
    """Return the methods and properties of a class and its bases that are public and have a docstring."""
    found = [final(member) for member in of.all_members.values()]
    kept = [
        member
        for member in found
        if not member.name.startswith("_") or member.name == "__call__"
        if member.is_function or "property" in member.labels
        if member.docstring is not None
    ]
    return sorted(kept, key=lambda member: (member.path.rpartition(".")[0] != of.path, member.lineno or 0))


def signature(item: griffe.Object, name: str) -> str:
    """Return how a function or a class is called; the body of a class that says no more; of a property its type."""
    if isinstance(item, griffe.Attribute):
        return f"{name}: {item.annotation}"
    assert isinstance(item, griffe.Function | griffe.Class)
    words = list(parameters(item))
    if isinstance(item, griffe.Class) and not words:
        bases = f"({', '.join(map(str, item.bases))})" if item.bases else ""
        fields = [field for field in item.attributes.values() if not field.name.startswith("_")]
        lines = [f"    {spelt(field)}" for field in fields if "property" not in field.labels]
        return "\n".join([f"class {name}{bases}{':' if lines else ''}", *lines])
    returned = f" -> {item.returns}" if isinstance(item, griffe.Function) and item.returns else ""
    line = f"{name}({', '.join(words)}){returned}"
    if len(line) <= 110 or "." in name:
        return line
    return f"{name}(\n{''.join(f'    {word},{chr(10)}' for word in words)}){returned}"


def parameters(item: griffe.Function | griffe.Class) -> Iterator[str]:
    """Yield the parameters as they are written, the star before keywords included."""
    is_keyword = False
    for parameter in item.parameters:
        if parameter.name in ("self", "cls"):
            continue
        kind = parameter.kind or griffe.ParameterKind.positional_or_keyword
        if kind is griffe.ParameterKind.keyword_only and not is_keyword:
            yield "*"
        is_keyword |= kind in (griffe.ParameterKind.keyword_only, griffe.ParameterKind.var_positional)
        stars = {griffe.ParameterKind.var_positional: "*", griffe.ParameterKind.var_keyword: "**"}.get(kind)
        yield f"{stars}{parameter.name}: {parameter.annotation}" if stars else spelt(parameter, parameter.default)


def spelt(item: griffe.Attribute | griffe.Parameter, default: object = None) -> str:
    """Return a field or a parameter with its type and default."""
    value = item.value if isinstance(item, griffe.Attribute) else default
    annotated = f"{item.name}: {item.annotation}" if item.annotation is not None else item.name
    return annotated if value is None else f"{annotated} = {value}"


def sections(item: griffe.Object) -> Iterator[str]:
    """Yield the paragraphs of a docstring: text as it is, arguments and the like as lists."""
    assert item.docstring is not None
    whole = {"returns_multiple_items": False, "returns_named_value": False}
    for section in item.docstring.parse("google", warnings=False, **whole):
        match section.kind:
            case griffe.DocstringSectionKind.text:
                yield f"{fenced(section.value)}\n"
            case griffe.DocstringSectionKind.admonition:
                yield f"{section.title}: {one_line(section.value.description)}\n"
            case griffe.DocstringSectionKind.returns | griffe.DocstringSectionKind.yields:
                yield f"{section.kind.value.capitalize()}: {one_line(whole_text(section.value[0], item))}\n"
            case griffe.DocstringSectionKind.raises:
                yield "Raises:\n"
                yield "".join(f"- `{each.annotation}`: {one_line(each.description)}\n" for each in section.value)
            case _:
                yield f"{section.kind.value.capitalize()}:\n"
                yield "".join(f"- `{each.name}`: {one_line(each.description)}\n" for each in section.value)


def whole_text(returned: griffe.DocstringReturn | griffe.DocstringYield, item: griffe.Object) -> str:
    """Return what is returned in words; what stands before a colon in them was taken for a type."""
    type_of = {str(getattr(item, "returns", None)), str(getattr(item, "annotation", None))}
    word = str(returned.annotation)
    is_type = any(word in shown for shown in type_of)
    return returned.description if is_type else f"{word}: {returned.description}"


def fenced(text: str) -> str:
    """Return text whose examples say that they are Python."""
    return re.sub(r"(?ms)^```\n(.*?^```)$", r"```python\n\1", text)


def one_line(text: str) -> str:
    """Return text without line breaks."""
    return " ".join(text.split())


if __name__ == "__main__":
    loaded = griffe.load("tuner", search_paths=[ROOT], extensions=griffe.load_extensions("dataclasses"))
    assert isinstance(loaded, griffe.Module)
    made = reference(loaded)
    if "--check" not in sys.argv:
        TARGET.write_text(made)
    elif TARGET.read_text() != made:
        sys.exit("docs/api.md is out of date: run python scripts/api_reference.py")
