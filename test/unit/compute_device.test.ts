// Which device each rank takes: one of its own, whatever its launcher lets it see.
import { describe, expect, it } from 'vitest';
import { assignDevices } from '../../src/distributed/compute_device.ts';

/** Ranks of hosts, `0:AB` for a rank of host 0 that sees devices A and B, in the order of their local numbers. */
function assign(...ranks: string[]): string[] | string {
  const locals = new Map<string, number>();
  const all = ranks.map((text) => {
    const [host = '', seen = ''] = text.split(':');
    const localRank = locals.get(host) ?? 0;
    locals.set(host, localRank + 1);
    const devices = [...seen].map((letter) => ({
      id: letter.toUpperCase(),
      name: `GPU ${letter}`,
      problem: letter === letter.toLowerCase() ? 'it is too old' : '',
    }));
    return { host: Number(host), hostName: `h${host}`, localRank, problem: seen ? '' : 'there is no device', devices };
  });
  const given = assignDevices(all);
  return typeof given === 'string' ? given : given.map((index, rank) => all[rank]!.devices[index]!.id);
}

describe('devices of ranks', () => {
  it('go by the local number where all are visible', () => {
    expect(assign('0:ABC', '0:ABC', '0:ABC')).toEqual(['A', 'B', 'C']);
    expect(assign('0:AB', '1:CD', '0:AB', '1:CD')).toEqual(['A', 'C', 'B', 'D']);
  });

  it('are those that each rank is left with: CUDA_VISIBLE_DEVICES, --gpus-per-task', () => {
    expect(assign('0:B', '0:A')).toEqual(['B', 'A']);
    expect(assign('0:AB', '0:AB', '0:CD', '0:CD')).toEqual(['A', 'B', 'C', 'D']);
  });

  it('are left to a rank that sees no other', () => {
    expect(assign('0:AB', '0:A')).toEqual(['B', 'A']);
    expect(assign('0:ABC', '0:AB', '0:A')).toEqual(['C', 'B', 'A']);
    expect(assign('0:B', '0:AB')).toEqual(['B', 'A']);
  });

  it('may have the same id on several hosts', () => {
    expect(assign('0:A', '1:A')).toEqual(['A', 'A']);
  });

  it('are never shared', () => {
    expect(assign('0:AB', '0:AB', '0:AB')).toBe(
      'ranks 0 and 2 would share one device (GPU A): 3 ranks of this host want as many devices, but 2 are visible',
    );
    expect(assign('0:AB', '1:C', '1:C')).toBe(
      'ranks 1 and 2 would share one device (GPU C): 2 ranks of h1 want as many devices, but 1 is visible',
    );
  });

  it('that cannot be used are named with their rank', () => {
    expect(assign('0:A', '0:')).toBe('rank 1: there is no device');
    expect(assign('0:', '0:')).toBe('there is no device');
    expect(assign('0:Ab', '0:Ab')).toBe('rank 1: GPU b: it is too old');
  });
});
