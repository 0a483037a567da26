"""Works on a chart as the release `belay` of the namespace `belay-system`: chart.py CHART COMMAND [VALUES-AS-JSON].

Commands: lint, template; on the cluster of KUBECONFIG: install, upgrade, uninstall. Exits 1 with Helm's own words.
"""

import json
import sys

import helm_python

NAME, NAMESPACE = "belay", "belay-system"


def lint(chart, values):
    report = helm_python.lint(chart, values, strict=True)
    print(json.dumps(report, indent=1))
    if report["errors"] or any(message["severity"] >= 2 for message in report["messages"]):
        sys.exit(1)


def template(chart, values):
    loaded = helm_python.Chart.load(chart)
    loaded.validate_schema(values)
    for path, text in sorted(loaded.render(values, name=NAME, namespace=NAMESPACE).items()):
        if path.endswith(".yaml"):
            print(f"---\n# {path}\n{text}")


def install(chart, values):
    with helm_python.Config(namespace=NAMESPACE) as cluster:
        cluster.install(chart, NAME, values, namespace=NAMESPACE, create_namespace=True)


def upgrade(chart, values):
    with helm_python.Config(namespace=NAMESPACE) as cluster:
        cluster.upgrade(chart, NAME, values, namespace=NAMESPACE)


def uninstall(_chart, _values):
    with helm_python.Config(namespace=NAMESPACE) as cluster:
        print(cluster.uninstall(NAME)["info"])


COMMANDS = {command.__name__: command for command in (lint, template, install, upgrade, uninstall)}

chart, command, *values = sys.argv[1:]
try:
    COMMANDS[command](chart, json.loads(values[0]) if values else {})
except helm_python.HelmError as error:
    sys.exit(str(error))
