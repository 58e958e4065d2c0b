"""Style of the report. A Python file because Flower bundles carry no style sheets."""

from __future__ import annotations

STYLE = """
:root { --ink: #1f2933; --muted: #5b6770; --line: #dde3e8; --soft: #f5f7f9; --accent: #0072b2; --tint: #eaf3f9;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, "Noto Sans", "Liberation Sans",
    sans-serif;
  --mono: ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 1100px; padding: 40px 30px 72px; background: #fff; color: var(--ink);
  font: 16px/1.55 var(--sans); }
h1 { margin: 4px 0 0; font-size: 34px; line-height: 1.15; letter-spacing: -0.015em; overflow-wrap: anywhere; }
h2 { margin: 64px 0 10px; padding-top: 18px; border-top: 1px solid var(--line); font-size: 23px; line-height: 1.25;
  letter-spacing: -0.01em; }
h3 { margin: 30px 0 8px; font-size: 16px; }
h3 small { margin-left: 6px; color: var(--muted); font-size: 14px; font-weight: 400; }
p, li { max-width: 48em; margin: 8px 0; }
ul { padding-left: 20px; }
a { color: var(--accent); }
.kicker { margin: 0; color: var(--muted); font-size: 14px; letter-spacing: 0.02em; }
.head { display: flex; align-items: flex-start; justify-content: space-between; gap: 24px; }
.badge { flex: none; margin-top: 12px; padding: 6px 14px; border-radius: 99px; font-size: 15px; font-weight: 650;
  letter-spacing: 0.03em; white-space: nowrap; border: 1px solid; }
.ok { color: #0b5c42; background: #e5f5ee; border-color: #a8d9c5; }
.degraded { color: #7a4300; background: #fdf1de; border-color: #ecc98f; }
.failed { color: #8c1d18; background: #fcebea; border-color: #eeb4b0; }
.lead { max-width: 46em; margin: 20px 0 24px; font-size: 18px; line-height: 1.55; }
.facts { display: flex; flex-wrap: wrap; gap: 10px 44px; margin: 0 0 22px; }
.facts div { display: flex; flex-direction: column-reverse; }
.facts dd { margin: 0; font-size: 25px; font-weight: 650; letter-spacing: -0.01em; line-height: 1.2; }
.facts dt { color: var(--muted); font-size: 14px; }
nav { display: flex; flex-wrap: wrap; gap: 4px 20px; padding: 11px 0; border: solid var(--line); border-width: 1px 0;
  font-size: 14.5px; }
section:first-child h2 { margin-top: 22px; border-top: 0; }
nav a { text-decoration: none; }
nav a:hover { text-decoration: underline; }
figure { margin: 22px 0 10px; break-inside: avoid; }
figure svg { display: block; max-width: 100%; height: auto; overflow: visible; }
figure svg text { font-family: var(--sans); }
figure svg * { stroke-linejoin: round; stroke-linecap: butt; }
figcaption, .note { max-width: 58em; margin: 10px 0; color: var(--muted); font-size: 14.5px; line-height: 1.5; }
.absent { padding: 14px 18px; border-left: 3px solid var(--line); background: var(--soft);
  color: var(--muted); font-size: 15px; }
.wide { overflow-x: auto; margin: 14px 0; }
table { border-collapse: collapse; font-size: 15px; line-height: 1.35; font-variant-numeric: tabular-nums; }
table.full { width: 100%; }
th, td { padding: 8px 14px 8px 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
thead th { border-bottom: 1.5px solid #9aa5ae; font-size: 14px; font-weight: 600; vertical-align: bottom; }
tbody th { min-width: 8em; font-weight: 600; overflow-wrap: anywhere; }
.num { text-align: right; }
td.num { white-space: nowrap; }
.sum > * { font-weight: 650; border-top: 1.5px solid #c3ccd3; }
td.fed, th.fed { padding-left: 12px; background: var(--tint); }
.fed + td, .fed + th { padding-left: 14px; }
td b { font-weight: 650; }
td small, th small { display: block; color: var(--muted); font-size: 12.5px; font-weight: 400; white-space: nowrap; }
.first { border-top: 1.5px solid #c3ccd3; }
.method { display: inline-block; position: relative; padding-left: 16px; }
.method i { position: absolute; left: 0; top: 0.4em; width: 9px; height: 9px; border-radius: 50%; }
.off b { color: #9aa5ae; font-weight: 400; }
.bar { width: 84px; height: 6px; margin-top: 5px; border-radius: 3px; background: var(--line); }
.bar i { display: block; height: 6px; border-radius: 3px; background: var(--accent); }
.yes { color: var(--accent); font-weight: 700; text-align: center; }
.no { color: #9aa5ae; text-align: center; }
.mid { text-align: center; }
.group { padding-left: 14px; border-left: 1px solid var(--line); }
.heat td { min-width: 92px; padding: 8px 12px; border: 2px solid #fff; text-align: right; }
.heat th { border-bottom: 0; }
.heat thead th { padding-right: 12px; text-align: right; }
.heat thead th:first-child { text-align: left; }
.heat td:last-child { color: var(--muted); }
.none { background: repeating-linear-gradient(135deg, #f0f2f4 0 5px, #fff 5px 10px); color: #7b8794; }
code { font: 13.5px/1.5 var(--mono); overflow-wrap: anywhere; }
.box { margin: 16px 0; padding: 8px 22px; border: 1px solid var(--line); border-radius: 10px; background: var(--soft); }
.box table { width: 100%; }
.box th { width: 200px; }
.box tr:last-child > * { border-bottom: 0; }
details { margin: 14px 0; }
summary { cursor: pointer; color: var(--accent); font-size: 15px; }
dl.methods { display: grid; grid-template-columns: max-content 1fr; gap: 5px 18px; margin: 14px 0; font-size: 14.5px; }
dl.methods dt { font-weight: 600; }
dl.methods dd { max-width: 56em; margin: 0; color: var(--muted); }
.prose { min-width: 15em; }
@media (max-width: 700px) { figure { overflow-x: auto; } figure svg { min-width: 640px; }
  body { padding: 20px 16px; } .head { flex-direction: column; gap: 4px; }
  h1 { font-size: 27px; } .lead { font-size: 16.5px; } dl.methods { grid-template-columns: 1fr; } }
@page { size: A4; margin: 14mm 12mm; }
@media print { body { padding: 0; font-size: 12px; -webkit-print-color-adjust: exact; print-color-adjust: exact; }
  nav { display: none; } h2 { margin-top: 34px; break-after: avoid; } h3 { break-after: avoid; }
  tr { break-inside: avoid; }
  table { font-size: 11.5px; }
  figcaption, .note { font-size: 11.5px; } .lead { font-size: 14px; }
  details::details-content { content-visibility: visible; height: auto; }
  .wide { overflow: visible; } }
"""
