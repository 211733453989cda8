// The GPU part of `rankzero doctor`: what was found, where, and every place that was tried for what was not.

import { formatBytes } from '../core/format.ts';
import { nvidiaModule } from '../core/machine.ts';
import type { NativeAccelerator, NativeLibrary } from '../native.ts';

const version = (number: number): string => `${Math.floor(number / 1000)}.${Math.floor((number % 1000) / 10)}`;

function describeCuda(found: NativeAccelerator): string {
  const module = nvidiaModule();
  const seen = module ? `NVIDIA driver ${module}` : 'no NVIDIA driver';
  if (!found.built) return `not used: this build is for CPU ranks only (${seen} on this machine)`;
  const built = `compiled for ${found.architectures} with runtime ${version(found.runtime)}`;
  // Without the places that were tried, which the rows of the libraries show.
  const reason = found.unavailable.split('\n')[0]!.replace(/ \([^)]*$/, '');
  return reason ? `${built}; not used: ${reason}` : `${built}, ${seen}`;
}

/** Where it is, or every place that was tried, and what brings it. */
export function describeLibrary(library: NativeLibrary): string {
  const remedy = library.remedy === '' ? [] : [`  to have it: ${library.remedy}`];
  if (library.path === '')
    return ['not found; tried:', ...library.tried.map((line) => `  ${line}`), ...remedy].join('\n');
  const where = `${library.version || 'of unknown version'}, ${library.path}`;
  return library.problem ? `${where}: cannot be used: ${library.problem}` : where;
}

/** Rows of a name and a text, which may have several lines. */
export function acceleratorRows(found: NativeAccelerator): [name: string, text: string][] {
  const devices = found.devices.map((device, index): [string, string] => [
    `device ${index}`,
    `${device.name}, ${formatBytes(device.memory)}, compute capability ${device.capability}, ` +
      `${device.multiprocessors} multiprocessors${device.problem && `; not used: ${device.problem}`}`,
  ]);
  const libraries = found.libraries.map((library): [string, string] => [library.name, describeLibrary(library)]);
  return [['CUDA', describeCuda(found)], ...devices, ...libraries];
}
