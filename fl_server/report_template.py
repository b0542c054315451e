"""The only place for the report's page: its words, its order, its look and how it writes numbers.

It is a Python module because the Flower bundle ships no ``.j2`` files and the report is made where the bundle is
unpacked. Every value is escaped by Jinja2; the page fetches nothing.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence

from jinja2 import Environment, StrictUndefined

from fl_server.report_figures import SECTION

DASH = "–"

MAX_LISTED = 8
"""Names in a sentence; of more, the rest are only counted."""

STYLE = """
:root { color-scheme: light; --ink: #1d2530; --soft: #586272; --line: #d9dee5; --wash: #f5f7fa; --accent: #0072b2; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto,
       "Helvetica Neue", "Liberation Sans", Arial, sans-serif; overflow-wrap: break-word; }
main { max-width: 1120px; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
header p { color: var(--soft); margin: .25rem 0 0; max-width: none; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0; }
h2 { font-size: 1.3rem; margin: 2.6rem 0 .6rem; padding-top: .8rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p, li { max-width: 78ch; }
ul { padding-left: 1.2rem; }
.answer { background: var(--wash); border-left: 5px solid var(--accent); padding: 1rem 1.25rem; margin: 1.5rem 0; }
.answer h2 { border: 0; margin: 0; padding: 0; font-size: 1rem; color: var(--soft); font-weight: 600; }
.answer .headline { font-size: 1.35rem; font-weight: 650; line-height: 1.3; margin: .2rem 0 .5rem; }
.answer p:last-child { margin-bottom: 0; }
.alert { border: 1px solid #d55e00; border-left-width: 5px; padding: .6rem 1rem; margin: 1rem 0; background: #fff8f3; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem; margin: 1rem 0; }
.tile { border: 1px solid var(--line); border-radius: 6px; padding: .6rem .8rem; }
.tile b { display: block; font-size: 1.4rem; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: .85rem; line-height: 1.3; display: block; }
.scroll { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .65rem; text-align: right; vertical-align: top; border-bottom: 1px solid var(--line); }
th { font-weight: 600; }
thead th { vertical-align: bottom; color: var(--soft); font-size: .85rem; line-height: 1.3; min-width: 4.8rem; }
td { white-space: nowrap; } td.text { white-space: normal; min-width: 6rem; } td.why { min-width: 14rem; }
th:first-child, td.text, th.text { text-align: left; }
tr.total th, tr.total td { background: var(--wash); font-weight: 650; }
tbody th { min-width: 7.5rem; }
th small, td small { display: block; color: var(--soft); font-weight: 400; font-size: .8rem; }
.gained { color: #00664b; } .lost { color: #a34700; } .same { color: var(--soft); }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); gap: 1.5rem 2rem;
         margin-top: 1.5rem; }
figure { margin: 0; break-inside: avoid; }
figure img { width: 100%; max-width: 34rem; height: auto; display: block; }
figcaption { font-weight: 600; margin-bottom: .3rem; }
figcaption small, .note { color: var(--soft); font-size: .88rem; font-weight: 400; }
figcaption small { display: block; }
dl { display: grid; grid-template-columns: minmax(8rem, 15rem) 1fr; gap: .35rem 1.2rem; margin: .8rem 0; }
dt { color: var(--soft); } dd { margin: 0; max-width: 70ch; }
details { margin: .8rem 0; } summary { cursor: pointer; color: var(--accent); }
pre { background: var(--wash); padding: .8rem 1rem; overflow-x: auto; font-size: .8rem; line-height: 1.4; }
code { font-size: .9em; }
@media (max-width: 560px) {
  main { padding: 1.2rem .9rem 3rem; } h1 { font-size: 1.5rem; } .answer { padding: .8rem .9rem; }
  .tiles { grid-template-columns: 1fr 1fr; } dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .6rem; }
  .scroll th:first-child { position: sticky; left: 0; background: #fff; }
  tr.total th:first-child { background: #f5f7fa; }
}
@media print {
  @page { margin: 16mm 14mm; } body { font-size: 10.5pt; } main { padding: 0; max-width: none; }
  h2, h3 { break-after: avoid; } tr, .tile, .answer { break-inside: avoid; } .scroll { overflow: visible; }
  .plots { grid-template-columns: 1fr 1fr; } details::details-content { content-visibility: visible; height: auto; }
  pre { white-space: pre-wrap; }
}
"""

PAGE = (
    """
{%- macro score(cell) -%}
  {%- set words = {"gained": "▲ gained", "lost": "▼ lost", "same": "● no clear change"} -%}
  {%- if not cell.is_change -%}
    {{ cell.value | figure }}{% if cell.beside %}<small>{{ cell.beside }}</small>{% endif %}
  {%- elif cell.change is none -%} <span class="same">n/a</span>
  {%- else -%} <span class="{{ cell.sign }}">{{ cell.change | change }}<small>{{ words[cell.sign] }}</small></span>
  {%- endif -%}
{%- endmacro -%}
{%- macro head(names, text_from=99) -%}
  <thead><tr>{% for name in names %}
  <th scope="col"{% if loop.index0 >= text_from %} class="text"{% endif %}>{{ name }}</th>{% endfor %}</tr></thead>
{%- endmacro -%}
{%- macro draw(plot) -%}
  <figure><figcaption>{{ plot.caption }} <small>{{ plot.note }}</small></figcaption>
  <img src="{{ plot.uri }}" alt="{{ plot.alt }}"></figure>
{%- endmacro -%}
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ run.title }}: report</title>
<style>"""
    + STYLE
    + """</style>
</head>
<body>
<main>
<header>
<h1>{{ run.title }}</h1>
<p>Study <b>{{ run.study }}</b> · {{ sites | length }} hospitals · {{ rounds }} rounds ·
{{ "finished " ~ (run.finished | time) if run.finished else "not finished" }} · run <code>{{ run.run }}</code></p>
</header>

{% for alert in alerts %}
<div class="alert">{{ alert }}</div>
{% endfor %}
<section class="answer">
<h2>Was it worth joining?</h2>
<p class="headline">{{ answer.headline }}</p>
<p>{{ answer.sentences | join(" ") }}</p>
</section>

<div class="tiles">
{% for tile in tiles %}
<div class="tile"><b>{{ tile.value }}</b><span>{{ tile.label }}</span></div>
{% endfor %}
</div>

{% if columns %}
<h2>Every hospital, every way to train</h2>
<p>{{ meaning }}</p>
<div class="scroll"><table>
{{ head(["Hospital"] + columns + ["Held-out " ~ words.records]) }}
<tbody>
{% for row in rows %}
<tr{% if row.is_total %} class="total"{% endif %}><th scope="row">{{ row.name }}</th>
{% for cell in row.cells %}<td>{{ score(cell) }}</td>{% endfor %}<td>{{ row.patients | count }}</td></tr>
{% endfor %}
</tbody></table></div>
<ul class="note">
{% for note in notes %}
<li>{{ note }}</li>
{% endfor %}
</ul>
{% endif %}
"""
    + SECTION
    + """
<div class="plots">
{% for plot in plots %}
{{ draw(plot) }}
{% endfor %}
</div>

<h2>Rounds, traffic and time</h2>
<p>{{ main_label }}: {{ rounds }} of {{ run.num_rounds }} planned rounds with {{ run.num_parameters | count }} model
parameters. Status: <b>{{ run.status }}</b>. {{ run.reason }}</p>
<div class="scroll"><table>
{{ head(["Hospital", "Training records (declared)", "Rounds trained", "Rounds missed", "Model bytes sent to it",
         "Model bytes sent by it", "Time to its replies"]) }}
<tbody>
{% for row in traffic %}
<tr{% if row.is_total %} class="total"{% endif %}><th scope="row">{{ row.name }}</th>
<td>{{ row.records | count }}</td><td>{{ row.trained }}</td><td>{{ row.missed }}</td>
<td>{{ row.bytes_down | bytes }}</td><td>{{ row.bytes_up | bytes }}</td><td>{{ row.seconds | duration }}</td></tr>
{% endfor %}
</tbody></table></div>

<h3>Hospitals that did not take part, or not always</h3>
{% if absences %}
<div class="scroll"><table>
{{ head(["Hospital", "Run", "When", "Code", "Why"], text_from=1) }}
<tbody>
{% for row in absences %}
<tr><th scope="row">{{ row.site }}</th><td class="text">{{ row.variant }}</td><td class="text">{{ row.when }}</td>
<td class="text"><code>{{ row.code }}</code></td><td class="text why">{{ row.reason }}</td></tr>
{% endfor %}
</tbody></table></div>
{% else %}
<p>None: no hospital refused, and none missed a round.</p>
{% endif %}

<h2>Privacy: promised, spent, released</h2>
{% if privacy %}
{% set terms = privacy.terms %}
<dl>
<dt>Mechanism</dt>
<dd>Differentially private SGD. Each hospital draws its batches by Poisson sampling, clips the gradient of each
{{ terms.unit }}, and adds Gaussian noise of its own to their sum before anything is sent.</dd>
<dt>Unit of protection</dt>
<dd>One {{ terms.unit }}{{ " with all records" if terms.unit == "patient" }}. Two data sets are neighbours if one of
them has one {{ terms.unit }} more (add or remove one).</dd>
<dt>Promised</dt>
<dd>Epsilon at most {{ terms.epsilon | short }} at delta {{ terms.delta | short }} for all {{ run.num_rounds }} planned
rounds together.</dd>
<dt>Clip norm</dt><dd>{{ terms.clip_norm | short }}</dd>
<dt>Sampling rate</dt><dd>{{ terms.sampling_rate | short }}</dd>
<dt>Noisy steps</dt><dd>{{ terms.steps_per_round }} a round</dd>
{% if run.clipping %}
<dt>Clipping</dt><dd>{{ "By book-keeping, without forming single gradients; exact" if run.clipping == "book-keeping"
else "By single gradients, through Opacus's hooks" }}</dd>
{% endif %}
{% if run.averaged_from_round %}
<dt>Final model</dt><dd>The mean of the models from round {{ run.averaged_from_round }} on, which costs no privacy</dd>
{% endif %}
<dt>Accounting</dt>
<dd>PRV accountant (numerical composition of the privacy loss). The epsilon below is its upper bound.</dd>
<dt>Randomness</dt>
<dd>Sampling and noise come from the operating system's generator, not from the study's seed.</dd>
</dl>
<div class="scroll"><table>
{{ head(["Hospital", "Epsilon spent", "Delta", "Noise multiplier", "Training records", "Rounds reported",
         "Noisy steps reported"]) }}
<tbody>
{% for row in privacy.rows %}
<tr><th scope="row">{{ row.site }}</th><td>{{ row.epsilon | epsilon }}</td><td>{{ row.delta | short }}</td>
<td>{{ row.noise_multiplier | figure }}</td><td>{{ row.records | count }}</td><td>{{ row.rounds }}</td>
<td>{{ row.steps }}</td></tr>
{% else %}
<tr><th scope="row" colspan="7">No hospital has reported a spend.</th></tr>
{% endfor %}
</tbody></table></div>
<p class="note">From each hospital's last report in this run. A hospital charges its ledger before it draws noise, so a
round whose reply was lost shows here only with its next report. What counts over all runs is the ledger at the
hospital.</p>
{% if privacy.patients %}
<p>These figures protect one record. A patient with several is protected less; at the hospital that spent most, the
patient's own epsilon is
{% for row in privacy.patients %}
{{ row.epsilon | epsilon }} with {{ row.records }} records{{ "." if loop.last else ", " }}
{% endfor %}
</p>
{% endif %}
{% if privacy.plot %}
{{ draw(privacy.plot) }}
{% endif %}

{% if privacy.measurements.noised %}
<h3>Measurements with noise</h3>
<p>These hospitals sent counts of their held-out patients with Gaussian noise. The epsilon below is that of a held-out
patient, over all measurements of this run; training never touches held-out patients, and measuring never touches the
others. Measured with the same delta and accountant as above.</p>
<div class="scroll"><table>
{{ head(["Hospital", "Epsilon spent on held-out patients", "Noise in each count (standard deviation, patients)"]) }}
<tbody>
{% for row in privacy.measurements.noised %}
<tr><th scope="row">{{ row.site }}</th><td>{{ row.epsilon | epsilon }}</td><td>{{ row.noise_scale | figure }}</td></tr>
{% endfor %}
</tbody></table></div>
{% endif %}

<h3>Against whom it holds</h3>
<p>A hospital adds the noise itself, to its own update. Its epsilon therefore holds against the coordinator and against
everyone who receives any local update, any round's model or the final model, however they combine them.</p>

<h3>Released without noise</h3>
<ul>
{% if privacy.measurements.exact %}
<li>About held-out patients of {{ privacy.measurements.exact | join(", ") }}, because the hospital's own policy says so,
in {{ privacy.measurements.rounds }} rounds: their number, the sum of their losses, {{ words.released }}. No epsilon
covers these held-out patients.</li>
{% endif %}
<li>The number of training records, as each hospital declared it.</li>
<li>That a hospital took part, refused or went missing, the code of its refusal, its times and its bytes.</li>
{% if unprotected %}
<li><b>This folder also holds runs without differential privacy: {{ unprotected | join(", ") }}. No epsilon covers their
models or figures.</b></li>
{% endif %}
</ul>
{% else %}
<p><b>No differential privacy{{ " for single records" if central }}.</b> {{ no_privacy_reason }}
The updates that hospitals sent were not noised, and nothing bounds what they tell about a single patient.</p>
<p>Released exactly: every update; in every round the number of held-out {{ words.records }}, the sum of their losses,
{{ words.released }};
{{ "before round 1 counts, sums, sums of squares and histograms of features of training records; " if statistics }}the
number of training records that each hospital declared{{ "; how many cores train and whether there is a GPU at " ~
told_capacity | join(", ") if told_capacity }}.</p>
{% endif %}

{% if central %}
<h3>A whole hospital</h3>
<dl>
<dt>Mechanism</dt>
<dd>The coordinator clips each hospital's update, adds them up with weights fixed before round 1, and adds discrete
Gaussian noise once to the sum. Clip norm {{ central.clip_norm | short }}, noise multiplier
{{ central.spend.noise_multiplier | figure }}.</dd>
<dt>Unit of protection</dt>
<dd>One {{ central.spend.unit }}: the same run with that hospital's updates replaced by zeros
({{ central.spend.neighbouring }}).</dd>
<dt>Spent</dt>
<dd>Epsilon {{ central.spend.epsilon | epsilon }} of {{ central.target | short }} at delta
{{ central.spend.delta | short }}, in {{ central.spend.rounds }} noised rounds; by the
{{ central.spend.accountant }}.</dd>
</dl>
<p>It holds against everyone who sees the models of rounds or the final model, not against the coordinator, which sees
single updates. It does not cover what hospitals measure and declare, nor that they took part.</p>
{% endif %}

<h2>What this study does not promise</h2>
<ul>
{% if privacy %}
{% if terms.unit == "record" %}
<li>It protects one record, not a patient: somebody with several records is protected less.</li>
{% endif %}
<li>A patient at two hospitals spends at both.</li>
<li>It does not stop conclusions about groups. That a finding predicts a disease is what the study is meant to
learn.</li>
{% endif %}
{% if run.engine == "local" and dataset %}
<li>The hospitals are simulated, a split of one data set ({{ dataset }}) on one machine.
Real hospitals differ in devices, coding and patients, and these figures say nothing about that.</li>
{% else %}
<li>If the hospitals were virtual ones of a simulation, they are a split of one data set. Real hospitals differ in
devices, coding and patients.</li>
{% endif %}
<li>The held-out patients come from the same hospitals as the training records. How the model does at a hospital that
did not take part was not measured.</li>
<li>Every figure comes from one run with one seed; another seed gives somewhat different ones.</li>
</ul>

<h2>For reproduction</h2>
<div class="scroll"><table>
{{ head(["Run", "Rounds", "Time", "Seed", "Status", "Privacy", "Engine", "Started"], text_from=4) }}
<tbody>
{% for row in runs %}
<tr><th scope="row">{{ row.name }}</th><td>{{ row.rounds }} of {{ row.run.num_rounds }}</td>
<td>{{ row.run.seconds | duration }}</td><td>{{ row.run.seed }}</td>
<td class="text">{{ row.run.status }}
{%- if row.run.reason %}<small>{{ row.run.reason }}</small>{% endif %}</td>
<td class="text">{{ row.run.privacy.mechanism }}</td><td class="text">{{ row.run.engine }}</td>
<td class="text">{{ row.run.started | time }}</td></tr>
{% endfor %}
</tbody></table></div>
<p>Versions: {% for name, version in run.versions | dictsort %}
{{ name }} {{ version }}{{ "." if loop.last else ", " }}
{% endfor %}
</p>
<details><summary>All settings of the study</summary>
<pre>{{ run.settings | json }}</pre></details>
</main>
</body>
</html>
"""
)


def render_page(view: Mapping[str, object]) -> str:
    """The whole page; jinja2's ``UndefinedError`` if the view misses a name that the page uses."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "bytes": write_bytes,
        "change": write_change,
        "duration": write_duration,
        "epsilon": write_epsilon,
        "figure": write_figure,
        "interval": write_interval,
        "json": lambda value: json.dumps(value, indent=2, ensure_ascii=False),
        "short": lambda value: DASH if value is None else f"{value:g}",
        "count": lambda value: DASH if value is None else f"{value:,}",
        "time": lambda value: f"{value:%Y-%m-%d %H:%M} {value.tzname() or ''}".strip(),
    }
    return environment.from_string(PAGE).render(view).strip() + "\n"


def write_figure(value: float | None) -> str:
    """Three decimals, or a dash for what is not defined.

    >>> write_figure(0.98765)
    '0.988'
    """
    return DASH if value is None else f"{value:.3f}"


def write_interval(interval: Sequence[float] | None) -> str:
    """Both ends with three decimals, or a dash for what is not known.

    >>> write_interval((0.91234, 1.0))
    '0.912–1.000'
    """
    return DASH if interval is None else DASH.join(f"{end:.3f}" for end in interval)


def write_change(value: float) -> str:
    """Three decimals with a sign, the minus as long as the plus; none on zero."""
    return f"{value:+z.3f}".replace("-", "\N{MINUS SIGN}") if round(value, 3) else "0.000"


def write_epsilon(value: float) -> str:
    """Three decimals, rounded up: a promise about an upper bound must not be rounded down.

    >>> write_epsilon(7.9901), write_epsilon(8.0)
    ('7.991', '8.000')
    """
    return f"{math.ceil(value * 1000 - 1e-6) / 1000:.3f}" if math.isfinite(value) else "unbounded"


def write_bytes(value: int) -> str:
    """Decimal units, as networks count them.

    >>> write_bytes(999), write_bytes(12_345_678)
    ('999 B', '12.3 MB')
    """
    amount, unit = float(value), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if amount < 1000:
            break
        amount, unit = amount / 1000, larger
    return f"{amount:.0f} B" if unit == "B" else f"{amount:.1f} {unit}"


def write_duration(seconds: float) -> str:
    """The two largest units that matter.

    >>> write_duration(4.25), write_duration(200.0), write_duration(7_500.0)
    ('4.2 s', '3 min 20 s', '2 h 5 min')
    """
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def write_rounds(numbers: Iterable[int]) -> str:
    """Round numbers, with runs of them joined.

    >>> write_rounds([5]), write_rounds([7, 1, 2, 3])
    ('round 5', 'rounds 1–3, 7')
    """
    spans: list[list[int]] = []
    for number in sorted(set(numbers)):
        if spans and number == spans[-1][-1] + 1:
            spans[-1][1:] = [number]
        else:
            spans.append([number])
    text = ", ".join(DASH.join(map(str, span)) for span in spans)
    return f"round{'' if len(spans) == 1 and len(spans[0]) == 1 else 's'} {text}"


def write_names(names: Sequence[str]) -> str:
    """Names as a part of a sentence.

    >>> write_names(["a"]), write_names(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    listed = list(names[:MAX_LISTED])
    if len(names) > MAX_LISTED:
        listed.append(f"{len(names) - MAX_LISTED} more")
    return listed[0] if len(listed) == 1 else f"{', '.join(listed[:-1])} and {listed[-1]}"
