// What may run side by side between hosts: gathers have a stream of their own, and nothing crosses that nobody reads.
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import type { TraceEvent } from '../../src/profile/trace.ts';
import { Lab, whyNoHosts } from './lab.ts';
import { expectOnHosts, hostsFixture } from './ranks.ts';

const model = join(import.meta.dirname, '../reference/llama');
const steps = 2;
const layers = ['model.layers.0', 'model.layers.1'];

describe.skipIf(whyNoHosts)(`a step on two hosts${whyNoHosts ? ` (${whyNoHosts})` : ''}`, () => {
  it('gathers apart from reductions, and the embedding for forward alone', async () => {
    using lab = new Lab(2);
    const [out] = await expectOnHosts(lab, [[0], [1]], hostsFixture('profiled.mjs'), { args: [model] });
    const events = JSON.parse(out!) as TraceEvent[];
    for (const rank of [0, 1]) {
      const count = (track: string, name: string): number => {
        const names = events.filter(({ name, pid }) => name === 'thread_name' && pid === rank);
        const tid = names.find(({ args }) => args!.name === track)?.tid;
        return events.filter((e) => e.ph === 'X' && e.pid === rank && e.tid === tid && e.name === name).length;
      };
      for (const unit of [...layers, 'model.embed_tokens', 'lm_head']) {
        expect(count('comm', `reduce_scatter ${unit}`), unit).toBe(steps);
        expect(count('comm', `all_gather ${unit}`), unit).toBe(0);
      }
      for (const layer of layers) expect(count('gather', `all_gather ${layer}`), layer).toBe(2 * steps);
      expect(count('gather', 'all_gather model.embed_tokens')).toBe(steps);
      expect(count('gather', 'all_gather lm_head')).toBe(steps);
    }
  });
});
