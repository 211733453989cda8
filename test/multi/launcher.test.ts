// The launcher: environment, output, exit codes, signals, and that no rank outlives it.
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { fixture, runProcess, runRanks, waitForDeath } from './helpers.ts';

const folder = mkdtempSync(join(tmpdir(), 'rankzero-launcher-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const script = (name: string, text: string): string => {
  writeFileSync(join(folder, name), text);
  return join(folder, name);
};

/** `rankzero run` as the command line runs it. */
const command = (
  argv: readonly string[],
  env: Record<string, string> = {},
  onSpawn?: Parameters<typeof runProcess>[2],
) => runProcess([fixture('run.mjs'), ...argv], env, onSpawn);

describe('rankzero run', () => {
  it('sets the variables that torchrun sets, and passes arguments and output on', async () => {
    const path = script(
      'env.mjs',
      `const { RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT } = process.env;
       process.stdout.write([RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT, ...process.argv.slice(2)].join(' ') + '\\n\\nlast' + (RANK === '0' ? '\\n' : ''));
       process.stderr.write('to stderr\\n');`,
    );
    const { code, stdout, stderr } = await command(['--nproc', '2', '--master-port=29876', path, '--nproc', 'x']);
    expect(code).toBe(0);
    expect(stdout.split('\n').sort()).toEqual(
      [
        '',
        '',
        '',
        '0 0 2 2 127.0.0.1 29876 --nproc x',
        '[rank 1] 1 1 2 2 127.0.0.1 29876 --nproc x',
        '[rank 1] last',
        'last',
      ].sort(),
    );
    expect(stderr.split('\n').sort()).toEqual(['', '[rank 1] to stderr', 'to stderr']);
  });

  it('shows the first failure alone, and has its exit code', async () => {
    const { code, stderr } = await command(['--nproc', '3', fixture('faults.mjs'), 'throws']);
    expect(code).toBe(1);
    expect(stderr).toMatch(/^rank 1 failed: the disk is full\n {4}at /);
    expect(stderr).not.toContain('ERR_PEER');
    const exit = await command(['--nproc', '3', fixture('faults.mjs'), 'exitCode']);
    expect(exit.code).toBe(7);
    expect(exit.stderr).toBe('rank 1 failed: it exited with code 7\n');
  });

  it('shows a failure that only follows when nothing else failed', async () => {
    const { code, stderr } = await command(['--nproc', '2', fixture('faults.mjs'), 'exitsEarly']);
    expect(code).toBe(1);
    expect(stderr).toMatch(
      /^rank 0 failed: rank 1 \(pid \d+\) left the job while rank 0 waits for it in all_reduce #2 of group world\n/,
    );
  });

  it('gives 128 + n for a signal, and kills what ignores SIGTERM', async () => {
    const killed = await command(['--nproc', '2', fixture('faults.mjs'), 'killedIdle']);
    expect(killed.code).toBe(137);
    expect(killed.stderr).toBe('rank 1 failed: killed by SIGKILL\n');
    const start = Date.now();
    const stubborn = await command(['--nproc', '3', fixture('faults.mjs'), 'stubborn']);
    expect(stubborn.code).toBe(3);
    expect(Date.now() - start).toBeLessThan(6000);
  });

  it('reports errors before the first line of rankzero is reached', async () => {
    const missing = await command(['--nproc', '2', script('missing.mjs', `import './nothing.mjs';`)]);
    expect(missing.code).toBe(1);
    expect(missing.stderr).toMatch(/^rank \d failed: Cannot find module .*nothing\.mjs' imported from /);
    const syntax = await command(['--nproc', '2', script('syntax.mjs', 'const a = ;')]);
    expect(syntax.stderr).toContain('const a = ;');
    expect(syntax.stderr).toMatch(/rank \d failed: Unexpected token ';'/);
  });

  it('says what is wrong with its arguments', async () => {
    const gone = await command(['--nproc', '2', join(folder, 'gone.js')]);
    expect(gone.code).toBe(1);
    expect(gone.stderr).toBe(`rankzero run: the script ${join(folder, 'gone.js')} does not exist\n`);
    for (const [argv, text] of [
      [['x.js'], '--nproc N is missing'],
      [['--nproc', '0', 'x.js'], '--nproc needs a whole number from 1 to 1024, gpu or auto but got "0"'],
      [['--nproc', '2'], 'the script is missing'],
      [['--ranks', '2', 'x.js'], 'unknown option --ranks'],
    ] as const) {
      const { code, stderr } = await command(argv);
      expect(code).toBe(2);
      expect(stderr).toContain(`rankzero run: ${text}\n\nusage: rankzero run`);
    }
    expect((await command(['--help'])).stdout).toContain('usage: rankzero run --nproc N');
  });
});

describe('signals', () => {
  it('the first SIGINT lets the ranks end by themselves', async () => {
    let ready = 0;
    const { code, stdout } = await runRanks(2, fixture('faults.mjs'), {
      args: ['interrupted'],
      onLine: (_, line, launcher) => {
        if (line.startsWith('ready') && ++ready === 2) launcher.kill('SIGINT');
      },
    });
    expect(code).toBe(0);
    expect(stdout.map((text) => text.trim().split('\n').at(-1))).toEqual(['saved', 'saved']);
  });

  it.each([
    ['SIGINT', 130],
    ['SIGTERM', 143],
  ] as const)('%s ends ranks that do not handle it', async (signal, want) => {
    const pids: number[] = [];
    const { code } = await runRanks(2, fixture('faults.mjs'), {
      args: ['busy'],
      onLine: (_, line, launcher) => {
        pids.push(Number(/^pid (\d+)/.exec(line)?.[1]));
        if (pids.length === 2) setTimeout(() => launcher.kill(signal), 300);
      },
    });
    expect(code).toBe(want);
    await waitForDeath(pids, 100);
  });

  it('a second SIGINT kills', async () => {
    const path = script(
      'deaf.mjs',
      `process.on('SIGINT', () => {}); console.log('pid ' + process.pid); setInterval(() => {}, 1000);`,
    );
    const pids: number[] = [];
    const { code } = await runRanks(2, path, {
      onLine: (_, line, launcher) => {
        pids.push(Number(/^pid (\d+)/.exec(line)?.[1]));
        if (pids.length < 2) return;
        setTimeout(() => launcher.kill('SIGINT'), 100);
        setTimeout(() => launcher.kill('SIGINT'), 500);
      },
    });
    expect(code).toBe(137);
    await waitForDeath(pids, 1000);
  });

  it.each(['busy', 'idle'])('ranks die with a launcher that is killed (%s)', async (scenario) => {
    const pids: number[] = [];
    await runRanks(2, fixture('faults.mjs'), {
      args: [scenario],
      onLine: (_, line, launcher) => {
        pids.push(Number(/^pid (\d+)/.exec(line)?.[1]));
        if (pids.length === 2) setTimeout(() => launcher.kill('SIGKILL'), 300);
      },
    });
    expect(pids.length).toBe(2);
    await waitForDeath(pids, 2000);
  });
});

describe('a reader that closes the pipe', () => {
  it('ends the job quietly, and its ranks', async () => {
    const path = script('chatty.mjs', "setInterval(() => console.log('pid', process.pid), 10);");
    const cli = join(import.meta.dirname, '../../dist/cli/main.js');
    const { stdout, stderr } = spawnSync(
      'bash',
      ['-c', '"$0" "$1" run --nproc 2 "$2" | head -8; echo status $PIPESTATUS', process.execPath, cli, path],
      {
        encoding: 'utf8',
        timeout: 20_000,
      },
    );
    expect(stdout).toContain('status 141');
    expect(stderr).toBe('');
    await waitForDeath(
      [...stdout.matchAll(/pid (\d+)/g)].map(([, pid]) => Number(pid)),
      3000,
    );
  });
});
