"""Print phrases to avoid in Markdown files and in the strings of Python files, with a better phrase for each."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
BETTER = {
    r"mend(s|ed|ing)?": "fix",
    r"nought": "zero",
    r"hearken\w*|hither|whither|whence|thence": "a modern word",
    r"ended without (a word|having been asked to)": "exited; exited unexpectedly",
    r"times less": "speed-up over ...",
    r"look whether": "check",
    r"stands? (so|once|twice)": "has this outcome; is given twice",
    r"superfluous": "not needed, removable",
    r"(for )?want of (room|space)": "hidden; too long",
    r"is of another tool": "was not created by tuner",
    r"lay .{1,20} side by side": "compare",
    r"may look, and change nothing": "cannot make changes",
    r"workers at it|workers that are at it": "running workers",
    r"goes? on meanwhile": "continues",
    r"the storage must (answer|exist)": "cannot reach the storage ...; the storage does not exist",
    r"must lie (in|between|within)": "must be in ...",
    r"what (it|they|each) came to": "the result",
    r"for (strangers|others than)": "to others; to serve it to other machines",
    r"what is said on": "the log on ...",
    r"instead of the study's": "overrides the study's",
    r"the whole trace of an error": "the full traceback of an error",
    r"the same command runs": "run the same command again to ...",
    r"end what works on": "stop all workers",
    r"(is|are) spent with": "is used up with",
    r"(?<!there )is no (folder|file)": "is not a folder, is not a file",
    r"typed or written": "invalid input",
    r"url cannot be one": "not a valid storage URL",
    r"goes? on (with|from|elsewhere|by|as|at)": "continues, resumes",
    r"stands? (for|beside|in|on|here|around|behind|below|alone|still)": "is, means",
    r"(lies?|lying) (in|on|at|below|between|within|beside|anywhere|outside|ahead|apart|along)": "is in, is outside",
    r"as (it|they) stands?": "the current ..., unchanged",
    r"(?<!-)somebody": "a user, a process, someone",
    r"(?<!-)anew": "again",
    r"(is|are|was|were) told (on|of|to|as|by)": "is printed, is reported",
    r"(of|to) no use": "has no effect",
    r"(?<!there )(is|are) no (class|number|file|path|list|tree|array|model|sample|static|leaf|string|log|picture)s?": (
        "is not a ..."
    ),
    r"hand(s|ed)? (on|over)": "passes",
    r"let(s)? go of": "closes, releases",
    r"passed over": "skipped",
    r"left out": "skipped, not included",
    r"torn": "damaged",
    r"(goes?|went) by": "uses",
    r"(is|are|stays?|be|goes) away": "is down, cannot be reached",
    r"as (optuna|json|mlflow|libpq|sqlalchemy) (has|have|calls|wants|shows)( it| them)?": "as in ..., the form of ...",
    r"(drawn|asked|told|said|known|read|taken) of": "about, for, from",
    r"tells? (it|them|one|a \w+) (apart )?from": "distinguishes from",
    r"(take|takes|took) in": "handles, adds",
    r"in good order": "cleanly",
    r"be it an?": "possibly a",
    r"at the price of": "but costs",
    r"who (asks|comes|waits|needs|keeps)": "the process that ...",
}
PATTERNS = [(re.compile(rf"\b({phrase})\b", re.IGNORECASE), better) for phrase, better in BETTER.items()]


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Yield texts with their first line number: each string of a Python file, or the whole text of other files."""
    if path.suffix != ".py":
        yield 1, path.read_text()
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            parts = (str(part.value) if isinstance(part, ast.Constant) else "..." for part in node.values)
            yield node.lineno, "".join(parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def findings(path: Path) -> set[str]:
    """Return `file:line: phrase -> better` for each phrase to avoid, including phrases that span two lines."""
    found = set()
    for first, text in texts(path):
        for pattern, better in PATTERNS:
            for match in pattern.finditer(re.sub(r"\s", " ", text)):
                line = first + text.count("\n", 0, match.start())
                found.add(f"{path.relative_to(ROOT)}:{line}: {match[0]} -> {better}")
    return found


if __name__ == "__main__":
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    for folder in ("tuner", "studies", "examples", "benchmarks", "scripts", "docker"):
        pages += [page for page in (ROOT / folder).rglob("*") if page.suffix in (".py", ".md")]
    pages.remove(Path(__file__).resolve())
    bad = sorted(line for page in pages for line in findings(page))
    for line in bad:
        print(line)
    sys.exit(bool(bad))
