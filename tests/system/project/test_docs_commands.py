"""The commands of README.md and docs/ as a new user types them: in their order, page by page, and as they stand."""

from __future__ import annotations

import fcntl
import os
import re
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import sqlalchemy as sa
import trustme
from command_line import kept_programs, users_environment
from command_words import check_words

ROOT = Path(__file__).resolve().parents[3]
PAGES = ["README.md", *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").rglob("*.md")))]
PAGES = [page for page in PAGES if not page.startswith(("docs/cli.md", "docs/reference/"))]  # made from the code
LANGUAGES = {"sh", "console", "text", "python", "py", "json", "nginx", "yaml", "promql"}
"""What a block may be. `sh` has commands, `console` commands after `$` with what they print, `text` what is printed.
`py` is Python that is only shown, because it needs a library that the tests do not have."""

NOT_RUN = {
    r"pip install( -c constraints\.txt)? (-e )?('tuner\[\w+\]'|\.|'\.\[\w+\]')": "it is installed where tests run",
    r"python -m pytest": "it is what runs this",
    r"(?s)docker .*": "no container is started where tests run; test_compose.py checks the words",
    r"python3 docker/new_env\.py|mv \.env .*": "test_docker_scripts.py runs the script",
    r"(?s)tuner launch .* --on (slurm|kubernetes|ray) .*|tuner (scale|logs) .*": "there is no cluster where tests run",
    r"(?s)kubectl .*": "there is no cluster where tests run",
    r"(?s)sky .*": "there is no cloud where tests run; test_skypilot.py checks the words",
    r"tuner worker .* --hosts .*": "there are not several hosts where tests run",
    r"export GIT_COMMIT=.*|git pull": "it needs a clone; test_git_record.py runs the command",
}
"""Commands that are not run, and why; any other is."""
SERVERS = {"tuner dashboard": "/", "mlflow server": "/health"}
"""Commands that run until they are stopped, and the page by which they answer."""
DATABASE = "tuner database ~/tuner-db &"
"""A server whose next command waits for it."""
PYTHON_RUNS = ("docs/guide/", "docs/storage.md")
"""Pages whose Python is run, block by block; `tests/unit/project/test_docs.py` runs docs/training.md as one script."""
LONG = {
    *("docs/dashboard.md", "docs/observability.md", "docs/tracking.md"),
    *(
        f"docs/guide/{name}.md"
        for name in ("changing-a-space", "cohorts", "dashboard", "extending", "first-study", "notebooks", "postgres")
    ),
    *(f"docs/guide/{name}.md" for name in ("pruning", "reproducing", "samplers", "search-spaces", "several-machines")),
    *(f"docs/guide/{name}.md" for name in ("several-objectives", "several-studies", "trained-model", "your-own-model")),
    "docs/guide/your-own-training.md",
}
"""Pages that take long, and whose commands have tests of their own."""
FIRST = "tuner launch studies/digits_mlp.py"
"""What pages begin after. It is run once for all of them, also for the two that have it as their first command."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    language: str
    title: str
    text: str

    @property
    def is_run_as_python(self) -> bool:
        return self.language == "python" and self.page.startswith(PYTHON_RUNS)

    def commands(self) -> Iterator[tuple[str, str]]:
        """Yield each command, with the first line of what it prints if the page shows it."""
        if self.language == "console":
            for part in re.split(r"(?m)^\$ ", self.text)[1:]:
                command, _, printed = part.partition("\n")
                yield command, printed.partition("\n")[0]
        elif self.language == "sh":
            lines = iter(self.text.splitlines())
            for line in lines:
                while line.endswith("\\"):
                    line += "\n" + next(lines)
                if here := re.search(r"<<'(\w+)'$", line):
                    line += "".join(f"\n{more}" for more in iter(lambda: next(lines), here[1])) + f"\n{here[1]}"
                command = re.sub(r"\s+# .*$", "", line)
                yield from ((part, "") for part in command.split(" && ") if part)


def blocks_of(page: str) -> list[Block]:
    found = re.findall(r"(?ms)^```(\S*)(?: title=\"(.*?)\")?\n(.*?)^```$", (ROOT / page).read_text())
    return [Block(page, language, title, text) for language, title, text in found]


def has_something_to_run(page: str) -> bool:
    return any(block.is_run_as_python or list(block.commands()) for block in blocks_of(page))


# --- What needs no run


@pytest.mark.parametrize("page", PAGES)
def test_blocks_say_what_they_are(page: str) -> None:
    assert (ROOT / page).read_text().count("\n```") % 2 == 0
    for block in blocks_of(page):
        assert block.language in LANGUAGES, f"{page} has a block without a language:\n{block.text}"
        if block.language == "text":
            command = re.search(r"(?m)^(\$ |(tuner|pip|python|docker|mlflow|psql|export) ).*", block.text)
            assert command is None, f"{page} shows a command as text: {command and command[0]}"


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md"])
def test_commands_in_the_text_exist_with_their_options(page: str) -> None:
    prose = re.sub(r"(?ms)^```.*?^```$", "", (ROOT / page).read_text())
    for span in re.findall(r"`(tuner\s[^`]+)`", prose):
        check_words(page, shlex.split(span)[1:])


def test_examples_in_the_help_exist_with_their_options() -> None:
    examples = re.findall(r"For example: (.+?)\n\n", re.sub(r"\n +(?=\S)", " ", (ROOT / "docs" / "cli.md").read_text()))
    assert len(examples) > 15
    for command in (part for example in examples for part in example.split(", or ")):
        assert command.startswith("tuner "), command
        check_words("docs/cli.md", shlex.split(command)[1:])


def test_what_is_treated_apart_is_there() -> None:
    commands = [command for page in PAGES for block in blocks_of(page) for command, _ in block.commands()]
    for pattern in [*NOT_RUN, *(f"{server}.*" for server in SERVERS)]:
        assert any(re.fullmatch(pattern, command) for command in commands), f"no page has {pattern}"
    for command in commands:
        check_extras(command)


def check_extras(command: str) -> None:
    """Check that what a command installs beside the package can be installed."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name in re.findall(r"(?:tuner|\.)\[(\w+)\]", command if command.startswith("pip ") else ""):
        assert name in extras, f"{command}: pyproject.toml has no extra {name!r}"


# --- What is run


@dataclass
class PageShell:
    """A folder, an environment, and the servers that were started: where one page's commands are run."""

    folder: Path
    env: dict[str, str]
    places: list[tuple[str, str]]
    exports: list[str] = field(default_factory=list)
    started: list[subprocess.Popen[str]] = field(default_factory=list)
    databases: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def here(self, text: str) -> str:
        """Return a command with the page's examples of hosts and ports replaced by those that are here."""
        for pattern, place in self.places:
            text = re.sub(pattern, place, text)
        return text

    def run(self, command: str) -> str:
        """Run a command; return what it printed on stdout."""
        script = "\n".join([*self.exports, self.here(command)])
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=self.folder,
            env=self.env,
            input="correct horse battery staple\n",  # a password, where one is asked for
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        if command.startswith("export "):
            self.exports.append(self.here(command))
        return done.stdout

    def serve(self, command: str, page: str, wait_until: Callable[..., object]) -> None:
        """Start a server and wait until it answers; a dashboard is then ended, others run until the page ends."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        is_dashboard = command.startswith("tuner dashboard")
        if is_dashboard:
            command = f"{re.sub(r' --port [0-9]+', '', command)} --port {port}".replace("0.0.0.0", "127.0.0.1")
        else:  # other commands of the page name its port
            self.places += [(r"127\.0\.0\.1:5000", f"127.0.0.1:{port}"), (r"--port 5000", f"--port {port}")]
        log = self.folder / f"server-{port}.log"
        with log.open("w") as output:
            process = subprocess.Popen(
                ["bash", "-c", "\n".join([*self.exports, f"exec {self.here(command)}"])],
                cwd=self.folder,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                text=True,
                start_new_session=True,
            )
        self.started.append(process)
        scheme = "https" if "--tls-cert" in command else "http"
        prefix = command.partition("--prefix ")[2].partition(" ")[0]

        def answer() -> int | None:
            assert process.poll() is None, f"{command}\n{log.read_text()}"
            return status_of(f"{scheme}://127.0.0.1:{port}{prefix}{page}")

        # Strangers are told to log in, where there are users.
        assert wait_until(answer) == (401 if "--users" in command else 200)
        if is_dashboard:
            process.send_signal(signal.SIGTERM)
            assert process.wait(300) == 0, log.read_text()

    def serve_database(self, command: str) -> None:
        """Start a server of a database, which runs until the page ends."""
        words = shlex.split(self.here(command.removesuffix(" &")))
        self.databases.append(subprocess.Popen(words, cwd=self.folder, env=self.env, stdin=subprocess.DEVNULL))

    def end(self) -> None:
        for database in self.databases:
            database.terminate()
            assert database.wait(300) == 0
        for process in self.started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def status_of(url: str) -> int | None:
    """Return the HTTP status of a page, None while nobody answers; a certificate may be anybody's."""
    try:
        with urllib.request.urlopen(url, timeout=5, context=ssl._create_unverified_context()) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


@pytest.fixture(scope="module")
def first_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the study of the first page was run, by one of the processes that run the tests."""
    folder = tmp_path_factory.getbasetemp()
    shared = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    with (shared / "first-study.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "first-study").exists():
            made = new_folder(tmp_path_factory.mktemp("first"))
            PageShell(made, environment(made), []).run(FIRST)
            made.rename(shared / "first-study")
    return shared / "first-study"


def new_folder(folder: Path) -> Path:
    """Put into a folder what a clone of the repository has that the pages use."""
    shutil.copytree(ROOT / "studies", folder / "studies", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def environment(folder: Path) -> dict[str, str]:
    inherited = users_environment()
    path = os.pathsep.join([str(Path(sys.executable).parent), inherited["PATH"]])
    home = {
        "HOME": str(folder), "COLUMNS": "200", "MPLBACKEND": "agg", "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # eight processes, of which tracking uses none
    }  # fmt: skip
    return {**inherited, **home, "PATH": path, **kept_programs()}


@pytest.fixture
def databases(own_postgres_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, str]]]:
    """A server for the pages' `db.example.org`, its programs on the path; whatever they make on it is removed."""
    url = sa.make_url(own_postgres_server)
    engine = sa.create_engine(url.set(drivername="postgresql+psycopg2"), isolation_level="AUTOCOMMIT")
    shown = url.set(drivername="postgresql", username="USER", password=None, database="DATABASE")
    place = shown.render_as_string(hide_password=False).replace("USER", r"\2").replace("DATABASE", r"\3")
    place = place.replace("postgresql:", r"\1:", 1)
    with engine.connect() as connection:
        programs = connection.exec_driver_sql("SELECT setting FROM pg_config WHERE name = 'BINDIR'").scalar_one()
    monkeypatch.setenv("PATH", os.pathsep.join([programs, os.environ["PATH"]]))
    # psql and its like take postgresql://, Python's tools postgresql+psycopg2://.
    yield [(r"(postgresql(?:\+psycopg2)?)://(\w+)@db\.example\.org/(\w+)", place)]
    with engine.connect() as connection:
        for name in ("tuner", "restored"):
            connection.exec_driver_sql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        connection.exec_driver_sql("DROP ROLE IF EXISTS tuner")
    engine.dispose()


@pytest.fixture
def shell(
    tmp_path: Path, databases: list[tuple[str, str]], first_study: Path, request: pytest.FixtureRequest
) -> Iterator[PageShell]:
    """Where a page is run: after the first study."""
    page = request.node.callspec.params["page"]
    shutil.copytree(first_study, tmp_path, dirs_exist_ok=True)
    if page == "docs/dashboard.md":
        made = trustme.CA().issue_cert("localhost")
        made.private_key_pem.write_to_path(tmp_path / "key.pem")
        made.cert_chain_pems[0].write_to_path(tmp_path / "fullchain.pem")
    free_port = ("--metrics-port 9100", "--metrics-port 0")
    # As root, its server runs as another user, who may not enter pytest's folder.
    served = Path(tempfile.mkdtemp(prefix="tuner-served-"))
    served.chmod(0o711)
    shell = PageShell(tmp_path, environment(tmp_path), [*databases, free_port, ("~/tuner-db", f"{served}/tuner-db")])
    text = (ROOT / page).read_text()
    if "db.example.org" in text and "CREATE ROLE" not in text:
        admin = "psql postgresql://postgres@db.example.org/postgres -c"
        shell.run(f"{admin} 'CREATE ROLE tuner LOGIN' && {admin} 'CREATE DATABASE tuner OWNER tuner'")
    yield shell
    shell.end()
    shutil.rmtree(served)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.long if page in LONG else ())
        for page in PAGES
        if has_something_to_run(page)
    ],
)
def test_a_page_runs_as_it_stands(page: str, shell: PageShell, wait_until: Callable[..., object]) -> None:
    is_first = True
    for block in blocks_of(page):
        for command, head in block.commands():
            server = next((name for name in SERVERS if command.startswith(name)), None)
            if any(re.fullmatch(pattern, command) for pattern in NOT_RUN):
                continue
            was_first, is_first = is_first, False
            if command == FIRST:
                assert was_first, f"{page}: it was run before what comes before it"
            elif command == DATABASE:
                shell.serve_database(command)
            elif server is not None:
                shell.serve(command, SERVERS[server], wait_until)
            else:
                printed = shell.run(command)
                assert not head or printed.partition("\n")[0].split() == head.split(), command
        if block.is_run_as_python:
            if block.title:
                (shell.folder / block.title).write_text(block.text)
            script = f"python - <<'PYTHON'\n{shell.here(block.text)}\nPYTHON"
            shell.run(script)
