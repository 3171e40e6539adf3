"""`init` recognises common kinds of projects, and writes a configuration that works."""

from __future__ import annotations

import os
import shutil
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

from support import processes
from support.lacks import skip_without

ROOT = Path(__file__).parents[2]

#: A test that passes in each of these projects after two commands, without edits.
TEST = """
import requests

def test_it_answers(ephemeral_url):
    assert "{text}" in requests.get(ephemeral_url.rstrip("/") + "{path}").text
"""

DJANGO_SETTINGS = """
from pathlib import Path
BASE_DIR = Path(__file__).resolve().parent.parent
SECRET_KEY = "x"
DEBUG = False
ALLOWED_HOSTS = ["shop.example.com"]
INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth"]
ROOT_URLCONF = "shop.urls"
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": BASE_DIR / "db.sqlite3"}}
"""
DJANGO_URLS = """
from django.contrib.auth.models import User
from django.http import HttpResponse
from django.urls import path
urlpatterns = [path("", lambda request: HttpResponse(f"users: {User.objects.count()}"))]
"""
MANAGE = """
import os, sys
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
from django.core.management import execute_from_command_line
execute_from_command_line(sys.argv)
"""
FLASK = (
    "from flask import Flask\napp = Flask(__name__)\n@app.get('/')\ndef home(): return 'flask'\n"
)
FASTAPI = (
    "from fastapi import FastAPI\napp = FastAPI()\n@app.get('/')\ndef home(): return 'fastapi'\n"
)
SERVE = (
    "import http.server, os\n"
    "class Page(http.server.BaseHTTPRequestHandler):\n"
    "    def do_GET(self):\n"
    "        self.send_response(200); self.end_headers(); self.wfile.write(b'TEXT')\n"
    "def main():\n"
    "    at = (os.environ['HOST'], int(os.environ['PORT']))\n"
    "    http.server.HTTPServer(at, Page).serve_forever()\n"
)
NODE = (
    "require('http').createServer((_, answer) => answer.end('node'))"
    ".listen(process.env.PORT, process.env.HOST)\n"
)


class Example(NamedTuple):
    """A project: its files, and the text of one of its pages."""

    files: dict[str, str]
    text: str
    path: str = "/"
    needs: str = ""


PROJECTS = {
    "django": Example(
        {
            "manage.py": MANAGE,
            "shop/__init__.py": "",
            "shop/settings.py": DJANGO_SETTINGS,
            "shop/urls.py": DJANGO_URLS,
            "requirements.txt": "Django>=5\n",
        },
        "users: 0",
    ),
    "flask-in-a-subfolder": Example(
        {
            "backend/app.py": f"import words\n{FLASK}",
            "backend/words.py": "",
            "backend/requirements.txt": "flask\n",
        },
        "flask",
    ),
    "fastapi-uv": Example(
        {
            "src/blog/__init__.py": "",
            "src/blog/main.py": FASTAPI,
            "pyproject.toml": "[project]\nname = 'blog'\nversion = '1'\n"
            "dependencies = ['fastapi']\n",
        },
        "fastapi",
    ),
    "console-script": Example(
        {
            "shop.py": SERVE.replace("TEXT", "script"),
            "pyproject.toml": "[build-system]\nrequires = ['hatchling']\n"
            "build-backend = 'hatchling.build'\n[project]\nname = 'shop'\nversion = '1'\n"
            "scripts = { shop = 'shop:main' }\n",
        },
        "script",
    ),
    "node": Example(
        {"package.json": '{"scripts": {"start": "node server.js"}}', "server.js": NODE},
        "node",
        needs="npm",
    ),
    "static": Example({"public/index.html": "<h1>pages</h1>"}, "pages"),
    "procfile": Example(
        {"Procfile": "web: python3 -c 'import serve; serve.main()'\n", "serve.py": SERVE},
        "TEXT",
    ),
    "monorepo": Example(
        {
            "apps/site/index.html": "<h1>site</h1>",
            "apps/api/Procfile": "web: python3 -c 'import serve; serve.main()'\n",
            "apps/api/serve.py": SERVE,
        },
        "TEXT",
    ),
}


#: Projects that get the same configuration as the one with a console script.
ALIKE = {
    "poetry": {
        "shop/__init__.py": "def main(): ...",
        "pyproject.toml": "[build-system]\nrequires = ['poetry-core']\n"
        "build-backend = 'poetry.core.masonry.api'\n[tool.poetry]\nname = 'shop'\n"
        "version = '1'\ndescription = ''\nauthors = []\n"
        "[tool.poetry.dependencies]\npython = '^3.11'\n"
        "[tool.poetry.scripts]\nshop = 'shop:main'\n",
    },
    "setup-py": {
        "shop.py": "def main(): ...",
        "setup.py": "from setuptools import setup\nsetup(name='shop', version='1', "
        "py_modules=['shop'],\n entry_points={'console_scripts': [\n  'shop = shop:main']})\n",
    },
}


class Project:
    """A folder with some files, with a state folder and an image root of its own."""

    def __init__(self, folder: Path, files: dict[str, str]) -> None:
        self.folder = folder / "project"
        self.environ = {
            **os.environ,
            "PYTEST_EPHEMERAL_STATE": str(folder / "state"),
            "PYTEST_EPHEMERAL_PREFIX_ROOT": str(folder / "prefixes"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        for file, text in files.items():
            (self.folder / file).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / file).write_text(text)

    def run(self, *argv: str) -> str:
        """The output of a program, which must succeed."""
        return processes.run(*argv, folder=self.folder, environ=self.environ).stdout

    def init(self) -> str:
        """The configuration that ``init`` writes."""
        self.run("pytest-ephemeral", "init")
        return (self.folder / "ephemeral.toml").read_text()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", list(PROJECTS))
def test_tests_pass_after_init_without_edits(name: str, tmp_path: Path) -> None:
    """`init` writes the file, the tests pass, and no environment is left."""
    example = PROJECTS[name]
    if example.needs and shutil.which(example.needs) is None:
        skip_without(example.needs, f"apt-get install {example.needs}")
    test = TEST.format(text=example.text, path=example.path)
    project = Project(tmp_path, {**example.files, "tests/test_acceptance.py": test})
    project.init()
    assert "1 passed" in project.run("pytest", "--ephemeral-env", "tests")
    assert project.run("pytest-ephemeral", "list") == ""


@pytest.mark.parametrize("name", list(ALIKE))
def test_a_project_with_another_backend_is_built_in_the_same_way(name: str, tmp_path: Path) -> None:
    """The configuration is that of ``console-script``, and the wheel has the script."""
    project = Project(tmp_path / name, ALIKE[name])
    written = project.init()
    assert written == Project(tmp_path, PROJECTS["console-script"].files).init()
    recipe = tomllib.loads(written)["images"]["shop"]
    project.run("sh", "-c", recipe["build"])
    (wheel,) = project.folder.glob(recipe["artifact"])
    with zipfile.ZipFile(wheel) as archive:
        scripts = archive.read("shop-1.dist-info/entry_points.txt").decode()
    assert "".join(scripts.split()) == "[console_scripts]shop=shop:main"
