"""Report: which gate caught what, and the pairs to listen to, as JSON for programs and a page for people.

In    flagged pairs, clips a source, where each clip lies
Out   a dict (report.json) and one self-contained HTML page, the same bytes for the same input
Why   a blocklist is only believed when one can hear it: each pair plays from the reader's own copy of the corpora.
      The page knows no absolute path, so it says where they lie in one box, and works as a list without script.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from aut.config import Screen, Source
from aut.units import DOMAINS

if TYPE_CHECKING:
    import polars as pl

SHOWN = 200  # pairs of one gate on the page; flagged.parquet has all
GATE_NOTES = {
    "id": "a Freesound or YouTube id in common: the same recording, perhaps another cut",
    "content": "the same samples once decoded to 16 kHz",
    "acoustic": "the same sound after a codec, a cut, a gain, noise or a change of speed",
}


def summary(params: Screen, flagged: pl.DataFrame, counts: pl.DataFrame, probes: pl.DataFrame) -> dict[str, Any]:
    """Counts and verdict. `counts` and `probes` hold (source, domain, clips) of the pool and of the probe sets."""
    import polars as pl

    blocked = flagged.select("id").unique()
    owner = blocked.with_columns(source=pl.col("id").str.split("/").list.first())
    caught = dict(owner.group_by("source").len().iter_rows())
    sources = {
        row["source"]: _share(row["clips"], caught.get(row["source"], 0)) | {"domain": row["domain"]}
        for row in counts.sort("source").iter_rows(named=True)
    }
    domains = {d: _of_domain(d, sources.values()) for d in DOMAINS if any(s["domain"] == d for s in sources.values())}
    over = [d for d, row in domains.items() if row["fraction"] > params.max_flagged_fraction]
    return {
        "verdict": "over the limit" if over else "passed",
        "over": over,
        "limit": params.max_flagged_fraction,
        "params": params.model_dump(),
        "pool": sum(s["pool"] for s in sources.values()),
        "probe": int(probes["clips"].sum()),
        "blocked": len(blocked),
        "gates": {gate: _of_gate(flagged.filter(pl.col("gate") == gate)) for gate in params.gates},
        "domains": domains,
        "sources": sources,
        "probe_sets": {row["source"]: _of_set(row, flagged) for row in probes.sort("source").iter_rows(named=True)},
    }


def _share(pool: int, flagged: int) -> dict[str, Any]:
    return {"pool": pool, "flagged": flagged, "fraction": round(flagged / pool, 6) if pool else 0.0}


def _of_domain(domain: str, sources: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    mine = [s for s in sources if s["domain"] == domain]
    return _share(sum(s["pool"] for s in mine), sum(s["flagged"] for s in mine))


def _of_gate(pairs: pl.DataFrame) -> dict[str, int]:
    return {"pairs": len(pairs), "pool_clips": pairs["id"].n_unique(), "probe_clips": pairs["probe_id"].n_unique()}


def _of_set(row: Mapping[str, Any], flagged: pl.DataFrame) -> dict[str, Any]:
    import polars as pl

    hit = flagged.filter(pl.col("probe_set") == row["source"])["probe_id"].n_unique()
    fraction = round(hit / row["clips"], 6) if row["clips"] else 0.0
    return {"domain": row["domain"], "clips": row["clips"], "flagged": hit, "fraction": fraction}


# --- the page ----------------------------------------------------------------------------------------------------

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --faint: #5c6670; --line: #d7dce1; --up: #0a7a4b;
  --down: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --paper: #14171a; --faint: #9aa4af; --line: #343b42;
  --up: #4cc38a; --down: #ff8a80; } }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 72rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2rem; border-bottom: 1px solid var(--line); }
.lead { font-size: 1.1rem; padding-left: .7rem; border-left: 5px solid var(--up); }
.lead.over { border-color: var(--down); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--faint); padding: .3rem 0; }
th, td { padding: .25rem .8rem .25rem 0; text-align: left; border-bottom: 1px solid var(--line); }
td.n, th.n { text-align: right; } thead th { color: var(--faint); }
a { color: inherit; overflow-wrap: anywhere; } input { width: 30rem; max-width: 100%; font: inherit; }
button { font: inherit; color: inherit; background: none; border: 0; padding: 0; text-decoration: underline;
  text-align: left; overflow-wrap: anywhere; cursor: pointer; } button:disabled { text-decoration: none; cursor: auto; }
audio { display: block; width: 15rem; height: 2rem; } .note { color: var(--faint); }
"""

