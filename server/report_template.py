"""Page of the report. A Python file because Flower bundles carry no HTML."""

from __future__ import annotations

from server.report_sections import CALIBRATION, HOSPITALS, MORE_RESULTS, PRIVACY

PAGE = (
    """
{%- macro plot(figure) %}
{%- if figure.svg %}<figure>{{ figure.svg }}<figcaption>{{ caller() }}</figcaption></figure>
{%- else %}<p class="absent">{{ figure.missing }}</p>{% endif %}
{%- endmacro %}
{%- macro method(name) -%}
<span class="method"><i style="background: {{ colours[name] }}"></i>{{ title(name) }}</span>
{%- endmacro %}
{%- macro method_head(name) -%}
<th{% if name == "federated" %} class="fed"{% endif %}>{{ method(name) }}</th>
{%- endmacro %}
{%- macro score(cell, cases, tint=false) -%}
<td class="{{ "fed" if tint }}{{ " off" if cell.value in ("–", "n/a") }}"><b>{{ cell.value }}</b>
{%- if cell.error %} {{ cell.error }}{% endif %}
{%- if cell.interval %}<small>{{ cell.interval }}</small>{% endif %}
{%- if not cases and cell.cases %}<small>n = {{ cell.cases }}</small>{% endif %}
{%- if cell.note %}<small>{{ cell.note }}</small>{% endif %}</td>
{%- endmacro %}
{%- macro hospital_table(table) %}
<h3>{{ table.task }}<small>{{ table.metric }}</small></h3>
<div class="wide"><table class="full">
<thead><tr><th>Hospital</th>{% for m in table.methods %}{{ method_head(m) }}{% endfor %}</tr></thead>
<tbody>
{%- for row in table.rows %}
<tr><th>{{ row.hospital }}{% if row.cases %}<small>n = {{ row.cases }}</small>{% endif %}</th>
{%- for cell in row.cells %}{{ score(cell, row.cases, cell.method == "federated") }}{% endfor %}</tr>
{%- endfor %}
</tbody></table></div>
{%- endmacro %}
{%- set several = comparison.seeds | length > 1 %}
{%- set first_seed = " (first seed)" if several else "" -%}
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ name }} · ModalTune Federated</title>
<style>{{ style }}</style>
</head>
<body>
<header>
<p class="kicker">ModalTune Federated · report of a {{ "simulation" if simulated else "federation" }}</p>
<div class="head"><h1>{{ name }}</h1><span class="badge {{ status | lower }}">{{ mark }} {{ status }}</span></div>
<p class="lead">{{ lead | join(" ") }}</p>
<dl class="facts">
{%- for value, what in facts %}<div><dt>{{ what }}</dt><dd>{{ value }}</dd></div>{% endfor -%}
</dl>
<nav aria-label="Contents">
{%- for id, text in [("results", "Results"), ("by-hospital", "By hospital")]
  + ([("cross-site", "Across hospitals")] if cross_site else []) + [("data", "Who had what"), ("training", "Training"),
  ("curves", "ROC curves"), ("survival", "Survival"), ("calibration", "Calibration")]
  + ([("gene-sets", "Gene sets")] if gene_sets else []) + [("contributions", "Contributions"), ("traffic", "Traffic"),
  ("privacy", "Privacy"), ("map", "Embedding map"), ("hospitals", "Hospital by hospital"), ("again", "Reproduce"),
  ("limits", "Limits")] %}
<a href="#{{ id }}">{{ text }}</a>
{%- endfor %}
</nav>
</header>
<main>

<section id="results">
<h2>Results</h2>
{%- call plot(figures.overview) %}
Test cases of all hospitals together. Dot: score
{%- if several %}, mean over {{ comparison.seeds | length }} seeds (ticks: single seeds){% endif %}.
Whisker: 95 % bootstrap interval over patients. Dotted line: chance.
{%- endcall %}
{%- if comparison.rows %}
<div class="wide"><table class="full">
<thead><tr><th>Task</th>{% for m in comparison.methods %}{{ method_head(m) }}{% endfor %}
{%- if comparison.has_local %}<th>Federated<br>minus local</th>{% endif %}
{%- if comparison.has_pooled %}<th>Gap closed</th>{% endif %}</tr></thead>
<tbody>
{%- for row in comparison.rows %}
<tr{% if loop.changed(row.task) and not loop.first %} class="first"{% endif %}>
<th>{{ row.task }}<small>{{ row.metric }}{% if row.cases %}, n = {{ row.cases }}{% endif %}</small></th>
{%- for cell in row.cells %}{{ score(cell, row.cases, cell.method == "federated") }}{% endfor %}
{%- if comparison.has_local %}<td><b>{{ row.difference }}</b></td>{% endif %}
{%- if comparison.has_pooled %}<td>{{ row.closed }}
{%- if row.bar is not none %}<div class="bar"><i style="width: {{ row.bar }}%"></i></div>{% endif %}</td>
{%- endif %}</tr>
{%- endfor %}
</tbody></table></div>
<p class="note">Below each value: its 95 % interval (bootstrap over patients). n: test cases. n/a: undefined, for
example because only one class is present. –: not scored.
{%- if counted %} ±: how far a value from counts can be from that of the same cases in one table.{% endif %}
{%- if several %} Values and interval ends are means over {{ comparison.seeds | length }} seeds.{% endif %}
{%- if comparison.has_pooled %} Gap closed = (federated − local) / (pooled − local): 0 % is no better than local
training, 100 % as good as bringing all data together; not computed where pooled is less than {{ comparison.min_gap }}
better than local.{% endif %}
{%- if comparison.has_local %} A difference smaller than the intervals is not a finding.{% endif %}</p>
{%- endif %}
"""
    + MORE_RESULTS
    + """{%- if others.rows %}
<h3>Other methods</h3>
<div class="wide"><table>
<thead><tr><th>Method</th>
{%- for task, metric in others.columns %}<th>{{ task }}<small>{{ metric }}</small></th>{% endfor %}</tr></thead>
<tbody>
{%- for row in others.rows %}
<tr><th>{{ method(row.method) }}</th>{% for cell in row.cells %}{{ score(cell, "") }}{% endfor %}</tr>
{%- endfor %}
</tbody></table></div>
{%- endif %}
{%- if several %}
<details><summary>Values of every seed</summary>
<div class="wide"><table>
<thead><tr><th>Task</th><th>Metric</th><th>Method</th>
{%- for seed in comparison.seeds %}<th class="num">Seed {{ seed }}</th>{% endfor %}</tr></thead>
<tbody>
{%- for row in seeds %}
<tr><td>{{ row.task }}</td><td>{{ row.metric }}</td><td>{{ method(row.method) }}</td>
{%- for value in row.scores %}<td class="num">{{ value }}</td>{% endfor %}</tr>
{%- endfor %}
</tbody></table></div></details>
{%- endif %}
{%- if methods %}
<h3>What the methods are</h3>
<dl class="methods">
{%- for m in methods %}
<dt>{{ method(m) }}</dt><dd>{{ meaning(m) }} (<code>{{ m }}</code>)</dd>
{%- endfor %}
</dl>
{%- endif %}
</section>

<section id="by-hospital">
<h2>By hospital</h2>
<p>What each model does on a hospital's own test cases.</p>
{%- call plot(figures.own) %}
Own test cases of each hospital, with 95 % intervals. Few patients make wide intervals; a hospital without the task has
no dot.
{%- endcall %}
<h3>What a hospital gains</h3>
{%- call plot(figures.forest) %}
Federated model minus the hospital's own model on the hospital's own test cases, the same patients for both, with 95 %
intervals; larger squares are more cases. Diamond: test cases of all hospitals together, where local is the mean over
the hospitals' models.
{%- endcall %}
{%- for table in hospital_tables if table.main %}{{ hospital_table(table) }}{% endfor %}
{%- for table in hospital_tables if not table.main %}
{%- if loop.first %}
<details><summary>Other metrics by hospital</summary>
{%- endif %}{{ hospital_table(table) }}{% if loop.last %}</details>{% endif %}
{%- endfor %}
</section>

{{ cross_site }}

<section id="data">
<h2>Who had what</h2>
{%- if sites.rows %}
<p>Cases of every hospital, the tasks it labels, and the modalities it holds.</p>
<div class="wide"><table>
<thead><tr><th>Hospital</th>
{%- for name in ("Cases", "Train", "Validate", "Test") %}<th class="num">{{ name }}</th>{% endfor %}
{%- for names in (sites.tasks, sites.modalities) %}
{%- for name in names %}<th class="mid{{ " group" if loop.first }}">{{ name }}</th>{% endfor %}
{%- endfor %}</tr></thead>
<tbody>
{%- for row in sites.rows %}
<tr><th><a href="#{{ anchors[row.hospital] }}">{{ row.hospital }}</a></th>
{%- for count in row.counts %}<td class="num">{{ count }}</td>{% endfor %}
{%- for marks in (row.tasks, row.modalities) %}
{%- for mark in marks %}<td class="{{ "yes" if mark else "no" }}{{ " group" if loop.first }}">
{%- if mark %}<span role="img" aria-label="yes">✓</span>{% else %}<span role="img" aria-label="no">–</span>{% endif -%}
</td>{% endfor %}
{%- endfor %}</tr>
{%- endfor %}
</tbody></table></div>
{%- else %}<p class="absent">The run ended before the hospitals had said what they hold.</p>{% endif %}
</section>

<section id="training">
<h2>Training</h2>
{%- call plot(figures.losses) %}
Training loss by round{{ first_seed }}: thin lines single hospitals, thick line their mean weighted by examples,
dashed line validation cases.
{%- endcall %}
<h3>Who took part, and how long a round took</h3>
{%- call plot(figures.timeline) %}
Training rounds{{ first_seed }}. A hospital that is away or refused keeps its place: the others go on, and it takes part
again in a later round.
{%- endcall %}
{%- if incidents %}
<h3>Rounds that lacked a hospital</h3>
<div class="wide"><table>
<thead><tr><th>Round</th><th>Phase</th><th>What happened</th></tr></thead>
<tbody>
{%- for row in incidents %}
<tr><td>{{ row.round }}{% if row.seed is not none %}<small>seed {{ row.seed }}</small>{% endif %}</td>
<td>{{ row.phase }}</td><td>{{ row.what | join("; ") }}</td></tr>
{%- endfor %}
</tbody></table></div>
{%- elif rounds %}<p>No hospital is missing from any round in the log.</p>{% endif %}
</section>

<section id="curves">
<h2>ROC curves</h2>
{%- call plot(figures.roc) %}
Test cases of all hospitals together. More than two classes: mean of the one-against-rest curves; ordered levels: the
high ones against the low ones (stage: III and IV against I and II). Shaded: range over single models (hospitals,
seeds); the legend gives their mean area.
{%- if drawn_from_counts %} Drawn from the steps of probability in which hospitals counted their cases: between two
steps the line is straight.{% endif %}
{%- endcall %}
</section>

<section id="survival">
<h2>Survival by predicted risk</h2>
{%- for task, figure in figures.survival %}
{%- if figures.survival | length > 1 %}<h3>{{ task }}</h3>{% endif %}
{%- call plot(figure) %}
Kaplan-Meier estimate with 95 % band{{ first_seed }} in test cases, grouped by the risk that the federated model
predicts. The groups are cut at the thirds of the risks of training cases, at their median when few of those died; no
test case has a say in it. It is no clinical threshold. Ticks: censored cases. The log-rank test is not adjusted for
hospital, age or stage.
{%- endcall %}
{%- else %}<p class="absent">The study has no survival task.</p>{% endfor %}
</section>

"""
    + CALIBRATION
    + """{{ gene_sets }}

<section id="contributions">
<h2>Who contributed what</h2>
{%- if contributions.rows %}
<p>Training examples behind each group of parameters, summed over rounds{{ first_seed }}. The server averages every
parameter over the hospitals that exercised it: one without genomics does not dilute the gene encoder.</p>
<div class="wide"><table class="heat">
<thead><tr><th>Parameters</th>{% for hospital in hospitals %}<th>{{ hospital }}</th>{% endfor %}
<th>Contributors</th></tr></thead>
<tbody>
{%- for row in contributions.rows %}
<tr><th>{{ row.group }}</th>
{%- for cell in row.cells %}
{%- if cell.shade > 0 %}<td style="background: rgba(0, 114, 178, {{ (0.06 + 0.5 * cell.shade) | round(3) }})">
{%- else %}<td class="none">{% endif %}{{ cell.count }}</td>
{%- endfor %}<td>{{ row.contributors }} of {{ hospitals | length }}</td></tr>
{%- endfor %}
</tbody></table></div>
{%- else %}<p class="absent">The round log has no counts of examples by parameter.</p>{% endif %}
</section>

<section id="traffic">
<h2>Traffic</h2>
{%- call plot(figures.traffic) %}
Size of the serialised messages of all hospitals together, by training round{{ first_seed }}.
{%- if several %} The table adds up all seeds.{% endif %}
{%- endcall %}
{%- if traffic %}
<div class="wide"><table>
<thead><tr><th>Phase</th>
{%- for name in ("Rounds", "To the hospitals", "From the hospitals", "Both") %}
<th class="num">{{ name }}</th>
{%- endfor %}
</tr></thead>
<tbody>
{%- for row in traffic %}
<tr{% if loop.last %} class="sum"{% endif %}><th>{{ row.phase }}</th>
{%- for value in (row.rounds, row.down, row.up, row.total) %}<td class="num">{{ value }}</td>{% endfor %}</tr>
{%- endfor %}
</tbody></table></div>
{%- endif %}
</section>

"""
    + PRIVACY
    + """<section id="map">
<h2>Embedding map</h2>
{%- call plot(figures.map) %}
Every dot is a test case{{ first_seed }}, projected to two dimensions. Hospitals that form islands of their own hint at
site effects (staining, scanner, case mix); labels that separate hint at signal. Distances in a projection are no
measurement.
{%- endcall %}
</section>

"""
    + HOSPITALS
    + """<section id="again">
<h2>Reproduce</h2>
<div class="box"><table><tbody>
{%- for what, value in reproducibility %}<tr><th>{{ what }}</th><td><code>{{ value }}</code></td></tr>{% endfor %}
</tbody></table></div>
<details><summary>Fingerprints of the files behind this report</summary>
<div class="wide"><table><thead><tr><th>File</th><th>sha256</th></tr></thead>
<tbody>
{%- for file, digest in fingerprints %}<tr><td>{{ file }}</td><td><code>{{ digest }}</code></td></tr>{% endfor %}
</tbody></table></div></details>
</section>

<section id="limits">
<h2>Limits</h2>
{%- if notes %}
<h3>Notes of this run</h3>
<ul>{% for note in notes %}<li>{{ note }}</li>{% endfor %}</ul>
<h3>What to keep in mind</h3>
{%- endif %}
<ul>
<li><strong>Research use only. This is not a medical device:</strong> neither the model nor this report may guide the
care of a patient.</li>
<li>Intervals are bootstrap intervals over the test patients. They say how much the score depends on who was tested, not
how the model would do in another hospital, on another scanner or in later years
{%- if several %}; the spread over seeds is shown apart
{%- else %}, and one seed says nothing about the spread between training runs{% endif %}.</li>
<li>Intervals of two methods are not a test of their difference: both were scored on the same patients.</li>
<li>A hospital's own scores rest on few patients; several comparisons were made and none is corrected for their
number.</li>
<li>The data can show discrimination on retrospective cases of these hospitals. They cannot show that
probabilities hold elsewhere, benefit for patients,
fairness between groups of patients that were not compared, or performance on cases unlike these.</li>
{%- if simulated %}
<li>This is a simulation: the hospitals were parts of one data set on one machine. It says nothing about networks, local
software or differences in local practice that the data set does not hold.</li>
{%- endif %}
<li>Keeping the cases at home is not by itself a guarantee of privacy: trained weights can carry traces of the cases
they saw.</li>
</ul>
</section>
</main>
</body>
</html>
"""
)
