// The manifests of examples/cluster/kubeflow: their fields, their commands, and the secret as a file. With RANKZERO_CRDS=FOLDER,
// also against the CustomResourceDefinitions (*.yaml) there, whole.
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { parseAllDocuments } from 'yaml';
import { buildFinetuneCommand } from '../../src/cli/finetune.ts';
import { givenOptions } from '../../src/cli/flags.ts';
import { parseFinetuneOptions } from '../../src/train/options_schema.ts';
import { type CrdSchema, crdProblems } from './crd.ts';
import { manifestSchemas } from './manifest_schemas.ts';

const folder = join(import.meta.dirname, '../../examples/cluster/kubeflow');
const documents = (file: string): { kind: string }[] =>
  parseAllDocuments(readFileSync(file, 'utf8'), { merge: true }).map((one) => one.toJS() as { kind: string });
const objects = readdirSync(folder).flatMap((file) => documents(join(folder, file)));
const find = <T>(kind: string): T => objects.find((one) => one.kind === kind) as T;

interface Pod {
  terminationGracePeriodSeconds: number;
  containers: [{ command: string[]; args: string[]; env: { name: string; value: string }[]; volumeMounts: unknown[] }];
  volumes: unknown[];
}
interface PyTorchJob {
  spec: { pytorchReplicaSpecs: Record<'Master' | 'Worker', { template: { spec: Pod } }> };
}
interface TrainingRuntime {
  kind: string;
  metadata: { name: string };
  spec: { template: { spec: { replicatedJobs: [{ template: { spec: { template: { spec: Pod } } } }] } } };
}
interface TrainJob {
  spec: { runtimeRef: object; trainer: { args: string[] } };
}
const { Master, Worker } = find<PyTorchJob>('PyTorchJob').spec.pytorchReplicaSpecs;
const runtime = find<TrainingRuntime>('TrainingRuntime');
const trainerPod = runtime.spec.template.spec.replicatedJobs[0].template.spec.template.spec;
const job = find<TrainJob>('TrainJob');

it.each(Object.keys(manifestSchemas) as (keyof typeof manifestSchemas)[])('%s has the fields of its CRD', (kind) => {
  expect(() => manifestSchemas[kind].parse(find(kind))).not.toThrow();
});

it('a field that is misspelled, of another type or missing is found', () => {
  const schema = manifestSchemas.TrainJob;
  expect(() => schema.parse({ ...job, spec: { ...job.spec, trainer: { ...job.spec.trainer, nodes: 2 } } })).toThrow(
    'nodes',
  );
  expect(() => schema.parse({ ...job, spec: { ...job.spec, trainer: { numProcPerNode: 'auto' } } })).toThrow('number');
  expect(() => schema.parse({ ...job, spec: {} })).toThrow('runtimeRef');
  expect(
    crdProblems(
      { a: 1, b: 'x', c: [true] },
      {
        type: 'object',
        required: ['d'],
        properties: { a: { type: 'string' }, c: { type: 'array', items: { type: 'integer' } } },
      },
    ),
  ).toEqual([': d is missing', '.a: integer, wanted string', ': b is unknown', '.c[0]: boolean, wanted integer']);
});

it('the job refers to the runtime beside it', () => {
  expect(job.spec.runtimeRef).toMatchObject({ kind: runtime.kind, name: runtime.metadata.name });
});

it.each([
  ['PyTorchJob, master', Master.template.spec, Master.template.spec.containers[0].args],
  ['PyTorchJob, worker', Worker.template.spec, Worker.template.spec.containers[0].args],
  ['TrainJob', trainerPod, job.spec.trainer.args],
])('%s: a command that rankzero takes, time to save, and the secret in a file', async (_, pod, args) => {
  const { command, env, volumeMounts } = pod.containers[0];
  expect(command).toEqual(['rankzero', 'finetune']);
  const given = buildFinetuneCommand().exitOverride().parse(args, { from: 'user' }).opts();
  const { values, where } = await givenOptions(given);
  expect(parseFinetuneOptions(values, where)).toMatchObject({ out: '/job/out', resume: 'auto', saveSteps: 100 });
  const variables = Object.fromEntries(env.map(({ name, value }) => [name, value]));
  expect(variables).toEqual({ RANKZERO_SECRET_FILE: '/run/secrets/rankzero/secret', RANKZERO_GRACE: '110' });
  expect(pod.terminationGracePeriodSeconds).toBeGreaterThan(Number(variables.RANKZERO_GRACE));
  expect(volumeMounts).toContainEqual({ name: 'secret', mountPath: '/run/secrets/rankzero', readOnly: true });
  expect(pod.volumes).toContainEqual({ name: 'secret', secret: { secretName: 'rankzero' } });
});

const crds = process.env.RANKZERO_CRDS;

describe.skipIf(!crds)(`whole CRDs${crds ? '' : ': RANKZERO_CRDS names no folder'}`, () => {
  interface Crd {
    kind: string;
    spec: { names: { kind: string }; versions: { name: string; schema: { openAPIV3Schema: CrdSchema } }[] };
  }
  const files = crds ? readdirSync(crds).filter((name) => name.endsWith('.yaml')) : [];
  const definitions = files.flatMap((file) => documents(join(crds!, file)) as Crd[]);

  it.each(objects.map((object) => [object.kind, object]))('%s is valid', (kind, object) => {
    const crd = definitions.find((one) => one?.spec?.names?.kind === kind);
    expect(crd, `no CRD of ${kind} in ${crds}`).toBeDefined();
    const { apiVersion } = object as unknown as { apiVersion: string };
    const version = crd!.spec.versions.find((one) => one.name === apiVersion.split('/')[1]);
    expect(crdProblems(object, version!.schema.openAPIV3Schema)).toEqual([]);
  });
});
