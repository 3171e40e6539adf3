"""Upload a template's local files to S3, as ``aws cloudformation package`` does.

In the template, only the paths are replaced: every other character stays.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, Final, NamedTuple

from pytest_ephemeral.errors import ConfigurationError, UnavailableError
from pytest_ephemeral.files import digest_of, read_regular

#: The two keys of a location in S3 that is a mapping: for the bucket, and for the object.
Pair = tuple[str, str]
_S3: Final = ("S3Bucket", "S3Key")
_PLAIN: Final = ("Bucket", "Key")


class Property(NamedTuple):
    """A property of a resource whose value may be a local path.

    Attributes:
        path: The property's name; if it is inside others, all names from the outside in.
        pair: The keys of the location in S3, if that is a mapping; None if it is a URL.
        zipped: Whether a single file is zipped, too.
        nested: Whether it is a template, which may have local paths itself.
    """

    path: tuple[str, ...]
    pair: Pair | None = None
    zipped: bool = False
    nested: bool = False


_MAPPINGS: Final = (
    Property(("RequestMappingTemplateS3Location",)),
    Property(("ResponseMappingTemplateS3Location",)),
    Property(("CodeS3Location",)),
)
#: By resource type; from the reference of the AWS CLI: ``cloudformation package``.
PROPERTIES: Final[dict[str, tuple[Property, ...]]] = {
    "AWS::ApiGateway::RestApi": (Property(("BodyS3Location",), _PLAIN),),
    "AWS::AppSync::FunctionConfiguration": _MAPPINGS,
    "AWS::AppSync::GraphQLSchema": (Property(("DefinitionS3Location",)),),
    "AWS::AppSync::Resolver": _MAPPINGS,
    "AWS::CloudFormation::Stack": (Property(("TemplateURL",), nested=True),),
    "AWS::CodeCommit::Repository": (Property(("Code", "S3"), _PLAIN, zipped=True),),
    "AWS::ElasticBeanstalk::ApplicationVersion": (Property(("SourceBundle",), _S3),),
    "AWS::Glue::Job": (Property(("Command", "ScriptLocation")),),
    "AWS::Lambda::Function": (Property(("Code",), _S3, zipped=True),),
    "AWS::Lambda::LayerVersion": (Property(("Content",), _S3, zipped=True),),
    "AWS::Serverless::Api": (Property(("DefinitionUri",)),),
    "AWS::Serverless::Application": (Property(("Location",), nested=True),),
    "AWS::Serverless::Function": (Property(("CodeUri",), zipped=True),),
    "AWS::Serverless::HttpApi": (Property(("DefinitionUri",)),),
    "AWS::Serverless::LayerVersion": (Property(("ContentUri",), zipped=True),),
    "AWS::Serverless::StateMachine": (Property(("DefinitionUri",), _PLAIN),),
    "AWS::StepFunctions::StateMachine": (Property(("DefinitionS3Location",), _PLAIN),),
}
_INCLUDE: Final = Property(("Location",))
#: In ``Globals``: the default code of all functions of a template.
_GLOBAL_CODE: Final = Property(("Function", "CodeUri"), zipped=True)
#: The code properties: a function without any of them has the template's folder as its code.
_CODE: Final = {
    "AWS::Lambda::Function": frozenset({"Code"}),
    "AWS::Serverless::Function": frozenset({"CodeUri", "InlineCode", "ImageUri", "PackageType"}),
}
_TRANSFORMS: Final = frozenset({"Fn::Transform", "Transform"})

#: A value that is no path: a URL, or a dynamic reference of CloudFormation.
_NOT_LOCAL: Final = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+:|\{\{resolve:)")
_STRING: Final = "tag:yaml.org,2002:str"
#: The earliest time in a zip archive. With a fixed time, the same files give the same archive.
_LONG_AGO: Final = (1980, 1, 1, 0, 0, 0)


class S3Folder(NamedTuple):
    """The folder in S3 that files are uploaded to.

    Attributes:
        bucket: The bucket's name.
        prefix: The start of all keys.
        endpoint: The URL of S3, for the URLs of nested templates.
    """

    bucket: str
    prefix: str
    endpoint: str

    def url(self, name: str) -> str:
        """The URL of an object, with the bucket in its path."""
        return f"{self.endpoint}/{self.bucket}/{self.prefix}{name}"

    def value(self, wanted: Property, name: str) -> Any:
        """An object's location, in the form that a property needs."""
        if wanted.nested:
            return self.url(name)
        key = f"{self.prefix}{name}"
        if wanted.pair is None:
            return f"s3://{self.bucket}/{key}"
        return dict(zip(wanted.pair, (self.bucket, key), strict=True))


