// The lab itself: hosts have names, networks, links that can be cut and counted.
import { describe, expect, it } from 'vitest';
import { Lab, whyNoHosts } from './lab.ts';

describe.skipIf(whyNoHosts)(`hosts in namespaces${whyNoHosts ? `: ${whyNoHosts}` : ''}`, () => {
  it('have names, reach each other, and count what they send', async () => {
    using lab = new Lab(2);
    const [h0, h1] = lab.hosts as [Lab['hosts'][0], Lab['hosts'][0]];
    expect((await h1.run(['hostname'])).stdout).toBe('h1\n');
    const server = `require('net').createServer(s=>s.on('data',()=>{}).on('end',()=>{s.end();process.exit()})).listen(4000,'::',()=>console.log('up'))`;
    const listening = deferred();
    const { done } = h0.start(['node', '-e', server], { onLine: () => listening.resolve() });
    await listening.promise;
    expect(h0.openPorts).toEqual([4000]);
    const before = h0.wire.received;
    const client = (host: string) =>
      h1.run([
        'node',
        '-e',
        `require('net').connect(4000,'${host}').end(Buffer.alloc(1e6)).on('error',e=>{console.log(e.code);process.exit(1)})`,
      ]);
    h1.setLink(false);
    setTimeout(() => h1.setLink(true), 500);
    expect((await client(h0.address6)).code).toBe(0);
    expect((await done).code).toBe(0);
    expect(h0.wire.received - before).toBeGreaterThan(1e6);
    expect(h0.pids).toEqual([]);
  });
});

function deferred(): { promise: Promise<void>; resolve: () => void } {
  let resolve!: () => void;
  const promise = new Promise<void>((done) => {
    resolve = done;
  });
  return { promise, resolve };
}
