"""The comparison's page: a Jinja template with its style inline, so that the file stands alone."""

from __future__ import annotations

from raygpt.evaluate.page_parts import COMPARISON_STYLE, FACTS
from raygpt.track.page import STYLE

COMPARISON_PAGE = (
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ tuned.name }} · what fine-tuning bought</title>
<style>
"""
    + STYLE
    + COMPARISON_STYLE
    + """
  .headlines { margin: 22px 0 0; padding: 0; list-style: none; font-size: 16.5px; }
  .headlines li { padding: 7px 0 7px 16px; border-left: 4px solid #c3c8d0; margin-bottom: 8px; }
  .headlines li.good { border-color: #2a8c82; }
  .headlines li.bad { border-color: #d9622b; }
  td.example { color: var(--soft); font-size: 13px; min-width: 300px; overflow-wrap: anywhere; }
  td.example b { color: var(--ink); }
  .samples { grid-template-columns: 1fr 1fr 1fr; }
  mark { background: #ffe2b8; }
  section > figure { margin-top: 18px; }
  @media (max-width: 720px) { .samples { grid-template-columns: 1fr; } }
</style>
</head>
<body>
<header>
  <h1>What did fine-tuning buy?</h1>
  <div class="sub">base {{ base.origin }} · tuned {{ tuned.origin }}</div>
</header>

<ul class="headlines">
  {% for line in headlines %}
  <li class="{{ line.kind }}">{{ line.text }}</li>
  {% endfor %}
</ul>

<section>
  <h2>Held-out text</h2>
  <div class="wide"><table>
    <tr><th></th><th class="number">documents</th>
      {% if same_tokenizer %}
      <th class="number">perplexity, base</th><th class="number">tuned</th><th class="number">change</th>
      {% endif %}
      <th class="number">bits per byte, base</th><th class="number">tuned</th><th class="number">change</th></tr>
    {% for row in texts %}
    <tr><td>{{ row.name }}<small>{{ row.tokens }} tokens</small></td><td class="number">{{ row.documents }}</td>
      {% for cell in row.cells %}
      <td class="number{{ cell.kind }}">{{ cell.figure }}<small>{{ cell.interval }}</small></td>
      {% endfor %}
    </tr>
    {% endfor %}
  </table></div>
  {% if notes.general %}
  <p class="note">General text was not measured, so this page does not say what was forgotten: {{ notes.general }}.</p>
  {% endif %}
  <p class="note">{{ how.text }}</p>
  {% for plot in plots if plot.name in ("losses", "differences") %}
  <figure><img src="{{ plot.uri }}" alt="{{ plot.caption }}"></figure>
  {% endfor %}
</section>

<section>
  <h2>Terms of the domain</h2>
  {% if terms %}
  {% for plot in plots if plot.name == "terms" %}
  <figure><img src="{{ plot.uri }}" alt="{{ plot.caption }}"></figure>
  {% endfor %}
  <p class="note">{{ how.terms }}</p>
  <div class="wide"><table>
    <tr><th>term</th><th class="number">occurrences</th><th class="number">rank, base</th><th class="number">tuned</th>
      <th class="number">probability, base</th><th class="number">tuned</th><th class="number">times as likely</th>
      <th>an occurrence (its change is the median one)</th></tr>
    {% for row in terms %}
    <tr><td>{{ row.term }}</td><td class="number">{{ row.occurrences }}<small>in {{ row.documents }}</small></td>
      <td class="number">{{ row.base_rank }}</td><td class="number">{{ row.tuned_rank }}</td>
      <td class="number">{{ row.base_probability }}</td><td class="number">{{ row.tuned_probability }}</td>
      <td class="number{{ row.kind }}">{{ row.factor }}<small>{{ row.interval }}</small></td>
      <td class="example">{{ row.example[0] }}<b>{{ row.example[1] }}</b>{{ row.example[2] }}</td></tr>
    {% endfor %}
  </table></div>
  {% endif %}
  {% if absent %}
  <p class="note">Not in the held-out text that was read: {{ absent }}.</p>
  {% endif %}
  {% if notes.terms %}
  <p class="note">No terms were probed: {{ notes.terms }}.</p>
  {% endif %}
</section>

<section>
  <h2>Is training text repeated word for word?</h2>
  {% if copies %}
  <table>
    <tr><th></th><th class="number">texts</th><th class="number">longest overlap</th>
      <th class="number">in runs of {{ overlap_tokens }}+ tokens</th><th>the longest one</th></tr>
    {% for row in copies %}
    <tr><td>{{ row.name }}</td><td class="number">{{ row.texts }}</td><td class="number">{{ row.longest }}</td>
      <td class="number">{{ row.covered }}</td><td class="example">{{ row.text }}</td></tr>
    {% endfor %}
  </table>
  <p class="note">{{ how.memorisation }}</p>
  {% else %}
  <p class="note">Not measured: {{ notes.memorisation }}.</p>
  {% endif %}
</section>

{% if pairs %}
<section>
  <h2>Samples on the same prompts</h2>
  {% for pair in pairs %}
  <div class="samples">
    <div class="prompt">{{ pair.prompt }} …</div>
    {% for name, pieces in pair.texts %}
    <div><h3>{{ name }}</h3>
      {%- for tag, piece in pieces %}<{{ tag }}>{{ piece }}</{{ tag }}>{% endfor %}</div>
    {% endfor %}
  </div>
  {% endfor %}
  <p class="note">{{ how.samples }}</p>
</section>
{% endif %}
"""
    + FACTS
    + """
<footer>Written {{ written }} by raygpt {{ version }}; all figures are in comparison.json beside this page.</footer>
</body>
</html>
"""
)