class Reference(NamedTuple):
    """A local path in a template.

    Attributes:
        wanted: The property.
        path: The path, as written.
        start: The index in the text at which it begins.
        end: The index at which it ends.
        before: Text to insert before the location, if the template has no such property.
        after: Text to insert after it.
    """

    wanted: Property
    path: str
    start: int
    end: int
    before: str = ""
    after: str = ""


def read(file: Path, where: str) -> str:
    """A template's text.

    Raises:
        ConfigurationError: It can't be read.
    """
    try:
        text = read_regular(file).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{where}: {file} can't be read: {error}") from error
    # YAML does not allow tabs, which JSON may be indented by. A JSON string can't have a tab.
    return text.replace("\t", " ") if text.lstrip().startswith("{") else text


def list_local(file: Path, where: str) -> list[Path]:
    """The local files and folders that a template and its nested templates name.

    Raises:
        ConfigurationError: One of them is missing, or a template is nested in itself.
    """
    found: list[Path] = []

    def visit(template: Path, above: tuple[Path, ...]) -> None:
        for one in references(read(template, where)):
            path = _resolve(template, one, where, above)
            found.append(path)
            if one.wanted.nested:
                visit(path, (*above, path))

    visit(file, (file.resolve(),))
    return found


def package(file: Path, where: str, place: S3Folder, upload: Callable[[str, bytes], None]) -> str:
    """Upload the local files of a template; return its text with locations in S3.

    Args:
        file: The template.
        where: Its key in the configuration, for messages.
        place: The folder in S3.
        upload: Called with each object's name, which is its content's digest, and the content.

    Raises:
        ConfigurationError: A file is missing, or can't be read.
    """
    uploaded: set[str] = set()

    def put(content: bytes, suffix: str) -> str:
        name = digest_of([content]).removeprefix("sha256:") + suffix
        if name not in uploaded:
            upload(name, content)
            uploaded.add(name)
        return name

    def fill(template: Path, above: tuple[Path, ...]) -> str:
        text = read(template, where)
        for one in reversed(references(text)):
            path = _resolve(template, one, where, above)
            if one.wanted.nested:
                name = put(fill(path, (*above, path)).encode(), ".template")
            else:
                name = put(*_content(path, where, zipped=one.wanted.zipped))
            value = json.dumps(place.value(one.wanted, name))
            text = text[: one.start] + one.before + value + one.after + text[one.end :]
        return text

    return fill(file, (file.resolve(),))


def references(text: str) -> list[Reference]:
    """The local paths in a template, in the order of the text.

    A text that is not valid YAML has none: CloudFormation reports what is wrong with it.

    Raises:
        UnavailableError: PyYAML is not installed.
    """
    try:
        import yaml
    except ImportError as error:
        raise UnavailableError(
            "PyYAML is not installed, which reads CloudFormation's files: "
            "pip install 'pytest-ephemeral[aws]'"
        ) from error

    try:
        root = yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError:
        return []
    globals_ = _fields(root).get("Globals")
    shared = [] if globals_ is None else list(_reference(globals_, _GLOBAL_CODE))
    walked = [one for one in _walk(root, set()) if not (one.before and shared)]
    found = {one.start: one for one in [*shared, *walked]}
    return [found[start] for start in sorted(found)]