_SCRIPT = """
const [box, picker, told] = ['root', 'tar', 'told'].map(id => document.getElementById(id));
const tars = new Map();  // path -> File, where the reader chose it
document.querySelector('.where').hidden = false;
const links = [...document.querySelectorAll('a[data-path]')];
const members = [...document.querySelectorAll('button[data-tar]')];
const root = () => box.value.trim().replace(/\\/+$/, '');
const at = path => (root() ? (/^[a-z]+:/i.test(root()) ? '' : 'file://') + root() + '/' : '') + path;
function point() {
  for (const a of links) a.href = at(a.dataset.path);
  for (const made of document.querySelectorAll('td audio')) made.remove();
}
function play(beside, src) {
  if (beside.parentNode.querySelector('audio')) return;
  beside.after(Object.assign(document.createElement('audio'), {controls: true, autoplay: true, src}));
}
function say(text) { told.textContent = text; }
async function member(button) {
  const {tar, from, size, time} = button.dataset, start = Number(from), stop = start + Number(size);
  let blob;
  if (tars.has(tar)) {
    blob = tars.get(tar).slice(start, stop);
  } else if (/^https?:/i.test(root())) {
    const answer = await fetch(at(tar), {headers: {Range: `bytes=${start}-${stop - 1}`}});
    if (!answer.ok) throw new Error(`${at(tar)} answers ${answer.status}`);
    blob = await answer.blob();
    if (answer.status !== 206) blob = blob.slice(start, stop);
  } else {  // a page may not read a folder by itself
    say(`Choose ${decodeURIComponent(tar)} to hear its clips.`);
    picker.onchange = () => {
      if (!picker.files.length) return;
      tars.set(tar, picker.files[0]);
      picker.value = '';
      say('');
      member(button);
    };
    picker.click();
    return;
  }
  play(button, URL.createObjectURL(blob) + time);
}
box.addEventListener('change', point);
for (const a of links) a.addEventListener('click', event => {
  if (!root()) return;
  event.preventDefault();
  play(a, a.href);
});
for (const button of members) {
  button.disabled = false;
  button.addEventListener('click', () => {
    say('');
    member(button).catch(error => say(`Not to be had: ${error.message}`));
  });
}
"""


def page(
    report: Mapping[str, Any],
    flagged: pl.DataFrame,
    clips: Mapping[str, Mapping[str, Any]],
    sources: Mapping[str, Source],
) -> str:
    """The whole page. `clips` are the index rows of the flagged pairs by id; links are relative to AUT_DATA."""
    over = " over" if report["over"] else ""
    body = [
        f"<h1>Leakage screen: {_text(report['verdict'])}</h1>",
        f"<p class='lead{over}'>{_lead(report)}</p>",
        _table(
            "What each gate caught", ["gate", "what it sees", "pairs", "pool clips", "probe clips"], _gate_rows(report)
        ),
        _table("The pool, by domain", ["domain", "clips", "flagged", "share"], _share_rows(report["domains"])),
        _table("The pool, by source", ["source", "clips", "flagged", "share"], _share_rows(report["sources"])),
        _table("The probe sets", ["set", "domain", "clips", "found in the pool", "share"], _set_rows(report)),
        _listen(),
        *(_pairs(gate, flagged, clips, sources) for gate in report["gates"]),
    ]
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>Leakage screen</title><style>{_STYLE}</style></head>\n"
        f"<body><main>{''.join(body)}</main><script>{_SCRIPT}</script></body></html>\n"
    )


def _text(value: object) -> str:
    return escape(str(value), quote=True)


def _lead(report: Mapping[str, Any]) -> str:
    told = (
        f"{report['blocked']:,} of {report['pool']:,} clips of the training pool overlap one of "
        f"{report['probe']:,} probe clips and are blocked. A domain may lose {100 * report['limit']:g} % of its pool"
    )
    if not report["over"]:
        return _text(told + "; none does.")
    shares = ", ".join(f"{d} loses {100 * report['domains'][d]['fraction']:.2f} %" for d in report["over"])
    return _text(f"{told}; {shares}, so the pipeline stopped.")


