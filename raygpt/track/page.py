"""The report's page: a Jinja template with its style inline, so that the file stands alone."""

from __future__ import annotations

# Of every page: put into a template with its braces as they are.
STYLE = """\
  :root { --ink: #1d2129; --soft: #5b616b; --line: #e3e6ea; --panel: #f6f7f9; --train: #2f6db5; --ours: #d9622b; }
  * { box-sizing: border-box; }
  body { margin: 0 auto; max-width: 1080px; padding: 36px 24px 48px; color: var(--ink); background: #fff;
         font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
  h1 { font-size: 26px; line-height: 1.2; margin: 0 0 4px; overflow-wrap: anywhere; }
  h2 { font-size: 18px; margin: 40px 0 12px; }
  .sub, footer { color: var(--soft); font-size: 13px; overflow-wrap: anywhere; }
  .tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin-top: 24px; }
  .tile { background: var(--panel); border-radius: 8px; padding: 12px 14px; }
  .tile b { display: block; font-size: 22px; line-height: 1.3; white-space: nowrap; }
  .tile span { color: var(--soft); font-size: 12.5px; display: block; }
  table { border-collapse: collapse; width: 100%; font-size: 14px; }
  th { text-align: left; color: var(--soft); font-weight: 600; font-size: 12.5px; }
  th, td { padding: 5px 14px 5px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
  td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
  td.key { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: 13px; white-space: nowrap; }
  td.value { overflow-wrap: anywhere; }
  td.bar { width: 45%; vertical-align: middle; }
  td.bar div { height: 12px; border-radius: 3px; background: #c3c8d0; }
  tr.ours td { font-weight: 700; }
  tr.ours td.bar div { background: var(--ours); }
  figure { margin: 0; }
  figure img { width: 100%; height: auto; display: block; }
  .plots { display: grid; grid-template-columns: 1fr 1fr; gap: 20px; }
  .plots figure:first-child { grid-column: 1 / -1; }
  pre { background: var(--panel); border-radius: 8px; padding: 14px 16px; margin: 0 0 12px; white-space: pre-wrap;
        overflow-wrap: anywhere; font: 13.5px/1.55 ui-monospace, "DejaVu Sans Mono", monospace; }
  .config { columns: 2; column-gap: 36px; }
  .config table { break-inside: avoid; margin-bottom: 20px; font-size: 13px; }
  .config th { color: var(--ink); font-size: 14px; }
  .config td { padding-top: 3px; padding-bottom: 3px; }
  .config td.key { width: 52%; }
  details { margin-top: 40px; }
  summary { font-size: 18px; font-weight: 700; cursor: pointer; margin-bottom: 12px; }
  footer { margin-top: 44px; border-top: 1px solid var(--line); padding-top: 12px; }
  @media (max-width: 720px) { .plots { grid-template-columns: 1fr; } .config { columns: 1; } td.bar { display: none; } }
  @media print { details { display: block; } .tile, pre { border: 1px solid var(--line); } }
"""

PAGE = (
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ name }} · raygpt report</title>
<style>
"""
    + STYLE
    + """</style>
</head>
<body>
<header>
  <h1>{{ name }}</h1>
  <div class="sub">{{ uri }}{% if not finished %} · not finished when this was written{% endif %}</div>
</header>

{% if tiles %}
<section class="tiles">
  {% for heading, figure, small in tiles %}
  <div class="tile"><span>{{ heading }}</span><b>{{ figure }}</b><span>{{ small }}</span></div>
  {% endfor %}
</section>
{% endif %}

{% if comparison %}
<section>
  <h2>Validation loss beside its yardsticks</h2>
  <table>
    <tr><th></th><th class="number">nats per token</th><th class="number">perplexity</th><th></th></tr>
    {% for row in comparison %}
    <tr{% if row.ours %} class="ours"{% endif %}><td>{{ row.name }}</td><td class="number">{{ row.loss }}</td>
      <td class="number">{{ row.perplexity }}</td><td class="bar"><div style="width: {{ row.width }}%"></div></td></tr>
    {% endfor %}
  </table>
</section>
{% endif %}

<section>
  <h2>How it went</h2>
  {% if plots %}
  <div class="plots">
    {% for plot in plots %}
    <figure><img src="{{ plot.uri }}" alt="{{ plot.caption }}"></figure>
    {% endfor %}
  </div>
  {% else %}
  <p>Nothing has been logged yet.</p>
  {% endif %}
</section>

{% if samples %}
<section>
  <h2>Samples</h2>
  {% for sample in samples %}
  <pre>{{ sample }}</pre>
  {% endfor %}
</section>
{% endif %}

{% if summary %}
<section>
  <h2>Summary</h2>
  <table>
    {% for key, value, meaning in summary %}
    <tr><td class="key">{{ key }}</td><td class="number">{{ value }}</td><td class="value sub">{{ meaning }}</td></tr>
    {% endfor %}
  </table>
</section>
{% endif %}

{% if config %}
<details>
  <summary>Configuration</summary>
  <div class="config">
    {% for section, settings in config %}
    <table>
      {% if section %}
      <tr><th colspan="2">{{ section }}</th></tr>
      {% endif %}
      {% for key, value in settings %}
      <tr><td class="key">{{ key }}</td><td class="value">{{ value }}</td></tr>
      {% endfor %}
    </table>
    {% endfor %}
  </div>
</details>
{% endif %}

<footer>Written {{ written }} by raygpt {{ version }} from config.yaml, metrics.jsonl and summary.json in this folder.
</footer>
</body>
</html>
"""
)
