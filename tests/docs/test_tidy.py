"""House rules that no linter knows. A failure names the file, the line and the rule."""

import ast
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("gateway", "broker", "security")
PAPERS = ("README.md", "CONTRIBUTING.md", "SECURITY.md")
SKIPPED_FOLDERS = {".git", ".venv", ".sprawl", "__pycache__"}

# Only the seams of a real machine may touch these; everything else in the broker asks broker/seams.py, so that the simulator
# decides what time it is and when the power fails.
MACHINE = "broker/machine.py"
MACHINE_MODULES = {"time", "random", "os", "secrets", "socket", "tempfile", "shutil", "uvloop", "concurrent", "multiprocessing"}
MACHINE_CALLS = {f"datetime.{call}" for call in ("now", "utcnow", "today")} | {
    "date.today",
    "threading.Thread",
    "asyncio.to_thread",
}
MACHINE_CALLS |= {f"datetime.{call}" for call in MACHINE_CALLS}

# Put together here, so that this file is not the one that names them.
REGISTRY_HOSTS = [
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("registry", "npmjs", "org"),
        ("registry", "yarnpkg", "com"),
        ("static", "crates", "io"),
        ("index", "crates", "io"),
        ("proxy", "golang", "org"),
        ("sum", "golang", "org"),
        ("repo1", "maven", "org"),
        ("repo", "maven", "apache", "org"),
        ("rubygems", "org"),
    )
]
MACHINE_PATH = re.compile(rf"(?<![\w.~/-])/(?:{'|'.join(('work', 'root', 'Users', 'home'))})/[\w.-]")
INDEX_LINE = re.compile(r"^\s*(--(extra-)?index-url|--find-links|-i)\b", re.MULTILINE)


@cache
def files() -> tuple[Path, ...]:
    """All files of the repository: what git tracks or would track."""
    git = shutil.which("git")
    if git and (ROOT / ".git").exists():
        listed = subprocess.run(
            [git, "ls-files", "--cached", "--others", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, check=True
        ).stdout.decode()
        found = [ROOT / name for name in listed.split("\0") if name]
    else:
        found = list(ROOT.rglob("*"))
    return tuple(path for path in found if path.is_file() and not SKIPPED_FOLDERS & set(path.relative_to(ROOT).parts))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def python_files(*folders: str) -> list[Path]:
    return [path for path in files() if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in folders]


def texts() -> Iterator[tuple[str, str]]:
    for path in files():
        try:
            yield name_of(path), path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.lineno, node.module


def test_there_are_files_to_judge() -> None:
    assert {"gateway/cli/main.py", "pyproject.toml", "README.md"} <= {name_of(path) for path in files()}
    assert all(python_files(package) for package in PACKAGES)


def test_the_broker_asks_its_seams_for_time_chance_disk_and_threads() -> None:
    wrong = [
        f"{name_of(path)}:{line} imports {module}"
        for path in python_files("broker")
        if name_of(path) != MACHINE
        for line, module in imported(ast.parse(path.read_text()))
        if module.split(".")[0] in MACHINE_MODULES
    ]
    assert wrong == []


def test_the_broker_reads_no_clock_through_datetime_and_starts_no_thread() -> None:
    wrong = [
        f"{name_of(path)}:{node.lineno} calls {ast.unparse(node.func)}"
        for path in python_files("broker")
        if name_of(path) != MACHINE
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and ast.unparse(node.func) in MACHINE_CALLS
    ]
    assert wrong == []


def test_an_init_module_holds_a_docstring_or_nothing() -> None:
    wrong = []
    for folder in {path.parent for path in python_files(*PACKAGES)}:
        init = folder / "__init__.py"
        if not init.exists():
            wrong.append(f"{name_of(folder)} has no __init__.py")
            continue
        body = ast.parse(init.read_text()).body
        if len(body) > 1 or (body and not (isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant))):
            wrong.append(f"{name_of(init)} holds more than a docstring")
    assert wrong == []


