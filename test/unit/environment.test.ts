// A rank's place in its job, from the variables of every launcher that is understood.
import { describe, expect, it } from 'vitest';
import { rankEnvironment } from '../../src/distributed/environment.ts';
import { slurmHosts, slurmTasks } from '../../src/distributed/launchers/slurm.ts';

const torchrun = {
  RANK: '1',
  LOCAL_RANK: '1',
  WORLD_SIZE: '2',
  LOCAL_WORLD_SIZE: '2',
  MASTER_ADDR: '127.0.0.1',
  MASTER_PORT: '29500',
};

describe('no launcher', () => {
  it('is a world of one', () => {
    expect(rankEnvironment({})).toMatchObject({
      source: 'single',
      rank: 0,
      worldSize: 1,
      localRank: 0,
      isOneHost: true,
    });
    expect(rankEnvironment({ SLURM_JOB_ID: '7', MASTER_PORT: '1234' }).source).toBe('single');
  });
});

describe('torchrun', () => {
  it('is read', () => {
    expect(rankEnvironment(torchrun)).toEqual({
      source: 'torchrun',
      rank: 1,
      worldSize: 2,
      localRank: 1,
      localWorldSize: 2,
      masterAddr: '127.0.0.1',
      masterPort: 29500,
      storePort: 29501,
      isOneHost: true,
    });
    expect(rankEnvironment({ ...torchrun, RANKZERO_PORT: '4000' }).storePort).toBe(4000);
    const far = { ...torchrun, WORLD_SIZE: '4', RANK: '3', MASTER_ADDR: 'node0', GROUP_RANK: '1' };
    expect(rankEnvironment(far)).toMatchObject({
      rank: 3,
      localRank: 1,
      node: 1,
      isOneHost: false,
      masterAddr: 'node0',
    });
    expect(rankEnvironment({ RANK: '0', WORLD_SIZE: '1' })).toMatchObject({ source: 'torchrun', worldSize: 1 });
  });

  it('may have fewer ranks on this host than on others, and an IPv6 master', () => {
    const uneven = { ...torchrun, RANK: '2', WORLD_SIZE: '3', LOCAL_RANK: '0', LOCAL_WORLD_SIZE: '1' };
    expect(rankEnvironment({ ...uneven, MASTER_ADDR: 'fd00::1' })).toMatchObject({
      rank: 2,
      localRank: 0,
      localWorldSize: 1,
      masterAddr: 'fd00::1',
      isOneHost: false,
    });
  });

  it('names what was got and what is wanted', () => {
    expect(() => rankEnvironment({ RANK: '0', WORLD_SIZE: '2' })).toThrow(
      'RANK=0, WORLD_SIZE=2 is set but MASTER_ADDR, MASTER_PORT is not',
    );
    expect(() => rankEnvironment({ WORLD_SIZE: '2' })).toThrow(
      'WORLD_SIZE=2 is set but RANK, MASTER_ADDR, MASTER_PORT is not',
    );
    expect(() => rankEnvironment({ ...torchrun, RANK: '2' })).toThrow(
      'RANK must be a whole number from 0 to 1 but is "2"',
    );
    expect(() => rankEnvironment({ ...torchrun, WORLD_SIZE: 'two' })).toThrow(
      'WORLD_SIZE must be a whole number of 1 or more but is "two"',
    );
    expect(() => rankEnvironment({ ...torchrun, MASTER_PORT: '70000' })).toThrow(
      'MASTER_PORT must be a whole number from 1 to 65535 but is "70000"',
    );
    expect(() => rankEnvironment({ ...torchrun, MASTER_PORT: '65535' })).toThrow('set RANKZERO_PORT');
  });
});

const slurm = {
  SLURM_STEP_ID: '0',
  SLURM_PROCID: '5',
  SLURM_NTASKS: '8',
  SLURM_LOCALID: '1',
  SLURM_NODEID: '1',
  SLURM_STEP_TASKS_PER_NODE: '4(x2)',
  SLURM_STEP_NODELIST: 'gpu[07-08]',
  SLURM_JOB_ID: '4242',
};