def _gate_rows(report: Mapping[str, Any]) -> list[list[object]]:
    return [
        [gate, GATE_NOTES[gate], row["pairs"], row["pool_clips"], row["probe_clips"]]
        for gate, row in report["gates"].items()
    ]


def _share_rows(rows: Mapping[str, Mapping[str, Any]]) -> list[list[object]]:
    return [[name, r["pool"], r["flagged"], f"{100 * r['fraction']:.3f} %"] for name, r in rows.items()]


def _set_rows(report: Mapping[str, Any]) -> list[list[object]]:
    return [
        [name, r["domain"], r["clips"], r["flagged"], f"{100 * r['fraction']:.2f} %"]
        for name, r in report["probe_sets"].items()
    ]


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    numeric = [all(isinstance(row[c], int) or str(row[c]).endswith(" %") for row in rows) for c in range(len(head))]
    names = "".join(f"<th scope='col'{_right(n)}>{_text(h)}</th>" for h, n in zip(head, numeric, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{_right(n)}>{_cell(v)}</td>" for v, n in zip(row, numeric, strict=True)) + "</tr>"
        for row in rows
    )
    return (
        f"<h2>{_text(title)}</h2><div class='scroll'><table><thead><tr>{names}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def _right(numeric: bool) -> str:
    return " class='n'" if numeric else ""


def _cell(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else _text(value)


def _listen() -> str:
    return (
        "<h2>Listen</h2><p>Paths are relative to the folder of the corpora (AUT_DATA). "
        "<label class='where' hidden>Where it lies here, as a folder or an address: "
        "<input id='root' placeholder='/data/corpora'></label> A clip in a tar is read from that address, or from the "
        "tar that you choose.</p><input type='file' id='tar' accept='.tar' aria-label='the tar of a clip' hidden>"
        "<p id='told' role='status'></p>"
    )


def _pairs(
    gate: str, flagged: pl.DataFrame, clips: Mapping[str, Mapping[str, Any]], sources: Mapping[str, Source]
) -> str:
    import polars as pl

    mine = flagged.filter(pl.col("gate") == gate).sort(["score", "id", "probe_id"], descending=[True, False, False])
    title = f"<h2>Pairs of the gate {_text(gate)}</h2>"
    if not len(mine):
        return title + "<p class='note'>None.</p>"
    rest = f" The {SHOWN} best of {len(mine):,}; flagged.parquet has all." if len(mine) > SHOWN else ""
    rows = "".join(
        f"<tr><td>{_clip(r['id'], clips, sources, -(r['offset_s'] or 0.0))}</td>"
        f"<td>{_clip(r['probe_id'], clips, sources, r['offset_s'] or 0.0)}</td>"
        f"<td class='n'>{r['score']:.2f}</td><td class='n'>{_offset(r['offset_s'])}</td></tr>"
        for r in mine.head(SHOWN).iter_rows(named=True)
    )
    head = "<th scope='col'>training clip</th><th scope='col'>probe clip</th><th class='n' scope='col'>score</th>"
    return (
        f"{title}<div class='scroll'><table><caption>{_text(GATE_NOTES[gate])}.{rest}</caption>"
        f"<thead><tr>{head}<th class='n' scope='col'>starts at (s)</th></tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _offset(offset_s: float | None) -> str:
    return "" if offset_s is None else f"{offset_s:.2f}"


def _clip(name: str, clips: Mapping[str, Mapping[str, Any]], sources: Mapping[str, Source], at_s: float) -> str:
    """What plays from where the two clips meet: a link to a file, a button for a member of a tar."""
    row = clips[name]
    path = f"{sources[row['source']].path}/{row['uri']}"
    start = row["start_s"] + max(at_s, 0.0)
    time = f"#t={start:.2f}" if start else ""
    if row["offset_b"] is not None:
        where = {"tar": quote(path), "from": row["offset_b"], "size": row["size_b"], "time": time}
        data = " ".join(f"data-{key}='{_text(value)}'" for key, value in where.items())
        title = _text(f"{path}, byte {row['offset_b']}")
        return f"<button type='button' {data} title='{title}' disabled>{_text(name)}</button>"
    link = _text(quote(path) + time)
    return f"<a href='{link}' data-path='{link}' title='{_text(path)}'>{_text(name)}</a>"
