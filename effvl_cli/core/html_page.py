"""One self-contained HTML page: text, tables and pictures in it, nothing fetched; light and dark, wide and narrow."""

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from effvl_cli.core.table import Cell, Table

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_STYLE = """
:root{color-scheme:light dark;--back:#f6f7f9;--card:#fff;--text:#1a2230;--dim:#566172;--line:#dfe3e9;--band:#f1f4f8;
--accent:#0b62a6;--good:#0a6b3d;--goodback:#dff3e7;--bad:#a32020;--badback:#fbe4e2;--warn:#7a4b00;--warnback:#fdf0d3}
@media(prefers-color-scheme:dark){:root{--back:#11151b;--card:#1a2029;--text:#e7ebf1;--dim:#a3afbf;--line:#323b48;
--band:#212935;--accent:#7cc0f5;--good:#7bdca6;--goodback:#123524;--bad:#ffaaa3;--badback:#451d1c;--warn:#f5cf86;
--warnback:#3c2e12}}
*{box-sizing:border-box}
body{margin:0;background:var(--back);color:var(--text);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,sans-serif;-webkit-text-size-adjust:100%}
main,header{max-width:68rem;margin:0 auto;padding:0 1.25rem}
header{padding-top:2rem}
main{padding-bottom:3rem}
h1{font-size:1.7rem;line-height:1.25;margin:0;overflow-wrap:anywhere}
h2{font-size:1.15rem;margin:0 0 .8rem}
p{margin:.35rem 0}
.lead{color:var(--dim);margin:.4rem 0 0}
.top{display:flex;flex-wrap:wrap;gap:.5rem .8rem;align-items:center}
section{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:1.15rem 1.25rem;
margin-top:1.1rem}
.badge{display:inline-block;border-radius:999px;padding:.1rem .65rem;font-size:.82rem;font-weight:650;
background:var(--band);color:var(--text);white-space:nowrap}
.good{background:var(--goodback);color:var(--good)}
.bad{background:var(--badback);color:var(--bad)}
.note{color:var(--dim);font-size:.9rem}
.command{display:flex;gap:.6rem;align-items:flex-start;background:var(--band);border:1px solid var(--line);
border-radius:8px;padding:.6rem .7rem}
code,pre{font:.86rem/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace}
.command code{flex:1;white-space:pre-wrap;overflow-wrap:anywhere;user-select:all}
button{font:inherit;font-size:.85rem;color:var(--accent);background:var(--card);border:1px solid var(--line);
border-radius:6px;padding:.15rem .7rem;min-height:2rem;cursor:pointer}
button:hover{border-color:var(--accent)}
:focus-visible{outline:3px solid var(--accent);outline-offset:2px}
.scroll{overflow-x:auto;border:1px solid var(--line);border-radius:8px;margin:.5rem 0}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:.93rem}
caption{text-align:left;padding:.5rem .7rem;color:var(--dim)}
th,td{padding:.42rem .7rem;text-align:left;border-top:1px solid var(--line);vertical-align:top}
thead th{border-top:0;color:var(--dim);font-weight:600;background:var(--band);white-space:nowrap}
caption+thead th{border-top:1px solid var(--line)}
tbody th{font-weight:550}
td.n,th.n{text-align:right;white-space:nowrap}
.bar{position:relative;display:block;min-width:8rem;height:1.5rem}
.bar i,.bar b,.bar s{position:absolute;top:50%;transform:translateY(-50%)}
.bar s{left:0;right:0;height:2px;background:var(--line)}
.bar i{height:.5rem;border-radius:4px;background:var(--accent);opacity:.38;min-width:2px}
.bar b{width:.6rem;height:.6rem;margin-left:-.3rem;border-radius:50%;background:var(--accent)}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,27rem),1fr));gap:1rem;
grid-auto-flow:dense;align-items:start}
figure{margin:0}
figure.wide{grid-column:1/-1}
figure img{display:block;width:100%;height:auto;background:#fff;padding:.5rem;border:1px solid var(--line);
border-radius:8px}
figcaption{color:var(--dim);font-size:.9rem;padding:.3rem .1rem}
ul{margin:.2rem 0;padding-left:1.2rem}
.warn{background:var(--warnback);border-color:transparent}
.warn h2,.warn li{color:var(--warn)}
dl{display:grid;grid-template-columns:minmax(6rem,max-content) 1fr;gap:.3rem 1.1rem;margin:0}
dt{color:var(--dim)}
dd{margin:0;overflow-wrap:anywhere}
@media(max-width:34rem){main,header{padding-left:.8rem;padding-right:.8rem}section{padding:.95rem .85rem}
h1{font-size:1.35rem}dl{grid-template-columns:1fr;gap:0}dd{margin-bottom:.5rem}.command{flex-direction:column}
.drawn{display:none}th,td{padding:.4rem .5rem}}
@media print{body{background:#fff}section{break-inside:avoid}button{display:none}}
"""
DRAWN = "0 to 100 %"
"""The column of intervals as pictures, which narrow screens leave out."""
_SCRIPT = """
for(const b of document.querySelectorAll('button[data-copy]')){b.hidden=false;b.addEventListener('click',async()=>{
const c=b.parentElement.querySelector('code');let ok=true;
try{await navigator.clipboard.writeText(c.textContent)}catch{const r=document.createRange();r.selectNodeContents(c);
const s=getSelection();s.removeAllRanges();s.addRange(r);ok=document.execCommand('copy')}
b.textContent=ok?'Copied':'Selected';setTimeout(()=>{b.textContent='Copy'},1500)})}
"""
_VERDICTS = {"PASS": "good", "FAIL": "bad", "NO RUN": "", "within": "good", "outside": "bad"}