describe('Slurm', () => {
  it('is read', () => {
    expect(rankEnvironment(slurm)).toMatchObject({
      source: 'slurm',
      rank: 5,
      worldSize: 8,
      localRank: 1,
      localWorldSize: 4,
      numNodes: 2,
      node: 1,
      masterAddr: 'gpu07',
      masterPort: 29984,
      isOneHost: false,
    });
    const oneNode = { SLURM_STEP_TASKS_PER_NODE: '8', SLURM_NODEID: '0', SLURM_LOCALID: '5', MASTER_PORT: '30000' };
    expect(rankEnvironment({ ...slurm, ...oneNode })).toMatchObject({
      isOneHost: true,
      localWorldSize: 8,
      masterPort: 30000,
    });
    expect(() => rankEnvironment({ ...slurm, SLURM_LOCALID: undefined })).toThrow(
      'SLURM_LOCALID must be a whole number from 0 to 3 but is not set',
    );
    expect(() => rankEnvironment({ ...slurm, SLURM_STEP_NODELIST: undefined })).toThrow(
      'SLURM_STEP_NODELIST or MASTER_ADDR is not set, and only 4 ranks are on this host',
    );
  });

  it('may have another number of tasks on each node, and deal them out in turn', () => {
    const uneven = { ...slurm, SLURM_NTASKS: '3', SLURM_STEP_TASKS_PER_NODE: '2,1' };
    const last = { ...uneven, SLURM_PROCID: '2', SLURM_LOCALID: '0' };
    expect(rankEnvironment(last)).toMatchObject({ rank: 2, localRank: 0, localWorldSize: 1, isOneHost: false });
    const first = { ...uneven, SLURM_PROCID: '1', SLURM_LOCALID: '1', SLURM_NODEID: '0' };
    expect(rankEnvironment(first)).toMatchObject({ rank: 1, localRank: 1, localWorldSize: 2, isOneHost: false });
    const cyclic = { ...slurm, SLURM_NTASKS: '4', SLURM_STEP_TASKS_PER_NODE: '2(x2)', SLURM_PROCID: '3' };
    expect(rankEnvironment(cyclic)).toMatchObject({ rank: 3, localRank: 1, node: 1, localWorldSize: 2 });
    expect(() => rankEnvironment({ ...last, SLURM_NTASKS: '4' })).toThrow(
      'SLURM_STEP_TASKS_PER_NODE "2,1" has 3 tasks, but the step has 4',
    );
  });

  it('makes no rank of an sbatch script, and takes the tasks of the step', () => {
    const script = { ...slurm, SLURM_STEP_ID: undefined, SLURM_PROCID: '0', WORLD_SIZE: '8' };
    expect(rankEnvironment(script)).toMatchObject({ source: 'single', worldSize: 1 });
    // A shell that salloc starts is a step of one task, in a job of several.
    const shell = { ...slurm, SLURM_PROCID: '0', SLURM_NODEID: '0', SLURM_LOCALID: '0', SLURM_STEP_NUM_TASKS: '1' };
    expect(rankEnvironment({ ...shell, SLURM_STEP_TASKS_PER_NODE: '1' })).toMatchObject({ worldSize: 1 });
  });

  it('has lists of nodes and of tasks', () => {
    for (const [list, hosts] of [
      ['node1', ['node1']],
      ['a,b', ['a', 'b']],
      ['node[03-05,12],x', ['node03', 'node04', 'node05', 'node12', 'x']],
      ['n[1,3-4]', ['n1', 'n3', 'n4']],
      ['n[098-101]', ['n098', 'n099', 'n100', 'n101']],
      ['n[9-11]', ['n9', 'n10', 'n11']],
      ['rack-2-n[010-011].local', ['rack-2-n010.local', 'rack-2-n011.local']],
      ['r[1-2]n[1,4]', ['r1n1', 'r1n4', 'r2n1', 'r2n4']],
    ] as const) {
      expect(slurmHosts(list)).toEqual(hosts);
    }
    for (const bad of ['node[x', 'n[3-1]', 'a,,b', '', 'n[]', 'n[1-]'])
      expect(() => slurmHosts(bad)).toThrow(`SLURM_STEP_NODELIST "${bad}" is not a node list`);
    expect(slurmTasks('2,1')).toEqual([2, 1]);
    expect(slurmTasks('1(x2)')).toEqual([1, 1]);
    expect(slurmTasks('4(x2),3')).toEqual([4, 4, 3]);
    expect(() => slurmTasks('4x2')).toThrow('is not a list of tasks per node');
  });
});

