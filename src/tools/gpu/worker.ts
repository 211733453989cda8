// A part of `rankzero doctor --gpu` in a process of its own. Lines of JSON: the names of the units first, then for each one that
// it begins, and its result. A unit after which the device is lost is the last, and so is each of a part whose units are apart; exit code 9 asks for a fresh process.
import { native } from '../../native.ts';
import { isDeviceLost } from './device.ts';
import { goOnCode, parts, type UnitResult, type WorkerLine, type WorkerRequest } from './part.ts';

function say(line: WorkerLine): void {
  process.stdout.write(`${JSON.stringify(line)}\n`);
}

async function work({ part, skip, ...options }: WorkerRequest): Promise<number> {
  native.computeStream(1); // opens the device, or says why not
  const wanted = (name: string): boolean =>
    options.filter.length === 0 || options.filter.some((text) => name.includes(text));
  const units = (await parts[part].units(options)).filter(({ name }) => wanted(name));
  say({ units: units.map(({ name }) => name) });
  const left = units.filter(({ name }) => !skip.includes(name));
  for (const [i, { name, run }] of left.entries()) {
    say({ begin: name });
    const start = performance.now();
    const seconds = (): number => (performance.now() - start) / 1000;
    try {
      say({ result: await run(), seconds: seconds() });
    } catch (error) {
      const partial = (error as { result?: UnitResult }).result;
      const result = partial ?? { unit: name, failures: [(error as Error).message] };
      say({ result, seconds: seconds() });
      if (isDeviceLost(error)) return goOnCode;
    }
    if (parts[part].apart && i + 1 < left.length) return goOnCode;
  }
  return 0;
}

work(JSON.parse(process.argv[2]!) as WorkerRequest).then(
  (code) => process.stdout.write('', () => process.exit(code)), // not at once: the pipe may hold lines
  (error: Error) => {
    console.error(error.message);
    process.exit(1);
  },
);
