import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { buildFinetuneCommand, checkFiles } from '../../src/cli/finetune.ts';
import { resolveFlags } from '../../src/cli/flags.ts';
import { buildGenerateCommand, TextStream } from '../../src/cli/generate.ts';
import { nearest } from '../../src/core/nearest.ts';
import { type FinetuneOptions, resolveFinetuneOptions } from '../../src/train/options.ts';
import { stepsToProfile } from '../../src/train/profile_steps.ts';

let dir: string;
beforeAll(() => {
  dir = mkdtempSync(join(tmpdir(), 'rankzero-cli-'));
});
afterAll(() => rmSync(dir, { recursive: true }));

const resolve = (...argv: string[]): Promise<FinetuneOptions> =>
  resolveFlags(buildFinetuneCommand().parse(argv, { from: 'user' }).opts());

function config(name: string, text: string): string {
  const path = join(dir, name);
  writeFileSync(path, text);
  return path;
}

const must = ['--model', 'm', '--data', 'd', '--out', 'o'];

describe('the steps to profile', () => {
  it('are three after two of warm-up, or what a shorter run has', () => {
    expect(stepsToProfile(undefined, 0, 100)).toEqual({ first: 3, last: 5 });
    expect(stepsToProfile(undefined, 40, 100)).toEqual({ first: 43, last: 45 });
    expect(stepsToProfile(undefined, 0, 4)).toEqual({ first: 2, last: 4 });
    expect(stepsToProfile(undefined, 0, 2)).toEqual({ first: 1, last: 2 });
    expect(stepsToProfile(undefined, 8, 8)).toBeUndefined();
  });

  it('are one or a range, which the run must do', async () => {
    expect(stepsToProfile('7', 0, 9)).toEqual({ first: 7, last: 7 });
    expect(stepsToProfile('7-9', 6, 9)).toEqual({ first: 7, last: 9 });
    expect(() => stepsToProfile('7-9', 7, 9)).toThrow('--profile-steps 7-9: this run does the steps 8 to 9');
    expect(await resolve(...must, '--profile', 'p', '--profile-steps', '7-9')).toMatchObject({
      profile: 'p',
      profileSteps: '7-9',
    });
    const file = config('profile.yaml', 'profile: p\nprofileSteps: 4\n');
    expect(await resolve(...must, '--config', file)).toMatchObject({ profileSteps: '4' });
    for (const wrong of ['0', '9-7', 'a', '3-'])
      await expect(resolve(...must, '--profile', 'p', '--profile-steps', wrong)).rejects.toThrow(
        `--profile-steps: got "${wrong}", wanted a step such as 7, or steps such as 7-9`,
      );
    await expect(resolve(...must, '--profile-steps', '3')).rejects.toThrow('profileSteps: wants profile');
  });
});

describe('finetune flags', () => {
  it('fill in defaults', async () => {
    expect(await resolve(...must)).toMatchObject({
      nproc: 1,
      batchSize: 8,
      lr: 2e-5,
      schedule: 'cosine',
      betas: [0.9, 0.999],
      lossOn: 'completions',
      strategy: 'FULL_SHARD',
      evalAtStart: true,
      tensorboard: true,
      samplePrompts: [],
    });
  });

  it('parse numbers, lists, yes and no, and a value that may be left out', async () => {
    const flags = ['--lr', '6e-4', '--betas', '0.9,0.95', '--packing', '--no-report', '--no-eval-at-start', '--resume'];
    const prompts = ['--sample-prompt', 'one', '--sample-prompt', 'two'];
    expect(await resolve(...must, ...flags, ...prompts)).toMatchObject({
      lr: 6e-4,
      betas: [0.9, 0.95],
      packing: true,
      report: false,
      evalAtStart: false,
      resume: 'auto',
      samplePrompts: ['one', 'two'],
    });
    expect(await resolve(...must, '--resume', 'o/checkpoint-5')).toMatchObject({ resume: 'o/checkpoint-5' });
  });

  it('name the flag, what was got and what is wanted, all problems at once', async () => {
    const error = resolve('--model', 'm', '--data', 'd', '--batch-size', '2.5', '--schedule', 'step', '--betas', '1,2');
    await expect(error).rejects.toThrow('--out is missing: folder for the model');
    await expect(error).rejects.toThrow('--batch-size: got "2.5", wanted a whole number of at least 1');
    await expect(error).rejects.toThrow('--schedule: got "step", wanted one of cosine, linear, constant');
    await expect(error).rejects.toThrow('--betas: got "1,2", wanted two numbers');
  });

  it('reject what contradicts', async () => {
    const hybrid = ['--strategy', 'HYBRID_SHARD', '--hybrid-shard-degree', '3', '--nproc', '4'];
    await expect(resolve(...must, ...hybrid)).rejects.toThrow('got 3, wanted a divisor of the 4 ranks');
    await expect(resolve(...must, '--hybrid-shard-degree', '2')).rejects.toThrow('got FULL_SHARD');
    await expect(resolve(...must, '--eval-steps', '5')).rejects.toThrow('wants evalData');
    await expect(resolve(...must, '--optimizer', 'sgd', '--betas', '0.8,0.9', '--eps', '1e-6')).rejects.toThrow(
      /betas: is a setting of adamw.*, got optimizer sgd\neps: is a setting of adamw.*, got optimizer sgd/,
    );
    await expect(resolve(...must, '--momentum', '0.5')).rejects.toThrow(
      'momentum: is a setting of sgd, got optimizer adamw',
    );
    const nesterov = ['--optimizer', 'sgd', '--nesterov'];
    await expect(resolve(...must, ...nesterov, '--dampening', '0.5')).rejects.toThrow(
      'nesterov: wants a momentum and no dampening, got 0.9 and 0.5',
    );
    expect(await resolve(...must, ...nesterov)).toMatchObject({ optimizer: 'sgd', nesterov: true });
  });

  it('have a help with every option and an example', () => {
    let help = '';
    const command = buildFinetuneCommand().configureOutput({
      writeOut: (text) => (help += text),
      getOutHelpWidth: () => 100,
    });
    command.outputHelp();
    for (const flag of ['--model', '--max-grad-norm', '--no-tensorboard', '--activation-checkpointing', '--config']) {
      expect(help).toContain(flag);
    }
    expect(help).toContain('rankzero finetune --model');
    expect(help).toContain('(default: 2e-5)');
  });
});

