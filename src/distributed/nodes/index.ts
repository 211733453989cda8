// The launchers of a job find each other at the master address, one on each node, and stay connected: the first failure on
// any node ends the job on all. A job on one host has one launcher, which decides alone.
import { once } from 'node:events';
import { createServer } from 'node:net';
import { Coordinator } from './coordinator.ts';
import { connectTo, Member } from './member.ts';
import type { NodeEntry, Nodes } from './messages.ts';
import { Verdict } from './verdict.ts';

/** The launchers of a job do not come together. */
export class JoinError extends Error {
  readonly code = 'ERR_LAUNCH';
}

export interface JoinOptions {
  nnodes: number;
  /** Of this host: its number, its name and the ranks on it. */
  own: NodeEntry;
  /** Of node 0's launcher. */
  address: string;
  port: number;
  secret: string;
  /** Of this package. */
  version: string;
  /** Seconds for all to come. */
  timeout: number;
  /** Seconds of silence after which a launcher counts as dead. */
  heartbeatTimeout: number;
}

async function listen({ port, own }: JoinOptions): Promise<ReturnType<typeof createServer>> {
  const server = createServer();
  server.listen(port);
  try {
    await once(server, 'listening');
  } catch (cause) {
    const { code, message } = cause as NodeJS.ErrnoException;
    const why = code === 'EADDRINUSE' ? 'is taken' : `cannot be opened: ${message}`;
    throw new JoinError(
      `port ${port} of ${own.host}, where node 0 waits for the other launchers, ${why}; choose another with --master-port or MASTER_PORT, the same on all nodes`,
      { cause },
    );
  }
  return server;
}

/** Waits for the launchers of all nodes. Errors on all of them, with the numbers, if they do not fit together: ERR_LAUNCH. */
export async function joinNodes(options: JoinOptions): Promise<Nodes> {
  if (options.own.node === 0) {
    const server = await listen(options);
    const coordinator = new Coordinator(options, server);
    const problem = await coordinator.gather();
    if (problem !== undefined) throw new JoinError(problem);
    return coordinator;
  }
  const found = await connectTo(options);
  if (typeof found === 'string') throw new JoinError(found);
  const member = new Member(options, found);
  const problem = await member.join();
  if (problem !== undefined) throw new JoinError(problem);
  return member;
}

/** The only launcher of its job. */
export function alone(own: NodeEntry): Nodes {
  const verdict = new Verdict();
  return {
    nodes: [own],
    node: own.node,
    listen: (events) => verdict.listen(events),
    fail: (failure) => void verdict.fail(failure),
    relay: () => {},
    done: (stopped) => verdict.end(stopped),
    close: async () => {},
  };
}

export type { JobFailure, NodeEntry, NodeEvents, Nodes } from './messages.ts';
