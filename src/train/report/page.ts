// The fixed parts of report.html: its style, and the script that draws the charts with uPlot.
// Both are inlined, so that the page needs no other file and no network.

export const style: string = `
:root { color-scheme: light dark;
  --page: #f6f6f4; --card: #fff; --text: #1d1d1b; --soft: #6b6b66; --line: #e4e4df; --faint: #9db9ec;
  --train: #2a63d4; --eval: #d9541e; --other: #2b8a5b; --good: #1f7a4d; --bad: #b3401b; }
@media (prefers-color-scheme: dark) { :root {
  --page: #131417; --card: #1c1e22; --text: #e9e9e6; --soft: #9a9b97; --line: #303238; --faint: #3f5a8c;
  --train: #7aa5ff; --eval: #ff9461; --other: #63c796; --good: #63c796; --bad: #ff9461; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 20px 48px; }
header { margin-bottom: 20px; }
h1 { font-size: 26px; line-height: 1.2; margin: 0 0 4px; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { font-size: 15px; margin: 0 0 10px; font-weight: 600; }
.soft { color: var(--soft); }
.notice { border-left: 3px solid var(--eval); padding: 4px 12px; margin: 12px 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin-bottom: 12px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px; min-width: 0; }
.tile .label { color: var(--soft); font-size: 13px; }
.tile .value { font-size: 21px; font-weight: 600; letter-spacing: -.02em; white-space: nowrap; line-height: 1.4; }
.tile .value .from { color: var(--soft); font-weight: 400; font-size: 16px; }
.tile .detail { font-size: 13px; color: var(--soft); }
.good { color: var(--good) !important; } .bad { color: var(--bad) !important; }
.charts { display: grid; grid-template-columns: 1fr 1fr; gap: 12px; }
.charts > :first-child { grid-column: 1 / -1; }
section { margin-top: 12px; }
.two { display: grid; grid-template-columns: 1fr 1fr; gap: 12px; align-items: start; }
.sample { margin: 0 0 18px; } .sample:last-child { margin-bottom: 0; }
.sample .prompt { font-weight: 600; margin-bottom: 6px; overflow-wrap: anywhere; }
.answers { display: grid; grid-template-columns: 1fr 1fr; gap: 12px; }
.answers p { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
.answers .label { color: var(--soft); font-size: 13px; }
table { width: 100%; border-collapse: collapse; font-size: 14px; }
td { padding: 4px 0; border-top: 1px solid var(--line); vertical-align: top; overflow-wrap: anywhere; }
tr:first-child td { border-top: 0; }
td:first-child { color: var(--soft); padding-right: 16px; width: 42%; }
td:last-child { font-variant-numeric: tabular-nums; }
.uplot { width: 100%; font-family: inherit; }
.u-legend { font-size: 13px; color: var(--soft); text-align: left; margin-top: 4px; font-variant-numeric: tabular-nums; }
.u-legend th { font-weight: 500; } .u-legend .u-marker { width: 10px; height: 10px; border-radius: 3px; }
.u-legend .u-series > * { padding: 2px 6px 2px 0; }
.u-inline tr { margin-right: 12px; } .u-legend tr:first-child .u-marker { display: none; }
.u-legend th::after { content: none !important; }
.u-legend td { border: 0; color: var(--text) !important; width: auto !important; }
.u-select { background: color-mix(in srgb, var(--train) 14%, transparent); }
footer { margin-top: 28px; color: var(--soft); font-size: 13px; }
@media (max-width: 720px) {
  main { padding: 20px 12px 32px; }
  .charts, .two, .answers { grid-template-columns: minmax(0, 1fr); }
  .tiles { grid-template-columns: 1fr 1fr; }
  h1 { font-size: 21px; } .tile .value { font-size: 19px; } .card { padding: 12px; }
}
@media print { body { background: #fff; } .card { break-inside: avoid; } }
`;

