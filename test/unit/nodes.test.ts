// The connection between launchers, without hosts: what they must agree on, and what somebody on the way cannot do.
import { once } from 'node:events';
import { connect, createServer, type Socket } from 'node:net';
import { afterEach, describe, expect, it } from 'vitest';
import { type JobFailure, type JoinOptions, joinNodes, type Nodes } from '../../src/distributed/nodes/index.ts';
import { isOwnAddress } from '../../src/distributed/own_address.ts';

const open: { close(): void }[] = [];
afterEach(() => {
  for (const one of open.splice(0)) one.close();
  port++;
});

let port = 29700; // the next job takes the next one
const options = (node: number, more: Partial<JoinOptions> = {}): JoinOptions => ({
  nnodes: 2,
  own: { node, host: `h${node}`, nproc: 1 },
  address: '127.0.0.1',
  port,
  secret: 'of this test',
  version: '1.0.0',
  timeout: 10,
  heartbeatTimeout: 10,
  ...more,
});

async function join(...all: JoinOptions[]): Promise<Nodes[]> {
  const joined = await Promise.all(all.map((one) => joinNodes(one)));
  open.push(...joined);
  return joined;
}

const failureOf = (nodes: Nodes): Promise<JobFailure> =>
  new Promise((resolve) => nodes.listen({ onFailure: resolve, onSignal: () => {}, onEnd: () => {} }));

const failure: JobFailure = { rank: 1, node: 1, host: 'h1', code: 3, message: 'no' };

describe('launchers of several nodes', () => {
  it('run the same version', async () => {
    const all = [options(0), options(1, { version: '1.1.0' })];
    const results = await Promise.allSettled(all.map((one) => joinNodes(one)));
    for (const result of results)
      expect(String((result as PromiseRejectedResult).reason)).toContain(
        'node 1 (h1) runs rankzero 1.1.0, but node 0 (h0) runs 1.0.0',
      );
  });

  it('agree on the first failure, whoever has one', async () => {
    const [zero, one] = (await join(options(0), options(1))) as [Nodes, Nodes];
    expect(one.nodes).toEqual([0, 1].map((node) => ({ node, host: `h${node}`, nproc: 1 })));
    const heard = Promise.all([failureOf(zero), failureOf(one)]);
    one.fail(failure);
    one.fail({ ...failure, code: 4 });
    expect(await heard).toEqual([failure, failure]);
  });

  it('take no line that somebody on the way has changed', async () => {
    const relay = createServer((client) => {
      const server = connect(port, '127.0.0.1');
      const both: Socket[] = [client, server];
      for (const socket of both) socket.on('error', () => {}).on('close', () => both.map((each) => each.destroy()));
      server.pipe(client);
      client.setEncoding('utf8').on('data', (text: string) => server.write(text.replace('"code":3', '"code":0')));
    }).listen(0, '127.0.0.1');
    open.push(relay);
    await once(relay, 'listening');
    const way = (relay.address() as { port: number }).port;
    const [zero, one] = (await join(options(0), options(1, { port: way }))) as [Nodes, Nodes];
    const heard = failureOf(zero);
    one.fail(failure);
    expect(await heard).toMatchObject({ node: 1, code: 1, message: 'its launcher is gone' });
  });
});

describe('the address of this host', () => {
  it('is known by number and by name', async () => {
    for (const host of ['127.0.0.1', '::1', 'localhost']) expect(await isOwnAddress(host)).toBe(true);
    for (const host of ['192.0.2.1', '2001:db8::1', 'no-such-host.invalid'])
      expect(await isOwnAddress(host)).toBe(false);
  });
});
