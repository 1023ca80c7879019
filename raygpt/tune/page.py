"""The sweep report's page: a Jinja template with its style inline, so that the file stands alone."""

from __future__ import annotations

from raygpt.track.page import STYLE

PAGE = (
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ name }} · raygpt sweep</title>
<style>
"""
    + STYLE
    + """
</style>
</head>
<body>
<h1>{{ name }}</h1>
<div class="sub">{{ description }}</div>
{% if task %}
<div class="sub">{{ task }}</div>
{% endif %}
<section class="tiles">
  {% for heading, figure, small in tiles %}
  <div class="tile"><span>{{ heading }}</span><b>{{ figure }}</b><span>{{ small }}</span></div>
  {% endfor %}
</section>

{% if verdict %}
<section>
  <h2>{{ judgement or "Final runs" }}</h2>
  <pre>{{ verdict | join("\n") }}</pre>
  <p class="sub">Configurations are chosen on a part of the training file; the validation split is looked at once, for
  the chosen configuration and the baseline. Intervals: paired bootstrap over examples and seeds, 95 %.</p>
</section>
{% endif %}

<section>
  <h2>Leaderboard</h2>
  <table>
    <tr><th class="number">#</th><th>trial</th><th class="number">{{ metric }}</th><th class="number">f1</th>
      <th class="number">loss</th><th class="number">best/last epoch</th><th>state</th><th class="number">time</th>
      {% for key in keys %}<th class="number">{{ key }}</th>{% endfor %}</tr>
    {% for row in rows %}
    <tr{% if row.rank == 1 %} class="ours"{% endif %}><td class="number">{{ row.rank }}</td><td>{{ row.id }}</td>
      <td class="number">{{ row.score }}</td><td class="number">{{ row.f1 }}</td><td class="number">{{ row.loss }}</td>
      <td class="number">{{ row.epoch }}</td><td>{{ row.status }}</td><td class="number">{{ row.seconds }}</td>
      {% for value in row.params %}<td class="number">{{ value }}</td>{% endfor %}</tr>
    {% endfor %}
  </table>
  {% for trial in failed %}
  <p>Trial {{ trial.id }} ({{ trial.status }}): {{ trial.error }}<br><span class="sub">{{ trial.params }}</span></p>
  {% endfor %}
</section>

<section>
  <h2>How it went</h2>
  {% for plot in plots %}
  <figure><img src="{{ plot.uri }}" alt="{{ plot.caption }}" style="max-width: 900px">
    <figcaption class="sub">{{ plot.caption }}</figcaption></figure>
  {% endfor %}
</section>

<section>
  <h2>Budget by rung</h2>
  <table>
    <tr><th class="number">up to epoch</th><th class="number">trials that came this far</th>
      <th class="number">epochs spent on the way</th></tr>
    {% for rung in rungs %}
    <tr><td class="number">{{ rung.rung }}</td><td class="number">{{ rung.trials }}</td>
      <td class="number">{{ rung.epochs }}</td></tr>
    {% endfor %}
  </table>
</section>

{% if importance %}
<section>
  <h2>Importance</h2>
  <table>
    {% for key, share in importance %}
    <tr><td class="key">{{ key }}</td><td class="number">{{ "%.1f" | format(100 * share) }} %</td></tr>
    {% endfor %}
  </table>
</section>
{% endif %}

<footer>Written {{ written }} by raygpt {{ version }} from {{ uri }}; the study opens with optuna-dashboard, settings to
run are in best.yaml.</footer>
</body>
</html>
"""
)
