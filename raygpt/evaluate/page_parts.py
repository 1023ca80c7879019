"""What the pages of comparisons share: the look of tables, notes and samples, and the list of what was compared."""

from __future__ import annotations

COMPARISON_STYLE = """
  td small { color: var(--soft); display: block; white-space: nowrap; }
  td.good { color: #1d7a70; font-weight: 600; } td.bad { color: #bf4d18; font-weight: 600; }
  .note { color: var(--soft); font-size: 13.5px; max-width: 860px; }
  .wide { overflow-x: auto; }
  .samples { display: grid; gap: 14px; margin-bottom: 26px; }
  .samples > div { background: var(--panel); border-radius: 8px; padding: 10px 14px; font-size: 13.5px;
                   white-space: pre-wrap; overflow-wrap: anywhere; }
  .samples h3 { font-size: 12.5px; color: var(--soft); margin: 0 0 4px; font-weight: 600; white-space: normal; }
  .samples .prompt { grid-column: 1 / -1; background: none; padding: 0; font-weight: 600; white-space: normal; }
"""

FACTS = """
<section>
  <h2>What was compared</h2>
  <table>
    {% for key, value in facts %}
    <tr><td class="key">{{ key }}</td><td class="value">{{ value }}</td></tr>
    {% endfor %}
  </table>
</section>
"""
