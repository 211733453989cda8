// torchrun, our own launcher, and whoever sets RANK and WORLD_SIZE by hand.
import type { Variables } from '../../environment.ts';
import { count, EnvironmentError, isLoopback, type Place, readInteger } from './values.ts';

const wanted = ['RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'];

export function torchrunPlace(env: Variables): Place {
  const isAlone = env.RANK !== undefined && env.WORLD_SIZE === '1';
  const missing = isAlone ? [] : wanted.filter((name) => env[name] === undefined);
  if (missing.length > 0) {
    const got = wanted.filter((name) => env[name] !== undefined).map((name) => `${name}=${env[name]}`);
    throw new EnvironmentError(
      `the environment of a rank is incomplete: ${got.join(', ')} is set but ${missing.join(', ')} is not. ` +
        'Start ranks with `rankzero run --nproc N script.js`, or set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT',
    );
  }
  const worldSize = count(env, 'WORLD_SIZE');
  const rank = readInteger(env, 'RANK', 0, worldSize - 1);
  const oneHost = isLoopback(env.MASTER_ADDR ?? '127.0.0.1');
  const localWorldSize =
    env.LOCAL_WORLD_SIZE !== undefined ? readInteger(env, 'LOCAL_WORLD_SIZE', 1, worldSize) : oneHost ? worldSize : 1;
  const localRank =
    env.LOCAL_RANK !== undefined
      ? readInteger(env, 'LOCAL_RANK', 0, localWorldSize - 1)
      : oneHost
        ? rank
        : rank % localWorldSize;
  const node = env.GROUP_RANK !== undefined ? readInteger(env, 'GROUP_RANK', 0, worldSize - 1) : undefined;
  return { rank, worldSize, localRank, localWorldSize, node };
}