describe('Open MPI', () => {
  const openMpi = {
    OMPI_COMM_WORLD_RANK: '2',
    OMPI_COMM_WORLD_SIZE: '4',
    OMPI_COMM_WORLD_LOCAL_RANK: '2',
    OMPI_COMM_WORLD_LOCAL_SIZE: '4',
  };

  it('is read', () => {
    expect(rankEnvironment(openMpi)).toMatchObject({
      source: 'openmpi',
      rank: 2,
      localRank: 2,
      masterAddr: '127.0.0.1',
      isOneHost: true,
    });
    const far = { ...openMpi, OMPI_COMM_WORLD_LOCAL_RANK: '0', OMPI_COMM_WORLD_LOCAL_SIZE: '2' };
    expect(rankEnvironment({ ...far, MASTER_ADDR: 'h0' })).toMatchObject({ localWorldSize: 2, isOneHost: false });
    expect(() => rankEnvironment(far)).toThrow('MASTER_ADDR (mpirun -x MASTER_ADDR=host) is not set');
  });

  it('wins over the Slurm step that its daemon runs in', () => {
    const daemon = { ...slurm, SLURM_NTASKS: '2', SLURM_PROCID: '1', SLURM_STEP_TASKS_PER_NODE: '1(x2)' };
    expect(rankEnvironment({ ...openMpi, ...daemon })).toMatchObject({ source: 'openmpi', rank: 2, worldSize: 4 });
  });
});

describe('PMI', () => {
  const hydra = { PMI_RANK: '3', PMI_SIZE: '4', MPI_LOCALRANKID: '1', MPI_LOCALNRANKS: '2', MASTER_ADDR: 'h0' };

  it('is read', () => {
    expect(rankEnvironment(hydra)).toMatchObject({
      source: 'pmi',
      rank: 3,
      worldSize: 4,
      localRank: 1,
      localWorldSize: 2,
      isOneHost: false,
    });
    expect(() => rankEnvironment({ ...hydra, MASTER_ADDR: undefined })).toThrow('-env MASTER_ADDR host');
    expect(() => rankEnvironment({ ...hydra, MPI_LOCALNRANKS: undefined })).toThrow('MPI_LOCALNRANKS must be');
  });

  it('of srun are the ranks of Slurm', () => {
    expect(rankEnvironment({ ...slurm, PMI_RANK: '5', PMI_SIZE: '8' })).toMatchObject({ source: 'slurm', rank: 5 });
  });
});

describe('variables of a host', () => {
  const job = { MASTER_ADDR: 'job-master-0', MASTER_PORT: '23456' };

  it('are not those of a rank: PyTorchJob', () => {
    const pod = { ...job, RANK: '1', WORLD_SIZE: '4', PET_NPROC_PER_NODE: '2', PET_NNODES: '2', PET_NODE_RANK: '1' };
    expect(() => rankEnvironment(pod)).toThrow(
      'this process is host 1 (PET_NODE_RANK) of 2 (PET_NNODES), which is to have 2 ranks (PET_NPROC_PER_NODE), and not a rank',
    );
    expect(() => rankEnvironment({ ...pod, PET_NPROC_PER_NODE: 'auto' })).toThrow('not a rank');
  });

  it('are a rank with one rank on each host', () => {
    const pod = { ...job, RANK: '1', WORLD_SIZE: '2', PET_NPROC_PER_NODE: '1', PET_NNODES: '2' };
    expect(rankEnvironment(pod)).toMatchObject({ source: 'torchrun', rank: 1, worldSize: 2, localWorldSize: 1 });
    // What torchrun starts in a pod has the pod's variables too.
    const inside = {
      ...pod,
      PET_NPROC_PER_NODE: '2',
      RANK: '3',
      WORLD_SIZE: '4',
      LOCAL_RANK: '1',
      LOCAL_WORLD_SIZE: '2',
    };
    expect(rankEnvironment(inside)).toMatchObject({ rank: 3, localRank: 1 });
  });

  it('are not those of a rank: TrainJob', () => {
    const pod = { PET_NNODES: '2', PET_NODE_RANK: '0', PET_NPROC_PER_NODE: 'auto', PET_MASTER_ADDR: 'm' };
    expect(() => rankEnvironment(pod)).toThrow('this process is host 0 (PET_NODE_RANK) of 2 (PET_NNODES)');
    expect(rankEnvironment({ ...pod, PET_NNODES: '1' })).toMatchObject({ source: 'single' });
  });

  it('are not those of a rank: SageMaker', () => {
    const toolkit = { SM_HOSTS: '["algo-1","algo-2"]', SM_CURRENT_HOST: 'algo-2' };
    expect(() => rankEnvironment(toolkit)).toThrow('this process is host 1 (SM_HOSTS) of 2 (SM_HOSTS)');
    expect(rankEnvironment({ ...toolkit, ...torchrun })).toMatchObject({ source: 'torchrun' });
  });
});
