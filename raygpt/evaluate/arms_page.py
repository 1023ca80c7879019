"""The page of models side by side: a Jinja template with its style inline, so that the file stands alone."""

from __future__ import annotations

from raygpt.evaluate.page_parts import COMPARISON_STYLE, FACTS
from raygpt.track.page import STYLE

ARMS_PAGE = (
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ rows | map(attribute="name") | join(", ") }} · side by side</title>
<style>
"""
    + STYLE
    + COMPARISON_STYLE
    + """
  body { max-width: 1240px; }
  th.group { border-bottom: none; padding-bottom: 0; color: var(--ink); text-align: center; }
  td.name { font-weight: 600; overflow-wrap: anywhere; min-width: 110px; }
  .samples { grid-template-columns: repeat(auto-fit, minmax(260px, 1fr)); }
</style>
</head>
<body>
<header>
  <h1>Side by side</h1>
  <div class="sub">{{ rows | map(attribute="name") | join(" · ") }}</div>
</header>

<section>
  <h2>What each model makes of text it has not seen, and what it took</h2>
  <div class="wide">
  <table>
    <tr><th class="group"></th><th class="group" colspan="3"></th>
      {% for name in names %}<th class="group" colspan="3">held-out {{ name }} text</th>{% endfor %}</tr>
    <tr><th></th><th class="number">parameters</th><th class="number">trained on</th><th class="number">cost</th>
      {% for name in names %}
      <th class="number">perplexity</th><th class="number">bits per byte</th><th class="number">against the first</th>
      {% endfor %}</tr>
    {% for row in rows %}
    <tr><td class="name">{{ row.name }}</td><td class="number">{{ row.parameters }}</td>
      <td class="number">{{ row.tokens }}<small>{{ row.flops }}</small></td>
      <td class="number">{{ row.usd }}<small>{{ row.costs }}</small></td>
      {% for figure, interval, kind in row.cells %}
      <td class="number {{ kind }}">{{ figure }}<small>{{ interval }}</small></td>
      {% endfor %}</tr>
    {% endfor %}
  </table>
  </div>
  {% for line in equal %}
  <p>{{ line }}</p>
  {% endfor %}
  {% for line in notes %}
  <p class="note">{{ line }}</p>
  {% endfor %}
  <p class="note">{{ how.text }}</p>
  <p class="note">{{ how.cost }}</p>
</section>

{% if samples %}
<section>
  <h2>What they write</h2>
  {% for sample in samples %}
  <div class="samples">
    <div class="prompt">{{ sample.prompt }}</div>
    {% for name, text in sample.written.items() %}
    <div><h3>{{ name }}</h3>{{ text | trim or "(the document ends here)" }}</div>
    {% endfor %}
    <div><h3>how the document goes on</h3>{{ sample.goes_on | trim | truncate(600, False, " …") }}</div>
  </div>
  {% endfor %}
  <p class="note">{{ how.samples }}</p>
</section>
{% endif %}
"""
    + FACTS
    + """
<footer>Written {{ written }} by raygpt {{ version }}; all figures are in arms.json beside this page.</footer>
</body>
</html>
"""
)
