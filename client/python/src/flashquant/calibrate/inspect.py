"""`flashquant calibrate --inspect`: bits of a codec set by layer and head, as a picture."""

from pathlib import Path

import numpy as np

from flashquant.codec_set import CodecSet

BARS = "▁▂▃▄▅▆▇█"
MOST_BITS = 8.0
NAMES = ("compact", "near-lossless")
CELL_WIDTH, CELL_HEIGHT, MARGIN, TOP = 34, 15, 60, 46


def bits(codec_set: CodecSet, refined: bool) -> np.ndarray:
    """Bits per value, [layers, kv_heads, 2 (K, V)]."""
    found = np.zeros((codec_set.layers, codec_set.kv_heads, 2))
    for layer, line in enumerate(codec_set.profile_of):
        for head, index in enumerate(line):
            profile = codec_set.profiles[index]
            for kv, (base, rest) in enumerate(((profile.k, profile.k_refinement),
                                               (profile.v, profile.v_refinement))):
                found[layer, head, kv] = np.mean(base) + refined * np.mean(rest)
    return found


def _bar(value: float) -> str:
    return " " if value == 0 else BARS[min(len(BARS) - 1, int(value / MOST_BITS * len(BARS)))]


def _panel(name: str, values: np.ndarray) -> list[str]:
    """Lines of one profile name: a line for each layer, a bar for each head, 1/8 a bit."""
    heads = values.shape[1]
    lines = [f"{name}: {values.mean():.3f} bits/value, K {values[..., 0].mean():.3f}, "
             f"V {values[..., 1].mean():.3f}; a bar is a head, full = {MOST_BITS:g} bits",
             f"  layer  {'K':<{max(heads, 1)}}  {'V':<{max(heads, 1)}}   bits of K, of V"]
    for layer, line in enumerate(values):
        k, v = ("".join(_bar(x) for x in line[:, kv]) for kv in (0, 1))
        numbers = "  ".join(" ".join(f"{x:5.2f}" for x in line[:, kv]) for kv in (0, 1))
        lines.append(f"  {layer:5d}  {k}  {v}  {numbers}")
    return lines


def text_picture(codec_set: CodecSet) -> str:
    """For a terminal: both profile names, and the losses that the codec set carries."""
    lines = [f"{codec_set.model}: {codec_set.layers} layers, {codec_set.kv_heads} kv heads of "
             f"{codec_set.head_size}, {len(codec_set.profiles)} profiles, calibrated at "
             f"{codec_set.calibrated_tokens} tokens"]
    for name in NAMES:
        lines += ["", *_panel(name, bits(codec_set, name == "near-lossless"))]
    losses = [{"profile": name, **loss} for name, loss in codec_set.loss.items()]
    lines += ["", "profile        tokens  perplexity excess %   KL divergence"]
    for loss in losses + codec_set.loss_by_length:
        excess = (f"{loss['perplexity_excess_percent']:.2f} +- "
                  f"{loss['standard_error_percent']:.2f}")
        lines.append(f"{loss['profile']:<14} {loss['tokens']:>6}  {excess:>19}   "
                     f"{loss['kl_divergence']:.5f}")
    return "\n".join(lines)


def _colour(value: float) -> str:
    """From white (0 bits) over blue to dark (8 bits)."""
    share = min(value / MOST_BITS, 1.0) ** 0.6
    return f"rgb({int(255 - 235 * share)},{int(255 - 205 * share)},{int(255 - 120 * share)})"


def _cell(x: int, y: int, value: float, about: str) -> str:
    ink = "white" if value > 2.5 else "black"
    return (f'<rect x="{x}" y="{y}" width="{CELL_WIDTH - 1}" height="{CELL_HEIGHT - 1}" '
            f'fill="{_colour(value)}"><title>{about}: {value:.3f} bits/value</title></rect>'
            f'<text x="{x + CELL_WIDTH // 2}" y="{y + 11}" text-anchor="middle" fill="{ink}">'
            f"{value:.1f}</text>")


def svg_picture(codec_set: CodecSet) -> str:
    """As SVG: a cell for each layer and head, K beside V, compact beside near-lossless."""
    heads = codec_set.kv_heads
    panel = 2 * heads * CELL_WIDTH + MARGIN
    width, height = MARGIN + 2 * panel, TOP + CELL_HEIGHT * codec_set.layers + 12
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
             'font-family="sans-serif" font-size="10">',
             f'<rect width="{width}" height="{height}" fill="white"/>']
    for number, name in enumerate(NAMES):
        values, left = bits(codec_set, name == "near-lossless"), MARGIN + number * panel
        parts.append(f'<text x="{left}" y="16" font-size="13">{name}: {values.mean():.3f} '
                     "bits/value</text>")
        for kv in (0, 1):
            begin = left + kv * (heads * CELL_WIDTH + 8)
            parts.append(f'<text x="{begin}" y="34">{"KV"[kv]}, heads 0..{heads - 1}</text>')
            for (layer, head), value in np.ndenumerate(values[..., kv]):
                parts.append(_cell(begin + head * CELL_WIDTH, TOP + layer * CELL_HEIGHT, value,
                                   f"layer {layer}, head {head}, {'KV'[kv]}"))
        parts += [f'<text x="{left - 8}" y="{TOP + layer * CELL_HEIGHT + 11}" '
                  f'text-anchor="end">{layer}</text>' for layer in range(codec_set.layers)]
    return "\n".join([*parts, "</svg>", ""])


def inspect(codec_set: CodecSet, output: Path | None) -> None:
    """Prints the picture, or writes it to an .svg file; ValueError for another kind of file."""
    if output is None:
        print(text_picture(codec_set))
        return
    if output.suffix != ".svg":
        raise ValueError(f"--output: found {output}, expected a file .svg with --inspect")
    output.write_text(svg_picture(codec_set), encoding="utf-8")
