"""From measurements of both processes to rows, and rows to a table."""

import statistics
from typing import Any

COLUMNS = (("codec", "codec", "{}"), ("prompt_tokens", "prompt", "{}"),
           ("ttft_cold_ms", "cold ms", "{:.0f}"), ("ttft_local_ms", "own cache ms", "{:.0f}"),
           ("ttft_warm_ms", "from node ms", "{:.0f}"), ("speedup", "cold/node", "{:.1f}x"),
           ("bytes_stored", "stored bytes", "{:,}"), ("ratio", "ratio", "{:.2f}x"),
           ("ratio_interior", "interior", "{:.2f}x"), ("same_choice", "same choice", "{:.0%}"),
           ("greedy_prefix_tokens", "equal tokens", "{:.1f}"))


def rows_of(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per codec and prompt size, medians over its prompts."""
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for before, after in zip(first, second, strict=True):
        key = (before["codec"], before["prompt_tokens"])
        if key != (after["codec"], after["prompt_tokens"]):
            raise ValueError(f"the processes disagree about a prompt: {key}")
        groups.setdefault(key, []).append({**before, **after})
    codecs = list(dict.fromkeys(codec for codec, _ in groups))
    order = sorted(groups, key=lambda key: (codecs.index(key[0]), key[1]))
    return [row_of(*key, groups[key]) for key in order]


def row_of(codec: str, prompt_tokens: int, group: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of one codec and prompt size."""
    blocks = len(group[0]["stored_bytes"])
    raw_block = group[0]["raw_bytes_per_block"]
    stored = round(statistics.median(sum(one["stored_bytes"]) for one in group))
    interior = statistics.median(one["stored_bytes"][blocks // 2] for one in group)
    equal = [equal_prefix(one["warm"]["tokens"], one["local"]["tokens"]) for one in group]
    lengths = [len(one["local"]["tokens"]) for one in group]
    same = [a == b for a, b in zip(equal, lengths)]
    choices = sum(one["same_choices"] for one in group)
    ttft = {f"ttft_{name}_ms": round(statistics.median(one[name]["ttft_ms"] for one in group), 1)
            for name in ("cold", "local", "warm")}
    return {"codec": codec, "prompt_tokens": prompt_tokens, **ttft,
            "bytes_raw": blocks * raw_block, "bytes_stored": stored,
            "ratio": round(blocks * raw_block / stored, 3),
            "ratio_interior": round(raw_block / interior, 3),
            "greedy_match": round(sum(same) / len(same), 3), "blocks": blocks,
            "same_choice": round(choices / sum(lengths), 3),
            "greedy_prefix_tokens": round(statistics.mean(equal), 2), "prompts": len(group),
            "loaded_tokens": round(statistics.median(one["warm"]["cached"] for one in group))}


def equal_prefix(a: list[int], b: list[int]) -> int:
    """Tokens before the first that differs."""
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def table_of(rows: list[dict[str, Any]]) -> str:
    """Text for a terminal."""
    cells = [[title for _, title, _ in COLUMNS]]
    for row in rows:
        shown = {**row, "speedup": row["ttft_cold_ms"] / row["ttft_warm_ms"]}
        cells.append([form.format(shown[name]) for name, _, form in COLUMNS])
    widths = [max(len(line[i]) for line in cells) for i in range(len(COLUMNS))]
    lines = ["  ".join(cell.ljust(w) if i == 0 else cell.rjust(w)
                       for i, (cell, w) in enumerate(zip(line, widths))) for line in cells]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def problems_of(rows: list[dict[str, Any]]) -> list[str]:
    """What makes the demo fail."""
    found = []
    for row in rows:
        name = f"{row['codec']}, {row['prompt_tokens']} tokens"
        if row["loaded_tokens"] != row["blocks"] * 64:
            found.append(f"{name}: {row['loaded_tokens']} tokens came from the node instead of "
                         f"{row['blocks'] * 64}")
        if row["codec"] == "exact" and row["greedy_match"] < 1:
            found.append(f"{name}: only {row['greedy_match']:.0%} of the texts are the same")
    return found
