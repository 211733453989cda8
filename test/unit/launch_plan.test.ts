// What a command that starts ranks does under each launcher: its host's ranks, or the one rank that it is. Never two jobs.
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { parseRun } from '../../src/cli/run.ts';
import {
  countRanks,
  describePlan,
  type NodePlan,
  parseAddress,
  planLaunch,
} from '../../src/distributed/launch_plan.ts';

const folder = mkdtempSync(join(tmpdir(), 'rankzero-plan-'));
afterAll(() => rmSync(folder, { recursive: true }));

const node = (...args: Parameters<typeof planLaunch>): Record<string, unknown> => {
  const plan = planLaunch(...args);
  if (plan.kind === 'rank') throw new Error(`it is rank ${plan.environment.rank}`);
  return Object.fromEntries(
    (['nnodes', 'nodeRank', 'nproc', 'masterAddr', 'masterPort'] as const).map((key) => [key, plan[key]?.value]),
  );
};

describe('flags', () => {
  it('of one host ask for ranks alone', () => {
    expect(node({ nproc: 2 }, {})).toEqual({ nnodes: 1, nodeRank: 0, nproc: 2 });
    expect(node({ nproc: 2, masterPort: 29876 }, { MASTER_PORT: '1' })).toMatchObject({ masterPort: 29876 });
    expect(node({}, {}, { otherwise: 1 })).toMatchObject({ nnodes: 1, nproc: 1 });
    expect(() => planLaunch({}, {})).toThrow('--nproc N is missing');
    expect(describePlan(planLaunch({ nproc: 2 }, {}))).toBeUndefined();
    expect(() => planLaunch({ nnodes: 2 }, {}, { otherwise: 1, nameOf: (key) => `f.yaml: ${key}` })).toThrow(
      '--node-rank R is missing',
    );
  });

  it('of several hosts', () => {
    const flags = { nproc: 2, nnodes: 3, nodeRank: 1, masterAddress: 'h0:4000' };
    expect(node(flags, {})).toEqual({ nnodes: 3, nodeRank: 1, nproc: 2, masterAddr: 'h0', masterPort: 4000 });
    expect(node({ ...flags, masterAddress: 'h0' }, {})).toMatchObject({ masterPort: 29500 });
    expect(node({ ...flags, masterAddress: undefined }, { MASTER_ADDR: 'm', MASTER_PORT: '5' })).toMatchObject({
      masterAddr: 'm',
      masterPort: 5,
    });
    expect(describePlan(planLaunch(flags, {}))).toBe(
      'node 1 (--node-rank) of 3 (--nnodes), 2 ranks here (--nproc), master h0 (--master-address), port 4000 (--master-address)',
    );
    expect(() => planLaunch({ ...flags, nodeRank: undefined }, {})).toThrow('--node-rank R is missing');
    expect(() => planLaunch({ ...flags, nodeRank: 3 }, {})).toThrow(
      '--node-rank is 3, but 3 nodes (--nnodes) have numbers from 0 to 2',
    );
    expect(() => planLaunch({ ...flags, masterAddress: undefined }, {})).toThrow(
      '--master-address HOST[:PORT] is missing',
    );
    expect(() => planLaunch({ ...flags, masterPort: 5 }, {})).toThrow(
      '--master-port 5 contradicts --master-address h0:4000',
    );
  });

  it('have addresses of both families', () => {
    expect(parseAddress('h0')).toEqual({ host: 'h0', port: undefined });
    expect(parseAddress('10.0.0.1:29500')).toEqual({ host: '10.0.0.1', port: 29500 });
    expect(parseAddress('[::1]:29500')).toEqual({ host: '::1', port: 29500 });
    expect(parseAddress('[fe80::1%e0]')).toEqual({ host: 'fe80::1%e0', port: undefined });
    expect(parseAddress('fd90::10')).toEqual({ host: 'fd90::10', port: undefined });
    for (const bad of ['', 'h0:', 'h0:x', 'h0:70000', '[::1', '[::1]x', ':5', 'a b'])
      expect(() => parseAddress(bad)).toThrow(`--master-address needs HOST, HOST:PORT or [IPv6]:PORT but got "${bad}"`);
  });

  it('are read in the spellings of torchrun', () => {
    const { flags, script, args } = parseRun([
      '--nproc_per_node=gpu',
      '--nnodes',
      '2',
      '--node_rank=1',
      '--master-addr',
      '[::1]:3',
      '--master_port',
      '3',
      'x.js',
      '--nproc',
    ]);
    expect(flags).toEqual({ nproc: 'gpu', nnodes: 2, nodeRank: 1, masterAddress: '[::1]:3', masterPort: 3 });
    expect([script, args]).toEqual(['x.js', ['--nproc']]);
    expect(() => parseRun(['--node-rank', '-1', 'x.js'])).toThrow(
      '--node-rank needs a whole number from 0 to 65535 but got "-1"',
    );
  });

  it('count GPUs', async () => {
    expect(await countRanks(3, async () => 2)).toBe(3);
    expect(await countRanks('gpu', async () => 2)).toBe(2);
    expect(await countRanks('auto', async () => 2)).toBe(2);
    expect(await countRanks('auto', async () => 0)).toBe(1);
    await expect(countRanks('gpu', async () => 0)).rejects.toThrow('no GPU is visible on this host');
  });
});