def test_modules_say_what_they_are() -> None:
    wrong = [
        name_of(path)
        for path in python_files(*PACKAGES)
        if path.name != "__init__.py" and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert wrong == []


def test_no_module_is_a_drawer() -> None:
    drawers = {"utils", "util", "helpers", "helper", "common", "misc", "shared"}
    assert [
        name_of(path) for path in python_files(*PACKAGES, "tests", "bench") if path.stem.removeprefix("test_") in drawers
    ] == []


def test_no_file_names_a_package_registry() -> None:
    wrong = [
        f"{name}:{number} names {host}"
        for name, text in texts()
        for host in REGISTRY_HOSTS
        if host in text
        for number, line in enumerate(text.splitlines(), 1)
        if host in line
    ]
    assert wrong == []


def test_no_file_names_a_path_of_some_machine() -> None:
    wrong = [
        f"{name}:{number} names {found.group()}"
        for name, text in texts()
        for number, line in enumerate(text.splitlines(), 1)
        if (found := MACHINE_PATH.search(line))
    ]
    assert wrong == []


@pytest.mark.parametrize("line", ["see /" + "home/me/x", 'path="/' + "root/.ssh", "/" + "work/main"])
def test_the_pattern_finds_what_it_is_for(line: str) -> None:
    assert MACHINE_PATH.search(line)


@pytest.mark.parametrize(
    "line", ["https://node/" + "work/1", "docs/" + "work/x", "~/" + "work/x", "`<home>/data`", "a.sprawl/home/x"]
)
def test_and_leaves_alone_what_is_none(line: str) -> None:
    assert not MACHINE_PATH.search(line)


def test_locks_carry_hashes_and_no_index() -> None:
    for name in ("run.lock", "test.lock"):
        text = (ROOT / "requirements" / name).read_text()
        assert "--hash=sha256:" in text
        assert not INDEX_LINE.search(text)


@pytest.mark.parametrize("paper", PAPERS)
def test_what_a_paper_names_is_there(paper: str) -> None:
    """Paths in backticks: with a slash or a suffix, relative to the root; `*` stands for any name; <...> is the reader's own."""
    text = re.sub(r"```.*?```", "", (ROOT / paper).read_text(), flags=re.DOTALL)
    named = re.findall(r"`((?:gateway|broker|security|tests|docs|bench|requirements|examples|\.ci)(?:/[\w.*-]+)*/?)`", text)
    links = [target for target in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in target]
    assert [name for name in [*named, *links] if not list(ROOT.glob(name.rstrip("/")))] == []


@pytest.mark.parametrize("paper", ["README.md", "CONTRIBUTING.md"])
def test_every_verb_a_paper_names_is_in_the_makefile(paper: str) -> None:
    verbs = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(
        re.findall(
            r"\bmake ([a-z][a-z-]*)\b", "\n".join(re.findall(r"`[^`\n]+`|```.*?```", (ROOT / paper).read_text(), flags=re.DOTALL))
        )
    )
    assert named <= verbs
    assert named


def test_decisions_are_numbered_without_a_gap() -> None:
    numbers = sorted(int(path.name[:4]) for path in (ROOT / "docs" / "decisions").glob("[0-9]*.md"))
    assert numbers == list(range(1, len(numbers) + 1))


SCREEN_LINES = 60


def test_every_top_level_folder_says_on_one_screen_what_it_is() -> None:
    folders = {path.relative_to(ROOT).parts[0] for path in files() if len(path.relative_to(ROOT).parts) > 1}
    shown = sorted(folder for folder in folders if not folder.startswith("."))
    assert {"gateway", "broker", "security", "tests", "docs", "bench"} <= set(shown)
    for folder in shown:
        paper = ROOT / folder / "README.md"
        assert paper.exists(), f"{folder} has no README.md"
        text = paper.read_text()
        assert len(text.splitlines()) <= SCREEN_LINES, paper
        tables = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
        named = [name for cell in tables for name in re.findall(r"`([\w/.]+)`", cell)]
        assert [name for name in named if not (ROOT / folder / name).exists()] == [], paper
