// What a bench leaves: JSON on stdout, and a short table on stderr.
import { describeMachine } from './machine.mjs';

/** `rows`: arrays of texts and numbers, the first of them the heading. */
export function report(bench, settings, results, rows) {
  const { python, ...shown } = settings;
  const head = { bench, date: new Date().toISOString(), machine: describeMachine(python), settings: shown };
  const text = JSON.stringify({ ...head, results }, undefined, 1);
  const listsOnOneLine = text.replace(/\[[^[\]{}]*\]/g, (list) => list.replace(/\n\s*/g, ' '));
  process.stdout.write(`${listsOnOneLine}\n`);
  process.stderr.write(`\n${table(rows)}\n`);
}

/** Columns padded to the widest; numbers to the right. */
export function table(rows) {
  const texts = rows.map((row) => row.map((cell) => String(cell ?? '')));
  const widths = texts[0].map((_, column) => Math.max(...texts.map((row) => row[column].length)));
  const isNumber = (cell) => typeof cell === 'number';
  const lines = rows.map((row, i) =>
    texts[i].map((text, column) => (isNumber(row[column]) ? text.padStart : text.padEnd).call(text, widths[column])),
  );
  lines.splice(
    1,
    0,
    widths.map((width) => '-'.repeat(width)),
  );
  return lines.map((line) => line.join('  ').trimEnd()).join('\n');
}

/** `4.1 (3.9–4.4)`: the ratio of medians, and the range of those of one repetition. */
export function formatRatio(ratio) {
  return ratio ? `${ratio.ratio} (${ratio.min}–${ratio.max})` : '';
}
