// Collectives by NCCL, on as many ranks as there are devices: a job of its own, as `rankzero run` starts it.
import { fileURLToPath } from 'node:url';
import { launch } from '../../distributed/launcher.ts';
import { native } from '../../native.ts';
import type { Measure, PartOptions, Unit, UnitResult } from './part.ts';

const script = fileURLToPath(new URL('./collectives_worker.js', import.meta.url));

export async function collectiveUnits({ size }: PartOptions): Promise<Unit[]> {
  const devices = native.acceleratorInfo().devices.length;
  const numel = size === 'small' ? 1000 : 1 << 26;
  const name = `${devices} rank${devices === 1 ? '' : 's'}`;
  return [{ name, run: () => job(name, devices, numel) }];
}

async function job(unit: string, nproc: number, numel: number): Promise<UnitResult> {
  const measures: Measure[] = [];
  const said: string[] = [];
  let cases = 0;
  const { code, failure } = await launch({
    nproc,
    script,
    args: [String(numel)],
    onLine: (_, stream, line) => {
      const report = stream === 'stdout' && line.startsWith('{') ? (JSON.parse(line) as Report) : undefined;
      if (report === undefined) said.push(line.trimEnd());
      else {
        cases += report.cases;
        measures.push(...report.measures);
      }
    },
  });
  const failures = code === 0 ? [] : [failure?.message ?? `ended with exit code ${code}: ${said.slice(-8).join('\n')}`];
  if (code === 0 && cases === 0) failures.push('no collective was checked');
  return { unit, cases, failures, measures };
}

export interface Report {
  cases: number;
  measures: Measure[];
}
