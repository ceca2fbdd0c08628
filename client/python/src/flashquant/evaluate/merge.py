"""Several reports of `flashquant eval` as one, where processes or machines shared a comparison."""

SAME = ("model", "documents")
SOURCE = ("commit", "machine")
PARTS = ("running", "prefix", "copy", "recall", "greedy", "human_eval")
# Fields of an entry that say what was measured; all others are figures.
IDENTITY = ("tokens", "prefix", "new_tokens", "windows", "keys", "seeds", "problems")


def merge_reports(reports: list[dict]) -> dict:
    """One report with what all of `reports` measured, first come first; ValueError if they are not
    of the same things, or if two have figures of one codec in one place. What another commit or
    machine than the first report's measured is named under `also`."""
    merged = {field: reports[0][field] for field in (*SOURCE, *SAME)}
    for number, report in enumerate(reports):
        for field in SAME:
            if report[field] != merged[field]:
                raise ValueError(f"report {number}: {field} is {report[field]!r}, that of the "
                                 f"first is {merged[field]!r}")
    merged["codec_sets"] = _longest([report["codec_sets"] for report in reports])
    for part in PARTS:
        entries: list[dict] = []
        for report in reports:
            for entry in report.get(part, []):
                _add(entries, entry, part)
        if entries:
            merged[part] = entries
    also = [_measured(report) for report in reports
            if any(report[field] != merged[field] for field in SOURCE)]
    if also:
        merged["also"] = also
    merged["seconds"] = round(sum(report["seconds"] for report in reports), 1)
    return merged


def _measured(report: dict) -> dict:
    """Source of `report`, and which codecs it has in which part."""
    parts = {}
    for part in PARTS:
        for entry in report.get(part, []):
            what = [f"{field} {entry[field]}" for field in IDENTITY if field in entry]
            parts[", ".join([part, *what])] = sorted({score["name"] for score in entry["codecs"]})
    return {**{field: report[field] for field in SOURCE}, "measured": parts}


def _longest(lists: list[list[dict]]) -> list[dict]:
    """The longest of `lists`; ValueError unless the others are its beginnings."""
    longest = max(lists, key=len)
    for one in lists:
        if one != longest[:len(one)]:
            raise ValueError(f"codec_sets: found {[s['label'] for s in one]}, expected the "
                             f"beginning of {[s['label'] for s in longest]}, same ids")
    return longest


def _add(entries: list[dict], entry: dict, part: str) -> None:
    """Puts `entry` into the one of `entries` that is of the same things, or behind them."""
    what = {field: entry.get(field) for field in IDENTITY}
    for known in entries:
        if {field: known.get(field) for field in IDENTITY} == what:
            names = {score["name"] for score in known["codecs"]}
            both = sorted(names & {score["name"] for score in entry["codecs"]})
            if both:
                raise ValueError(f"{part}: {', '.join(both)} found in two reports")
            known["codecs"] += entry["codecs"]
            return
    entries.append({**entry, "codecs": list(entry["codecs"])})
