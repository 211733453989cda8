// Medians, ratios and fitted exponents.

export function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/**
 * How many times better `ours` is than `theirs`, runs of the same repetitions: the ratio of the medians, and the least and
 * the greatest ratio within one repetition. Above 1 is better, whether less or more of the quantity is.
 */
export function compareRuns(ours, theirs, lessIsBetter) {
  const times = (a, b) => (lessIsBetter ? b / a : a / b);
  const each = ours.map((value, i) => times(value, theirs[i]));
  return { ratio: times(median(ours), median(theirs)), min: Math.min(...each), max: Math.max(...each) };
}

/** b of y = a · x^b, by least squares over the logarithms. */
export function fittedExponent(xs, ys) {
  const [u, v] = [xs.map(Math.log), ys.map(Math.log)];
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const [mu, mv] = [mean(u), mean(v)];
  const covariance = u.reduce((sum, value, i) => sum + (value - mu) * (v[i] - mv), 0);
  return covariance / u.reduce((sum, value) => sum + (value - mu) ** 2, 0);
}

/** Significant digits, for people and for JSON. */
export function round(value, digits = 4) {
  return typeof value === 'number' && Number.isFinite(value) ? Number(value.toPrecision(digits)) : value;
}
