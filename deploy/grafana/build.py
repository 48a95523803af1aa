"""Write dashboards/sidestep.json from dashboard.yaml: `python deploy/grafana/build.py`.

There is what the dashboard shows, here is how it looks: shapes, colours, layout.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

Json = dict[str, Any]

HERE = Path(__file__).parent
OUTPUT = HERE / "dashboards" / "sidestep.json"
MATCHERS = 'job=~"$job", instance=~"$instance"'
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH = 24
HEIGHTS = {"stat": 4}  # others: 8

# The number is what the queries make of a state: the worst of several is the largest.
STATES = (("closed", "green"), ("recovering", "yellow"), ("half_open", "orange"), ("open", "red"))
STATE_MAPPING = {
    "type": "value",
    "options": {
        str(number): {"text": name, "color": color, "index": number}
        for number, (name, color) in enumerate(STATES)
    },
}
NO_TRAFFIC = {
    "type": "special",
    "options": {"match": "nan", "result": {"text": "no traffic", "color": "text", "index": 0}},
}

LINES: Json = {
    "type": "timeseries",
    "fieldConfig": {
        "defaults": {
            "min": 0,
            "color": {"mode": "palette-classic"},
            "custom": {
                "drawStyle": "line",
                "lineInterpolation": "linear",
                "lineWidth": 1,
                "fillOpacity": 8,
                "showPoints": "never",
                "spanNulls": False,
                "stacking": {"mode": "none", "group": "A"},
            },
        }
    },
    "options": {
        "legend": {"showLegend": True, "displayMode": "list", "placement": "bottom", "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
}
STACKED = {"lineWidth": 0, "fillOpacity": 60, "stacking": {"mode": "normal", "group": "A"}}
BARS = {
    **STACKED,
    "drawStyle": "bars",
    "fillOpacity": 80,
}  # for what happens now and then: a line hides one point
STAT: Json = {
    "type": "stat",
    "fieldConfig": {"defaults": {"color": {"mode": "thresholds"}, "mappings": [NO_TRAFFIC]}},
    "options": {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "value",
        "graphMode": "area",
        "justifyMode": "auto",
        "orientation": "auto",
        "textMode": "auto",
    },
}
TIMELINE: Json = {
    "type": "state-timeline",
    "fieldConfig": {
        "defaults": {"color": {"mode": "thresholds"}, "custom": {"fillOpacity": 80, "lineWidth": 0}}
    },
    "options": {
        "mergeValues": True,
        "showValue": "auto",
        "alignValue": "left",
        "rowHeight": 0.85,
        "legend": {"showLegend": True, "displayMode": "list", "placement": "bottom"},
        "tooltip": {"mode": "single"},
    },
}
TABLE: Json = {
    "type": "table",
    "fieldConfig": {"defaults": {"custom": {"align": "auto", "filterable": True}}},
    "options": {"showHeader": True, "cellHeight": "sm"},
}


def dashboard() -> Json:
    """Return the dashboard as Grafana reads it."""
    shown = yaml.safe_load((HERE / "dashboard.yaml").read_text(encoding="utf-8"))
    return {
        "uid": "sidestep",
        "title": shown["title"],
        "description": shown["description"],
        "tags": ["sidestep", "llm"],
        "editable": False,
        "graphTooltip": 1,
        "refresh": "15s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "schemaVersion": 39,
        "annotations": {"list": [_annotation(each) for each in shown["annotations"]]},
        "templating": {"list": _variables()},
        "panels": _lay_out(shown["rows"]),
    }


def text() -> str:
    """Return the content of the dashboard's file."""
    return json.dumps(dashboard(), indent=2, ensure_ascii=False) + "\n"


def _variables() -> list[Json]:
    datasource = {"type": "datasource", "query": "prometheus", "current": {}, "refresh": 1}
    return [
        {"name": "datasource", "label": "Data source", **datasource},
        _variable("job", "label_values(sidestep_build_info, job)"),
        _variable("instance", 'label_values(sidestep_build_info{job=~"$job"}, instance)'),
    ]


def _variable(name: str, query: str) -> Json:
    return {
        "name": name,
        "label": name.title(),
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "multi": True,
        "includeAll": True,
        "allValue": ".+",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "refresh": 2,  # when the time range changes
        "sort": 1,
    }