const slurm = (tasks: string, rank: number, nodeId = rank, localId = 0) => ({
  SLURM_STEP_ID: '0',
  SLURM_PROCID: String(rank),
  SLURM_NTASKS: String(tasks === '2,1' ? 3 : tasks === '2(x2)' ? 4 : 2),
  SLURM_LOCALID: String(localId),
  SLURM_NODEID: String(nodeId),
  SLURM_STEP_TASKS_PER_NODE: tasks,
  SLURM_STEP_NODELIST: 'h[0-1]',
  SLURM_JOB_ID: '7',
});

describe('under Slurm', () => {
  it('each task is a rank without --nproc', () => {
    const plan = planLaunch({}, slurm('1(x2)', 0), { otherwise: 1 });
    expect(plan).toMatchObject({ kind: 'rank', environment: { rank: 0, worldSize: 2, masterAddr: 'h0' } });
    expect(describePlan(plan)).toBe(
      'joining as a rank, 2 (SLURM_NTASKS) in all on 2 nodes, 1 on this host; this is rank 0 (SLURM_PROCID), master h0 (SLURM_STEP_NODELIST), port 29514 (SLURM_JOB_ID)',
    );
    expect(planLaunch({}, slurm('2,1', 2, 1), { otherwise: 1 })).toMatchObject({
      environment: { rank: 2, localWorldSize: 1 },
    });
    expect(() => planLaunch({ nnodes: 2 }, slurm('1(x2)', 1))).toThrow(
      '--nnodes is for one launcher on each host, but this process is rank 1 of 2 (SLURM_PROCID, SLURM_NTASKS)',
    );
  });

  it('one task on each host is its launcher with --nproc', () => {
    const plan = planLaunch({ nproc: 4 }, slurm('1(x2)', 1));
    expect(plan).toEqual({
      kind: 'node',
      nnodes: { value: 2, source: 'SLURM_NTASKS' },
      nodeRank: { value: 1, source: 'SLURM_PROCID' },
      nproc: { value: 4, source: '--nproc' },
      masterAddr: { value: 'h0', source: 'SLURM_STEP_NODELIST' },
      masterPort: { value: 29514, source: 'SLURM_JOB_ID' },
      isPlain: false,
    });
  });

  it('several tasks on a host and --nproc are refused with the numbers', () => {
    expect(() => planLaunch({ nproc: 2 }, slurm('2(x2)', 0))).toThrow(
      'this process is one of 4 (SLURM_NTASKS), 2, 2 on its hosts, and --nproc 2 would start 2 ranks in each of them',
    );
    // This host has one, another has two.
    expect(() => planLaunch({ nproc: 2 }, slurm('2,1', 2, 1))).toThrow('one of 3 (SLURM_NTASKS), 2, 1 on its hosts');
  });

  it('an sbatch script is the launcher of one host', () => {
    expect(node({ nproc: 2 }, { ...slurm('2(x2)', 0), SLURM_STEP_ID: undefined })).toMatchObject({
      nnodes: 1,
      nproc: 2,
    });
  });
});

