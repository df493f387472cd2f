"""The page, as a template of Jinja."""

from __future__ import annotations

PAGE = """{% macro bars(row) %}
<section class="row"><h4>{{ row.name }} <span>{{ row.note }}</span></h4>
{% for bar in row.bars %}
<div class="bar"><span>{{ bar.provider }}</span><span class="track" aria-hidden="true">
{% if bar.width %}
<span class="fill c{{ bar.colour }}{{ ' faint' if bar.faint }}" style="left:{{ bar.left }}%;width:{{ bar.width }}%">
</span>
{% endif %}
{% if bar.span %}<span class="span" style="left:{{ bar.low }}%;width:{{ bar.span }}%"></span>{% endif %}
{% if bar.one %}<span class="one" style="left:{{ bar.one }}%"></span>{% endif %}
</span><span class="value">{{ bar.text }}</span></div>
{% endfor %}
{% for text in row.wrong %}<div class="wrong">{{ text }}</div>{% endfor %}
</section>
{% endmacro %}
{% macro table(heads, lines, words) %}
<div class="scroll"><table>
<tr>{% for head in heads %}<th{{ number(loop.index, words) }}>{{ head }}</th>{% endfor %}</tr>
{% for line in lines %}
<tr>{% for cell in line %}<td{{ number(loop.index, words) }}>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</table></div>
{% endmacro %}
{% macro number(column, words) %}{% if column > words %} class="n"{% endif %}{% endmacro %}
<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>fusedtrain bench: {{ machine }}</title><style>{{ style|safe }}</style></head><body><main>
<h1>fusedtrain against PyTorch on {{ machine }}</h1>
<p class="soft">Each provider is checked against fp64 first, then all of a row are timed in turn, round after round, in
visits that are spread over the run. A ratio says how many times as long the row's baseline takes: the median over the
rounds, with the 95 % interval that the visits tell, of three
or more. A result that fails its check has no time.</p>
<dl class="facts">{% for key, value in facts %}<dt>{{ key }}</dt><dd>{{ value }}</dd>{% endfor %}</dl>
{% if incomplete %}<p class="wrong">This run was cut off: what is here is what was finished.</p>{% endif %}
<div class="numbers">
{% for value, text in numbers %}<div><b>{{ value }}</b><span>{{ text }}</span></div>{% endfor %}
</div>

{% for gain in gains %}
<h2>Your model: {{ gain.model }}</h2>
{% for line in gain.lines %}<p>{{ line }}</p>{% endfor %}
{% endfor %}

{% for suite in suites %}
<h2>{{ suite.title }}</h2>
<p class="soft">{{ suite.what }}. Bars are logarithmic, of one scale for all rows; the thin line is 1x,
the baseline, and the thin bar the interval.</p>
{% for row in suite.rows %}{{ bars(row) }}{% endfor %}
{% endfor %}

{% if plots %}
<h2>How it grows</h2>
<div class="plots">
{% for plot in plots %}
<figure><figcaption><b>{{ plot.title }}</b><br><span class="soft">{{ plot.what }}</span></figcaption>
{{ plot.svg|safe }}</figure>
{% endfor %}
</div>
{% endif %}

{% if laws %}
<h2>Laws</h2>
<p class="soft">t = a + b n<sup>k</sup>, fitted to the logarithms of the medians. The misfit is the largest distance of
a point from its law.</p>
{{ table(law, laws, 2) }}
{% endif %}

{% if memory %}
<h2>Memory</h2>
<p class="soft">Peak: the most that one call had allocated at once, beyond what was there. Saved: what autograd keeps
for the backward, beyond the result. Rows that allocate less than 64 KiB are left out.</p>
{% for row in memory %}{{ bars(row) }}{% endfor %}
{% endif %}

<h2>All numbers</h2>
<details><summary>{{ lines|length }} lines</summary>
{{ table(heads, lines, 2) }}
</details>

{% if reasons %}
<h2>Not measured</h2>
<ul>{% for why, who in reasons %}<li>{{ who }}: <span class="soft">{{ why }}</span></li>{% endfor %}</ul>
{% endif %}
</main></body></html>
"""
