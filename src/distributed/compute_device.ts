// Which device the ranks of a job compute on: the same kind on all of them, and one of its own for each.
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
  /** Why this rank has no device; empty when it has one. */
  problem: string;
  id: string;
  name: string;
  numDevices: number;
}

/**
 * Decides what this process computes on, for good: device LOCAL_RANK of its host for `cuda`. Before models are wrapped.
 * Collective: all ranks get the same kind. Error for `cuda`, the same on every rank: ERR_CUDA_UNAVAILABLE, which names a
 * rank that has no device of its own where others do.
 */
export function selectDevice(wanted: DeviceChoice): SelectedDevice {
  return select(wanted, dist.getLocalRank(), dist.getWorldSize(), (own) => allGatherJson(dist.group, own));
}

/** @internal As selectDevice, for a process that joins no job whatever the environment says: the first device. */
export function selectOwnDevice(wanted: DeviceChoice): SelectedDevice {
  return select(wanted, 0, 1, (own) => [own]);
}

function select(
  wanted: DeviceChoice,
  localRank: number,
  worldSize: number,
  gather: (own: Finding) => Finding[],
): SelectedDevice {
  if (!choices.includes(wanted)) throw new Error(`device must be ${choices.join(', ')} but is ${String(wanted)}`);
  if (wanted === 'auto' && isDeviceInUse()) {
    const device = computeDevice();
    return { device, reason: `this process computes on ${device} already` };
  }
  const found = wanted === 'cpu' ? undefined : native.acceleratorInfo();
  const own = finding(wanted, found, localRank, worldSize);
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
  const problem = problemOf(all);
  if (problem !== '') {
    if (wanted === 'auto') return { device: 'cpu', reason: `${asked}: ${problem}` };
    throw Object.assign(new Error(`device cuda cannot be used: ${problem}`), { code: 'ERR_CUDA_UNAVAILABLE' });
  }
  useDevice('cuda', localRank % own.numDevices);
  return { device: 'cuda', reason: `${asked}: ${own.name}${all.length > 1 ? ' on rank 0, one for each rank' : ''}` };
}

function finding(
  wanted: DeviceChoice,
  found: NativeAccelerator | undefined,
  localRank: number,
  worldSize: number,
): Finding {
  const devices = found?.devices ?? [];
  const own = devices[localRank % Math.max(1, devices.length)];
  const { id = '', name = '' } = own ?? {};
  return { wanted, problem: found ? ownProblem(found, own, worldSize) : '', id, name, numDevices: devices.length };
}

function ownProblem(
  { unavailable, libraries }: NativeAccelerator,
  device: NativeDevice | undefined,
  worldSize: number,
): string {
  if (unavailable !== '') return unavailable;
  if (device && device.problem !== '') return `${device.name}: ${device.problem}`;
  const needed = libraries.filter(({ name }) => name !== 'NCCL' || worldSize > 1);
  const missing = needed.find(({ path, problem }) => path === '' || problem !== '');
  if (!missing) return '';
  const { name, path, problem, tried } = missing;
  return path === '' ? `${name} was not found; tried: ${tried.join('; ')}` : `${name} cannot be used: ${problem}`;
}

/** The first reason why not every rank has a device of its own. */
function problemOf(all: readonly Finding[]): string {
  const without = all.findIndex(({ problem }) => problem !== '');
  if (without >= 0) {
    const { problem } = all[without]!;
    return all.every((one) => one.problem === problem) ? problem : `rank ${without}: ${problem}`;
  }
  const holders = new Map<string, number>();
  for (const [rank, { id, name, numDevices }] of all.entries()) {
    const holder = holders.get(id);
    if (holder !== undefined)
      return (
        `ranks ${holder} and ${rank} would share one device (${name}): ${dist.getLocalWorldSize()} ranks of this host want ` +
        `as many devices, but ${numDevices === 1 ? '1 is' : `${numDevices} are`} visible`
      );
    holders.set(id, rank);
  }
  return '';
}
