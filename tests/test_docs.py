"""What the documentation says is so: examples run, links lead somewhere, settings and commands exist."""

import ast
import inspect
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from laconic import __version__
from laconic.cli.app import app
from laconic.methods import METHODS
from laconic.recipe import read_recipe

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
NO_RUN = "python no-run"

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
every_method = pytest.mark.parametrize("name", METHODS)


def blocks(page):
    """The fenced blocks of a page: what stands behind the fence, and the text."""
    return [(match[1].strip(), match[2]) for match in FENCE.finditer(page.read_text())]


def prose(page):
    return FENCE.sub("", page.read_text())


@every_page
def test_the_python_examples_run_one_after_the_other(page):
    space: dict[str, object] = {"__name__": f"docs_{page.stem}"}
    for kind, text in blocks(page):
        if kind == "python":
            exec(compile(text, str(page), "exec"), space)
    for name, function in list(space.items()):
        if name.startswith("test_") and inspect.isfunction(function):
            function()


@every_page
def test_examples_that_are_not_run_parse_and_say_why(page):
    for kind, text in blocks(page):
        if kind.startswith("python") and kind != "python":
            assert kind == NO_RUN, f"{page.name}: a fence is called {kind!r}"
            assert re.match(r"# no-run: \w+", text), f"{page.name}: say why in the first line:\n{text}"
            ast.parse(text)


@every_page
def test_recipes_can_be_read_and_made(page, tmp_path):
    for kind, text in blocks(page):
        if kind == "toml":
            (tmp_path / "recipe.toml").write_text(text)
            read_recipe(tmp_path / "recipe.toml").checked()


@every_page
def test_every_relative_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{page.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", there.read_text(), re.MULTILINE)
            slugs = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert anchor in slugs, f"{page.name}: {target}"


@every_page
def test_every_file_and_test_that_is_named_exists(page):
    text = prose(page)
    for path in re.findall(r"`((?:laconic|tests|examples|benchmarks)/[\w/]+\.py)", text):
        if not _is_written_in(page, path):
            assert (ROOT / path).exists(), f"{page.name}: {path}"
    for path, test in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text):
        assert re.search(rf"^def {test}\(", (ROOT / path).read_text(), re.MULTILINE), f"{page.name}: {path}::{test}"


def _is_written_in(page, path):
    """docs/adding.md writes files that are not there: examples of what a reader would add."""
    return page.name == "adding.md" and Path(path).stem.removeprefix("test_") in ("one_bit", "post_local")


def commands():
    """Every ``laconic …`` command in the pages."""
    found = []
    for page in PAGES:
        for kind, text in blocks(page):
            lines = re.sub(r"\\\n\s*", "", text).splitlines()
            mark = "$ laconic " if kind == "console" else "laconic "
            if kind in ("", "console", "sh"):
                found += [(page.name, line.removeprefix("$ ")) for line in lines if line.startswith(mark)]
    return found


@pytest.mark.parametrize(("page", "line"), commands())
def test_every_command_line_has_options_that_exist(page, line):
    _, name, *arguments = shlex.split(line, comments=True)
    group = typer.main.get_command(app)
    command = group.commands[name]
    try:
        command.make_context(name, arguments, parent=group.context_class(group, info_name="laconic"))
    except Exception as error:  # click's own, or the copy of it that newer typers carry
        if not hasattr(error, "format_message"):
            raise
        pytest.fail(f"{page}: {line}: {error.format_message()}")


def test_some_commands_are_found():
    assert len(commands()) >= 10


@every_method
def test_every_method_has_a_page_with_all_its_settings_and_their_defaults(name):
    page = (ROOT / "docs" / "methods" / f"{name}.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| `([^`]*)` \|", page, re.MULTILINE))
    assert rows == {setting: str(default) for setting, default in METHODS[name].defaults.items()}
    for reference in re.findall(r"arXiv:[\d.]+\d", METHODS[name].source):
        assert reference in page, reference
    parts = ("What it solves", "Algorithm", "On the wire", "When it pays", "Pitfalls", "Evaluated", "Source")
    for part in parts:
        assert f"**{part}" in page, part


@every_method
def test_every_method_is_in_the_readme_and_in_the_index(name):
    for page in (ROOT / "README.md", ROOT / "docs" / "index.md"):
        assert f"methods/{name}.md" in page.read_text()


def test_every_page_is_in_the_index_and_no_page_is_without_a_method():
    index = (ROOT / "docs" / "index.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "index.md" or f"({page.name})" in index, page.name
    assert {page.stem for page in (ROOT / "docs" / "methods").glob("*.md")} == set(METHODS)


def test_the_changelog_has_this_version():
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.processes
def test_the_readmes_script_runs_under_torchrun():
    argv = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "examples/own_loop.py"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for worker in (0, 1):  # anywhere: two workers that print at once may share a line
        assert re.search(rf"worker {worker}: loss \d\.\d+, [\d,]+ bytes sent", done.stdout), done.stdout
