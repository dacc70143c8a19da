"""The parts of a page of the docs that are generated, each between two marks."""


def redraw(page: str, name: str, drawn: str) -> str:
    """Return the page with this text between the marks of the part."""
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    before, _, rest = page.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}{drawn}{end}{after}"
