"""Section of the report: models trained with and without each hospital, evaluated at each."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from server.cross_site import read_matrices

_SECTION = """
<section id="cross-site">
<h2>Across hospitals</h2>
<p>Rows: who trained the model. Columns: whose test cases it is evaluated on. Shaded: a hospital that the model never
saw. Below each value its 95 % interval, and the hospital's influence: score with it minus score without it, on the same
test patients, with the paired 95 % interval. Bold: that interval excludes zero.</p>
{%- for matrix in matrices %}
<h3>{{ matrix.task }}<small>{{ matrix.metric }}</small></h3>
<div class="wide"><table class="full">
<thead><tr><th>Trained by</th>{% for place in matrix.places %}<th>{{ place }}</th>{% endfor %}</tr></thead>
<tbody>
{%- for title, cells in matrix.rows %}
<tr><th>{{ title }}</th>
{%- for cell in cells %}
<td{% if cell.unseen %} class="fed"{% endif %}>{{ cell.value }}
{%- if cell.interval %}<small>{{ cell.interval }}</small>{% endif %}
{%- if cell.change %}<small>{% if cell.matters %}<b>{{ cell.change }}</b>{% else %}{{ cell.change }}{% endif %}</small>
{%- endif %}</td>
{%- endfor %}</tr>
{%- endfor %}
</tbody></table></div>
{%- endfor %}
<p class="note">Many cells were compared and none is corrected for their number: about one in twenty intervals excludes
zero where nothing differs. A model without a hospital also trained on fewer cases and for fewer steps. n/a: without the
hospital nobody labels the task, or the metric is undefined.</p>
</section>
"""


def cross_site_section(run: Path) -> Markup:
    """The section as HTML; nothing where no hospital was left out."""
    matrices = read_matrices(run)
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    return Markup(environment.from_string(_SECTION).render(matrices=matrices) if matrices else "")
