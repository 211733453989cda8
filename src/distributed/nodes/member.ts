// A launcher of another node than 0: it goes to node 0's, and does as that one says.

import { once } from 'node:events';
import { connect, type Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import type { StopSignal } from '../failure.ts';
import { Channel, StrangerError } from './channel.ts';
import type { JoinOptions } from './index.ts';
import type { JobFailure, NodeEntry, NodeEvents, NodeMessage, Nodes } from './messages.ts';
import { Pulse } from './pulse.ts';
import { Verdict } from './verdict.ts';

/** Milliseconds of one attempt to connect, and between two. */
const attempt = { lasts: 5000, pause: 300 };

/** Seconds for node 0 to close its end of the connection. */
const lastWords = 2;

async function tryToConnect(host: string, port: number): Promise<Socket> {
  const socket = connect({ host, port });
  const timer = setTimeout(
    () => socket.destroy(new Error(`no answer within ${attempt.lasts / 1000} s`)),
    attempt.lasts,
  );
  try {
    await once(socket, 'connect');
    return socket;
  } finally {
    clearTimeout(timer);
  }
}

/** Node 0's launcher may come later, and its name be known later: tries until the time is up. Resolves to what is wrong, if so. */
export async function connectTo(options: JoinOptions): Promise<Channel<NodeMessage> | string> {
  const { address, port, secret, timeout, own, nnodes } = options;
  const where = `port ${port} of ${address}`;
  const deadline = performance.now() + timeout * 1000;
  for (;;) {
    let last: string;
    try {
      return await Channel.open<NodeMessage>(await tryToConnect(address, port), secret, 'client');
    } catch (error) {
      const { message, code } = error as NodeJS.ErrnoException;
      if (error instanceof StrangerError && !error.isClosed)
        return `node ${own.node} (${own.host}) does not join the job at ${where}: ${message}`;
      const isUnknown = code === 'ENOTFOUND' || code === 'EAI_AGAIN';
      last = message || (code ?? 'it cannot be reached');
      if (isUnknown) last += '; where names do not resolve, give an address with --master-address or MASTER_ADDR';
    }
    if (performance.now() > deadline)
      return `node 0 of ${nnodes} did not answer node ${own.node} (${own.host}) at ${where} within ${timeout} s (RANKZERO_TIMEOUT): ${last}`;
    await sleep(attempt.pause);
  }
}

export class Member implements Nodes {
  readonly node: number;
  nodes: readonly NodeEntry[] = [];
  private readonly options: JoinOptions;
  private readonly channel: Channel<NodeMessage>;
  private readonly pulse: Pulse;
  private readonly verdict = new Verdict();
  /** What failed here, until node 0 says what failed first. */
  private own: JobFailure | undefined;
  private joined!: (problem: string | undefined) => void;

  constructor(options: JoinOptions, channel: Channel<NodeMessage>) {
    this.options = options;
    this.node = options.own.node;
    this.channel = channel;
    const { heartbeatTimeout } = options;
    this.pulse = new Pulse(
      () => channel.send({ type: 'beat' }),
      heartbeatTimeout,
      () => this.lost(`has been silent for ${heartbeatTimeout} s`),
    );
  }

  /** Waits until all nodes are there; resolves to why they are no job, if so. */
  async join(): Promise<string | undefined> {
    const { own, version, nnodes } = this.options;
    const result = new Promise<string | undefined>((resolve) => {
      this.joined = resolve;
    });
    this.channel.send({ type: 'hello', ...own, version, nnodes });
    void this.follow();
    const problem = await result;
    if (problem !== undefined) await this.close();
    return problem;
  }

  private async follow(): Promise<void> {
    for (let message = await this.channel.receive(); message; message = await this.channel.receive()) {
      this.pulse.heard();
      if (message.type === 'job') {
        this.nodes = message.nodes;
        this.joined(undefined);
      } else if (message.type === 'refused') this.joined(message.message);
      else if (message.type === 'failure') this.verdict.fail(message.failure);
      else if (message.type === 'signal') this.verdict.signal(message.signal);
      else if (message.type === 'end') this.verdict.end(message.stopped);
    }
    this.lost('is gone');
  }

  private lost(how: string): void {
    this.pulse.stop();
    this.channel.destroy();
    const { address, port } = this.options;
    const zero = this.nodes[0];
    if (!zero) this.joined(`the launcher of node 0, at port ${port} of ${address}, ${how}`);
    else
      this.verdict.fail(
        this.own ?? { rank: undefined, node: 0, host: zero.host, code: 1, message: `its launcher ${how}` },
      );
  }

  listen(events: NodeEvents): void {
    this.verdict.listen(events);
  }

  fail(failure: JobFailure): void {
    this.own ??= failure;
    this.channel.send({ type: 'failure', failure });
    if (this.channel.isClosed) this.verdict.fail(this.own);
  }

  relay(signal: StopSignal): void {
    this.channel.send({ type: 'signal', signal });
  }

  done(stopped: StopSignal | undefined): void {
    this.channel.send({ type: 'done', stopped });
  }

  close(): Promise<void> {
    this.verdict.isKnown = true;
    this.pulse.stop();
    return this.channel.close(lastWords);
  }
}
