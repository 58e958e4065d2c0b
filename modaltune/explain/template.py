"""HTML of the explanations. A Python file because Flower bundles carry no HTML."""

from __future__ import annotations

STYLE = """
:root { --ink: #1f2933; --muted: #5b6770; --line: #dde3e8; --soft: #f5f7f9; --up: #b35806; --down: #542788; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 960px; padding: 28px 24px 64px; background: #fff; color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, "Liberation Sans", sans-serif; }
h1 { margin: 4px 0 6px; font-size: 30px; line-height: 1.15; overflow-wrap: anywhere; }
h2 { margin: 52px 0 8px; padding-top: 16px; border-top: 1px solid var(--line); font-size: 22px;
  overflow-wrap: anywhere; }
h3 { margin: 26px 0 6px; font-size: 16px; overflow-wrap: anywhere; }
h3 small { color: var(--muted); font-size: 14px; font-weight: 400; }
p, li { max-width: 46em; margin: 8px 0; }
.kicker, .note { color: var(--muted); font-size: 14.5px; }
.kicker { margin: 0; }
.stays { margin: 14px 0; padding: 10px 16px; border-left: 4px solid #b35806; background: #fdf3e6; font-weight: 600; }
.stays span { display: block; font-weight: 400; }
img { display: block; max-width: 100%; height: auto; margin: 8px 0; }
dl.facts { display: grid; grid-template-columns: max-content 1fr; gap: 3px 18px; margin: 14px 0; }
dl.facts dt { color: var(--muted); }
dl.facts dd { margin: 0; overflow-wrap: anywhere; }
.bars { display: grid; grid-template-columns: minmax(9em, 20em) 1fr 5.2em; gap: 5px 12px; align-items: center;
  margin: 10px 0; font-size: 15px; font-variant-numeric: tabular-nums; }
.bars .name { overflow-wrap: anywhere; line-height: 1.25; }
.bars .best { font-weight: 650; }
.bars .value { text-align: right; white-space: nowrap; }
.track { position: relative; height: 13px; background: var(--soft); }
.track.signed::after { content: ""; position: absolute; left: 50%; top: -2px; bottom: -2px; width: 1px;
  background: #9aa5ae; }
.track i { position: absolute; top: 0; bottom: 0; background: #8a97a1; }
.track i.best { background: #0072b2; }
.track i.up { background: var(--up); left: 50%; }
.track i.down { background: var(--down); right: 50%; }
.track i.whisker { top: 6px; bottom: auto; height: 2px; background: var(--muted); }
.track i.dot { top: 2px; bottom: auto; width: 9px; height: 9px; margin-left: -4.5px;
  border-radius: 50%; background: #0072b2; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 12px; margin: 10px 0; }
.tiles figure { margin: 0; font-size: 13.5px; color: var(--muted); }
.tiles img { width: 100%; margin: 0 0 3px; border: 1px solid var(--line); }
.tiles b { color: var(--ink); }
details { margin: 10px 0; }
summary { cursor: pointer; color: #0072b2; }
.set { margin: 14px 0; }
.set .bars { grid-template-columns: minmax(8em, 15em) 1fr 13em; font-size: 14.5px; gap: 3px 12px; margin: 3px 0; }
@media (max-width: 640px) {
  body { padding: 16px 14px 48px; } h1 { font-size: 24px; }
  .bars { grid-template-columns: 1fr 4.6em; } .bars .track { grid-column: 1 / -1; grid-row: auto; margin-bottom: 6px; }
  .bars .name { grid-column: 1; } .bars .value { grid-column: 2; }
  .bars { grid-auto-flow: dense; }
  .set .bars { grid-template-columns: 1fr max-content; }
  dl.facts { grid-template-columns: 1fr; } dl.facts dt { margin-top: 6px; }
}
@page { size: A4; margin: 14mm 12mm; }
@media print { .tiles figure, .set, img { break-inside: avoid; } }
"""

MACROS = """
{%- macro signed_bars(rows) %}
<div class="bars">
{%- for row in rows %}
<span class="name">{{ row.name }}</span>
<span class="track signed"><i class="up" style="width: {{ row.right }}%"></i>
<i class="down" style="width: {{ row.left }}%"></i></span>
<span class="value">{{ row.value }}</span>
{%- endfor %}
</div>
{%- endmacro %}
{%- macro head(title) %}
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }} · ModalTune Federated</title>
<style>{{ style }}</style>
</head>
{%- endmacro %}
{%- macro origin() %}
<dt>model</dt><dd>study {{ study }}, weights {{ model }}</dd>
{%- endmacro %}
"""

