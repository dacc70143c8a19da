"""What breaks clients between two releases of a contract: OpenAPI documents and the AsyncAPI document.

A break is a route, parameter, field, header, value or message that is gone, or a request that must now be stricter or
needs another permission. Additions are none: clients ignore fields that they do not know, and treat values that they do
not know like the general case.

`python -m tests.support.api_compatibility` compares docs/api with docs/api/released and exits with 1 if anything
breaks; with `--release` it makes the present contract the released one. `breaks` is pure.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from enum import Enum
from fractions import Fraction
from pathlib import Path
from typing import Any

CURRENT = Path(__file__).parents[2] / "docs/api"
RELEASED = CURRENT / "released"
METHODS = frozenset({"get", "put", "post", "delete", "patch"})
_TEXTS = frozenset({"title", "summary", "description", "example"})
_RAISED = {"minimum": "minimum", "exclusiveMinimum": "minimum", "minLength": "minimum length", "minItems": "entries"}
_LOWERED = {"maximum": "maximum", "exclusiveMaximum": "maximum", "maxLength": "maximum length", "maxItems": "entries"}

Document = Mapping[str, Any]
Found = Iterator[str]


class Way(Enum):
    """Who writes what a schema describes: clients in a request, we in an answer."""

    REQUEST = "request"
    ANSWER = "answer"


def breaks(before: Document, after: Document) -> list[str]:
    """Return what breaks clients of the contract `before` in `after`, each with its name."""
    compare = _Comparison(before, after)
    found = compare.messages() if "asyncapi" in before else compare.routes()
    return list(dict.fromkeys(found))


class _Comparison:
    def __init__(self, before: Document, after: Document) -> None:
        self._before = before
        self._after = after
        self._compared: set[tuple[int, int, Way]] = set()
        self._united: dict[tuple[int, ...], Document] = {}

    def routes(self) -> Found:
        for path, methods in self._before["paths"].items():
            for method in METHODS & methods.keys():
                name = f"{method.upper()} {path}"
                after = self._after["paths"].get(path, {}).get(method)
                if after is None:
                    yield f"{name} is gone"
                else:
                    yield from self._operation(name, methods[method], after)
        types = (document.get("components", {}).get("examples", {}) for document in (self._before, self._after))
        for gone in sorted(_missing(*types)):
            yield f"problem type {gone} is gone"

    def messages(self) -> Found:
        for kind in ("channels", "operations"):
            for gone in sorted(_missing(self._before[kind], self._after[kind])):
                yield f"{kind.removesuffix('s')} {gone} is gone"
        for name, channel in self._before["channels"].items():
            other = self._after["channels"].get(name)
            if other is not None and other["address"] != channel["address"]:
                yield f"channel {name} has the address {other['address']}, which was {channel['address']}"
        before, after = (document["components"]["messages"] for document in (self._before, self._after))
        for name in before.keys() & after.keys():
            # Messages of either release are read by the other while an upgrade is under way.
            for way in Way:
                yield from self._schema(name, before[name]["payload"], after[name]["payload"], way)

    def _operation(self, name: str, before: Document, after: Document) -> Found:
        if before["operationId"] != after["operationId"]:
            yield f"{name} is called {after['operationId']}, which was {before['operationId']}"
        if after.get("security") and not before.get("security"):
            yield f"{name} needs a credential now"
        elif after.get("x-permission") not in (None, before.get("x-permission")):
            yield f"{name} needs the permission {after['x-permission']} now"
        yield from self._parameters(name, before, after)
        yield from self._body(name, before.get("requestBody"), after.get("requestBody"))
        for code, answer in before["responses"].items():
            other = after["responses"].get(code)
            if other is None:
                if int(code) < 400:
                    yield f"{name} does not answer {code} any more"
                continue
            yield from self._answer(name, code, _resolved(self._before, answer), _resolved(self._after, other))

    def _answer(self, name: str, code: str, before: Document, after: Document) -> Found:
        yield from self._headers(f"{name} {code}", before.get("headers", {}), after.get("headers", {}))
        new = after.get("content", {})
        for media, content in before.get("content", {}).items():
            if media not in new:
                yield f"{name} does not answer {code} as {media} any more"
            else:
                found = new[media].get("schema", {})
                yield from self._schema(f"{name} {code}", content.get("schema", {}), found, Way.ANSWER)

    def _headers(self, name: str, before: Document, after: Document) -> Found:
        kept = {header.title(): described for header, described in after.items()}
        for header, described in before.items():
            if header.title() not in kept:
                yield f"{name} has no header {header} any more"
                continue
            old = _resolved(self._before, described, "headers")
            new = _resolved(self._after, kept[header.title()], "headers")
            if old.get("required") and not new.get("required"):
                yield f"{name}: the header {header} may be absent now"
            where = f"{name}: the header {header}"
            yield from self._schema(where, old.get("schema", {}), new.get("schema", {}), Way.ANSWER)

    def _parameters(self, name: str, before: Document, after: Document) -> Found:
        old, new = ({_place(each): each for each in operation.get("parameters", ())} for operation in (before, after))
        for key, parameter in new.items():
            if parameter.get("required") and not old.get(key, {}).get("required"):
                yield f"{name}: the {key[0]} parameter {key[1]} is required now"
        for key, parameter in old.items():
            if key not in new:
                yield f"{name}: the {key[0]} parameter {key[1]} is gone"
            else:
                where = f"{name}: the {key[0]} parameter {key[1]}"
                yield from self._schema(where, parameter["schema"], new[key]["schema"], Way.REQUEST)

    def _body(self, name: str, before: Document | None, after: Document | None) -> Found:
        if after is None:
            if before is not None:
                yield f"{name} takes no body any more"
            return
        if after.get("required") and not (before or {}).get("required"):
            yield f"{name} requires a body now"
        for media, content in (before or {}).get("content", {}).items():
            if media not in after["content"]:
                yield f"{name} does not take {media} any more"
            else:
                yield from self._schema(name, content["schema"], after["content"][media]["schema"], Way.REQUEST)

    def _schema(self, where: str, before: Document, after: Document, way: Way) -> Found:
        old, new = self._by_type(self._before, before), self._by_type(self._after, after)
        if not old or not new:  # anything goes
            if new and way is Way.REQUEST:
                yield f"{where} takes only {' or '.join(sorted(new))} now"
            if old and way is Way.ANSWER:
                yield f"{where} may be anything now"
            return
        lost, added = _unmatched(old, new), _unmatched(new, old)
        if way is Way.REQUEST and lost:
            yield f"{where} does not take {' or '.join(sorted(lost))} any more"
        if way is Way.ANSWER and added:
            yield f"{where} may be {' or '.join(sorted(added))} now"
        for kind in sorted(old.keys() & new.keys()):
            yield from self._same_type(where, old[kind], new[kind], way)

    def _by_type(self, document: Document, schema: Document) -> dict[str, Document]:
        """Return the alternatives of a schema by their types; nothing if it allows anything."""
        branches: dict[str, dict[int, Document]] = {}
        for branch in _branches(document, schema):
            kinds = _types(branch)
            if not kinds and "allOf" not in schema:
                return {}
            for kind in kinds:
                branches.setdefault(kind, {})[id(branch)] = branch
        return {kind: self._unite(found, all_apply="allOf" in schema) for kind, found in branches.items()}

    def _unite(self, branches: Mapping[int, Document], *, all_apply: bool) -> Document:
        """Return one schema for several of a type, always the same one: comparisons go by identity."""
        if len(branches) == 1:
            return next(iter(branches.values()))
        key = (all_apply, *branches)
        if key not in self._united:
            self._united[key] = _united(list(branches.values()), all_apply=all_apply)
        return self._united[key]

    def _same_type(self, where: str, before: Document, after: Document, way: Way) -> Found:
        # By identity, as schemas may contain themselves; the documents keep them alive.
        if (pair := (id(before), id(after), way)) in self._compared:
            return
        self._compared.add(pair)
        yield from _values(where, before, after, way)
        if way is Way.REQUEST:
            yield from _limits(where, before, after)
        yield from self._fields(where, before, after, way)
        for key in ("items", "additionalProperties"):
            old, new = before.get(key), after.get(key)
            if isinstance(old, Mapping) and isinstance(new, Mapping):
                yield from self._schema(f"{where}[]", old, new, way)
        closed = [each.get("additionalProperties") is False for each in (before, after)]
        if way is Way.REQUEST and closed == [False, True] and "properties" in before:
            yield f"{where} takes no other fields now"

    def _fields(self, where: str, before: Document, after: Document, way: Way) -> Found:
        old, new = before.get("properties", {}), after.get("properties", {})
        required_before, required_after = before.get("required", ()), after.get("required", ())
        for name in old:
            if name not in new:
                yield f"{where}.{name} is gone"
                continue
            if way is Way.ANSWER and name in required_before and name not in required_after:
                yield f"{where}.{name} may be absent now"
            yield from self._schema(f"{where}.{name}", old[name], new[name], way)
        if way is Way.REQUEST:
            for name in required_after:
                if name not in required_before:
                    yield f"{where}.{name} is required now"


def _place(parameter: Document) -> tuple[str, str]:
    """Return where a parameter is and what it is called; headers are the same in any case."""
    name = parameter["name"]
    return parameter["in"], name.title() if parameter["in"] == "header" else name


def _resolved(document: Document, described: Document, kind: str = "responses") -> Document:
    """Return an answer, or a header of one, which may be named among the document's components."""
    if "$ref" not in described:
        return described
    found: Document = document["components"][kind][described["$ref"].rpartition("/")[2]]
    return found


