// The fields of Kubernetes objects that our manifests use, strictly: an unknown or misspelled one is an error, as it is for
// `kubectl --validate=strict`. Written after the CRDs of training-operator v1.9.4 (PyTorchJob) and Trainer v2.0.0 and v2.3.0
// (TrainJob, TrainingRuntime); what only one of these two has is left out.
import { z } from 'zod';

const name = z.string().regex(/^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$/);
const words = z.record(z.string(), z.string());
const metadata = z.strictObject({ name, labels: words.optional(), annotations: words.optional() });
const count = z.int().min(1);
const path = z.string().startsWith('/');
const quantity = z.union([z.int().min(0), z.string().regex(/^\d+(\.\d+)?([KMGTPE]i?|m|k)?$/)]);
const resources = z.strictObject({
  limits: z.record(z.string(), quantity).optional(),
  requests: z.record(z.string(), quantity).optional(),
});
const env = z.array(z.strictObject({ name: z.string().min(1), value: z.string() })).max(128);
const texts = z.array(z.string()).max(128);

const container = z.strictObject({
  name,
  image: z.string().min(1).max(500),
  command: texts.optional(),
  args: texts.optional(),
  env: env.optional(),
  resources: resources.optional(),
  volumeMounts: z.array(z.strictObject({ name, mountPath: path, readOnly: z.boolean().optional() })).optional(),
});

/** A volume has one source. */
const volume = z.union([
  z.strictObject({ name, persistentVolumeClaim: z.strictObject({ claimName: name }) }),
  z.strictObject({ name, secret: z.strictObject({ secretName: name, defaultMode: z.int().max(0o777).optional() }) }),
  z.strictObject({
    name,
    emptyDir: z.strictObject({ medium: z.enum(['', 'Memory']), sizeLimit: quantity.optional() }),
  }),
]);

const pod = z
  .strictObject({
    restartPolicy: z.enum(['Always', 'OnFailure', 'Never']).optional(),
    terminationGracePeriodSeconds: z.int().min(0).optional(),
    containers: z.array(container).min(1),
    volumes: z.array(volume).optional(),
  })
  .refine(({ containers, volumes = [] }) => {
    const mounted = containers.flatMap(({ volumeMounts = [] }) => volumeMounts.map((mount) => mount.name));
    return mounted.every((wanted) => volumes.some((one) => one.name === wanted));
  }, 'a volume that is mounted must be one of the volumes');

const hasContainer = (wanted: string) => (spec: z.infer<typeof pod>) =>
  spec.containers.some((one) => one.name === wanted);

const replica = z.strictObject({
  replicas: count,
  restartPolicy: z.enum(['Always', 'OnFailure', 'Never', 'ExitCode']).optional(),
  template: z.strictObject({
    metadata: z.strictObject({ labels: words.optional(), annotations: words.optional() }).optional(),
    spec: pod.refine(hasContainer('pytorch'), 'the operator looks for a container named pytorch'),
  }),
});

const pyTorchJob = z.strictObject({
  apiVersion: z.literal('kubeflow.org/v1'),
  kind: z.literal('PyTorchJob'),
  metadata,
  spec: z.strictObject({
    nprocPerNode: z
      .string()
      .regex(/^(auto|cpu|gpu|[1-9]\d*)$/)
      .optional(), // text, also for a number
    runPolicy: z
      .strictObject({
        cleanPodPolicy: z.enum(['All', 'Running', 'None']).optional(),
        backoffLimit: z.int().min(0).optional(),
        activeDeadlineSeconds: count.optional(),
        ttlSecondsAfterFinished: z.int().min(0).optional(),
        suspend: z.boolean().optional(),
      })
      .optional(),
    pytorchReplicaSpecs: z.strictObject({
      Master: replica.refine(({ replicas }) => replicas === 1, 'there is one master'),
      Worker: replica.optional(),
    }),
  }),
});

const jobTemplate = z.strictObject({
  metadata: z.strictObject({ labels: words.optional() }).optional(),
  spec: z.strictObject({
    backoffLimit: z.int().min(0).optional(),
    template: z.strictObject({
      spec: pod.refine(hasContainer('node'), 'Trainer looks for a container named node'),
    }),
  }),
});

const trainingRuntime = z.strictObject({
  apiVersion: z.literal('trainer.kubeflow.org/v1alpha1'),
  kind: z.enum(['TrainingRuntime', 'ClusterTrainingRuntime']),
  metadata,
  spec: z.strictObject({
    mlPolicy: z.strictObject({ numNodes: count, torch: z.strictObject({}) }),
    template: z.strictObject({
      spec: z.strictObject({
        failurePolicy: z.strictObject({ maxRestarts: z.int().min(0) }).optional(),
        replicatedJobs: z.array(z.strictObject({ name, template: jobTemplate })).min(1),
      }),
    }),
  }),
});

const trainJob = z.strictObject({
  apiVersion: z.literal('trainer.kubeflow.org/v1alpha1'),
  kind: z.literal('TrainJob'),
  metadata,
  spec: z.strictObject({
    runtimeRef: z.strictObject({
      apiGroup: z.literal('trainer.kubeflow.org'),
      kind: z.enum(['TrainingRuntime', 'ClusterTrainingRuntime']),
      name,
    }),
    trainer: z
      .strictObject({
        image: z.string().min(1).max(500).optional(),
        command: texts.optional(),
        args: texts.optional(),
        // Names that the torch plugin sets are refused.
        env: env.refine((all) => all.every((one) => !one.name.startsWith('PET_'))).optional(),
        numNodes: count.optional(),
        numProcPerNode: count.optional(),
        resourcesPerNode: resources.optional(),
      })
      .optional(),
    suspend: z.boolean().optional(),
  }),
});

/** By kind. */
export const manifestSchemas: Readonly<Record<'PyTorchJob' | 'TrainingRuntime' | 'TrainJob', z.ZodType>> = {
  PyTorchJob: pyTorchJob,
  TrainingRuntime: trainingRuntime,
  TrainJob: trainJob,
};