describe('under other launchers', () => {
  const openMpi = (localSize: string) => ({
    OMPI_COMM_WORLD_RANK: '1',
    OMPI_COMM_WORLD_SIZE: '2',
    OMPI_COMM_WORLD_LOCAL_RANK: '0',
    OMPI_COMM_WORLD_LOCAL_SIZE: localSize,
  });

  it('Open MPI: a rank, or a host', () => {
    expect(planLaunch({ masterAddress: 'h0:9' }, openMpi('1'), { otherwise: 1 })).toMatchObject({
      kind: 'rank',
      env: { MASTER_ADDR: 'h0', MASTER_PORT: '9' },
      environment: { rank: 1, masterAddr: 'h0', masterPort: 9 },
    });
    expect(node({ nproc: 2, masterAddress: 'h0' }, openMpi('1'))).toEqual({
      nnodes: 2,
      nodeRank: 1,
      nproc: 2,
      masterAddr: 'h0',
      masterPort: 29500,
    });
    expect(() => planLaunch({ nproc: 2 }, openMpi('2'))).toThrow('one of 2 (OMPI_COMM_WORLD_SIZE), 2 on this host');
  });

  it('torchrun: a rank; nothing nests in it', () => {
    const env = {
      RANK: '1',
      LOCAL_RANK: '1',
      WORLD_SIZE: '2',
      LOCAL_WORLD_SIZE: '2',
      MASTER_ADDR: 'h0',
      MASTER_PORT: '4',
    };
    expect(planLaunch({}, env)).toMatchObject({ kind: 'rank', environment: { rank: 1, source: 'torchrun' } });
    expect(() => planLaunch({ nproc: 2 }, env)).toThrow('2 on this host, and --nproc 2 would start 2 ranks in each');
  });

  it('MPICH: a rank', () => {
    const env = { PMI_RANK: '1', PMI_SIZE: '2', MPI_LOCALRANKID: '0', MPI_LOCALNRANKS: '1', MASTER_ADDR: 'h0' };
    expect(planLaunch({}, env)).toMatchObject({ kind: 'rank', environment: { rank: 1, source: 'pmi' } });
  });

  it('PyTorchJob: RANK is the pod', () => {
    const pod = { RANK: '1', WORLD_SIZE: '4', MASTER_ADDR: 'm', MASTER_PORT: '23456', PET_NPROC_PER_NODE: '2' };
    const want = { nnodes: 2, nodeRank: 1, nproc: 2, masterAddr: 'm', masterPort: 23456 };
    expect(node({}, pod, { otherwise: 1 })).toEqual(want);
    expect(node({}, { ...pod, PET_NNODES: '2', PET_NODE_RANK: '1' })).toEqual(want);
    expect(node({ nproc: 3 }, { ...pod, PET_NNODES: '2' })).toEqual({ ...want, nproc: 3 });
    expect(() => planLaunch({}, { ...pod, WORLD_SIZE: '3' })).toThrow(
      'WORLD_SIZE 3 is not a multiple of PET_NPROC_PER_NODE 2: set PET_NNODES',
    );
    expect(() => planLaunch({}, { ...pod, PET_NNODES: '1:4' })).toThrow('a job has a fixed number of nodes');
    expect(planLaunch({}, { ...pod, WORLD_SIZE: '2', PET_NPROC_PER_NODE: '1' })).toMatchObject({ kind: 'rank' });
  });

  it('TrainJob: PET_* alone', () => {
    const pod = {
      PET_NNODES: '2',
      PET_NODE_RANK: '1',
      PET_NPROC_PER_NODE: 'gpu',
      PET_MASTER_ADDR: 'j-node-0-0.j',
      PET_MASTER_PORT: '29400',
    };
    expect(node({}, pod)).toEqual({
      nnodes: 2,
      nodeRank: 1,
      nproc: 'gpu',
      masterAddr: 'j-node-0-0.j',
      masterPort: 29400,
    });
    expect(describePlan(planLaunch({}, pod))).toBe(
      'node 1 (PET_NODE_RANK) of 2 (PET_NNODES), gpu ranks here (PET_NPROC_PER_NODE), ' +
        'master j-node-0-0.j (PET_MASTER_ADDR), port 29400 (PET_MASTER_PORT)',
    );
  });

  it('SageMaker: a file of hosts, in the order of their names', () => {
    const file = join(folder, 'resourceconfig.json');
    const env = { RANKZERO_RESOURCE_CONFIG: file };
    const write = (config: unknown): void => writeFileSync(file, JSON.stringify(config));
    write({ current_host: 'algo-2', hosts: ['algo-2', 'algo-1'], network_interface_name: 'eth0' });
    const want = { nnodes: 2, nodeRank: 1, masterAddr: 'algo-1', masterPort: 29500 };
    expect(node({ nproc: 2 }, env)).toEqual({ ...want, nproc: 2 });
    expect(node({}, { ...env, SM_NUM_GPUS: '8' })).toEqual({ ...want, nproc: 8 });
    expect((planLaunch({}, env, { otherwise: 1 }) as NodePlan).nnodes.source).toBe(file);
    write({ current_host: 'algo-3', hosts: ['algo-1'] });
    expect(() => planLaunch({}, env, { otherwise: 1 })).toThrow(
      'the current host algo-3 is not among the hosts algo-1',
    );
    writeFileSync(file, '{');
    expect(() => planLaunch({}, env, { otherwise: 1 })).toThrow(`${file} is not JSON`);
  });
});
