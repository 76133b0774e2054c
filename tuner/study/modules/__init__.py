"""Study files as modules: `tuner.study.modules.NAME_DIGEST` is a Python file in any folder.

A process that a study starts itself (a spawned `multiprocessing.Pool`, an executor, joblib) imports the study's module
by this name to find its functions. It looks the file up in an environment variable, which it inherits.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import json
import os
import re
import sys
import uuid
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

_VARIABLE = "TUNER_STUDY_FILES"


def module_name(path: Path) -> str:
    """Return the name under which this process and its children can import a file."""
    full = str(path.absolute())
    stem = re.sub(r"\W", "_", path.stem)
    name = f"{__name__}.{stem}_{uuid.uuid5(uuid.NAMESPACE_URL, full).hex[:8]}"
    os.environ[_VARIABLE] = json.dumps({**_files(), name: full})
    return name


def _files() -> dict[str, str]:
    """Return the files that this process and its parents have registered: module -> path."""
    try:
        found = json.loads(os.environ.get(_VARIABLE, "{}"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        file = _files().get(fullname) if fullname.startswith(f"{__name__}.") else None
        if file is None:
            return None
        folder = os.path.dirname(file)
        if folder not in sys.path:
            sys.path.insert(0, folder)
        return importlib.util.spec_from_file_location(fullname, file)


sys.meta_path.append(_Finder())
