"""report.html: the demo's report as one self-contained page, without scripts or anything from outside.

It knows the report, the charts and the page's template; words and order are its business. It does not know where the
numbers come from.
"""

from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from string import Template

from deploy.demo.charts import Series, bar, better_scale, line_chart, round_ruler, round_strip
from deploy.demo.report import (
    DeviceOutcome,
    DeviceReport,
    Machine,
    Report,
    Sample,
    TaskScores,
    write_whole,
)
from deploy.demo.wording import (
    count_word,
    format_bytes,
    format_duration,
    format_interval,
    format_score,
    metric_name,
    words,
)
from tap_core.names import DeviceName, TaskName
from tap_core.tasks import task_kind

PAGE_NAME = "report.html"
TEMPLATE = Path(__file__).with_name("report_page.html")
COLUMNS = ("floor", "federated", "stage1", "personal")
EXAMPLES_SHOWN = 4


def write_page(out: Path, report: Report, outcomes: Mapping[DeviceName, DeviceOutcome], machine: Machine) -> Path:
    """Write ``out``/report.html, whole or not at all."""
    return write_whole(out / PAGE_NAME, render_page(report, outcomes, machine))


def render_page(report: Report, outcomes: Mapping[DeviceName, DeviceOutcome], machine: Machine) -> str:
    """The page's HTML."""
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=f"{count_word(len(report.devices))} devices, one federation",
        lede=_lede(report),
        facts=_facts(report, machine),
        results=_results(report),
        result_legend=_legend(
            ("floor", "best constant answer"),
            ("fed", "federated model"),
            ("ring", "personal after stage 1"),
            ("per", "personal after stage 2"),
        ),
        result_note=_result_note(report),
        losses="".join(_loss_charts(report, outcomes)),
        loss_legend=_legend(
            ("fed", "federated set"), ("per", "personal set"), ("mark", "the task replaced its components")
        ),
        strips=_strips(report, outcomes),
        strip_legend=_legend(
            ("replaced", "replaced"), ("kept", "kept its own"), ("unplayed", "not sampled in this round")
        ),
        traffic=_traffic(report),
        examples=_examples(outcomes),
        exports=_exports(report),
        footer=_footer(machine),
    )


def _lede(report: Report) -> str:
    scores = report.scores()
    ahead = sum(task.better(task.personal, task.federated) for task in scores)
    above = sum(task.better(task.personal, task.floor) for task in scores)
    change = report.error_reduction()
    direction = "lower" if change >= 0 else "higher"
    return (
        f"After {report.rounds} rounds and local distillation, the personal model is better than the federated one on "
        f"{ahead} of {len(scores)} device tasks, and better than the best constant answer on {above} of {len(scores)}. "
        f"On average over the tasks its error is {abs(change):.0%} {direction} than the federated model’s."
    )


def _facts(report: Report, machine: Machine) -> str:
    total = sum(device.bytes_sent + device.bytes_received for device in report.devices.values())
    facts = {
        "devices": f"{len(report.devices)}",
        "rounds": f"{report.rounds}",
        "wall-clock time": format_duration(report.seconds),
        "on the wire": format_bytes(total),
        "peak memory, all processes": format_bytes(machine.peak_memory),
        "exported models": f"{len(report.exports)}",
    }
    return "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts.items())


def _results(report: Report) -> str:
    rows = []
    for name, device in report.devices.items():
        rows.append(f'<tr class="device"><td colspan="7">{escape(name)}<small>{_owned(device)}</small></td></tr>')
        for task, scores in device.tasks.items():
            rows.append(_result_row(task, scores))
    head = (
        '<tr><th>device and task</th><th class="n wide">test<br>examples</th><th class="n">floor</th>'
        '<th class="n fed">federated</th><th class="n per">personal,<br>stage 1</th>'
        '<th class="n per">personal,<br>stage 2</th><th>worse → better</th></tr>'
    )
    return f"<table><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>"


