// What `rankzero doctor --hosts` says: one table, and what is wrong, by host.
import { formatBytes } from '../../core/format.ts';
import type { FolderFinding } from './folder.ts';
import type { LinkFinding } from './links.ts';

/** What a host says of itself. */
export interface HostFinding {
  host: string;
  node: string;
  isa: string;
  engine: string;
}

export interface HostsReport {
  rankzero: string;
  /** By node. */
  hosts: HostFinding[];
  /** The host that each node is on: equal for nodes that share one. */
  hostOf: readonly number[];
  links: LinkFinding[];
  path?: string | undefined;
  /** Of each node. */
  folder?: FolderFinding[] | undefined;
}

const formatMicroseconds = (seconds: number): string =>
  seconds < 0.001 ? `${Math.round(seconds * 1e6)} µs` : `${(seconds * 1e3).toFixed(1)} ms`;

/** A sign, and as much as is known: half a round trip. */
function formatClock({ clockSeconds, roundTripSeconds }: LinkFinding): string {
  if (Math.abs(clockSeconds) <= Math.max(roundTripSeconds / 2, 0.001)) return 'the same';
  const sign = clockSeconds < 0 ? '−' : '+';
  const size = Math.abs(clockSeconds);
  return size < 1 ? `${sign}${Math.round(size * 1000)} ms` : `${sign}${size.toFixed(1)} s`;
}

/** What keeps jobs of these hosts from working; one line each. */
export function problemsOf({ hosts, hostOf, path, folder }: HostsReport): string[] {
  const problems: string[] = [];
  for (const [node, host] of hostOf.entries()) {
    const first = hostOf.indexOf(host);
    if (first < node) problems.push(`nodes ${first} and ${node} are both on host ${hosts[node]!.host}`);
  }
  for (const [node, { problem, unseen }] of (folder ?? []).entries()) {
    const { host } = hosts[node]!;
    if (problem !== '') problems.push(`${host} cannot write to ${path}: ${problem}`);
    if (unseen.length > 0)
      problems.push(
        `${host} does not see what ${unseen.map((other) => hosts[other]!.host).join(', ')} wrote to ${path}`,
      );
  }
  return problems;
}

function table(rows: readonly (readonly string[])[]): string[] {
  const widths = rows[0]!.map((_, column) => Math.max(...rows.map((row) => row[column]!.length)));
  return rows.map((row) => `  ${row.map((cell, column) => cell.padEnd(widths[column]!)).join('  ')}`.trimEnd());
}

/** As a person reads it. */
export function describeHosts(report: HostsReport): string {
  const { rankzero, hosts, links, path } = report;
  const problems = problemsOf(report);
  const clockOf = (node: number): string => {
    const link = links.find(({ from, to }) => from === 0 && to === node);
    return link ? formatClock(link) : '';
  };
  const lines = [
    `rankzero ${rankzero} on ${hosts.length} hosts`,
    '',
    ...table([
      ['node', 'host', 'Node.js', 'kernels', 'engine', 'clock'],
      ...hosts.map(({ host, node, isa, engine }, i) => [String(i), host, node, isa, engine, clockOf(i)]),
    ]),
    '',
    ...table([
      ['pair', 'round trip', 'there', 'back'],
      ...links.map(({ from, to, roundTripSeconds, there, back }) => [
        `${hosts[from]!.host} → ${hosts[to]!.host}`,
        formatMicroseconds(roundTripSeconds),
        `${formatBytes(there)}/s`,
        `${formatBytes(back)}/s`,
      ]),
    ]),
  ];
  if (path !== undefined && !problems.some((problem) => problem.includes(path)))
    lines.push('', `${path} is the same folder on all hosts.`);
  lines.push('', ...(problems.length > 0 ? problems : ['All is well.']));
  return lines.join('\n');
}