def _annotation(shown: Json) -> Json:
    return {
        "name": shown["name"],
        "enable": True,
        "iconColor": shown["color"],
        "datasource": DATASOURCE,
        "expr": _query(shown["expr"]),
        "step": "15s",
        "titleFormat": shown["title"],
        "textFormat": "{{reason}}",
        "tagKeys": "upstream,model",
        "useValueForTime": False,
    }


def _query(expression: str) -> str:
    return expression.replace("@", MATCHERS)


def _lay_out(rows: list[Json]) -> list[Json]:
    """Place the panels from left to right, row by row; the panels of a line are equally high."""
    laid: list[Json] = []
    y = 0
    for row in rows:
        if "title" in row:
            place = {"x": 0, "y": y, "w": WIDTH, "h": 1}
            laid.append(
                {"type": "row", "title": row["title"], "collapsed": False, "gridPos": place, "panels": []}
            )
            y += 1
        x = height = 0
        for shown in row["panels"]:
            if x + shown["width"] > WIDTH:
                x, y = 0, y + height
            height = shown.get("height", HEIGHTS.get(shown["shape"], 8))
            laid.append(_panel(shown, {"x": x, "y": y, "w": shown["width"], "h": height}))
            x += shown["width"]
        y += height
    return [{"id": number, **panel} for number, panel in enumerate(laid, 1)]


def _panel(shown: Json, place: Json) -> Json:
    base, *steps = shown.get("steps", ["green"])
    thresholds = [{"color": base, "value": None}, *({"color": color, "value": at} for at, color in steps)]
    panel = {
        "title": shown["title"],
        "description": shown["description"],
        "gridPos": place,
        "datasource": DATASOURCE,
        "targets": _targets(shown),
        "fieldConfig": {
            "defaults": {
                "unit": shown["unit"],
                "noValue": shown.get("none", "No data"),
                "thresholds": {"mode": "absolute", "steps": thresholds},
            },
            "overrides": [_colored(series, color) for series, color in shown.get("colors", {}).items()],
        },
    }
    panel = _merged(_shape(shown["shape"]), panel)
    if shown.get("states"):
        panel["fieldConfig"]["defaults"]["mappings"] = [STATE_MAPPING]
    return _merged(panel, shown.get("overlay", {}))


def _shape(name: str) -> Json:
    match name:
        case "lines":
            return LINES
        case "areas":
            return _merged(LINES, {"fieldConfig": {"defaults": {"custom": STACKED}}})
        case "bars":
            return _merged(LINES, {"fieldConfig": {"defaults": {"custom": BARS}}})
        case "stat":
            return STAT
        case "states":
            return TIMELINE
        case "table":
            return TABLE
        case _:
            raise ValueError(f"no shape is called {name!r}")


def _targets(shown: Json) -> list[Json]:
    how: Json = {"range": True, **({"exemplar": True} if shown.get("exemplars") else {})}
    if shown["shape"] == "table":
        how = {"format": "table", "instant": True, "range": False}
    return [
        {
            "refId": letter,
            "datasource": DATASOURCE,
            "editorMode": "code",
            "expr": _query(expression),
            "legendFormat": legend,
            **how,
        }
        for letter, (legend, expression) in zip("ABCDEFGH", shown["queries"].items(), strict=False)
    ]


def _colored(series: str, color: str) -> Json:
    """Colour one series, or, by an expression between slashes, several in shades of one colour."""
    several = series.startswith("/")
    return {
        "matcher": {"id": "byRegexp" if several else "byName", "options": series},
        "properties": [
            {"id": "color", "value": {"mode": "shades" if several else "fixed", "fixedColor": color}}
        ],
    }


def _merged(one: Json, other: Json) -> Json:
    """Return *one* with *other* laid over it, dictionary by dictionary; lists are joined."""
    result = dict(one)
    for key, value in other.items():
        before = result.get(key)
        if isinstance(before, dict) and isinstance(value, dict):
            result[key] = _merged(before, value)
        elif isinstance(before, list) and isinstance(value, list):
            result[key] = [*before, *value]
        else:
            result[key] = value
    return result


if __name__ == "__main__":
    OUTPUT.write_text(text(), encoding="utf-8")