describe('finetune config file', () => {
  it('takes camelCase and kebab-case, YAML and JSON, and flags win', async () => {
    const yaml = config(
      'a.yaml',
      'model: m\ndata: d\nout: o\nbatch-size: 2\ngradAccum: 4\nsample-prompt: [hi]\nlr: 1e-4\n',
    );
    expect(await resolve('--config', yaml, '--lr', '5e-5')).toMatchObject({
      batchSize: 2,
      gradAccum: 4,
      lr: 5e-5,
      samplePrompts: ['hi'],
    });
    const json = config('a.json', '{ "model": "m", "data": "d", "out": "o", "betas": [0.8, 0.9], "resume": true }');
    expect(await resolve('--config', json)).toMatchObject({ betas: [0.8, 0.9], resume: 'auto' });
  });

  it('names file and key, and the nearest key that exists', async () => {
    const yaml = config('b.yaml', 'model: m\ndata: d\nout: o\nbatchsize: 2\nlr: fast\nlogSteps: 0\n');
    const error = resolve('--config', yaml, '--log-steps', '-1');
    await expect(error).rejects.toThrow(`${yaml}: batchsize: no such option; did you mean batchSize?`);
    await expect(error).rejects.toThrow(`${yaml}: lr: got "fast", wanted a number of at least 0`);
    await expect(error).rejects.toThrow('--log-steps: got "-1", wanted a whole number');
  });

  it('says why it cannot be read', async () => {
    await expect(resolve('--config', join(dir, 'none.yaml'))).rejects.toThrow(/--config: cannot read .*none\.yaml/);
    await expect(resolve('--config', config('c.yaml', '- a\n- b\n'))).rejects.toThrow('got a list');
    await expect(resolve('--config', config('c.json', '{'))).rejects.toThrow(/c\.json: /);
  });
});

describe('finetune files', () => {
  const options = async (fields: Partial<FinetuneOptions>): Promise<FinetuneOptions> =>
    resolveFinetuneOptions({ model: 'org/name', data: config('d.jsonl', '{}\n'), out: join(dir, 'out'), ...fields });

  it('are looked at before any rank is started', async () => {
    expect(checkFiles(await options({}))).toBeUndefined();
    const bad = await options({
      model: dir,
      data: join(dir, 'none'),
      evalData: config('e', ''),
      out: config('f', 'x'),
    });
    for (const text of [
      '--model: ',
      'no config.json',
      '--data: no such file',
      '--eval-data: the file is empty',
      '--out: not a folder',
    ]) {
      expect(() => checkFiles(bad)).toThrow(text);
    }
  });
});

describe('generate', () => {
  it('parses numbers and says what they must be', () => {
    const command = buildGenerateCommand()
      .exitOverride()
      .configureOutput({ writeErr: () => {} });
    expect(command.parse(['--model', 'm', '--temperature', '0.7', '--no-chat'], { from: 'user' }).opts()).toMatchObject(
      {
        temperature: 0.7,
        topP: 1,
        chat: false,
        maxNewTokens: 256,
      },
    );
    const parse = () => command.parse(['--model', 'm', '--top-p', '0'], { from: 'user' });
    expect(parse).toThrow('Wanted a number above 0, at most 1.');
  });

  it('streams text a token at a time, holding back what ends within a character', () => {
    const bytes = [...Buffer.from('whale 🐋 é!')];
    const tokenizer = {
      decode: (ids: Iterable<number | bigint>) => Buffer.from(Array.from(ids, Number)).toString('utf8'),
    };
    const stream = new TextStream(tokenizer);
    const pieces = bytes.map((byte) => stream.push(byte));
    expect(pieces.join('')).toBe('whale 🐋 é!');
    expect(pieces.filter((piece) => piece.includes('\ufffd'))).toEqual([]);
    expect(pieces[0]).toBe('w');
  });
});

describe('nearest', () => {
  it('suggests what is near and nothing else', () => {
    expect(nearest('finetun', ['finetune', 'run'])).toBe('finetune');
    expect(nearest('MAXSTEPS', ['maxSteps', 'saveSteps'])).toBe('maxSteps');
    expect(nearest('banana', ['finetune', 'run'])).toBeUndefined();
  });
});
