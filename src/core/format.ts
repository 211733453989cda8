// Numbers as a person reads them: terminal and report use the same forms.

/** `1234567` → `1.2M`. */
export function formatCount(value: number): string {
  const units = ['', 'k', 'M', 'B', 'T'];
  let unit = 0;
  let rest = value;
  while (Math.abs(rest) >= 999.5 && unit < units.length - 1) {
    rest /= 1000;
    unit++;
  }
  if (unit === 0) return Number.isInteger(rest) ? String(rest) : rest.toPrecision(3);
  return `${rest >= 99.95 ? rest.toFixed(0) : rest.toFixed(1)}${units[unit]}`;
}

/** `1.2M parameters`, or `1.2M parameters, 10.5k trained (0.88 %)` where others are frozen. */
export function formatParameters(parameters: number, trained: number = parameters): string {
  const all = `${formatCount(parameters)} parameters`;
  if (trained === parameters) return all;
  return `${all}, ${formatCount(trained)} trained (${((100 * trained) / parameters).toPrecision(2)} %)`;
}

/** Bytes in decimal units, as file sizes are given: `6.3 MB`. */
export function formatBytes(bytes: number): string {
  const units = ['B', 'kB', 'MB', 'GB', 'TB'];
  let unit = 0;
  let rest = bytes;
  while (rest >= 999.5 && unit < units.length - 1) {
    rest /= 1000;
    unit++;
  }
  return `${unit === 0 ? rest : rest >= 99.95 ? rest.toFixed(0) : rest.toFixed(1)} ${units[unit]}`;
}

/** `20 ms`, `4.2 s`, `42 s`, `3:05`, `2:10:00`. */
export function formatSeconds(seconds: number): string {
  if (!Number.isFinite(seconds)) return '–';
  if (seconds < 0.95) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  const two = (n: number): string => String(n).padStart(2, '0');
  const minutes = Math.floor(whole / 60);
  if (minutes < 60) return `${minutes}:${two(whole % 60)}`;
  return `${Math.floor(minutes / 60)}:${two(minutes % 60)}:${two(whole % 60)}`;
}

/** `12345` → `12,345`. */
export function formatWhole(value: number): string {
  return Math.round(value).toLocaleString('en-US');
}

/** A learning rate: `6.00e-4`. */
export function formatRate(value: number): string {
  return value === 0 ? '0' : value.toExponential(2);
}

/** Change from `before` to `after` in percent, with a sign: `−32.8 %`. */
export function formatChange(before: number, after: number): string {
  const percent = ((after - before) / before) * 100;
  return `${percent < 0 ? '−' : '+'}${Math.abs(percent).toFixed(1)} %`;
}
