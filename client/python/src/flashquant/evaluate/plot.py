"""Loss against bits as an SVG picture: perplexity excess and KL divergence, side by side."""

import math
from collections.abc import Callable
from xml.sax.saxutils import escape

from flashquant.evaluate.claims import FQ_PREFIXES, front

WIDTH, HEIGHT, MARGIN = 600, 560, 60
BITS = (1.5, 8.5)
EXCESS = (0.03, 30.0)
KL = (0.0005, 0.3)
LABEL_WIDTH, LABEL_HEIGHT = 100, 12
FQ_COLOUR, RIVAL_COLOUR = "#c0392b", "#555555"


def _log_scale(low: float, high: float) -> Callable[[float], float]:
    """Value -> height in the panel; what is below `low` lies on the floor."""
    span = math.log(high / low)
    return lambda y: HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * min(1.0, math.log(
        max(y, low) / low) / span)


def _across(bits: float) -> float:
    return MARGIN + (WIDTH - 2 * MARGIN) * (bits - BITS[0]) / (BITS[1] - BITS[0])


def _text(x: float, y: float, text: str, anchor: str = "middle", colour: str = "#222") -> str:
    return (f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">'
            f"{escape(text)}</text>")


def _line(points: list[tuple[float, float]], colour: str, width: float) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"/>'


def _axes(limits: tuple[float, float], up: Callable[[float], float], title: str) -> list[str]:
    parts = [_text(WIDTH / 2, MARGIN / 2, title), _text(WIDTH / 2, HEIGHT - 12, "bits per value")]
    for bits in range(2, 9):
        parts += [_line([(_across(bits), MARGIN), (_across(bits), HEIGHT - MARGIN)], "#eee", 1),
                  _text(_across(bits), HEIGHT - MARGIN + 18, str(bits))]
    decade = math.floor(math.log10(limits[0]))
    for power in range(decade, math.ceil(math.log10(limits[1])) + 1):
        value = 10.0 ** power
        if limits[0] <= value <= limits[1]:
            parts += [_line([(MARGIN, up(value)), (WIDTH - MARGIN, up(value))], "#eee", 1),
                      _text(MARGIN - 6, up(value) + 4, f"{value:g}", "end")]
    return parts


def _spread(places: list[tuple[float, float]]) -> list[float]:
    """Heights of labels at `places`, moved down where one would lie on another."""
    heights = [y for _, y in places]
    done: list[int] = []
    for number in sorted(range(len(places)), key=lambda n: places[n][1]):
        while any(abs(places[number][0] - places[other][0]) < LABEL_WIDTH
                  and abs(heights[number] - heights[other]) < LABEL_HEIGHT for other in done):
            heights[number] += 1
        done.append(number)
    return heights


def _panel(scores: list[dict], field: str, limits: tuple[float, float], title: str) -> str:
    up = _log_scale(*limits)
    scores = sorted(scores, key=lambda score: score["bits_per_value"])
    places = [(_across(score["bits_per_value"]), up(score[field])) for score in scores]
    ours = [score["name"].startswith(FQ_PREFIXES) for score in scores]
    best = front([(score["bits_per_value"], score[field])
                  for score, mine in zip(scores, ours) if mine])
    curve = [(_across(bits), up(loss)) for bits, loss in best]
    parts = [*_axes(limits, up, title), _line(curve, FQ_COLOUR, 2)]
    for score, mine, (x, y), height in zip(scores, ours, places, _spread(places)):
        colour = FQ_COLOUR if mine else RIVAL_COLOUR
        name = score["name"] + ("" if score[field] >= limits[0] else f" (< {limits[0]:g})")
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>',
                  _text(x + 7, height + 4, name, "start", colour)]
    return "\n".join(parts)


def draw(report: dict) -> str:
    """The picture of the first length of the running protocol; ValueError without one."""
    if not report.get("running"):
        raise ValueError("--plot: found no running protocol in the report, expected one")
    part = report["running"][0]
    panels = (("perplexity_excess_percent", EXCESS, "perplexity excess, %"),
              ("kl_divergence", KL, "KL divergence, nats"))
    drawn = "\n".join(
        f'<g transform="translate({number * WIDTH},0)">\n'
        + _panel(part["codecs"], field, limits, f"{title} ({part['tokens']} tokens)") + "\n</g>"
        for number, (field, limits, title) in enumerate(panels))
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * WIDTH}" height="{HEIGHT}" '
            f'font-family="sans-serif" font-size="11">\n'
            f'<rect width="100%" height="100%" fill="white"/>\n{drawn}\n</svg>\n')
