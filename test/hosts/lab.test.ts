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

  it('have links with delay and loss', async () => {
    using lab = new Lab(2);
    const [h0, h1] = lab.hosts as [Lab['hosts'][0], Lab['hosts'][0]];
    const listening = deferred();
    const server = `require('net').createServer(s=>s.on('data',d=>s.write(d)).on('end',()=>{s.end();process.exit()})).listen(4000,'::',()=>console.log('up'))`;
    const { done } = h0.start(['node', '-e', server], { onLine: () => listening.resolve() });
    await listening.promise;
    // Sends bytes, compares what comes back, and says how long the first took.
    const client = `
      const out = Buffer.alloc(3e5, Uint8Array.from({ length: 251 }, (_, i) => i)), back = [];
      const s = require('net').connect(4000, '${h0.address}', () => s.write(out));
      const start = performance.now();
      s.once('data', () => console.log(performance.now() - start));
      s.on('data', (d) => { back.push(d); if (Buffer.concat(back).length === out.length) { console.log(Buffer.concat(back).equals(out)); s.end(); } });`;
    h1.shape('delay 50ms loss 1%');
    const [first, same] = (await h1.run(['node', '-e', client])).stdout.trim().split('\n');
    expect(Number(first)).toBeGreaterThan(199); // a packet each way to connect, and one each way with bytes
    expect(same).toBe('true');
    expect((await done).code).toBe(0);
    h1.shape('');
    expect((await h1.run(['node', '-e', client])).stderr).toContain('ECONNREFUSED');
  });
});

function deferred(): { promise: Promise<void>; resolve: () => void } {
  let resolve!: () => void;
  const promise = new Promise<void>((done) => {
    resolve = done;
  });
  return { promise, resolve };
}
