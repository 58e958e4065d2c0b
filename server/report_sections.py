"""Sections of the report's page that stand on their own; the page puts them together."""

from __future__ import annotations

CALIBRATION = """<section id="calibration">
<h2>Calibration</h2>
{%- call plot(figures.calibration) %}
Federated model{{ first_seed }}, test cases of all hospitals together, with 95 % intervals; larger dots are more cases,
dots of fewer than ten are left out. On the dotted line a probability means what it says; below it the model is too
sure.
{%- if drawn_from_counts %} Drawn from the steps of probability in which hospitals counted their cases, each taken at
its middle; with more than two classes the probability of every class counts, so a case is in it once for each, and
intervals are too narrow.
{%- else %} Diagnoses: probability of the most probable answer. Survival: quarters of predicted survival against
Kaplan-Meier.{% endif %}
Discrimination does not need calibration, and a model that is calibrated here need not be elsewhere.
{%- endcall %}
</section>

"""

HOSPITALS = """<section id="hospitals">
<h2>Hospital by hospital</h2>
{%- for site in site_sections %}
<h3 id="{{ site.anchor }}">{{ site.name }}</h3>
<p>{{ site.sentences | join(" ") }}</p>
{%- if site.rows %}
<details><summary>All scores on the test cases of {{ site.name }}</summary>
<div class="wide"><table class="full">
<thead><tr><th>Task</th>{% for m in site.methods %}{{ method_head(m) }}{% endfor %}
{%- if site.paired %}<th>Federated<br>minus local</th>{% endif %}</tr></thead>
<tbody>
{%- for row in site.rows %}
<tr{% if loop.changed(row.task) and not loop.first %} class="first"{% endif %}>
<th>{{ row.task }}<small>{{ row.metric }}</small></th>
{%- for cell in row.cells %}{{ score(cell, "", cell.method == "federated") }}{% endfor %}
{%- if site.paired %}<td>{{ row.difference }}
{%- if row.interval %}<small>{{ row.interval }}</small>{% endif %}</td>{% endif %}
</tr>
{%- endfor %}
</tbody></table></div></details>
{%- else %}<p class="absent">No score on its own test cases.</p>{% endif %}
{%- endfor %}
</section>

"""

MORE_RESULTS = """{%- if further.rows %}
<details><summary>More metrics</summary>
<div class="wide"><table class="full">
<thead><tr><th>Task</th>{% for m in further.methods %}{{ method_head(m) }}{% endfor %}</tr></thead>
<tbody>
{%- for row in further.rows %}
<tr{% if loop.changed(row.task) and not loop.first %} class="first"{% endif %}>
<th>{{ row.task }}<small>{{ row.metric }}</small></th>
{%- for cell in row.cells %}{{ score(cell, "", cell.method == "federated") }}{% endfor %}</tr>
{%- endfor %}
</tbody></table></div>
<p class="note">Lower is better for the Brier score and the calibration error. The resamples of a calibration error lie
above its value when cases are few: do not read its interval as a test. IPCW: weighted for censoring, which was
estimated on training cases. n/a also where training cases were not followed up so long, or where the last time bin
begins earlier than the time asked for.</p></details>
{%- endif %}
{%- if paired %}
<h3>Federated against each other method, on the same patients</h3>
<div class="wide"><table>
<thead><tr><th>Task</th><th>Other method</th><th class="num">Federated minus other</th>
<th class="num">95 % interval</th><th class="num">p</th><th class="num">n</th></tr></thead>
<tbody>
{%- for row in paired %}
<tr{% if loop.changed(row.task) and not loop.first %} class="first"{% endif %}>
<th>{{ row.task }}<small>{{ row.metric }}</small></th><td>{{ method(row.method) }}</td>
<td class="num">{% if row.apart %}<b>{{ row.difference }}</b>{% else %}{{ row.difference }}{% endif %}</td>
<td class="num">{{ row.interval }}</td><td class="num">{{ row.p }}</td><td class="num">{{ row.n }}</td></tr>
{%- endfor %}
</tbody></table></div>
<p class="note">Paired bootstrap: both methods are scored on the same resample of patients
{%- if several %}, and seeds are resampled too; more seeds do not count as more patients{% endif %}. Bold: the interval
leaves out zero. The p-values are two-sided and not corrected for the number of comparisons.</p>
{%- endif %}
"""

PRIVACY = """<section id="privacy">
<h2>Privacy</h2>
{%- if privacy.rows %}
<p>What left the hospitals in this run, all of them together. Cases, images, expression and labels of single patients
are not in any message.</p>
<div class="wide"><table>
<thead><tr><th>What left</th><th class="num">Messages</th><th class="num">Size</th><th>Protection</th></tr></thead>
<tbody>
{%- for row in privacy.rows %}
<tr><td class="prose">{{ row.what }}</td><td class="num">{{ row.messages }}</td><td class="num">{{ row.bytes }}</td>
<td class="prose">{{ row.protection }}</td></tr>
{%- endfor %}
</tbody></table></div>
<ul>
<li><strong>Least contributors:</strong>
{%- if privacy.contributors > 1 %} a parameter is averaged only when at least {{ privacy.contributors }} hospitals
trained it.
{%- else %} none. A parameter that one hospital alone trained carries that hospital's update.{% endif %}</li>
<li><strong>Small counts:</strong> {% if privacy.cell > 1 %}below {{ privacy.cell }} they stay at the hospital.
{%- else %}not held back.{% endif %}
{%- if privacy.suppressed %}
No sums, or not all, because absent or too few, of {{ privacy.suppressed | join("; of ") }}.{% endif %}</li>
<li><strong>Secure aggregation and added noise:</strong> none. The coordinator sees each hospital's update; there is no
formal guarantee.</li>
{%- if simulated %}
<li>In this simulation nothing left a machine: the table says what would have.</li>
{%- else %}
<li>Each hospital's own audit log lists the same messages from its side:
<code>modaltune-client audit verify</code>.</li>
{%- endif %}
</ul>
{%- else %}<p class="absent">The round log is empty: nothing left a hospital.</p>{% endif %}
</section>

"""