def _result_row(task: TaskName, scores: TaskScores) -> str:
    values = {column: getattr(scores, column) for column in COLUMNS}
    cells = "".join(
        f'<td class="n{" best" if value == scores.best else ""}">{format_score(scores.metric, value)}'
        f"{_small(format_interval(scores.metric, scores.intervals.get(column)))}</td>"
        for column, value in values.items()
    )
    scale = better_scale(**values, higher_is_better=scores.higher_is_better)
    arrow = "↑" if scores.higher_is_better else "↓"
    what = f'<span class="wide">{task_kind(scores.kind).words}, </span>{escape(metric_name(scores.metric))} {arrow}'
    return (
        f"<tr><td>{escape(words(task))}<br><small>{what}</small></td>"
        f'<td class="n wide">{scores.n_test}</td>{cells}<td>{scale}</td></tr>'
    )


def _small(text: str) -> str:
    return f'<br><small class="wide">{text}</small>' if text else ""


def _result_note(report: Report) -> str:
    smallest = min((task.n_test for task in report.scores() if task.metric == "accuracy"), default=0)
    noise = (
        f" With {smallest} test examples an accuracy has a standard error of up to {0.5 / smallest**0.5:.1%}: "
        "smaller differences are within the noise."
        if smallest
        else ""
    )
    return (
        "Best in bold. ↑ higher is better, ↓ lower is better. The floor is the best constant answer: the majority"
        " class, the most frequent answer or the mean image of the train split. The federated model is the final global"
        " one as the device received it. Mean squared error is over normalised pixels, token F1 over an answer’s words."
        + noise
    )


def _loss_charts(report: Report, outcomes: Mapping[DeviceName, DeviceOutcome]) -> Iterable[str]:
    for name, outcome in outcomes.items():
        for task, scores in report.devices[name].tasks.items():
            played = [line for line in outcome.rounds if task in line.federated_loss]
            federated = [(line.round + 1, line.federated_loss[task]) for line in played]
            personal = [(line.round + 1, line.personal_loss[task]) for line in played]
            chart = line_chart(
                [Series("federated", "fed", federated), Series("personal", "per", personal)],
                [line.round + 1 for line in played if line.replaced.get(task)],
                rounds=report.rounds,
                x_label="round",
                y_label=task_kind(scores.kind).loss_unit,
            )
            caption = f"<b>{escape(words(task))}</b><small>{escape(name)}</small>"
            yield f"<figure><figcaption>{caption}</figcaption>{chart}</figure>"


def _strips(report: Report, outcomes: Mapping[DeviceName, DeviceOutcome]) -> str:
    rows = []
    for name, device in report.devices.items():
        for task in device.tasks:
            played = {r.round + 1: r.replaced for r in device.replacements if r.task == task}
            rows.append(
                f"<tr><td>{escape(words(task))}<br><small>{escape(name)}</small></td>"
                f"<td>{round_strip(played, rounds=report.rounds)}</td>"
                f'<td class="n">{sum(played.values())} of {len(played)}</td></tr>'
            )
    head = (
        f"<tr><th>task and device</th><th>{round_ruler(report.rounds)}</th><th class=n>replaced<br>of played</th></tr>"
    )
    return f'<table class="strips"><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table>'


def _traffic(report: Report) -> str:
    largest = max((max(d.bytes_sent, d.bytes_received) for d in report.devices.values()), default=0)
    rows = []
    for name, device in report.devices.items():
        sent, received = bar(device.bytes_sent, largest, "sent"), bar(device.bytes_received, largest, "received")
        rows.append(
            f'<span class="name">{escape(name)}<br><small>{_owned(device)}</small></span>'
            f"<span>{sent}</span><span>{format_bytes(device.bytes_sent)} <small>sent</small></span>"
            f"<span>{received}</span><span>{format_bytes(device.bytes_received)} <small>received</small></span>"
            '<span class="gap"></span>'
        )
    return "".join(rows)


def _examples(outcomes: Mapping[DeviceName, DeviceOutcome]) -> str:
    parts = []
    for name, outcome in outcomes.items():
        for task, samples in outcome.results.samples.items():
            kind = outcome.results.tasks[task].kind if task in outcome.results.tasks else ""
            shown = samples[:EXAMPLES_SHOWN]
            body = _pictures(shown) if kind and task_kind(kind).target == "image" else _answers(shown)
            parts.append(f'<div class="task"><h3>{escape(words(task))}<small>{escape(name)}</small></h3></div>{body}')
    return "".join(parts)


