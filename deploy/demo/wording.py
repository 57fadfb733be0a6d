"""Numbers and names as people read them, in the terminal and on the report's page. It knows no report."""

import math


def words(name: str) -> str:
    """A task's name without underscores."""
    return name.replace("_", " ")


def metric_name(metric: str) -> str:
    return {"mse": "mean squared error", "token_f1": "token F1", "macro_f1": "macro F1", "r2": "R²"}.get(
        metric, words(metric)
    )


def short_metric_name(metric: str) -> str:
    """For a narrow table."""
    return {"mse": "MSE", "token_f1": "F1", "macro_f1": "F1", "r2": "R²"}.get(metric, words(metric))


def format_score(metric: str, value: float) -> str:
    """A metric's value: accuracy in percent, others with three decimals."""
    if not math.isfinite(value):
        return "–"
    return f"{value:.1%}" if metric == "accuracy" else f"{value:.3f}"


def format_interval(metric: str, interval: tuple[float, float] | None) -> str:
    """A bootstrap interval of 95 % in the metric's own form: 78–86 %; empty if there is none."""
    if interval is None or not all(map(math.isfinite, interval)):
        return ""
    low, high = interval
    return f"{100 * low:.0f}–{100 * high:.0f}%" if metric == "accuracy" else f"{low:.2f}–{high:.2f}"


def format_bytes(count: float) -> str:
    """Decimal units, three figures: 1.23 MB."""
    units = ["B", "kB", "MB", "GB", "TB"]
    while abs(count) >= 999.5 and len(units) > 1:
        count /= 1000
        units.pop(0)
    return f"{count:.0f} {units[0]}" if units[0] == "B" or count >= 99.95 else f"{count:.3g} {units[0]}"


def format_duration(seconds: float) -> str:
    """Minutes and seconds: 3 min 07 s."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def count_word(count: int) -> str:
    """A small number as a word that begins a sentence; digits from eleven on."""
    named = ("No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten")
    return named[count] if count < len(named) else str(count)
