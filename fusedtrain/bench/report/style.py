"""The style of the page: no fonts, no pictures, nothing from elsewhere."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark;
  --paper: #fdfcfa; --card: #ffffff; --ink: #22262b; --soft: #5d6670; --line: #dcdfe3;
  --good: #1b7a43; --bad: #b3261e; --bar: #eef0f2;
  --c0: #c8500a; --c1: #2f6db3; --c2: #6b7785; --c3: #7a4fb5; --c4: #1f8a84; --c5: #a83c6b; --c6: #6f7d12;
--c7: #8a5a2b; --c8: #2e7d32; --c9: #3a9cc4; --c10: #b07400; --c11: #a08a7a; }
@media (prefers-color-scheme: dark) { :root {
  --paper: #16181b; --card: #1d2024; --ink: #e4e6e9; --soft: #a0a8b1; --line: #383d44;
  --good: #6fcf97; --bad: #ff8a80; --bar: #292d32;
  --c0: #ff9b54; --c1: #7db4f0; --c2: #a9b4c0; --c3: #b99bea; --c4: #6fcac4; --c5: #ec8fb8; --c6: #c3cf6a;
--c7: #d2a679; --c8: #85d08a; --c9: #8fdcf5; --c10: #ffd257; --c11: #c9b8ab; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; } h2 { font-size: 1.25rem; margin: 2.6rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .5rem; } p { max-width: 46rem; } .soft { color: var(--soft); }
a { color: inherit; } code { font-size: .92em; overflow-wrap: anywhere; }
dl.facts { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: 1rem 0; }
dl.facts dt { color: var(--soft); } dl.facts dd { margin: 0; overflow-wrap: anywhere; }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: .8rem; margin: 1.2rem 0; }
.numbers > div { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .7rem .9rem; }
.numbers b { display: block; font-size: 1.5rem; line-height: 1.2; } .numbers span { color: var(--soft);
font-size: .88rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 1rem; }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .8rem;
min-width: 0; max-width: 640px; }
figure svg { width: 100%; height: auto; display: block; } figcaption { font-size: .9rem; margin-bottom: .4rem; }
.row { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .6rem .8rem;
margin: .5rem 0; }
.row h4 { margin: 0 0 .35rem; font-size: .95rem; font-weight: 600; } .row h4 span { font-weight: 400;
color: var(--soft); }
.bar { display: grid; grid-template-columns: 11.5rem 1fr 10.5rem; gap: .6rem; align-items: center; font-size: .88rem;
margin: .12rem 0; }
.bar .track { position: relative; height: 1rem; background: var(--bar); border-radius: 3px; overflow: hidden; }
.bar .fill { position: absolute; top: 0; bottom: 0; }
.bar .faint { opacity: .55; }
.bar .one { position: absolute; top: 0; bottom: 0; width: 1px; background: var(--ink); }
.bar .span { position: absolute; top: .42rem; height: .16rem; background: var(--ink); opacity: .75; }
.bar .value { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.c0 { background: var(--c0); } .c1 { background: var(--c1); } .c2 { background: var(--c2); }
.c3 { background: var(--c3); }
.c4 { background: var(--c4); } .c5 { background: var(--c5); } .c6 { background: var(--c6); }
.c7 { background: var(--c7); } .c8 { background: var(--c8); } .c9 { background: var(--c9); }
.c10 { background: var(--c10); } .c11 { background: var(--c11); }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px; background: var(--card); }
table { border-collapse: collapse; width: 100%; font-size: .88rem; }
th, td { text-align: left; padding: .35rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; }
tr:last-child td { border-bottom: 0; } th { color: var(--soft); font-weight: 600; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.wrong { color: var(--bad); font-weight: 600; }
summary { cursor: pointer; font-weight: 600; margin: 1rem 0 .5rem; }
@media (max-width: 640px) {
  .bar { grid-template-columns: 1fr auto; gap: .1rem .6rem; margin: .35rem 0; }
  .bar .track { grid-column: 1 / -1; grid-row: 2; }
  dl.facts { grid-template-columns: 1fr; } dl.facts dd { margin-bottom: .35rem; } figure { padding: .4rem; }
}
"""