def _branches(document: Document, schema: Document) -> Iterator[Document]:
    """Yield the schemas that a schema consists of, with references resolved."""
    if "$ref" in schema:
        yield from _branches(document, document["components"]["schemas"][schema["$ref"].rpartition("/")[2]])
        return
    several = [one for key in ("anyOf", "oneOf", "allOf") for one in schema.get(key, ())]
    for one in several:
        yield from _branches(document, one)
    if not several:
        yield schema


def _types(schema: Document) -> list[str]:
    kind: str | list[str] | None = schema.get("type")
    if kind is None:
        return ["string"] if "const" in schema or "enum" in schema else []
    return [kind] if isinstance(kind, str) else kind


def _united(branches: list[Document], *, all_apply: bool) -> Document:
    """Return a schema with the fields of all branches; required is what is required whichever branch applies."""
    several = "allOf" if all_apply else "anyOf"
    found: dict[str, Any] = {}
    for branch in branches:
        for key, value in branch.items():
            if all_apply or all(key in each for each in branches):
                found.setdefault(key, value)
    if not all_apply:
        for limits, widest in ((_RAISED, min), (_LOWERED, max)):
            found |= {key: widest(each[key] for each in branches) for key in limits if key in found}
        values = [_allowed(each) for each in branches]
        found.pop("const", None)
        found.pop("enum", None)
        if None not in values:
            found["enum"] = [value for each in values for value in each or ()]
    required = [set(each.get("required", ())) for each in branches]
    found["required"] = sorted(set.union(*required) if all_apply else set.intersection(*required))
    properties = [each.get("properties", {}) for each in branches]
    found["properties"] = {
        name: {several: [each[name] for each in properties if name in each]} for each in properties for name in each
    }
    if items := [each["items"] for each in branches if "items" in each]:
        found["items"] = {several: items}
    return found


