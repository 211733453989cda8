#!/usr/bin/env node
// The program of a SageMaker training container: SageMaker starts `train` on each instance, with everything below /opt/ml.
// Run: on two hosts in namespaces, each with an /opt/ml made for the test (test/hosts/sagemaker.test.ts). Not run: on SageMaker.
//
//   hyperparameters     options of `rankzero finetune`, as its flags are spelled, with - or _: lr, max-steps, eval_steps …
//   channel model       a Hugging Face folder
//   channel train       one .jsonl file; channel eval, if there is one, another
//   channel rankzero-secret   for several instances: one file `secret`, the output of `openssl rand -hex 32`
//
// Each instance saves what its ranks hold to /opt/ml/checkpoints, which SageMaker copies to S3 and back. A job that it stops
// (StopTrainingJob, managed spot) saves within its two minutes; started again with these checkpoints, it goes on. The model ends
// up in /opt/ml/model, metrics and report in /opt/ml/output/data, of the first instance.
import { spawn } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const base = process.env.RANKZERO_SAGEMAKER_DIR ?? '/opt/ml';
const input = (...names) => join(base, 'input', ...names);
const readJson = (path) => JSON.parse(readFileSync(path, 'utf8'));

/** SageMaker makes text of all values; its SDK makes JSON of them first. */
function value(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

/** The one .jsonl file of a channel; undefined without the channel. */
function jsonl(channel) {
  const folder = input('data', channel);
  if (!existsSync(folder)) return undefined;
  const files = readdirSync(folder).filter((name) => name.endsWith('.jsonl'));
  if (files.length !== 1) throw new Error(`channel ${channel} must have one .jsonl file but has ${files.length}`);
  return join(folder, files[0]);
}

function options(out) {
  const given = existsSync(input('config/hyperparameters.json')) ? readJson(input('config/hyperparameters.json')) : {};
  const own = Object.entries(given).filter(([name]) => !name.startsWith('sagemaker_'));
  return {
    nproc: 'auto', // a rank for each GPU
    resume: 'auto',
    saveSteps: 50,
    ...Object.fromEntries(own.map(([name, text]) => [name.replaceAll('_', '-'), value(text)])),
    model: input('data/model'),
    data: jsonl('train'),
    evalData: jsonl('eval'),
    out,
  };
}

/** Resolves to the exit code and the last of what was said on stderr. */
function finetune(config) {
  const file = join(mkdtempSync(join(tmpdir(), 'rankzero-')), 'options.json');
  writeFileSync(file, JSON.stringify(config));
  const secret = input('data/rankzero-secret/secret');
  const env = {
    RANKZERO_GRACE: '110',
    ...process.env,
    RANKZERO_RESOURCE_CONFIG: input('config/resourceconfig.json'),
    ...(existsSync(secret) ? { RANKZERO_SECRET_FILE: secret } : {}),
  };
  const child = spawn('rankzero', ['finetune', '--config', file], { env, stdio: ['ignore', 'inherit', 'pipe'] });
  let last = '';
  child.stderr.setEncoding('utf8').on('data', (text) => {
    process.stderr.write(text);
    last = (last + text).slice(-1000);
  });
  for (const signal of ['SIGTERM', 'SIGINT']) process.on(signal, () => child.kill(signal));
  return new Promise((resolve, reject) => {
    child.once('error', reject).once('close', (code) => resolve({ code: code ?? 1, last }));
  });
}

/** What SageMaker keeps of a job that ended well. */
function deliver(out) {
  const reports = ['metrics.jsonl', 'report.html', 'tensorboard'];
  for (const name of readdirSync(out)) {
    if (name.startsWith('checkpoint-')) continue;
    const to = join(base, reports.includes(name) ? 'output/data' : 'model');
    mkdirSync(to, { recursive: true });
    cpSync(join(out, name), join(to, name), { recursive: true });
  }
}

try {
  const { hosts, current_host: current } = readJson(input('config/resourceconfig.json'));
  const out = join(base, 'checkpoints');
  const { code, last } = await finetune(options(out));
  if (code === 0 && current === hosts.toSorted()[0]) deliver(out);
  // SIGTERM is no failure: SageMaker says itself why it stopped the job.
  if (code !== 0 && code !== 143) throw Object.assign(new Error(last), { exitCode: code });
  process.exitCode = code;
} catch (error) {
  console.error(error.exitCode ? `rankzero finetune ended with code ${error.exitCode}` : error.message);
  mkdirSync(join(base, 'output'), { recursive: true });
  writeFileSync(join(base, 'output/failure'), error.message);
  process.exitCode = error.exitCode ?? 1;
}
