"""The terms of a predicted time as rows of text: work of one GPU, its rate or latency, and seconds."""


def terms_rows(layout: dict) -> list[list[str]]:
    """Rows of a table with the terms of a layout's predicted time, by phase."""
    rows = [[f"terms of {short(layout)}", "a GPU", "at", "s"]]
    for phase, seconds in layout["time_s"].items():
        rows.append([phase, "", "", f"{seconds:.1f}"])
        for term in layout["terms"]:
            if term["phase"] == phase and term["amount"]:
                rows.append([f"  {term['name']}", _amount(term), _rate(term), f"{term['s']:.1f}"])
    return rows


def _amount(term: dict) -> str:
    if term["peak"] is None:
        return f"{term['amount']:,.0f} {term['unit']}"
    return with_prefix(term["amount"], term["unit"])


def _rate(term: dict) -> str:
    if term["peak"] is None:
        return f"{with_prefix(term['unit_s'], 's')} each"
    return f"{with_prefix(term['peak'], term['unit'])}/s x {term['efficiency']:g}"


def with_prefix(value: float, unit: str) -> str:
    """12,300,000,000 B -> 12.3 GB, with three digits."""
    prefixes = {1e18: "E", 1e15: "P", 1e12: "T", 1e9: "G", 1e6: "M", 1e3: "k", 1: "", 1e-3: "m", 1e-6: "u"}
    size = next((size for size in prefixes if value >= size), 1e-6)
    return f"{value / size:.3g} {prefixes[size]}{unit}"


def short(layout: dict) -> str:
    """A layout in short: t8 p1 c1 d4, generate 4, ..."""
    text = f"t{layout['tensor']} p{layout['pipeline']} c{layout['context']} d{layout['data']}"
    if not layout["shares_weights"]:
        text += f", generate {layout['generate_tensor']}"
    return text + (", recompute" if layout["recompute"] else "") + (", offload" if layout["offload"] else "")