def page(title: str, lead: str, badge: str, sections: Iterable[str]) -> str:
    """The whole document.

    Args:
        title: a line of text.
        lead: another one, below it.
        badge: HTML, beside the title.
        sections: HTML; empty ones are left out.
    """
    body = "\n".join(part for part in sections if part)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<header>
<div class="top"><h1>{escape(title)}</h1>{badge}</div>
<p class="lead">{escape(lead)}</p>
</header>
<main>
{body}
</main>
<script>{_SCRIPT}</script>
</body>
</html>
"""


def section(title: str, content: str, *, kind: str = "") -> str:
    """A part of the page under a heading; nothing where there is no content."""
    if not content:
        return ""
    return f"<section{f' class={kind}' if kind else ''}>\n<h2>{escape(title)}</h2>\n{content}\n</section>"


def badge(text: str, kind: str = "") -> str:
    """A word in a coloured pill: "good", "bad" or neither."""
    return f'<span class="badge {kind}">{escape(text)}</span>'


def command(text: str) -> str:
    """A command line with a button that copies it."""
    return f'<div class="command"><code>{escape(text)}</code><button type="button" data-copy hidden>Copy</button></div>'


def notes(texts: Sequence[str]) -> str:
    """Lines of small print."""
    return "\n".join(f'<p class="note">{escape(text)}</p>' for text in texts if text)


def items(texts: Sequence[str]) -> str:
    """A list; nothing for an empty one."""
    return f"<ul>{''.join(f'<li>{escape(text)}</li>' for text in texts)}</ul>" if texts else ""


def pairs(rows: Iterable[tuple[str, object]]) -> str:
    """Names and values; those without a value are left out."""
    found = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in rows if value not in (None, "")
    )
    return f"<dl>{found}</dl>" if found else ""


def table(shown: Table, *, caption: bool = True) -> str:
    """A table, numbers aligned right, verdicts as pills; on narrow screens it scrolls sideways."""
    right = [all(_is_number(row[place]) for row in shown.rows) for place in range(len(shown.columns))]
    cells = [[_cell(cell) for cell in row] for row in shown.rows]
    title = shown.title if caption else ""
    return html_table(shown.columns, cells, right, title) + notes(shown.notes)


def html_table(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[bool], title: str = "") -> str:
    """A table of HTML cells; the first cell of a row is its header."""
    side = [
        ' class="n"' if number else ' class="drawn"' if name == DRAWN else ""
        for name, number in zip(columns, right, strict=True)
    ]
    head = "".join(f'<th scope="col"{place}>{escape(name)}</th>' for name, place in zip(columns, side, strict=True))
    body = "".join(
        "<tr>"
        + f'<th scope="row"{side[0]}>{row[0]}</th>'
        + "".join(f"<td{place}>{cell}</td>" for cell, place in zip(row[1:], side[1:], strict=True))
        + "</tr>"
        for row in rows
    )
    caption = f"<caption>{escape(title)}</caption>" if title else ""
    label = escape(title or "table", quote=True)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">'
        f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def pictures(paths: Sequence[Path]) -> str:
    """PNG files, embedded, each under its name."""
    found = []
    for path in paths:
        data = base64.b64encode(path.read_bytes()).decode()
        name = escape(path.stem.replace("_", " "))
        wide = ' class="wide"' if _is_wide(path) else ""
        found.append(
            f'<figure{wide}><img alt="Picture: {name}" src="data:image/png;base64,{data}">'
            f"<figcaption>{name}</figcaption></figure>"
        )
    return f'<div class="grid">{"".join(found)}</div>' if found else ""


def _is_wide(path: Path) -> bool:
    """Whether a PNG file is more than twice as wide as high; its first bytes hold its sides."""
    head = path.read_bytes()[16:24]
    return int.from_bytes(head[:4], "big") > 2 * int.from_bytes(head[4:], "big")


def interval(low: float, value: float, high: float) -> str:
    """A point between 0 and 1 and its interval, drawn; hidden from screen readers, as the figures stand beside it."""
    low, value, high = (100 * min(1.0, max(0.0, x)) for x in (low, value, high))
    return (
        f'<span class="bar" aria-hidden="true"><s></s><i style="left:{low:.2f}%;width:{high - low:.2f}%"></i>'
        f'<b style="left:{value:.2f}%"></b></span>'
    )


def _cell(cell: Cell) -> str:
    if isinstance(cell, str) and cell in _VERDICTS:
        return badge(cell, _VERDICTS[cell])
    if cell is None:
        return '<span class="note">–</span>'
    return escape(f"{cell:.4g}" if isinstance(cell, float) else str(cell))


def _is_number(cell: Cell) -> bool:
    if cell is None:
        return True
    try:
        float(str(cell).partition(" ± ")[0].rstrip("x").replace(",", ""))
    except ValueError:
        return False
    return True
