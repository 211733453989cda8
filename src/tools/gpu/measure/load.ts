// Rank 0's way of the weights: a checkpoint in the page cache, loaded, wrapped, and resident on the device.
import { mkdtempSync, readdirSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { dist } from '../../../distributed/index.ts';
import { AutoModelForCausalLM } from '../../../models/auto.ts';
import { native } from '../../../native.ts';
import { FullyShardedDataParallel as FSDP } from '../../../parallel/fsdp/fsdp.ts';
import { useDevice } from '../../../tensor/streams.ts';
import type { PartOptions, Unit, UnitResult } from '../part.ts';
import { measuredConfig } from './model.ts';

export async function loadUnits(options: PartOptions): Promise<Unit[]> {
  const name = options.size === 'small' ? 'tiny model' : '1B-class model, bfloat16';
  return [{ name, run: () => load(name, options) }];
}

async function load(unit: string, { size }: PartOptions): Promise<UnitResult> {
  const dir = mkdtempSync(join(tmpdir(), 'rankzero-gpu-'));
  try {
    await dist.initProcessGroup({ quiet: true });
    await AutoModelForCausalLM.fromConfig(measuredConfig(size)).savePretrained(dir);
    useDevice('cuda');
    const bytes = readdirSync(dir)
      .filter((file) => file.endsWith('.safetensors'))
      .reduce((sum, file) => sum + statSync(join(dir, file)).size, 0);
    const times: number[] = [];
    for (let round = 0; round < (size === 'small' ? 2 : 4); round++) {
      const start = performance.now();
      const model = await AutoModelForCausalLM.fromPretrained(dir, { lowCpuMemUsage: true });
      const fsdp = new FSDP(model, { syncModuleStates: true });
      native.streamSynchronize(native.computeStream(1));
      times.push((performance.now() - start) / 1000);
      for (const { buckets } of fsdp.units) for (const { shard } of buckets) shard.dispose();
      native.memoryTrim();
    }
    dist.destroyProcessGroup();
    const warm = times.slice(1).sort((a, b) => a - b); // the first makes the ring and opens the device
    const seconds = warm[warm.length >> 1]!;
    return {
      unit,
      failures: [],
      measures: [
        { name: 'load and wrap', value: bytes / seconds / 1e9, unit: 'GB/s', milliseconds: 1000 * seconds },
        {
          name: 'load and wrap, first time',
          value: bytes / times[0]! / 1e9,
          unit: 'GB/s',
          milliseconds: 1000 * times[0]!,
        },
      ],
    };
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
}
