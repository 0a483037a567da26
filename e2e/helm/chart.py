"""Lints or renders a chart: chart.py CHART lint|template [VALUES-AS-JSON]. Exits 1 with Helm's own words."""

import json
import sys

import helm_python

chart, command, values = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]) if len(sys.argv) > 3 else {}
try:
    if command == "lint":
        report = helm_python.lint(chart, values, strict=True)
        found = [m for m in report["messages"] if m["severity"] >= 2]
        print(json.dumps(report, indent=1))
        sys.exit(1 if found or report["errors"] else 0)
    loaded = helm_python.Chart.load(chart)
    loaded.validate_schema(values)
    rendered = loaded.render(values, name="belay", namespace="belay-system")
except helm_python.HelmError as error:
    sys.exit(str(error))
for path, text in sorted(rendered.items()):
    if path.endswith(".yaml"):
        print(f"---\n# {path}\n{text}")