CASE = """
{{ head("One case of " ~ site) }}
<body>
<header>
<p class="kicker">ModalTune Federated · one case of site {{ site }}</p>
<h1>{{ case_id }}</h1>
<p class="stays">This page shows one patient's data and stays at the hospital.<span>For {{ use }}.</span></p>
<dl class="facts">
<dt>shown to the model</dt><dd>{{ patches }} patches of {{ slides }} slide(s)</dd>
<dt>missing</dt><dd>{{ missing }}</dd>
<dt>split</dt><dd>{{ split }}{% if trained %}: the model may have seen this case in training{% endif %}</dd>
{%- if genes_absent %}<dt>genes not measured</dt><dd>{{ genes_absent }} of {{ genes }}, taken as average</dd>{% endif %}
<dt>distance from training data</dt>
<dd>{{ "FAR: check units, patch encoder and tissue" if far else "usual" }} ({{ distance }}; 1 is usual)</dd>
{{ origin() }}
</dl>
</header>
<main>
{%- for task in tasks %}
<section>
<h2>{{ task.name }}</h2>
<h3>What the model says <small>share of its belief over the candidate texts</small></h3>
<div class="bars">
{%- for candidate in task.candidates %}
<span class="name{{ " best" if candidate.best }}">{{ candidate.name }}</span>
<span class="track"><i class="{{ "best" if candidate.best }}" style="width: {{ candidate.percent }}%"></i></span>
<span class="value">{{ candidate.percent }} %</span>
{%- endfor %}
</div>
{%- if task.months %}
<p>Expected survival {{ task.months }} months. Alive after {{ task.alive }}.</p>
{%- endif %}
{%- if task.modalities %}
<h3>What each modality changes <small>{{ task.unit }}, right speaks for {{ task.direction }}</small></h3>
{{ signed_bars(task.modalities) }}
<p class="note">Score of this case minus its score when the modality is taken away as a whole.</p>
{%- endif %}
<h3>Where it looked</h3>
{%- if task.look %}
<img src="{{ task.look.heat }}" alt="Attention over the patches for {{ task.name }}">
<p class="note">{{ "" if pictured else "Patch grid, since there is no picture of the slide. " }}Attention of the task
token, mean over the {{ task.look.count }} heads of the last extractor. It is spread as if over {{ task.look.share }} of
the patches; 100 % would be all alike.</p>
<details><summary>Head by head{% if slides > 1 %}, first slide{% endif %}</summary>
<img src="{{ task.look.heads }}" alt="Attention of each head for {{ task.name }}"></details>
<h3>Patches with the most attention <small>level-0 pixels of the top-left corner</small></h3>
<div class="tiles">
{%- for tile in task.look.tiles %}
<figure>{% if tile.picture %}<img src="{{ tile.picture }}" alt="patch {{ loop.index }}">{% endif %}
<b>×{{ tile.times }}</b>{% if slides > 1 %} · slide {{ tile.slide }}{% endif %}<br>
x {{ tile.x }}, y {{ tile.y }}</figure>
{%- endfor %}
</div>
{%- else %}
<p class="note">This case has no slide: there is nothing to look at.</p>
{%- endif %}
<h3>Gene sets <small>{{ task.unit }}, right speaks for {{ task.direction }}</small></h3>
{%- if task.sets %}
{{ signed_bars(task.sets) }}
<p class="note">Score of this case minus its score with the genes of the set at the average of the training cases.
{%- if task.further_sets %} The {{ task.further_sets }} smaller ones are in contributions.csv.{% endif %}</p>
{%- else %}
<p class="note">This case has no expression that the model reads: no gene set contributes.</p>
{%- endif %}
</section>
{%- endfor %}
<section>
<h2>How to read this, and how not to</h2>
<ul>
<li><b>Attention</b> tells what the last extractor read, not what decided. Patches arrive there after the frozen layers
have mixed them with their neighbours. Much attention is neither proof of tumour nor cause of the prediction.</li>
<li><b>Contributions</b> tell how the model's score reacts. They say nothing about biology or about what a treatment
would do. Sets share genes, so contributions do not add up; near 0 % or 100 % a probability hardly moves, whatever
matters.</li>
<li>A set whose genes are average in this patient contributes nothing, even if the model relies on it in others.</li>
<li>There is no interval for one case. The cohort page has intervals over patients.</li>
<li>The belief over candidate texts is not calibrated unless the study says so.</li>
</ul>
</section>
</main>
</body>
</html>
"""

COHORT = """
{{ head("Cases of " ~ site) }}
<body>
<header>
<p class="kicker">ModalTune Federated · cases of site {{ site }}</p>
<h1>What gene sets contribute</h1>
<p class="stays">Made for the hospital, and stays there: nothing here was released.<span>For {{ use }}.</span></p>
<dl class="facts">
<dt>cases</dt>
<dd>{{ "every split" if split == "all" else "split " ~ split }}, with expression; {{ without }} without left out</dd>
<dt>groups</dt><dd>of fewer than {{ minimum }} patients are not shown, nor what everybody else is then</dd>
<dt>gene sets</dt><dd>{{ sets }}, the largest here, all in contributions.csv</dd>
{{ origin() }}
{%- for note in notes %}<dt>note</dt><dd>{{ note }}</dd>{% endfor %}
</dl>
<p>A contribution is the score of a case minus its score with the genes of the set at the average of the training cases.
Dot: mean over patients. Line: 95 % bootstrap interval over patients. Sets are ordered by the mean size of the
contribution whatever its sign, since those of different patients may cancel.</p>
</header>
<main>
{%- for target in targets %}
<section>
<h2>{{ target.name }}: {{ target.direction }}</h2>
<p class="note">In {{ target.unit }}; right speaks for {{ target.direction }}.
{{ target.groups }}.</p>
{%- for row in target.rows %}
<div class="set"><h3>{{ row.name }} <small>mean size {{ row.size }}</small></h3>
<div class="bars">
{%- for group in row.groups %}
<span class="name">{{ group.name }}</span>
<span class="track signed"><i class="whisker" style="left: {{ group.from }}%; width: {{ group.width }}%"></i>
<i class="dot" style="left: {{ group.dot }}%"></i></span>
<span class="value">{{ group.text }}</span>
{%- endfor %}
</div></div>
{%- endfor %}
</section>
{%- endfor %}
<section>
<h2>How to read this, and how not to</h2>
<ul>
<li>Contributions tell how the model's score reacts, not how biology works. Sets share genes and do not add up.</li>
<li>Groups are made by what the model says, not by the truth. An interval that leaves zero out is no test: many sets
are looked at, and they were not chosen beforehand.</li>
<li>The interval is about other patients like these and this one model; another training would give other numbers.</li>
</ul>
</section>
</main>
</body>
</html>
"""
