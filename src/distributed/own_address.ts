// Which host an address belongs to: this one, or another.
import { lookup } from 'node:dns/promises';
import { networkInterfaces } from 'node:os';
import { isLoopback } from './launchers/values.ts';

/** Without the zone of a link-local address, and IPv4 as itself. */
const plain = (address: string): string =>
  address
    .replace(/%.*$/, '')
    .replace(/^::ffff:(?=\d+\.)/i, '')
    .toLowerCase();

/** Whether `host`, a name or an address, is this host. A name that does not resolve is not. */
export async function isOwnAddress(host: string): Promise<boolean> {
  const own = new Set(
    Object.values(networkInterfaces()).flatMap((all) => (all ?? []).map(({ address }) => plain(address))),
  );
  try {
    const found = await lookup(host, { all: true });
    return found.some(({ address }) => isLoopback(address) || own.has(plain(address)));
  } catch {
    return false;
  }
}
