"""Projects that run from their source tree: Django, ASGI and WSGI, Node, Procfile, static pages.

Each is recognised by its files. Its starter has an image of the folder, and a template.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

_VENV: Final = (
    """'python3 -m venv "$PREFIX/.venv"'""",
    """'"$PREFIX/.venv/bin/pip" install -q {what}'""",
)

#: A command that writes the requirements of a pyproject.toml into a file, for pip.
_REQUIREMENTS: Final = (
    """'''cd "$PREFIX" && python3 -c 'import tomllib; """
    """print(*tomllib.load(open("pyproject.toml", "rb"))["project"].get("dependencies", []), """
    """sep="\\n")' > .requirements'''"""
)

_DJANGO_SETTINGS: Final = """'''cat > "$PREFIX/ephemeral_settings.py" <<'END'
from os import environ, path
from {settings} import *
ALLOWED_HOSTS = ["*"]
if DATABASES["default"]["ENGINE"].endswith("sqlite3"):
    DATABASES["default"]["NAME"] = path.join(environ["STATE"], "db.sqlite3")
END'''"""

_FRAMEWORK: Final = re.compile(
    r"^(\w+)\s*(?::[^=\n]+)?=\s*(?:\w+\.)?(FastAPI|Starlette|Litestar|Quart|Flask)\(", re.MULTILINE
)
#: Folders that do not have an application, and where its requirements may be.
_SKIPPED: Final = frozenset({"tests", "test", "docs", "venv", "node_modules"})
_INNER: Final = "*/requirements.txt"

_FACTORY: Final = re.compile(r"^def (create_app|make_app)\(\s*\)", re.MULTILINE)


class SourceTree(NamedTuple):
    """A project whose folder is the artifact.

    Attributes:
        kind: The kind of project, for people.
        folder: The artifact: a folder, relative to the configuration.
        install: The commands of the recipe's ``install``, in TOML's notation.
        command: The template's ``command``, in TOML's notation.
        extra: Further lines of the template.
        notes: Hints about things to check by hand.
    """

    kind: str
    folder: str
    install: tuple[str, ...]
    command: str
    extra: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def find_source_tree(folder: Path) -> SourceTree | None:
    """The source tree of a folder, from the first detector that recognises it, or None."""
    detectors: tuple[Callable[[Path], SourceTree | None], ...] = (
        _django,
        _procfile,
        _python_web,
        _node,
        _static,
    )
    return next((tree for detect in detectors if (tree := detect(folder))), None)


def _django(folder: Path) -> SourceTree | None:
    found = re.search(r"DJANGO_SETTINGS_MODULE['\"],\s*['\"]([\w.]+)", _read(folder / "manage.py"))
    if found is None:
        return None
    settings = _read(folder / (found[1].replace(".", "/") + ".py"))
    manage = '"$PREFIX/.venv/bin/python" "$PREFIX/manage.py"'
    install = [*_python_install(folder, "django"), _DJANGO_SETTINGS.format(settings=found[1])]
    if "STATIC_ROOT" in settings:
        collect = f'STATE="$PWD" DJANGO_SETTINGS_MODULE={found[1]} {manage} collectstatic --noinput'
        install.append(f"'{collect}'")
    insecure = " --insecure" * ("staticfiles" in settings)  # serves static files without DEBUG
    serve = f"{manage} migrate --noinput && exec {manage} runserver --noreload{insecure}"
    return SourceTree(
        kind=f"Django project ({found[1]})",
        folder=".",
        install=tuple(install),
        command=f"'{serve} \"$HOST:$PORT\"'",
        extra=('env = { DJANGO_SETTINGS_MODULE = "ephemeral_settings", PYTHONUNBUFFERED = "1" }',),
        notes=(
            "ephemeral_settings.py in the image allows every host and puts SQLite into $STATE.",
        ),
    )


def _python_web(folder: Path) -> SourceTree | None:
    for file in _sources(folder):
        text = _read(file)
        found, factory = _FRAMEWORK.search(text), _FACTORY.search(text)
        if found is None and not (factory and re.search(r"\b(FastAPI|Flask)\(", text)):
            continue
        project = _project_of(file, folder)
        module = ".".join(file.relative_to(project).with_suffix("").parts)
        root, module = ("/src", module[4:]) if module.startswith("src.") else ("", module)
        module = module.removesuffix(".__init__")
        framework = found[2] if found else ("Flask" if "Flask(" in text else "FastAPI")
        name = found[1] if found else factory[1]  # type: ignore[index] # one of them was found
        wsgi = framework == "Flask"
        server = _flask(module, name, root) if wsgi else _uvicorn(module, name, root, not found)
        package = "flask" if wsgi else f"uvicorn {framework.lower()}"
        return SourceTree(
            kind=f"{framework} application ({module}:{name})",
            folder=str(project.relative_to(folder)),
            install=tuple(_python_install(project, package, "" if wsgi else "uvicorn")),
            command=server,
            extra=('env = { PYTHONUNBUFFERED = "1" }',),
        )
    return None


def _project_of(file: Path, folder: Path) -> Path:
    """The folder that a source file is imported from: its own, if that is a project, not a package.

    Args:
        file: The source file.
        folder: The folder of ``init``, which is the answer otherwise.
    """
    own = file.parent
    is_project = (own / "requirements.txt").is_file() and not (own / "__init__.py").exists()
    return own if is_project else folder


def _flask(module: str, name: str, root: str) -> str:
    flask = f'"$PREFIX/.venv/bin/flask" --app {module}:{name} run'
    return f'\'cd "$PREFIX{root}" && exec {flask} --host "$HOST" --port "$PORT"\''


def _uvicorn(module: str, name: str, root: str, is_factory: bool) -> str:
    uvicorn = f'"$PREFIX/.venv/bin/uvicorn" {module}:{name}' + " --factory" * is_factory
    return f'\'exec {uvicorn} --app-dir "$PREFIX{root}" --host "$HOST" --port "$PORT"\''


def _procfile(folder: Path) -> SourceTree | None:
    processes = dict(re.findall(r"^([\w-]+):\s*(.+)$", _read(folder / "Procfile"), re.MULTILINE))
    release = processes.pop("release", None)
    if "web" not in processes:
        return None
    into = 'cd "$PREFIX" && export PATH="$PREFIX/.venv/bin:$PATH" && exec'
    install = _python_install(folder, "") if _is_python(folder) else ()
    node = _node_install(folder) if (folder / "package.json").is_file() else ()
    table = ", ".join(
        f"{json.dumps(_process_name(name))} = {json.dumps(f'{into} {command}')}"
        for name, command in processes.items()
    )
    notes = () if release is None else (f"Not run: the release process ({release}).",)
    return SourceTree(
        kind=f"Procfile ({', '.join(processes)})",
        folder=".",
        install=("""'tar -xf "$ARTIFACT" -C "$PREFIX"'""", *install[1:], *node[1:]),
        command=f"{{ {table} }}",
        extra=('env = { PYTHONUNBUFFERED = "1" }',),
        notes=notes,
    )


def _process_name(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _node(folder: Path) -> SourceTree | None:
    package = _package(folder)
    if "start" not in package.get("scripts", {}):
        return None
    return SourceTree(
        kind="Node application (npm start)",
        folder=".",
        install=tuple(_node_install(folder)),
        command="'cd \"$PREFIX\" && exec npm start --silent'",
        notes=("It has to listen on process.env.PORT, and on process.env.HOST if it can.",),
    )


def _node_install(folder: Path) -> list[str]:
    package = _package(folder)
    install = ["""'tar -xf "$ARTIFACT" -C "$PREFIX"'"""]
    builds = "build" in package.get("scripts", {})
    if package.get("dependencies") or (builds and package.get("devDependencies")):
        command = "ci" if (folder / "package-lock.json").is_file() else "install"
        omit = "" if builds else " --omit=dev"
        install.append(f"'npm {command}{omit} --no-audit --no-fund --prefix \"$PREFIX\"'")
    if builds:
        install.append("""'npm run build --prefix "$PREFIX"'""")
    return install


def _static(folder: Path) -> SourceTree | None:
    for name in (".", "public", "dist", "site", "_site", "build/html"):
        if (folder / name / "index.html").is_file():
            serve = 'exec python3 -m http.server --bind "$HOST" --directory "$PREFIX" "$PORT"'
            return SourceTree(
                kind="static pages",
                folder=name,
                install=("""'tar -xf "$ARTIFACT" -C "$PREFIX"'""",),
                command=f"'{serve}'",
                extra=('ready = { http = "/" }',),
            )
    return None


def _python_install(folder: Path, default: str, more: str = "") -> list[str]:
    """Commands: unpack, make a virtual environment, and install the project's requirements.

    Args:
        folder: The project's folder.
        default: The package to install if the project declares no requirements; may be empty.
        more: A further package to install; may be empty.
    """
    venv, pip = _VENV
    commands = ["""'tar -xf "$ARTIFACT" -C "$PREFIX"'""", venv]
    project = _toml(folder / "pyproject.toml")
    if (folder / "requirements.txt").is_file():
        what = '-r "$PREFIX/requirements.txt"'
    elif "dependencies" in project.get("project", {}):
        commands.append(_REQUIREMENTS)
        what = '-r "$PREFIX/.requirements"'
    elif "poetry" in project.get("tool", {}):
        what = '"$PREFIX"'
    elif file := _inner_requirements(folder):
        what = f'-r "$PREFIX/{file}"'
    else:
        return [*commands, pip.format(what=default)] if default else commands[:1]
    return [*commands, pip.format(what=f"{what} {more}".rstrip())]


def _is_python(folder: Path) -> bool:
    files = (folder / "requirements.txt", folder / "pyproject.toml")
    return any(file.is_file() for file in files) or bool(_inner_requirements(folder))


def _inner_requirements(folder: Path) -> str:
    """The path of a requirements file in a subfolder; empty if there is none."""
    preferred = (f"requirements/{name}.txt" for name in ("production", "prod", "base"))
    found = [*preferred, *(str(file.relative_to(folder)) for file in _visible(folder, _INNER))]
    named = (one for one in found if re.fullmatch(r"[\w./-]+", one))
    return next((one for one in named if (folder / one).is_file()), "")


def _sources(folder: Path) -> Iterator[Path]:
    """The files that may define an application: at the top, in a package, in one below src."""
    preferred = ("main.py", "app.py", "asgi.py", "wsgi.py", "server.py")
    yield from (folder / name for name in preferred if (folder / name).is_file())
    for pattern in ("*.py", "*/*.py", "src/*/*.py"):
        for file in _visible(folder, pattern):
            if not file.name.startswith(("test_", "conftest")):
                yield file


def _visible(folder: Path, pattern: str) -> Iterator[Path]:
    """The files that match a pattern, but for those of tests, documentation and tools."""
    for file in sorted(folder.glob(pattern)):
        parts = file.relative_to(folder).parts
        if not any(part.startswith(".") or part in _SKIPPED for part in parts):
            yield file


def _package(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads(_read(folder / "package.json") or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(_read(file))
    except ValueError:
        return {}


def _read(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""
