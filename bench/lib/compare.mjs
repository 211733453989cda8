// Runs two or more sides of a question alternately, in one sitting. A side is a function that resolves to its cases:
// { case: { metric: number } }. A comparison is of like with like: the same case, the same metric, the same repetition.
import { waitForCalm, withOthersWatched } from './machine.mjs';
import { compareRuns, median, round } from './statistics.mjs';

/**
 * `sides`: name → function; the first is compared with each of the others. Every second repetition runs them in reverse. With
 * `calm`, a run waits a while until others use no more cores than that, and a repetition that they disturbed is done again, up
 * to twice as often as asked. A metric is { less?: less is better, compared?: false has no ratio, digits? }.
 * Resolves to one result a case: { ...labels, sides, ratios } with the labels of `label(case)`.
 */
export async function compareSides(sides, { repetitions, calm, metrics, label = (name) => ({ case: name }) }) {
  const names = Object.keys(sides);
  const kept = [];
  const disturbed = [];
  while (kept.length < repetitions) {
    const attempt = kept.length + disturbed.length;
    const results = {};
    for (const name of attempt % 2 ? [...names].reverse() : names) {
      if (calm > 0) await waitForCalm(calm);
      process.stderr.write(`  ${kept.length + 1}/${repetitions} ${name}\n`);
      results[name] = await withOthersWatched(sides[name]);
    }
    const worst = Math.max(...Object.values(results).map((result) => result.otherCores));
    if (calm > 0 && worst > calm && disturbed.length < 2 * repetitions) disturbed.push(worst);
    else kept.push(results);
  }
  const otherCores = Object.fromEntries(names.map((name) => [name, kept.map((results) => results[name].otherCores)]));
  const noise = { otherCores, repeatedBecauseDisturbed: disturbed.length };
  return Object.keys(kept[0][names[0]].value).map((key) => ({
    ...label(key),
    ...summarise(kept, names, key, metrics),
    noise,
  }));
}

function summarise(kept, names, key, metrics) {
  const runs = (name, metric) => kept.map((results) => results[name].value[key]?.[metric]);
  const sides = {};
  const ratios = {};
  for (const name of names) {
    sides[name] = {};
    for (const [metric, { digits }] of Object.entries(metrics)) {
      const values = runs(name, metric);
      if (values.some((value) => value === undefined)) continue;
      sides[name][metric] = {
        median: round(median(values), digits),
        runs: values.map((value) => round(value, digits)),
      };
    }
  }
  const [first, ...others] = names;
  for (const name of others) {
    ratios[name] = {};
    for (const [metric, { less, compared = true }] of Object.entries(metrics)) {
      if (!compared || !sides[first][metric] || !sides[name][metric]) continue;
      const ratio = compareRuns(runs(first, metric), runs(name, metric), less);
      ratios[name][metric] = Object.fromEntries(Object.entries(ratio).map(([part, value]) => [part, round(value, 3)]));
    }
  }
  return { sides, ratios };
}
