// Where this rank finds what a run reads besides weights: the model's config and tokenizer, and the data. On several hosts they may
// be on rank 0's alone; then they are brought to the others for the time of the run.
import { readdir } from 'node:fs/promises';
import { dirname, join, resolve } from 'node:path';
import { bringFiles } from '../checkpoint/host_folders.ts';
import { resolveModel } from '../checkpoint/hub.ts';
import { fromRank0 } from '../distributed/agree.ts';
import { dist } from '../distributed/index.ts';
import type { FinetuneOptions } from './options.ts';

export interface Inputs {
  /** The model's folder; on other hosts than rank 0's it may lack the weights. */
  dir: string;
  data: string;
  evalData: string | undefined;
}

const isWeights = (name: string): boolean => /\.(safetensors|bin|pt|pth|ckpt|gguf|h5|msgpack)$/.test(name);

/** Collective; blocks. Errors, the same on every rank: what rank 0 does not have. */
export async function findInputs(options: Pick<FinetuneOptions, 'model' | 'data' | 'evalData'>): Promise<Inputs> {
  const { model, data, evalData } = options;
  if (dist.group.hosts === 1) return { dir: await resolveModel(model), data, evalData };
  const found = await fromRank0(dist.group, 'starting', async () => {
    const dir = resolve(await resolveModel(model));
    const names = await readdir(dir, { withFileTypes: true });
    const small = names.filter((entry) => !entry.isDirectory() && !isWeights(entry.name));
    return {
      config: join(dir, 'config.json'),
      files: small.map(({ name }) => join(dir, name)),
      data: resolve(data),
      evalData: evalData === undefined ? null : resolve(evalData),
    };
  });
  const more = found.evalData === null ? [] : [found.evalData];
  const placeOf = await bringFiles([...found.files, found.data, ...more]);
  return {
    dir: dirname(placeOf(found.config)),
    data: placeOf(found.data),
    evalData: found.evalData === null ? undefined : placeOf(found.evalData),
  };
}
