// Node 0's launcher: the others come to it, and what it hears first decides. Its port is open until all are here.

import type { Server, Socket } from 'node:net';
import type { StopSignal } from '../failure.ts';
import { isOwnAddress } from '../own_address.ts';
import { Channel } from './channel.ts';
import type { JoinOptions } from './index.ts';
import type { Hello, JobFailure, NodeEntry, NodeEvents, NodeMessage, Nodes } from './messages.ts';
import { Pulse } from './pulse.ts';
import { Verdict } from './verdict.ts';

interface Peer extends NodeEntry {
  channel: Channel<NodeMessage>;
  pulse: Pulse;
  isDone: boolean;
}

/** Strangers that an error names. */
const numShown = 3;

export class Coordinator implements Nodes {
  readonly node = 0;
  nodes: readonly NodeEntry[] = [];
  private readonly options: JoinOptions;
  private readonly server: Server;
  private readonly peers = new Map<number, Peer>();
  private readonly strangers = new Map<string, string>();
  /** Connected, and nobody yet. */
  private readonly pending = new Set<Socket>();
  private readonly verdict = new Verdict();
  private isDone = false;
  private stopped: StopSignal | undefined;
  private gathered!: (problem: string | undefined) => void;

  constructor(options: JoinOptions, server: Server) {
    this.options = options;
    this.server = server;
  }

  /** Waits for all nodes; resolves to why they are no job, if so. */
  async gather(): Promise<string | undefined> {
    const { nnodes, own, timeout } = this.options;
    const result = new Promise<string | undefined>((resolve) => {
      this.gathered = resolve;
    });
    const timer = setTimeout(async () => this.gathered(await this.whoIsMissing()), timeout * 1000);
    this.server.on('connection', (socket: Socket) => void this.admit(socket));
    if (nnodes === 1) this.gathered(undefined);
    const problem = await result;
    clearTimeout(timer);
    this.server.close();
    for (const socket of this.pending) socket.destroy();
    if (problem !== undefined) {
      this.tell({ type: 'refused', message: problem });
      await this.close();
      return problem;
    }
    const entries = [own, ...this.peers.values()].sort((a, b) => a.node - b.node);
    this.nodes = entries.map(({ node, host, nproc }) => ({ node, host, nproc }));
    this.tell({ type: 'job', nodes: [...this.nodes] });
    return undefined;
  }

  private async admit(socket: Socket): Promise<void> {
    const address = socket.remoteAddress ?? 'somebody';
    this.pending.add(socket);
    try {
      const channel = await Channel.open<NodeMessage>(socket, this.options.secret, 'server');
      const hello = await channel.receive();
      if (hello?.type === 'hello') this.enter(hello, channel);
      else channel.destroy();
    } catch (error) {
      this.strangers.set(address, (error as Error).message);
    } finally {
      this.pending.delete(socket);
    }
  }

  private enter(hello: Hello, channel: Channel<NodeMessage>): void {
    const { node, host, nproc } = hello;
    const problem = this.mismatch(hello);
    if (problem !== undefined) {
      channel.send({ type: 'refused', message: problem });
      void channel.close(this.options.heartbeatTimeout);
      this.gathered(problem);
      return;
    }
    const lost = (how: string): void => this.lost(peer, how);
    const pulse = new Pulse(
      () => channel.send({ type: 'beat' }),
      this.options.heartbeatTimeout,
      () => lost(`has been silent for ${this.options.heartbeatTimeout} s`),
    );
    const peer: Peer = { node, host, nproc, channel, pulse, isDone: false };
    this.peers.set(node, peer);
    void this.follow(peer);
    if (this.peers.size === this.options.nnodes - 1) this.gathered(undefined);
  }

  private mismatch({ node, host, version, nnodes }: Hello): string | undefined {
    const { options } = this;
    const zero = `node 0 (${options.own.host})`;
    if (version !== options.version)
      return `node ${node} (${host}) runs rankzero ${version}, but ${zero} runs ${options.version}`;
    if (nnodes !== options.nnodes)
      return `node ${node} (${host}) was started for ${nnodes} nodes, but ${zero} for ${options.nnodes}`;
    const other = this.peers.get(node);
    return (
      other && `two launchers say that they are node ${node} of ${nnodes}: one on ${other.host} and one on ${host}`
    );
  }

  private async follow(peer: Peer): Promise<void> {
    for (let message = await peer.channel.receive(); message; message = await peer.channel.receive()) {
      peer.pulse.heard();
      if (message.type === 'failure') this.fail(message.failure);
      else if (message.type === 'signal') this.passOn(message.signal, peer.node);
      else if (message.type === 'done') {
        peer.isDone = true;
        this.settle(message.stopped);
      }
    }
    this.lost(peer, 'is gone');
  }

  private lost(peer: Peer, how: string): void {
    peer.pulse.stop();
    peer.channel.destroy();
    if (this.peers.get(peer.node) !== peer) return;
    if (this.nodes.length === 0) {
      this.peers.delete(peer.node); // it may come back
      return;
    }
    const { node, host } = peer;
    this.fail({ rank: undefined, node, host, code: 1, message: `its launcher ${how}` });
  }

  private async whoIsMissing(): Promise<string> {
    const { nnodes, own, timeout, address, port } = this.options;
    const missing = Array.from({ length: nnodes - 1 }, (_, i) => i + 1).filter((node) => !this.peers.has(node));
    const here = [own, ...this.peers.values()].map(({ node, host }) => `${node} (${host})`);
    const few = [...this.strangers].slice(0, numShown).map(([from, why]) => `${from}: ${why}`);
    return [
      `${missing.length === 1 ? 'node' : 'nodes'} ${missing.join(', ')} of ${nnodes} did not come to port ${port} of ${own.host} within ${timeout} s (RANKZERO_TIMEOUT)`,
      `here: ${here.join(', ')}`,
      ...((await isOwnAddress(address)) ? [] : [`${address}, the master address, is not an address of ${own.host}`]),
      ...(few.length === 0 ? [] : [`refused: ${few.join(', ')}`]),
    ].join('; ');
  }

  private tell(message: NodeMessage, except?: number): void {
    for (const { node, channel } of this.peers.values()) if (node !== except) channel.send(message);
  }

  private passOn(signal: StopSignal, from: number): void {
    this.tell({ type: 'signal', signal }, from);
    if (from !== this.node) this.verdict.signal(signal);
  }

  /** All have ended well once the last has. */
  private settle(stopped: StopSignal | undefined): void {
    this.stopped ??= stopped;
    if (!this.isDone || [...this.peers.values()].some((peer) => !peer.isDone)) return;
    this.tell({ type: 'end', stopped: this.stopped });
    this.verdict.end(this.stopped);
  }

  listen(events: NodeEvents): void {
    this.verdict.listen(events);
  }

  fail(failure: JobFailure): void {
    if (this.verdict.fail(failure)) this.tell({ type: 'failure', failure });
  }

  relay(signal: StopSignal): void {
    this.passOn(signal, this.node);
  }

  done(stopped: StopSignal | undefined): void {
    this.isDone = true;
    this.settle(stopped);
  }

  /** An end of the process before the others have heard how the job ended would be a failure to them. */
  async close(): Promise<void> {
    this.verdict.isKnown = true;
    const peers = [...this.peers.values()];
    for (const { pulse } of peers) pulse.stop();
    await Promise.all(peers.map(({ channel }) => channel.close(this.options.heartbeatTimeout)));
  }
}
