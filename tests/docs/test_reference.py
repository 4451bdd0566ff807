"""The reference is complete: made from the code, compared with it, and a real node's scrape is on the page."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import httpx
import pytest

from gateway.cli.main import VERBS
from gateway.config import settings
from gateway.errors import TABLE
from tests.services.node_process import NodeProcess

ENVIRON = {"NO_MKDOCS_2_WARNING": "1", "PATH": "/usr/bin:/bin"}
FRAGMENT = re.compile(r"\d+\.(breaking|added|changed|fixed|security)(\.\d+)?\.md")
ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "docs" / "reference"


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_reference", ROOT / "docs" / "make_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def page(name: str) -> str:
    return (REFERENCE / name).read_text()


def test_the_pages_say_what_the_code_says(pages: ModuleType) -> None:
    for name, make in pages.PAGES.items():
        assert make().splitlines() == page(name).splitlines(), f"{name}: run `make docs`"


def test_every_setting_is_on_the_page_with_a_sentence(pages: ModuleType) -> None:
    assert [name for name in settings() if f"`{name}`" not in page("configuration.md")] == []
    assert pages.undocumented_settings() == []


def test_every_error_is_on_the_page() -> None:
    assert [row.slug for row in TABLE.values() if f"`{row.slug}`" not in page("errors.md")] == []


def test_every_verb_is_on_the_page() -> None:
    assert [verb for verb in VERBS if f"### `sprawl {verb}`" not in page("command-line.md")] == []


@pytest.mark.services
def test_every_metric_of_a_running_node_is_on_the_page(tmp_path: Path) -> None:
    node = NodeProcess(tmp_path / "node")
    node.start()
    try:
        scrape = httpx.get(
            f"{node.url}/metrics", headers={"Authorization": f"Bearer {node.token}"}, verify=node.tls(), trust_env=False
        ).text
    finally:
        node.stop()
    listed = page("metrics.md")
    families = re.findall(r"^# TYPE (\S+)", scrape, re.MULTILINE)
    assert len(families) > 20
    assert [name for name in families if not name.startswith("process_") and f"`{name}`" not in listed] == []


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=ENVIRON)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "index.html").exists()


def test_the_site_loads_nothing_from_other_hosts(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path / "site")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env=ENVIRON)
    html = (tmp_path / "site" / "index.html").read_text()
    loaded = re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"?(https?://[^\"\s>]+)", html)
    assert loaded == []


def test_the_news_fragments_make_a_changelog() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "towncrier", "build", "--draft", "--version", "9.9.9"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "## 9.9.9" in done.stdout
    fragments = [path.name for path in (ROOT / "docs" / "changes").iterdir()]
    assert [
        name for name in fragments if not re.fullmatch(r"\d+\.(breaking|added|changed|fixed|security)(\.\d+)?\.md", name)
    ] == []
