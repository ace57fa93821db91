"""Check the dashboard by Grafana's own JSON Schemas: ``python -m tests.outside.grafana DIRECTORY``.

The directory is ``jsonschema/`` of github.com/grafana/grafana-foundation-sdk. Prints what is wrong;
the exit code is 1 then.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs

from tests.kit import tree

DASHBOARD = tree.ROOT / "examples/grafana/mapsave.json"


def mistakes(schemas: Path, dashboard: Any) -> Iterator[str]:
    """Yield what the schemas do not allow: of the whole, of panels and of queries."""
    for variable in dashboard["templating"]["list"]:
        # Grafana writes an object there, whose strings the schema forgets (0.0.18).
        if isinstance(variable["query"], dict):
            variable["query"] = variable["query"]["query"]
    yield from _found(schemas, "dashboard", "Dashboard", dashboard)
    for panel in dashboard["panels"]:
        where = f"panel {panel['id']}"
        for target in panel.get("targets", []):
            yield from _found(schemas, "prometheus", "Dataquery", target, where)
        if panel["type"] == "row":
            continue
        yield from _found(schemas, panel["type"], "Options", panel["options"], where)
        custom = panel["fieldConfig"]["defaults"].get("custom")
        if custom is not None:
            yield from _found(schemas, panel["type"], "FieldConfig", custom, where)


def _found(schemas: Path, name: str, part: str, data: Any, where: str = "") -> Iterator[str]:
    schema = json.loads((schemas / f"{name}.jsonschema.json").read_text())
    schema["$ref"] = f"#/definitions/{part}"
    for error in jsonschema_rs.validator_for(schema).iter_errors(data):
        at = "/".join(map(str, error.instance_path))
        yield f"{where} {name} {at}: {error.message[:300]}".strip()


def main(directory: str) -> int:
    """Print what is wrong; return the exit code."""
    found = list(mistakes(Path(directory), json.loads(DASHBOARD.read_text())))
    print("\n".join(found) or f"{DASHBOARD.name} is as the schemas say")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