def _pictures(samples: Iterable[Sample]) -> str:
    rows = []
    for sample in samples:
        given = sample.input.get("image")
        reconstruction = given == sample.target
        cells = [("input and target" if reconstruction else "target", sample.target)]
        if given is not None and not reconstruction:
            cells.insert(0, ("input", given))
        cells += [("federated", sample.federated), ("personal", sample.personal)]
        images = "".join(f"<span>{_image(uri, what)}{what}</span>" for what, uri in cells)
        text = f"<p>{escape(sample.input['text'])}</p>" if "text" in sample.input else ""
        rows.append(f'<div>{text}<div class="row{" four" if len(cells) == 4 else ""}">{images}</div></div>')
    return f'<div class="pictures">{"".join(rows)}</div>'


def _answers(samples: Iterable[Sample]) -> str:
    rows = []
    for sample in samples:
        given = (_image(sample.input["image"], "input") if "image" in sample.input else "") + escape(
            sample.input.get("text", "")
        )
        cells = "".join(
            f'<td class="{style}{" right" if answer == sample.target else ""}">{escape(answer) or "–"}</td>'
            for style, answer in (("fed", sample.federated), ("per", sample.personal))
        )
        rows.append(f"<tr><td>{given}</td><td>{escape(sample.target)}</td>{cells}</tr>")
    head = '<tr><th>input</th><th>target</th><th class="fed">federated</th><th class="per">personal</th></tr>'
    return (
        f'<div class="scroll"><table class="answers"><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table></div>'
    )


def _exports(report: Report) -> str:
    rows = "".join(
        f"<tr><td>{escape(words(export.task))}<br><small>{escape(export.device)}</small></td>"
        f'<td><code>{escape(export.path)}</code></td><td class="n">{export.max_abs_diff:.1e}</td></tr>'
        for export in report.exports
    )
    head = '<tr><th>task and device</th><th>directory</th><th class="n">largest<br>difference</th></tr>'
    return f"<table><thead>{head}</thead><tbody>{rows}</tbody></table>"


def _footer(machine: Machine) -> str:
    return (
        f"Measured on {escape(machine.name)} with {machine.cores} CPU cores, coordinator and devices as processes of "
        "their own that talk over WebSockets. The numbers are in <code>report.json</code> beside this page. "
        "Method: arXiv 2509.26524."
    )


_SYMBOLS = {
    "floor": '<line class="floor" x1="11" x2="11" y1="1" y2="13"/>',
    "fed": '<line class="line fed" x1="0" x2="22" y1="7" y2="7"/><circle class="dot fed" cx="11" cy="7" r="4"/>',
    "per": '<line class="line per" x1="0" x2="22" y1="7" y2="7"/><circle class="dot per" cx="11" cy="7" r="4"/>',
    "ring": '<circle class="ring per" cx="11" cy="7" r="4"/>',
    "mark": '<path class="mark" d="M7 11 h8 l-4 -7 z"/>',
    "replaced": '<circle class="replaced" cx="11" cy="7" r="5"/>',
    "kept": '<circle class="kept" cx="11" cy="7" r="5"/>',
    "unplayed": '<circle class="unplayed" cx="11" cy="7" r="1.5"/>',
}


def _legend(*entries: tuple[str, str]) -> str:
    return "".join(
        f'<span><svg viewBox="0 0 22 14" aria-hidden="true">{_SYMBOLS[symbol]}</svg>{text}</span>'
        for symbol, text in entries
    )


def _image(uri: str, what: str) -> str:
    """An image given as a data URI; anything else is not put on the page, which loads nothing from outside."""
    return f'<img src="{escape(uri, quote=True)}" alt="{what}">' if uri.startswith("data:image/png;base64,") else ""


def _owned(device: DeviceReport) -> str:
    return f"{len(device.components)} components"
