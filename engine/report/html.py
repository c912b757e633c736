"""report/index.html: one offline file with embedded plots."""

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment
from ralign.engine.report.progress import duration
from ralign.engine.report.summary import baselines_on, display, flip_rows, metric_columns, percent, tests_of
from ralign.engine.report.terminal import count_columns
from ralign.engine.runtime.files import write_text

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
  body { font: 16px/1.5 system-ui, sans-serif; color: #222; }
  body { max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
  h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
  table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
  th, td { padding: .3rem .9rem .3rem 0; border-bottom: 1px solid #ddd; }
  th, td { text-align: right; white-space: nowrap; }
  th:nth-child(-n+2), td:nth-child(-n+2), table.time th, table.time td:first-child { text-align: left; }
  tr.first td { border-top: 2px solid #999; } tr.rule td { color: #777; font-style: italic; }
  .interval { color: #777; font-size: .85em; }
  .scroll { overflow-x: auto; }
  img { max-width: 100%; } figure { margin: 0; }
  pre { background: #f6f6f4; padding: .8rem; overflow-x: auto; font-size: .85rem; white-space: pre-wrap; }
</style>
<h1>{{ title }}</h1>
{% if intro %}<p>{{ intro }}</p>{% endif %}
<h2>Judges</h2>
<p>Per cent, with 95&nbsp;% intervals. L-Acc: the verdict is correct. S-Corr: of the correct verdicts,
those with a wrong reason. F-Score: right for the right reason.{% if flips %} Flip rate: of the verdicts at
temperature 0, those that change if only the surface of the responses does.{% endif %}</p>
<div class="scroll"><table>
<tr><th>Test</th><th>Model</th>{% for name in metrics %}<th>{{ name }}</th>{% endfor %}
<th>Pairs</th>{% for name in counts %}<th>{{ name }}</th>{% endfor %}</tr>
{% for test in tests %}{% for model, results in summary.models.items() if test in results %}
<tr{% if loop.first %} class="first"{% endif %}><td>{{ display(test) }}</td><td>{{ display(model) }}</td>
{% for interval_of in metrics.values() %}{% set value, _, bounds = percent(interval_of(results[test])).partition(" ") %}
<td>{{ value }} <span class="interval">{{ bounds }}</span></td>
{% endfor %}
<td>{{ results[test].num_pairs }}</td>
{% for count in counts.values() %}<td>{{ count(results[test]) }}</td>{% endfor %}</tr>
{% endfor %}
{% for title, result in baselines_on(summary, test).items() %}
<tr class="rule"><td>{{ display(test) }}</td><td>({{ title }})</td>
{% for interval_of in metrics.values() %}{% set value, _, bounds = percent(interval_of(result)).partition(" ") %}
<td>{{ value }} <span class="interval">{{ bounds }}</span></td>
{% endfor %}
<td>{{ result.num_pairs }}</td>{% for count in counts %}<td>–</td>{% endfor %}</tr>
{% endfor %}{% endfor %}
</table></div>
{% for note in summary.notes %}<p class="note">Note: {{ note }}</p>
{% endfor %}
{% for caption, rows in tables.items() %}
<h2>{{ caption }}</h2>
<div class="scroll"><table class="plain">
<tr>{% for cell in rows[0] %}<th>{{ cell }}</th>{% endfor %}</tr>
{% for row in rows[1:] %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</table></div>
{% endfor %}
{% for caption, image in figures.items() %}
<h2>{{ caption }}</h2>
<figure><img alt="{{ caption }}" src="data:image/png;base64,{{ image }}"></figure>
{% endfor %}
{% if examples %}<h2>Examples</h2>
{% for heading, text in examples.items() %}<p><b>{{ heading }}</b></p>
<pre>{{ text }}</pre>
{% endfor %}{% endif %}
<h2>Time</h2>
<table class="time">
<tr><th>Stage</th><th>Time</th></tr>
{% for stage, seconds in summary.time_s.items() %}
<tr><td>{{ display(stage) }}</td><td>{{ duration(seconds) }}</td></tr>
{% endfor %}
</table>
<p>Seed {{ summary.seed }}.</p>
{% if config %}<details><summary>Settings</summary><pre>{{ config }}</pre></details>{% endif %}
</html>
"""


def write_html(
    summary: Mapping[str, Any],
    path: str | Path,
    *,
    title: str,
    intro: str = "",
    figures: Mapping[str, str | Path] | None = None,
    tables: Mapping[str, Sequence[Sequence[str]]] | None = None,
    examples: Mapping[str, str] | None = None,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Writes the page and returns `path`.

    All text is escaped.

    Args:
        figures: caption -> PNG file, which is embedded.
        tables: caption -> rows, the heading first.
        examples: heading -> text, such as a judgment of each model.
        config: the resolved settings, collapsed at the end.
    """
    page = Environment(autoescape=True, trim_blocks=True).from_string(_PAGE)
    encoded = {
        caption: base64.b64encode(Path(figure).read_bytes()).decode("ascii")
        for caption, figure in (figures or {}).items()
    }
    results = [result for tests in summary["models"].values() for result in tests.values()]
    flips = flip_rows(summary)
    text = page.render(
        summary=summary,
        tests=tests_of(summary),
        metrics=metric_columns(results),
        counts=count_columns(results),
        flips=flips,
        baselines_on=baselines_on,
        display=display,
        percent=percent,
        duration=duration,
        title=title,
        intro=intro,
        figures=encoded,
        tables=({"Verdicts that change with the surface": flips} if flips else {}) | dict(tables or {}),
        examples=examples or {},
        config=json.dumps(config, indent=2) if config else "",
    )
    write_text(path, text)
    return Path(path)
