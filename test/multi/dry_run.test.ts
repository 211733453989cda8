// The dry run under `rankzero plan`: nothing is there, everything is counted.
import { describe, expect, it } from 'vitest';
import { fixture, runProcess } from './helpers.ts';

async function expectOk(what: string): Promise<void> {
  const { code, stdout, stderr } = await runProcess([fixture('dry_run.mjs'), what], {});
  expect(stderr).toBe('');
  expect(stdout).toBe('ok\n');
  expect(code).toBe(0);
}

describe('a dry run', () => {
  it('counts memory and traffic, checks what is asked, and holds nothing', () => expectOk('dry'));
  it('has hosts, and a device', () => expectOk('hosts'));
  it('does not begin where something was allocated', () => expectOk('used'));
  it('does not begin in a process that has joined a job', () => expectOk('joined'));
});