def _walk(node: Any, seen: set[int]) -> Iterator[Reference]:
    """The local paths below a node; a node with aliases is visited once."""
    if node is None or isinstance(node.value, str) or id(node) in seen:
        return
    seen.add(id(node))
    if not _is_mapping(node):
        for child in node.value:
            yield from _walk(child, seen)
        return
    fields = {str(key.value): value for key, value in node.value}
    kind, properties = fields.get("Type"), fields.get("Properties")
    if kind is not None and properties is not None and isinstance(kind.value, str):
        for wanted in PROPERTIES.get(kind.value, ()):
            yield from _reference(properties, wanted)
        yield from _missing_code(kind.value, properties)
    for key, child in fields.items():
        if key in _TRANSFORMS or child.tag == "!Transform":
            yield from _includes(child)
        yield from _walk(child, seen)


def _missing_code(kind: str, node: Any) -> Iterator[Reference]:
    """For a function without a code property: the template's folder, as a property to add."""
    if kind not in _CODE or not _fields(node) or _CODE[kind] & _fields(node).keys():
        return
    (wanted,) = PROPERTIES[kind]
    mark = node.value[0][0].start_mark
    name, after = wanted.path[0], f"\n{' ' * mark.column}"
    if node.flow_style:
        name, after = f'"{name}"', ", "
    yield Reference(wanted, ".", mark.index, mark.index, f"{name}: ", after)


def _includes(node: Any) -> Iterator[Reference]:
    """The path of an ``AWS::Include``, which may be in a list of transforms."""
    if not isinstance(node.value, str) and not _is_mapping(node):
        for child in node.value:
            yield from _includes(child)
        return
    fields = _fields(node)
    name, given = fields.get("Name"), fields.get("Parameters")
    if name is not None and name.value == "AWS::Include" and given is not None:
        yield from _reference(given, _INCLUDE)


def _reference(node: Any, wanted: Property) -> Iterator[Reference]:
    for name in wanted.path:
        node = _fields(node).get(name)
        if node is None:
            return
    # A block scalar is not a path; its end is also the end of its last line.
    is_text = node.tag == _STRING and node.style not in {"|", ">"}
    if is_text and node.value and not _NOT_LOCAL.match(node.value):
        yield Reference(wanted, node.value, node.start_mark.index, node.end_mark.index)


def _fields(node: Any) -> dict[str, Any]:
    return {str(key.value): value for key, value in node.value} if _is_mapping(node) else {}


def _is_mapping(node: Any) -> bool:
    return str(getattr(node, "id", "")) == "mapping"


def _resolve(template: Path, one: Reference, where: str, above: tuple[Path, ...]) -> Path:
    """The absolute path: a template's paths are relative to its own folder."""
    found = (template.parent / one.path).resolve()
    name = ".".join(one.wanted.path)
    if not found.exists():
        raise ConfigurationError(f"{where}: {name} in {template}: there is no {found}")
    if one.wanted.nested and found.is_dir():
        raise ConfigurationError(f"{where}: {name} in {template}: {found} is a folder")
    if one.wanted.nested and found in above:
        raise ConfigurationError(f"{where}: {name} in {template}: {found} is nested in itself")
    return found


def _content(path: Path, where: str, *, zipped: bool) -> tuple[bytes, str]:
    """The bytes to upload for a path, and the suffix of the object's name."""
    try:
        if path.is_dir():
            return _zip(_files(path, path, ())), ".zip"
        if zipped and not zipfile.is_zipfile(path):
            return _zip(iter([(path.name, path)])), ".zip"
        return read_regular(path), path.suffix
    except OSError as error:
        raise ConfigurationError(f"{where}: {path} can't be read: {error}") from error


def _files(folder: Path, root: Path, above: tuple[Path, ...]) -> Iterator[tuple[str, Path]]:
    """The files below a folder, links followed, each with its path relative to the root."""
    real = folder.resolve()
    if real in above:
        return  # a link to a parent folder
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            yield from _files(path, root, (*above, real))
        else:
            yield path.relative_to(root).as_posix(), path


def _zip(files: Iterator[tuple[str, Path]]) -> bytes:
    """A zip archive; the same files give the same bytes, whatever their times."""
    target = BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, path in files:
            entry = zipfile.ZipInfo(name, _LONG_AGO)
            is_program = path.stat().st_mode & 0o100
            # A regular file that every user may read, as functions run as any user.
            entry.external_attr = (0o100755 if is_program else 0o100644) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, read_regular(path))
    return target.getvalue()
