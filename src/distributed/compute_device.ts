// Which device the ranks of a job compute on: the same kind on all of them, and one of its own for each. The ranks of a host
// agree by the ids of what each of them sees, which launchers may have restricted, each rank in its own way.
import { hostname } from 'node:os';
import { type NativeAccelerator, type NativeDevice, native } from '../native.ts';
import { computeDevice, isDeviceInUse, useDevice } from '../tensor/streams.ts';
import { allGatherJson } from './exchange.ts';
import { dist } from './index.ts';

/** `auto`: a GPU for each rank where there is one, else the CPU. */
export type DeviceChoice = 'auto' | 'cpu' | 'cuda';

const choices: readonly DeviceChoice[] = ['auto', 'cpu', 'cuda'];

/** What the ranks compute on. */
export interface SelectedDevice {
  device: 'cpu' | 'cuda';
  /** Why, for people; on cuda with the device of this rank. */
  reason: string;
}

/** What one rank found. */
interface Finding {
  wanted: DeviceChoice;
  /** Why this rank can use no device; empty when it can. */
  problem: string;
  /** The ranks of its host have the same. */
  host: number;
  hostName: string;
  localRank: number;
  /** What it sees, in the order of its numbers. */
  devices: Pick<NativeDevice, 'id' | 'name' | 'problem'>[];
}

/**
 * Decides what this process computes on, for good: for `cuda` the device LOCAL_RANK of its host where each rank sees all of
 * them, else one that no other rank of the host needs. Before models are wrapped. Collective: all ranks get the same kind.
 * Error for `cuda`, the same on every rank: ERR_CUDA_UNAVAILABLE, which names a rank that has no device of its own where
 * others do.
 */
export function selectDevice(wanted: DeviceChoice): SelectedDevice {
  const { group } = dist;
  return select(wanted, dist.getLocalRank(), group.ranksOnHost[0]!, group.rank, group.size, (own) =>
    allGatherJson(group, own),
  );
}

/** @internal As selectDevice, for a process that joins no job whatever the environment says: the first device. */
export function selectOwnDevice(wanted: DeviceChoice): SelectedDevice {
  return select(wanted, 0, 0, 0, 1, (own) => [own]);
}

function select(
  wanted: DeviceChoice,
  localRank: number,
  host: number,
  rank: number,
  worldSize: number,
  gather: (own: Finding) => Finding[],
): SelectedDevice {
  if (!choices.includes(wanted)) throw new Error(`device must be ${choices.join(', ')} but is ${String(wanted)}`);
  if (wanted === 'auto' && isDeviceInUse()) {
    const device = computeDevice();
    return { device, reason: `this process computes on ${device} already` };
  }
  const found = wanted === 'cpu' ? undefined : native.acceleratorInfo();
  const devices = (found?.devices ?? []).map(({ id, name, problem }) => ({ id, name, problem }));
  const own = {
    wanted,
    problem: found ? ownProblem(found, worldSize) : '',
    host,
    hostName: hostname(),
    localRank,
    devices,
  };
  const all = gather(own);
  const other = all.findIndex((one) => one.wanted !== all[0]!.wanted);
  if (other > 0)
    throw new Error(
      `the ranks must ask for the same device, but rank 0 asks for ${all[0]!.wanted} and rank ${other} for ${all[other]!.wanted}`,
    );
  const asked = wanted === 'auto' ? 'auto' : 'as asked';
  if (!found) {
    useDevice('cpu');
    return { device: 'cpu', reason: asked };
  }
  const given = assignDevices(all);
  if (typeof given === 'string') {
    if (wanted === 'auto') return { device: 'cpu', reason: `${asked}: ${given}` };
    throw Object.assign(new Error(`device cuda cannot be used: ${given}`), { code: 'ERR_CUDA_UNAVAILABLE' });
  }
  const index = given[rank]!;
  useDevice('cuda', index);
  return {
    device: 'cuda',
    reason: `${asked}: ${devices[index]!.name}${all.length > 1 ? ' on rank 0, one for each rank' : ''}`,
  };
}

/** Why a rank could use none of its devices. */
function ownProblem({ unavailable, libraries }: NativeAccelerator, worldSize: number): string {
  if (unavailable !== '') return unavailable;
  const needed = libraries.filter(({ name }) => name !== 'NCCL' || worldSize > 1);
  const missing = needed.find(({ path, problem }) => path === '' || problem !== '');
  if (!missing) return '';
  const { name, path, problem, tried, remedy } = missing;
  if (path !== '') return `${name} cannot be used: ${problem}`;
  return `${name} was not found; tried: ${tried.join('; ')}${remedy && `. To have it: ${remedy}`}`;
}

/**
 * @internal The number of each rank's device among those that it sees, all different within a host; or the first reason why
 * that cannot be.
 */
export function assignDevices(all: readonly Omit<Finding, 'wanted'>[]): number[] | string {
  const problems = all.map(({ problem }) => problem);
  if (!problems.some(Boolean)) {
    const given = all.map(() => 0);
    for (const host of new Set(all.map((one) => one.host))) {
      const clash = assignOnHost(all, host, given);
      if (clash !== undefined) return clash;
    }
    for (const [rank, { devices }] of all.entries()) {
      const { name, problem } = devices[given[rank]!]!;
      if (problem !== '') problems[rank] = `${name}: ${problem}`;
    }
    if (!problems.some(Boolean)) return given;
  }
  const without = problems.findIndex((problem) => problem !== '');
  const problem = problems[without]!;
  return problems.every((one) => one === problem) ? problem : `rank ${without}: ${problem}`;
}

/** A matching of ranks and devices: a rank takes the one of its local number, unless another rank has no other. */
function assignOnHost(all: readonly Omit<Finding, 'wanted'>[], host: number, given: number[]): string | undefined {
  const ranks = [...all.keys()].filter((rank) => all[rank]!.host === host);
  const holders = new Map<string, number>();
  const preferred = (rank: number): number[] => {
    const { devices, localRank } = all[rank]!;
    return devices.map((_, i) => (localRank + i) % devices.length);
  };
  // Kuhn's algorithm: whoever finds its devices taken asks their holders to move.
  const take = (rank: number, asked: Set<string>): boolean => {
    for (const index of preferred(rank)) {
      const { id } = all[rank]!.devices[index]!;
      if (asked.has(id)) continue;
      asked.add(id);
      const holder = holders.get(id);
      if (holder !== undefined && !take(holder, asked)) continue;
      holders.set(id, rank);
      given[rank] = index;
      return true;
    }
    return false;
  };
  for (const rank of ranks) {
    if (take(rank, new Set())) continue;
    const { devices, hostName } = all[rank]!;
    const { id, name } = devices[preferred(rank)[0]!]!;
    const where = ranks.length < all.length ? hostName : 'this host';
    return (
      `ranks ${holders.get(id)} and ${rank} would share one device (${name}): ${ranks.length} ranks of ${where} want ` +
      `as many devices, but ${devices.length === 1 ? '1 is' : `${devices.length} are`} visible`
    );
  }
  return undefined;
}
