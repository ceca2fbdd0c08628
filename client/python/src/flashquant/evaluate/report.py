"""Tables (Markdown) of a report of `flashquant eval`."""

from flashquant.evaluate.claims import claims


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _excess(score: dict) -> str:
    return f"{score['perplexity_excess_percent']:.2f} ± {score['standard_error_percent']:.2f}"


def _running(part: dict) -> str:
    rows = [[s["name"], f"{s['bits_per_value']:.3f}", f"{16 / s['stored_bits_per_value']:.2f}",
             _excess(s), f"{s['kl_divergence']:.5f}", f"{s['kl_divergence_999']:.3f}",
             f"{s['top1_agreement_percent']:.2f}"] for s in part["codecs"]]
    return (f"Running, {part['tokens']} tokens (raw perplexity {part['raw_perplexity']:.3f})\n\n"
            + _table(["codec", "bits/value", "ratio", "perplexity excess %", "KL divergence",
                      "99.9 % KL", "top-1 %"], rows))


def _prefix(part: dict) -> str:
    rows = [[s["name"], "yes" if s["tail_rule"] else "no", *map(_excess, s["buckets"]),
             f"{s['buckets'][-1]['kl_divergence']:.5f}"] for s in part["codecs"]]
    buckets = [f"{b['begin'] + 1}-{b['end']}" for b in part["codecs"][0]["buckets"]]
    return (f"Prefix load, {part['prefix']} tokens, then {part['new_tokens']} new ones, "
            f"{part['texts']} texts (raw perplexity {part['raw_perplexity']:.3f}); "
            "excess % of new tokens\n\n"
            + _table(["codec", "tail rule", *buckets, "KL divergence"], rows))


def _copy(part: dict) -> str:
    rows = [[s["name"], _excess(s), f"{s['kl_divergence']:.5f}",
             f"{s['top1_agreement_percent']:.2f}"] for s in part["codecs"]]
    return (f"Copying: second occurrence of a text (raw perplexity "
            f"{part['codecs'][0]['raw_perplexity']:.3f})\n\n"
            + _table(["codec", "perplexity excess %", "KL divergence", "top-1 %"], rows))


def _recall(part: dict) -> str:
    rows = [[s["name"], f"{s['exact_percent']:.0f}", f"{s['log_probability']:.2f}"]
            for s in part["codecs"]]
    raw = part["codecs"][0]
    return (f"Look-up of a UUID by UUID among {part['keys']} in a loaded prefix, tail rule, "
            f"{raw['look_ups']} look-ups\n\n" + _table(
                ["codec", "exact %", "log probability of the right answer"],
                [["raw", f"{raw['raw_exact_percent']:.0f}", f"{raw['raw_log_probability']:.2f}"],
                 *rows]))


def _greedy(part: dict) -> str:
    rows = [[s["name"], f"{s['mean_agreed_tokens']:.1f}", f"{s['median_agreed_tokens']:.0f}",
             f"{s['whole_percent']:.0f}"] for s in part["codecs"]]
    return (f"Greedy decoding of {part['codecs'][0]['new_tokens']} tokens behind a loaded prefix "
            f"of {part['prefix']}, tail rule: tokens before the first that differs from raw\n\n"
            + _table(["codec", "mean", "median", "documents without a difference %"], rows))


def _human_eval(part: dict) -> str:
    rows = [[s["name"], f"{s['pass_percent']:.1f}", f"{s['same_percent']:.1f}",
             f"{s['agreed_percent']:.1f}"] for s in part["codecs"]]
    return (f"HumanEval, {part['problems']} problems behind 2K tokens of solved ones, loaded "
            "with the tail rule\n\n"
            + _table(["codec", "pass %", "same answer as raw %", "tokens before a difference %"],
                     [["raw", f"{part['raw_pass_percent']:.1f}", "", ""], *rows]))


def _ratios(codec_set: dict) -> str:
    columns = list(next(iter(codec_set["ratios"].values())))
    header = [f"{c} tokens" if c.isdigit() else c for c in columns]
    rows = [[name, *(f"{values[c]:.2f}" for c in columns)]
            for name, values in codec_set["ratios"].items()]
    return (f"Ratio to 16-bit values of codec set {codec_set['label']} "
            f"({codec_set['id'][:16]}, calibrated at {codec_set['calibrated_tokens']} tokens); "
            "headers, checksums, sinks and tail included\n\n"
            + _table(["profile", *header], rows))


def claims_table(report: dict) -> str:
    """Promises, bounds and figures."""
    rows = [[c.text, f"{'>=' if c.least else '<='} {c.bound:.4g}", f"{c.figure:.4g}",
             "yes" if c.met else "**no**"] for c in claims(report)]
    return _table(["promise", "bound", "measured", "kept"], rows)


def tables(report: dict) -> str:
    """All tables of measurements of `report`."""
    parts = [_ratios(codec_set) for codec_set in report["codec_sets"][:1]]
    for name, draw in (("running", _running), ("prefix", _prefix), ("copy", _copy),
                       ("recall", _recall), ("greedy", _greedy), ("human_eval", _human_eval)):
        parts += [draw(part) for part in report.get(name, []) if part["codecs"]]
    return "\n\n".join(parts)