def _allowed(schema: Document) -> list[Any] | None:
    """Return the only values that a schema allows, if it names them."""
    values: list[Any] | None = schema.get("enum", [schema["const"]] if "const" in schema else None)
    return values


def _values(where: str, before: Document, after: Document, way: Way) -> Found:
    old, new = _allowed(before), _allowed(after)
    if old is not None and new is not None:
        for value in old:
            if value not in new:
                yield f"the value {value} of {where} is gone"
    elif old is None and new is not None and way is Way.REQUEST:
        yield f"{where} takes only {', '.join(map(str, new))} now"


def _limits(where: str, before: Document, after: Document) -> Found:
    for key, words in (*_RAISED.items(), *_LOWERED.items()):
        if key not in after:
            continue
        raised = key in _RAISED
        if key not in before or (after[key] > before[key] if raised else after[key] < before[key]):
            yield f"the {'least' if raised else 'most'} {words} of {where} is {after[key]} now"
    if after.get("pattern") not in (None, before.get("pattern")):
        yield f"the pattern of {where} is {after['pattern']} now"
    if after.get("format") not in (None, before.get("format")):
        yield f"the format of {where} is {after['format']} now"
    if (step := after.get("multipleOf")) and ("multipleOf" not in before or not _divides(step, before["multipleOf"])):
        yield f"{where} takes only multiples of {step} now"


def _divides(step: float, number: float) -> bool:
    return Fraction(str(number)) % Fraction(str(step)) == 0


def _unmatched(types: Mapping[str, Document], others: Mapping[str, Document]) -> set[str]:
    """Return the types that the others do not include; every integer is a number."""
    return {kind for kind in types if kind not in others and not (kind == "integer" and "number" in others)}


def _missing(before: Mapping[str, Any], after: Mapping[str, Any]) -> set[str]:
    return {name for name in before if name not in after}


def surface(document: Document) -> Any:
    """Return what of a document clients depend on: without texts and examples."""
    kept = _without_texts(document)
    if named := document.get("components", {}).get("examples"):
        kept["components"]["examples"] = {name: {} for name in named}
    return kept


def _without_texts(part: Any) -> Any:
    if isinstance(part, list):
        return [_without_texts(each) for each in part]
    if not isinstance(part, Mapping):
        return part
    return {
        name: _without_texts(each)
        for name, each in part.items()
        if not (name in _TEXTS and not isinstance(each, Mapping)) and not (name == "examples" and "schema" not in part)
    }


def released() -> dict[str, Document]:
    """Read the contract of the last release, by document."""
    return _documents(RELEASED)


def current() -> dict[str, Document]:
    """Read the present contract, by document."""
    return _documents(CURRENT)


def _documents(folder: Path) -> dict[str, Document]:
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def all_breaks() -> list[str]:
    """Return what breaks clients of the released contract, each with its document and its name."""
    now = current()
    found = []
    for name, before in released().items():
        if name not in now:
            found.append(f"{name}: the document is gone")
        else:
            found += [f"{name}: {each}" for each in breaks(before, now[name])]
    return found


def release() -> None:
    """Make the present contract the released one."""
    RELEASED.mkdir(exist_ok=True)
    now = current()
    for name in released().keys() - now.keys():
        (RELEASED / f"{name}.json").unlink()
    for name, document in now.items():
        (RELEASED / f"{name}.json").write_text(json.dumps(surface(document), indent=1, ensure_ascii=False) + "\n")


def main() -> None:
    """Compare the contracts, or move the released one."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--release", action="store_true", help="make the present contract the released one")
    if parser.parse_args().release:
        release()
        return
    found = all_breaks()
    sys.stdout.write("\n".join(found or ["Nothing breaks clients of the released contract."]) + "\n")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
