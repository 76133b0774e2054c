"""Prints the Git record of a folder with study files, for the image: `python record_git.py FOLDER GIT_COMMIT`.

Without a commit it prints nothing, so that workers record none, as they do without a repository.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from tuner.errors import UsageError
from tuner.study.git_record import make_record

if __name__ == "__main__":
    folder, described = sys.argv[1:]
    try:
        if described:
            print(json.dumps(asdict(make_record(Path(folder), described))))
        else:
            print("GIT_COMMIT is not set: the database will not name the commit of the studies", file=sys.stderr)
    except UsageError as error:
        sys.exit(f"error: {error}")