/** Reads the JSON in #data: `steps` as columns, `evals` as rows. */
export const script: string = `
const data = JSON.parse(document.getElementById('data').textContent);
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue('--' + name).trim();
const compact = new Intl.NumberFormat('en', { notation: 'compact', maximumSignificantDigits: 3 });
const short = (v) => v == null ? '' : v === 0 ? '0' : Math.abs(v) < 1e-3 ? v.toExponential(1) : compact.format(v);
const whole = (v) => v == null ? '–' : Math.round(v).toLocaleString('en');
const fixed = (digits) => (v) => v == null ? '–' : v.toFixed(digits);

function smooth(values) {
  const share = Math.min(.5, Math.max(.02, 20 / values.length));
  let mean = 0, weight = 0;
  return values.map((v) => { mean += share * (v - mean); weight += share * (1 - weight); return mean / weight; });
}
/** Puts the columns of two tables with their own x on one x. */
function join(x1, columns1, x2, columns2) {
  const x = [...new Set([...x1, ...x2])].sort((a, b) => a - b);
  const place = (xs, ys) => { const at = new Map(xs.map((v, i) => [v, ys[i]])); return x.map((v) => at.get(v) ?? null); };
  return [x, ...columns1.map((c) => place(x1, c)), ...columns2.map((c) => place(x2, c))];
}
// Without a cursor the legend shows the last values.
const legend = (format) => (u, v, i, at) => format(at == null ? u.data[i].findLast((y) => y != null) : v);
const line = (label, name, width, format) =>
  ({ label, stroke: color(name), width, value: legend(format), points: { show: false }, spanGaps: true });

const s = data.steps;
const one = (id, label, values, format, extra) => ({ id, height: 200, columns: [s.step, values],
  series: () => [line(label, 'other', 1.5, format)], ...extra });
const charts = [
  { id: 'loss', height: 320,
    columns: join(s.step, [s.loss, smooth(s.loss)], data.evals.map((e) => e.step), [data.evals.map((e) => e.loss)]),
    series: () => [line('train', 'faint', 1, fixed(3)), line('train, smoothed', 'train', 2, fixed(3)),
      { ...line('evaluation', 'eval', 2, fixed(3)), points: { show: true, size: 7, fill: color('eval') } }] },
  one('lr', 'learning rate', s.learningRate, (v) => v == null ? '–' : v === 0 ? '0' : v.toExponential(2)),
  one('grad', 'gradient norm', s.gradNorm, fixed(3)),
  one('rate', 'tokens/s', s.tokensPerSecond, whole, { zero: true }),
  { id: 'memory', height: 200, zero: true,
    columns: [s.step, s.memoryBytes, s.deviceMemoryBytes].filter(Boolean).map((c, i) => i ? c.map((b) => b / 1e6) : c),
    series: () => [line('resident MB', 'other', 1.5, whole),
      ...(s.deviceMemoryBytes ? [line('GPU MB, peak so far', 'train', 1.5, whole)] : [])] },
];
const sync = uPlot.sync('step');
let drawn = [];
function draw() {
  for (const plot of drawn) plot.destroy();
  drawn = charts.map((chart) => {
    const box = document.getElementById(chart.id);
    const axis = { stroke: color('soft'), grid: { stroke: color('line'), width: 1 }, ticks: { show: false }, font: '12px system-ui, sans-serif' };
    return new uPlot({
      width: box.clientWidth, height: chart.height,
      cursor: { sync: { key: sync.key }, points: { size: 6 }, y: false },
      scales: { x: { time: false }, y: chart.zero ? { range: (u, lo, hi) => [0, hi * 1.1 || 1] } : {} },
      axes: [{ ...axis, size: 28, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 1e6] },
        { ...axis, size: 52, values: (u, ticks) => ticks.map(short) }],
      series: [{ label: 'step', value: legend((v) => v ?? '–') }, ...chart.series()],
    }, chart.columns, box);
  });
}
draw();
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', draw);
let width = innerWidth;
addEventListener('resize', () => { if (innerWidth !== width) { width = innerWidth; for (const [i, plot] of drawn.entries())
  plot.setSize({ width: document.getElementById(charts[i].id).clientWidth, height: charts[i].height }); } });
`;
