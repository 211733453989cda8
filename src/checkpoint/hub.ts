// Where a model is: a folder, or a snapshot in the local Hugging Face cache. Nothing is downloaded.
import { readFile, stat } from 'node:fs/promises';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { type Variables, variables } from '../environment.ts';

export interface ResolveOptions {
  /** Branch, tag or commit of a hub id. Default: `main`. */
  readonly revision?: string | undefined;
  /** Cache folder, in place of `HF_HUB_CACHE` and its kin. */
  readonly cacheDir?: string | undefined;
}

/** A model that is neither a folder nor in the cache. */
export class ModelNotFoundError extends Error {
  override name = 'ModelNotFoundError';
  readonly code = 'ERR_MODEL_NOT_FOUND';
}

function expandHome(path: string): string {
  return path === '~' || path.startsWith('~/') ? join(homedir(), path.slice(1)) : path;
}

/** The hub cache as huggingface_hub finds it: HF_HUB_CACHE, HF_HOME/hub, XDG_CACHE_HOME, ~/.cache. */
export function hubCache(env: Variables = variables()): string {
  const explicit = env.HF_HUB_CACHE || env.HUGGINGFACE_HUB_CACHE;
  if (explicit) return expandHome(explicit);
  if (env.HF_HOME) return join(expandHome(env.HF_HOME), 'hub');
  return join(env.XDG_CACHE_HOME || join(homedir(), '.cache'), 'huggingface', 'hub');
}

const isFolder = (path: string): Promise<boolean> =>
  stat(path).then(
    (s) => s.isDirectory(),
    () => false,
  );

/**
 * The folder of a model: `nameOrDir` itself if it is one, else the snapshot of that hub id in the local cache.
 * Error: ModelNotFoundError with the places searched and the command that downloads the model.
 */
export async function resolveModel(nameOrDir: string, options: ResolveOptions = {}): Promise<string> {
  if (await isFolder(nameOrDir)) return nameOrDir;
  const isHubId = /^\w[\w.-]*(\/\w[\w.-]*)?$/.test(nameOrDir) && !nameOrDir.includes('..');
  if (!isHubId) {
    throw new ModelNotFoundError(`"${nameOrDir}" is not a folder, and not a hub id such as org/name either`);
  }
  const revision = options.revision ?? 'main';
  if (!/^\w[\w./-]*$/.test(revision) || revision.includes('..')) {
    throw new ModelNotFoundError(`"${revision}" is not a revision of a model`);
  }
  const cache = options.cacheDir ?? hubCache();
  const repo = join(cache, `models--${nameOrDir.replace('/', '--')}`);
  const commit = await readFile(join(repo, 'refs', revision), 'utf8').then(
    (s) => s.trim(),
    () => revision,
  );
  const snapshot = join(repo, 'snapshots', commit);
  if (/^[\w-]+$/.test(commit) && (await isFolder(snapshot))) return snapshot;
  const what = (await isFolder(repo)) ? `revision "${revision}" of that model` : 'model of that name';
  const flag = options.revision ? ` --revision ${options.revision}` : '';
  throw new ModelNotFoundError(
    `there is no folder ${nameOrDir}, and the Hugging Face cache ${cache} has no ${what}. ` +
      `Download it with: hf download ${nameOrDir}${flag} (older: huggingface-cli download ${nameOrDir}${flag})`,
  );
}
