// A rank's place in its job, from the variables of every launcher that is understood.
import { describe, expect, it } from 'vitest';
import { firstSlurmHost, rankEnvironment } from '../../src/distributed/environment.ts';
import { jobSecret } from '../../src/distributed/secret.ts';

const torchrun = {
  RANK: '1',
  LOCAL_RANK: '1',
  WORLD_SIZE: '2',
  LOCAL_WORLD_SIZE: '2',
  MASTER_ADDR: '127.0.0.1',
  MASTER_PORT: '29500',
};

describe('rankEnvironment', () => {
  it('is a world of one without any rank', () => {
    expect(rankEnvironment({})).toMatchObject({
      source: 'single',
      rank: 0,
      worldSize: 1,
      localRank: 0,
      isOneHost: true,
    });
    expect(rankEnvironment({ SLURM_JOB_ID: '7', MASTER_PORT: '1234' }).source).toBe('single');
  });

  it('reads torchrun', () => {
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
    const far = { ...torchrun, WORLD_SIZE: '4', RANK: '3', MASTER_ADDR: 'node0' };
    expect(rankEnvironment(far)).toMatchObject({ rank: 3, localRank: 1, isOneHost: false, masterAddr: 'node0' });
    expect(rankEnvironment({ RANK: '0', WORLD_SIZE: '1' })).toMatchObject({ source: 'torchrun', worldSize: 1 });
  });

  it('reads Slurm', () => {
    const slurm = {
      SLURM_PROCID: '5',
      SLURM_NTASKS: '8',
      SLURM_LOCALID: '1',
      SLURM_JOB_NUM_NODES: '2',
      SLURM_TASKS_PER_NODE: '4(x2)',
      SLURM_JOB_NODELIST: 'gpu[07-08]',
      SLURM_JOB_ID: '4242',
    };
    expect(rankEnvironment(slurm)).toMatchObject({
      source: 'slurm',
      rank: 5,
      worldSize: 8,
      localRank: 1,
      localWorldSize: 4,
      masterAddr: 'gpu07',
      masterPort: 29984,
      isOneHost: false,
    });
    expect(rankEnvironment({ ...slurm, SLURM_JOB_NUM_NODES: '1', MASTER_PORT: '30000' })).toMatchObject({
      isOneHost: true,
      localWorldSize: 8,
      masterPort: 30000,
    });
    expect(() => rankEnvironment({ ...slurm, SLURM_LOCALID: undefined })).toThrow(
      'SLURM_LOCALID must be a whole number from 0 to 7 but is not set',
    );
    expect(() => rankEnvironment({ ...slurm, SLURM_JOB_NODELIST: undefined })).toThrow(
      'SLURM_JOB_NODELIST or MASTER_ADDR is not set, and only 4 ranks are on this host',
    );
  });

  it('reads the first host of a node list', () => {
    for (const [list, host] of [
      ['node1', 'node1'],
      ['a,b', 'a'],
      ['node[03-07,12],x', 'node03'],
      ['n[1,3-4]', 'n1'],
      ['rack-2-n[010-011].local', 'rack-2-n010.local'],
    ]) {
      expect(firstSlurmHost(list!)).toBe(host);
    }
    expect(() => firstSlurmHost('node[x')).toThrow('is not a node list');
  });

  it('reads Open MPI', () => {
    const ompi = {
      OMPI_COMM_WORLD_RANK: '2',
      OMPI_COMM_WORLD_SIZE: '4',
      OMPI_COMM_WORLD_LOCAL_RANK: '2',
      OMPI_COMM_WORLD_LOCAL_SIZE: '4',
    };
    expect(rankEnvironment(ompi)).toMatchObject({
      source: 'openmpi',
      rank: 2,
      localRank: 2,
      masterAddr: '127.0.0.1',
      isOneHost: true,
    });
    expect(() =>
      rankEnvironment({ ...ompi, OMPI_COMM_WORLD_LOCAL_RANK: '0', OMPI_COMM_WORLD_LOCAL_SIZE: '2' }),
    ).toThrow('MASTER_ADDR (mpirun -x MASTER_ADDR=host) is not set');
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

describe('jobSecret', () => {
  it('comes from RANKZERO_SECRET, and is needed between hosts', () => {
    expect(jobSecret(rankEnvironment(torchrun), { RANKZERO_SECRET: 's' }).secret).toBe('s');
    const far = rankEnvironment({ ...torchrun, WORLD_SIZE: '4', MASTER_ADDR: 'node0' });
    expect(() => jobSecret(far, {})).toThrow(
      /several hosts \(rank 0 on node0\) and have no secret: set RANKZERO_SECRET/,
    );
  });
});
